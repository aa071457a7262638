"""Whose a run is: its owner and admins may change it, everybody who may read may read it."""

import re
from typing import Any

import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from backend.main import create_app
from backend.routes.deps import allow
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.sweep import parse_sweep
from calift_core.schema.wire.operations import ViewSave
from tests.backend.test_api import add_token, problem
from tests.conftest import spec_of

SPEC = {"name": "a run", "method": {"kind": "carot"}}

#: Operations that change what is named in the path; others of scope submit make new things.
CHANGES = {
    "patch_run", "cancel_run", "retry_run", "cancel_evaluation_job", "retry_evaluation_job",
    "cancel_sweep", "pause_sweep", "resume_sweep", "retry_sweep", "delete_view",
}  # fmt: skip


@pytest.fixture
def people(api, services):
    """A header for each kind of credential; `ann` has two tokens."""
    return {
        "none": {"Authorization": ""},
        "ann": add_token(services, "t_ann", "ann", "submit"),
        "ann, another token": add_token(services, "t_ann2", "ann", "submit"),
        "ann, reading": add_token(services, "t_ann3", "ann", "read"),
        "bob": add_token(services, "t_bob", "bob", "submit"),
        "an admin": add_token(services, "t_eve", "eve", "admin"),
        "the file's token": {"Authorization": api.headers["Authorization"]},
    }


def submitted_by(api: TestClient, headers: dict[str, str]) -> str:
    response = api.post("/api/v1/runs", json={"spec": SPEC}, headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def test_owner__is_the_name_of_the_token_that_submitted(api, people):
    for who, owner in (("ann", "ann"), ("ann, another token", "ann"), ("an admin", "eve"),
                       ("the file's token", "admin")):  # fmt: skip
        run_id = submitted_by(api, people[who])
        for path in (f"/api/v1/runs/{run_id}",):
            assert api.get(path).json()["owner"] == owner, who
    assert {run["owner"] for run in api.get("/api/v1/runs").json()["items"]} == {
        "ann",
        "eve",
        "admin",
    }


def test_owner__of_a_clone_is_who_cloned(api, people):
    run_id = submitted_by(api, people["ann"])
    cloned = api.post(f"/api/v1/runs/{run_id}/clone", json={}, headers=people["bob"])
    assert cloned.status_code == 202, cloned.text
    assert cloned.json()["owner"] == "bob"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("runs", {"spec": SPEC}),
        ("evaluations", {"runs": ["0123456789ab"], "shifts": {"art": "folder:/art"}}),
        ("sweeps", {"name": "s", "base": SPEC, "methods": ["flyp"]}),
    ],
)
def test_priority__above_0_is_an_admins(api, people, path, body):
    """Else everybody's runs would come first."""
    for priority in (1, 10):
        answer = api.post(
            f"/api/v1/{path}", json=body | {"priority": priority}, headers=people["ann"]
        )
        found = problem(answer, 403, "FORBIDDEN")
        assert f"got priority {priority} and scope submit" in found.detail
    for who, priority in (("ann", 0), ("ann", -10), ("an admin", 10)):
        answer = api.post(
            f"/api/v1/{path}", json=body | {"priority": priority}, headers=people[who]
        )
        assert answer.status_code == (422 if path == "evaluations" else 202), answer.text


def test_priority__of_a_clone_is_one_that_its_owner_may_have(api, people):
    for given, who, expected in ((5, "ann", 0), (-5, "ann", -5), (5, "an admin", 5)):
        run_id = api.post("/api/v1/runs", json={"spec": SPEC, "priority": given}).json()["id"]
        cloned = api.post(f"/api/v1/runs/{run_id}/clone", json={}, headers=people[who])
        assert cloned.json()["priority"] == expected


class Belongings:
    """Makes objects of an owner, of each kind that a path can name."""

    def __init__(self, services: Any) -> None:
        self._services, self._made = services, 0

    def run_id(self, owner: str | None) -> str:
        return str(self._services.store.runs.submit(spec_of(), submitted_by=owner))

    def job_id(self, owner: str | None) -> str:
        run_id, claims = self.run_id(owner), self._services.store.claims
        assert claims.claim(run_id, worker_id="w", ttl_s=60) is not None
        assert claims.finish(run_id, 1, phase="SUCCEEDED")
        spec = EvaluationJobSpec(runs=(run_id,), shifts={"art": "/art"})
        made = self._services.store.evaluation_jobs.submit(spec, submitted_by=owner)
        return str(made)

    def sweep_id(self, owner: str | None) -> str:
        spec = parse_sweep({"name": "s", "methods": ["flyp", "carot"]})
        made = self._services.store.sweeps.create(
            spec, methods=["flyp", "carot"], estimate=[None, 1.0], runs_at_most=18, token_id="",
            submitted_by=owner,
        )  # fmt: skip
        return str(made)

    def view_id(self, owner: str | None) -> str:
        body = ViewSave(name="v", page="runs", query="q=x")
        return str(self._services.store.views.add(body, owner=owner or "nobody").id)

    def token_id(self, owner: str | None) -> str:
        self._made += 1
        add_token(self._services, f"t_made{self._made}", owner or "nobody", "read")
        return f"t_made{self._made}"

    def worker_id(self, owner: str | None) -> str:
        return f"worker of {owner}"


def test_owner__matrix_of_every_route_every_credential_and_every_owner(app, api, services, people):
    from tests.backend.test_api import SCOPES

    ranks = ["read", "submit", "admin"]
    scope_of_person = dict.fromkeys(people, "submit") | {
        "none": "",
        "ann, reading": "read",
        "an admin": "admin",
        "the file's token": "admin",
    }
    belongings = Belongings(services)
    kinds = [name for name in vars(Belongings) if not name.startswith("_")]
    operations = [
        (method.upper(), path, item["operationId"], kind)
        for template, methods in app.openapi()["paths"].items()
        for path in [template.replace("/runs/{job_id}", "/runs/{run_id}")]
        for method, item in methods.items()
        for kind in kinds
        if f"{{{kind}}}" in path
    ]
    named = {name for _, _, name, _ in operations}
    assert {n for n in named if SCOPES[n] == "submit"} == CHANGES | {"clone_run", "continue_run"}
    assert len(operations) >= 39
    changing = [o for o in operations if SCOPES[o[2]] != "read" or o[2] == "revoke_token"]
    # Who may read may read everybody's: one owner is enough. The last one is from before things
    # had owners.
    for owner, requested in (("ann", operations), ("eve", changing), (None, changing)):
        lasting = {kind: getattr(belongings, kind)(owner) for kind in kinds}
        for who, headers in people.items():
            for method, path, name, kind in requested:
                gone = method == "DELETE"
                it = getattr(belongings, kind)(owner) if gone else lasting[kind]
                filled = re.sub(r"\{[^}]+\}", "abc", path.replace(f"{{{kind}}}", it))
                # The stream of what waits has no end: its scope alone is asked for.
                if name.startswith("stream_"):
                    filled += "?after=x"
                response = api.request(method, filled, headers=headers)
                place = (who, owner, method, path, response.status_code)
                scope = scope_of_person[who]
                theirs = scope != "admin" and not who.startswith(f"{owner}")
                if not scope:
                    assert response.status_code == 401, place
                elif ranks.index(scope) < ranks.index(SCOPES[name]):
                    assert response.status_code == 403, place
                    assert response.json()["code"] == "FORBIDDEN", place
                elif name in CHANGES and theirs:
                    assert response.status_code == 403, place
                    assert response.json()["code"] == "NOT_YOURS", place
                elif name == "revoke_token" and theirs:
                    assert response.status_code == 404, place
                else:
                    assert response.status_code in (200, 202, 204, 404, 409, 422), place


def test_owner__what_another_refused_has_not_changed(api, people):
    run_id = submitted_by(api, people["ann"])
    path = f"/api/v1/runs/{run_id}"
    before = api.get(path).json()
    refused = api.patch(path, json={"name": "mine"}, headers=people["bob"])
    assert refused.status_code == 403
    assert "ann" in refused.json()["detail"]
    assert api.post(f"{path}/cancel", headers=people["bob"]).status_code == 403
    assert api.get(path).json() == before
    assert api.post(f"{path}/cancel", headers=people["ann, another token"]).status_code == 202
    assert api.post(f"{path}/retry", headers=people["an admin"]).status_code == 202
    missing = api.post("/api/v1/runs/abc/cancel", headers=people["bob"])
    assert missing.status_code == 404


def test_owner__data_sets_are_added_to_ones_own_imports_alone(api, people, tmp_path):
    from calift_core.predictions.write import write_predictions
    from tests.conftest import example_predictions

    def upload(who, dataset, **params):
        file = tmp_path / f"{dataset}.parquet"
        write_predictions(file, example_predictions(1, n=60, dataset=dataset, role="id"))
        return api.post(
            "/api/v1/predictions",
            params=params,
            content=file.read_bytes(),
            headers=people[who] | {"Content-Type": "application/vnd.apache.parquet"},
        )

    made = upload("ann", "one")
    assert made.status_code == 201, made.text
    run_id = made.json()["id"]
    assert made.json()["owner"] == "ann"
    refused = upload("bob", "two", run=run_id)
    assert (refused.status_code, refused.json()["code"]) == (403, "NOT_YOURS")
    assert len(api.get(f"/api/v1/runs/{run_id}/evaluations").json()) == 1
    assert upload("ann", "two", run=run_id).status_code == 201
    assert upload("bob", "two", run="nobody").status_code == 404


def test_owner__route_that_forgets_to_say_is_for_owners(settings, spec_of):
    app = create_app(settings, housekeeping=False)
    router = APIRouter()

    @router.post("/api/v1/runs/{run_id}/forgotten")
    @allow("submit")
    def forgotten(run_id):
        return run_id

    app.include_router(router)
    with TestClient(app, base_url="http://127.0.0.1") as caller:
        services = app.state.services
        bob = add_token(services, "t_bob", "bob", "submit")
        run_id = services.store.runs.submit(spec_of())
        refused = caller.post(f"/api/v1/runs/{run_id}/forgotten", headers=bob)
        assert refused.json()["code"] == "NOT_YOURS"


def test_owner__nobody_is_called_admin(services, api):
    from calift_core.errors import SpecError

    with pytest.raises(SpecError, match="admin"):
        add_token(services, "t_x", "admin", "submit")
    with pytest.raises(SpecError, match="name"):
        add_token(services, "t_y", "  ", "submit")
