"""The REST API: who may do what, what every error looks like, and that its views agree."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import APIRouter
from sqlalchemy import text
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from backend.http.authentication import hash_token
from backend.http.problems import MEDIA_TYPE
from backend.main import create_app
from backend.routes.deps import scope_of
from backend.store.engine import writing
from calift_core import calibration
from calift_core.data.suites.load import load_suite
from calift_core.schema import records as r
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.wire.service import Problem
from tests.conftest import as_admin, at_once, example_predictions, example_spectrum, spec_of, walked

SPEC = {"name": "a run", "method": {"kind": "carot"}}
SNAPSHOT = Path(__file__).parent / "openapi.json"


@pytest.fixture
def settings(make_settings, database_url):
    """Hundreds of calls in a moment, from one address: the limit has a test of its own."""
    return make_settings(database_url=database_url, requests_per_minute=10_000_000)


def problem(response: Any, status: int, code: str) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    found = Problem.model_validate(response.json())
    assert (found.status, found.code) == (status, code)
    assert found.detail
    assert found.request_id
    assert response.headers["x-request-id"] == found.request_id
    return found


def submit(api: TestClient, **body: Any) -> dict[str, Any]:
    response = api.post("/api/v1/runs", json={"spec": SPEC} | body)
    assert response.status_code == 202, response.text
    return dict(response.json())


def operations(app: Any) -> list[tuple[str, str]]:
    """Every (method, path) of the application, with the paths' parameters filled in."""
    found = [
        (method.upper(), re.sub(r"\{[^}]+\}", "abc", path))
        for path, item in app.openapi()["paths"].items()
        for method in item
    ]
    return [*found, *OPEN_ON_LOOPBACK]


#: Descriptions: they take a token only where others than this machine reach the service.
OPEN_ON_LOOPBACK = [("GET", "/api/v1/openapi.json"), ("GET", "/docs"), ("GET", "/metrics")]


def flat(routes: Any, prefix: str = "") -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from flat(inner.routes) if inner is not None else [route]


#: What a route asks for. A route that is not here must be added on purpose.
SCOPES = {
    name: scope
    for scope, names in {
        "open": """
            get_health get_readiness
        """,
        "submit": """
            submit_run validate_run patch_run cancel_run retry_run clone_run continue_run
            import_predictions submit_evaluation validate_evaluation cancel_evaluation_job
            retry_evaluation_job change_runs save_view tag_images make_feature_map delete_view
            submit_sweep validate_sweep scan_dataset find_copies list_folders upload_dataset
            delete_dataset cancel_sweep pause_sweep resume_sweep retry_sweep
        """,
        "admin": """
            delete_run delete_evaluation_job drain_worker resume_worker list_audit preview_prune
            prune
        """,
        "read": """
            make_token list_runs list_run_groups get_run get_metrics stream_events list_events
            list_checkpoints list_artifacts download_artifact get_logs list_run_evaluations
            list_spectra get_report get_frontier list_evaluations get_evaluation get_reliability
            list_prompts get_measures get_audit list_slices list_run_slices get_calibrator
            get_transfer get_budget list_samples get_sample_traits get_thumbnail list_image_tags
            get_feature_map get_sample_looks list_doubtful_labels list_sample_answers
            download_predictions compare_runs get_leaders get_ledger get_decision get_ood
            get_bound_monitor get_stats try_picture get_text_features download_model
            judge_predictions correct_labels list_initial_runs list_methods list_models
            list_datasets list_suites list_workers get_openapi get_docs open_session make_link
            get_visitor end_session list_evaluation_jobs get_evaluation_job list_job_evaluations
            stream_evaluation_job_events list_evaluation_job_events get_evaluation_job_logs
            list_views get_view list_tokens revoke_token scrape_metrics list_sweeps get_sweep
            list_sweep_runs get_sweep_verdict get_run_thumbnail
        """,
    }.items()
    for name in names.split()
}


def test_scopes__every_route_has_the_scope_that_was_decided(app):
    found = {route.name: scope_of(route.endpoint) for route in flat(app.routes)}
    assert found == SCOPES


def add_token(services: Any, token_id: str, name: str, scope: str) -> dict[str, str]:
    """A header of a new token."""
    token = f"{token_id}.{'s' * 32}"
    services.store.tokens.add(token_id, name=name, scope=scope, secret_sha256=hash_token(token))
    return {"Authorization": f"Bearer {token}"}


def tokens(services: Any) -> dict[str, str | None]:
    """A header value for each kind of caller."""
    scopes = {"read": "read", "submit": "submit", "admin": "admin"}
    made = {
        name: add_token(services, f"clft_{name}", name, scope)["Authorization"]
        for name, scope in (scopes | dict.fromkeys(("expired", "revoked"), "admin")).items()
    }
    services.store.tokens.revoke("clft_revoked")
    with writing(services.store.engine) as connection:
        connection.execute(
            text("UPDATE tokens SET expires_at = created_at - 1 WHERE id = 'clft_expired'")
        )
    admin = services.settings.admin_token()
    return made | {
        "none": None,
        "empty": "",
        "another kind": f"Basic {admin}",
        "no secret": f"Bearer {admin.split('.')[0]}",
        "wrong secret": f"Bearer {admin}x",
        "another's secret": f"Bearer clft_read.{'t' * 32}",
        "unknown": "Bearer clft_nobody.ssssssssssssssssssssssss",
        "control characters": "Bearer a\tb.c",
    }


def test_auth__matrix_of_every_route_and_every_kind_of_token(app, bare, services):
    ranks = ["read", "submit", "admin"]
    nonsense = "?limit=x&cursor=%ED%B2%80"  # of which a stranger learns nothing
    needed = {
        (method, re.sub(r"\{[^}]+\}", "abc", path)): SCOPES[item["operationId"]]
        for path, methods in app.openapi()["paths"].items()
        for method, item in ((m.upper(), i) for m, i in methods.items())
    } | dict.fromkeys(OPEN_ON_LOOPBACK, "open")
    seen = set()
    for kind, header in tokens(services).items():
        for method, path in operations(app):
            scope = needed[method, path]
            requested = path + nonsense * (kind not in ranks and scope != "open")
            response = bare.request(
                method, requested, headers={} if header is None else {"Authorization": header}
            )
            seen.add((method, path))
            if scope == "open":
                assert response.status_code == 200
            elif kind not in ranks:
                assert response.status_code == 401, (kind, method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["code"].startswith(("UNAUTHENTICATED", "TOKEN_"))
            elif ranks.index(kind) < ranks.index(scope):
                problem(response, 403, "FORBIDDEN")
            else:
                # Let through: the run does not exist, something is missing from the request, or
                # a token is no session that can be ended.
                through = response.status_code in (200, 201, 404, 409, 422)
                assert through, (kind, method, path, response.text)
    assert len(seen) == len(SCOPES)


def test_auth__token_of_the_file_is_admin_and_its_hash_is_not_a_token(bare, settings):
    token = settings.admin_token()
    assert bare.get("/api/v1/runs", headers={"Authorization": f"bearer {token}"}).is_success
    problem(
        bare.get("/api/v1/runs", headers={"Authorization": f"Bearer {hash_token(token)}"}),
        401,
        "TOKEN_INVALID",
    )


def test_auth__route_added_later_is_closed(settings, home):
    app = create_app(settings, housekeeping=False)
    router = APIRouter()

    @router.get("/api/v1/forgotten")
    def forgotten():
        return "secret"

    @app.get("/loose")
    def loose():
        return "secret"

    async def raw(request):
        return PlainTextResponse("secret")

    app.include_router(router)
    app.router.routes.append(Route("/raw", raw))
    app.router.routes.append(Mount("/mounted", routes=[Route("/", raw)]))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as caller:
        read = add_token(app.state.services, "clft_r", "r", "read")
        for path in ("/api/v1/forgotten", "/loose"):
            problem(caller.get(path), 401, "UNAUTHENTICATED")
            problem(caller.get(path, headers=read), 403, "FORBIDDEN")
        for path in ("/raw", "/mounted/"):
            response = caller.get(path)
            assert response.status_code == 500
            assert "secret" not in response.text


def test_auth__unknown_paths_say_nothing_without_a_token(bare):
    for method, path in (("GET", "/"), ("GET", "/doc"), ("PUT", "/api/v1/runs"), ("GET", "/x/y")):
        problem(bare.request(method, path), 401, "UNAUTHENTICATED")


def test_problem__of_every_kind(api, services, finished_run):
    get, post = api.get, api.post
    problem(get("/nowhere"), 404, "NOT_FOUND")
    problem(get("/api/v1/runs/nobody"), 404, "NOT_FOUND")
    problem(get("/api/v1/evaluations/nobody"), 404, "NOT_FOUND")
    refused = api.put("/api/v1/runs")
    problem(refused, 405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == "GET, HEAD, POST"
    problem(post("/api/v1/runs", content="x", headers={"content-type": "text/plain"}), 415,
            "UNSUPPORTED_MEDIA_TYPE")  # fmt: skip
    as_json = {"content-type": "application/json"}
    problem(post("/api/v1/runs", content="{", headers=as_json), 400, "BAD_JSON")
    problem(post("/api/v1/runs", content=b"\xff", headers=as_json), 400, "BAD_JSON")
    problem(post("/api/v1/runs", content="[" * 100_000, headers=as_json), 400, "BAD_JSON")
    problem(post("/api/v1/runs", content="x" * (1 << 21), headers=as_json), 413, "BODY_TOO_LARGE")
    pieces = (b" " * 1000 for _ in range(2000))
    problem(post("/api/v1/runs", content=pieces, headers=as_json), 413, "BODY_TOO_LARGE")
    problem(get("/api/v1/runs", headers={"host": "evil.example"}), 400, "HOST_NOT_ALLOWED")
    problem(get("/api/v1/runs?q=%00"), 400, "BAD_REQUEST")
    problem(get("/api/v1/runs/%00"), 400, "BAD_REQUEST")
    problem(get("/api/v1/runs?cursor=abc"), 422, "INVALID_CURSOR")
    problem(
        post("/api/v1/runs", json={"spec": SPEC}, headers={"Idempotency-Key": "x" * 201}),
        422,
        "INVALID_REQUEST",
    )
    run_id = finished_run(services.store, services.artifacts)
    problem(post(f"/api/v1/runs/{run_id}/retry"), 409, "CONFLICT")
    problem(get(f"/api/v1/runs/{run_id}/artifacts/nothing"), 404, "NOT_FOUND")
    problem(get(f"/api/v1/compare?run_id={run_id}&run_id={run_id}"), 422, "INVALID_SPEC")
    queued = submit(api)["id"]
    problem(get(f"/api/v1/runs/{queued}/report"), 404, "NOT_FOUND")
    services.store.claims.claim(queued, worker_id="w", ttl_s=60)
    problem(api.delete(f"/api/v1/runs/{queued}"), 409, "CONFLICT")


def test_problem__says_where_and_what_was_meant(api):
    found = problem(api.get("/api/v1/runs?limit=201&sort=size"), 422, "INVALID_REQUEST")
    assert {(e["in"], e["parameter"]) for e in found.errors} == {
        ("query", "limit"),
        ("query", "sort"),
    }
    found = problem(
        api.post("/api/v1/runs", json={"spec": SPEC | {"method": {"kind": "carrot"}}}),
        422,
        "INVALID_SPEC",
    )
    assert "Did you mean 'carot'?" in found.errors[0]["message"]


@pytest.mark.parametrize("evil", ["a\x00b", "\ud800"])
def test_problem__texts_that_no_database_holds_are_refused(api, evil):
    headers = {"content-type": "application/json"}

    def send(method, path, body):
        return api.request(method, path, content=json.dumps(body), headers=headers)

    spec = SPEC | {"notes": evil}
    found = problem(send("POST", "/api/v1/runs", {"spec": spec}), 422, "INVALID_SPEC")
    assert found.errors[0]["pointer"] == "#/spec/notes"
    named = SPEC | {"suite": {"class_names": {evil: "x"}}}
    assert send("POST", "/api/v1/runs", {"spec": named}).status_code == 422
    run_id = submit(api)["id"]
    assert send("PATCH", f"/api/v1/runs/{run_id}", {"notes": evil}).status_code == 422
    assert send("PATCH", f"/api/v1/runs/{run_id}", {"tags": [evil]}).status_code == 422
    cloned = send("POST", f"/api/v1/runs/{run_id}/clone", {"changes": {"notes": evil}})
    assert cloned.status_code == 422


@pytest.mark.parametrize("path", ["~nobody-knows/x", "x" * 256, "x/" * 2100], ids=len)
def test_problem__paths_that_no_disk_has_are_not_there(api, path):
    for name in (path, f"folder:{path}", f"zip:{path}"):
        assert api.get("/api/v1/datasets/copies", params={"suite": name}).status_code == 422
    for group in (
        {"suite": {"id": f"folder:{path}"}},
        {"suite": {"shifts": {"a": f"zip:{path}"}}},
        {"model": {"name": f"{path}.json"}},
        {"model": {"name": f"local-dir:{path}", "pretrained": None}},
        {"model": {"pretrained": f"{path}.pt"}},
    ):
        found = api.post("/api/v1/runs/validate", json=SPEC | group).json()
        assert found["errors"] or found["blocking"], group


def test_problem__unexpected_error_shows_nothing_of_itself(bare, settings, services, monkeypatch):
    def broken():
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(services.store.workers, "recent", broken)
    headers = {"Authorization": f"Bearer {settings.admin_token()}", "X-Request-ID": "my-request-1"}
    response = bare.get("/api/v1/workers", headers=headers)
    assert problem(response, 500, "INTERNAL").request_id == "my-request-1"
    assert "hunter2" not in response.text


def test_problem__too_many_requests(make_settings, sqlite_url):
    settings = make_settings(database_url=sqlite_url, requests_per_minute=40)
    with as_admin(settings) as caller:
        answers = [caller.get("/api/v1/methods") for _ in range(30)]
        refused = [a for a in answers if a.status_code == 429]
        assert len(refused) >= 15
        problem(refused[0], 429, "RATE_LIMITED")
        assert int(refused[0].headers["retry-after"]) >= 1
        # Another caller has a bucket of its own.
        for _ in range(10):
            assert caller.get("/api/v1/methods", headers={"Authorization": ""}).status_code == 401
        assert caller.get("/api/v1/methods", headers={"Authorization": ""}).status_code == 429
        # A container whose health check got six 429s was ended: no rate holds for probes.
        del caller.headers["Authorization"]
        for path in ("/api/v1/health", "/api/v1/readyz"):
            for method in ("GET", "HEAD"):
                assert {caller.request(method, path).status_code for _ in range(15)} == {200}
            assert caller.get(path, headers={"Host": "evil.example"}).status_code == 400
            assert caller.post(path, json={}).status_code in (401, 429)


@pytest.mark.parametrize("limit", ["max_queued", "quota_queued"])
def test_problem__queue_cap(make_settings, sqlite_url, limit):
    with as_admin(make_settings(database_url=sqlite_url, **{limit: 2})) as caller:
        first = submit(caller)["id"]
        submit(caller)
        refused = problem(caller.post("/api/v1/runs", json={"spec": SPEC}), 429, "QUEUE_FULL")
        assert limit == "max_queued" or "2 runs of admin are waiting" in refused.detail
        problem(caller.post(f"/api/v1/runs/{first}/clone", json={}), 429, "QUEUE_FULL")
        caller.post(f"/api/v1/runs/{first}/cancel")
        submit(caller)
        problem(caller.post(f"/api/v1/runs/{first}/retry"), 429, "QUEUE_FULL")


def test_submit__answers_202_with_location(api):
    response = api.post("/api/v1/runs", json={"spec": SPEC, "priority": 4})
    assert response.status_code == 202
    run = response.json()
    assert response.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert run["phase"] == "QUEUED"
    assert run["spec"]["method"]["lambda_oc"] == 0.2, "defaults are filled in"
    assert api.get(response.headers["location"]).json() == run


def test_validate__tells_faults_and_costs_without_storing(api, tmp_path):
    answer = api.post("/api/v1/runs/validate", json={"spec": SPEC | {"train": {"lr": -1}}}).json()
    assert not answer["valid"]
    assert [e["pointer"] for e in answer["errors"]] == ["#/spec/train/lr"]
    pixel = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
    for part, count in (("train/a", 30), ("train/b", 20), ("test/a", 4), ("test/b", 6)):
        (tmp_path / "data" / part).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "data" / part / f"{index}.gif").write_bytes(pixel)
    spec = SPEC | {
        "suite": {
            "id": f"folder:{tmp_path / 'data'}",
            "shifts": {"sketch": f"folder:{tmp_path / 'data'}", "gone": "folder:/no/such"},
            "corruptions": {"names": ["fog", "snow"], "severities": [1, 5], "limit": 5},
        },
        "train": {"epochs": 3, "batch_size": 16},
    }
    answer = api.post("/api/v1/runs/validate", json={"spec": spec}).json()
    assert answer["valid"]
    # 50 training images less a tenth each, by hash, for validation and calibration.
    parts = load_suite(SuiteSpec(id=f"folder:{tmp_path / 'data'}")).parts
    n = len(parts["train"])
    assert n < 50
    assert answer["estimate"]["train_images"] == n
    assert answer["estimate"]["steps"] == 3 * (n // 16)
    assert answer["estimate"]["evaluation_images"] is None  # of the shift that is gone
    assert [sentence for sentence in answer["blocking"] if "'gone'" in sentence]
    del spec["suite"]["shifts"]["gone"]
    whole = api.post("/api/v1/runs/validate", json={"spec": spec}).json()
    assert whole["estimate"]["evaluation_images"] == 10 + 10 + 4 * 5
    assert whole["estimate"]["selection_images"] == 50 - n
    assert whole["blocking"] == []
    assert any("'gone'" in sentence for sentence in answer["missing"])
    assert any("No worker" in sentence for sentence in answer["missing"])
    assert api.get("/api/v1/runs").json()["total"] == 0


def test_submit__exposed_service_reads_only_its_roots(make_settings, sqlite_url, tmp_path):
    root = tmp_path / "data"
    for name in ("cat", "dog"):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(20):
            (root / "photos" / name / f"{index}.png").touch()
    (root / "out").symlink_to("/")
    exposed = {"host": "0.0.0.0", "token": "ci." + "s" * 32, "allowed_hosts": ["calift.example"]}
    settings = make_settings(database_url=sqlite_url, data_roots=[root], **exposed)
    with as_admin(settings, base_url="http://calift.example") as caller:

        def faults(**changes):
            answer = caller.post("/api/v1/runs/validate", json={"spec": SPEC | changes})
            return [e["pointer"] for e in answer.json()["errors"]]

        assert faults(suite={"id": f"folder:{root}/photos"}) == []
        for path in (f"{root}/../secret", f"{root}/out/etc", "/etc", "photos", f"{root}x", "~"):
            assert faults(suite={"id": f"folder:{path}"}) == ["#/spec/suite/id"], path
            named = "./photos" if path == "photos" else path  # a bare word is a domain of pacs
            for uri in (f"pacs:{named}", f"imagenet:{path}#", f"domains:{path}#photos"):
                assert faults(suite={"id": uri}) == ["#/spec/suite/id"], uri
            assert faults(suite={"shifts": {"s": f"folder:{path}"}}) == ["#/spec/suite/shifts/s"]
            model = {"name": "ViT-B-16", "pretrained": f"{path}/w.pt"}
            assert faults(model=model) == ["#/spec/model/pretrained"], path
        assert faults(model={"name": "hf-hub:org/model"}) == ["#/spec/model/name"]
        assert faults(model={"name": "local-dir:/etc"}) == ["#/spec/model/name"]
        assert faults(model={"name": f"local-dir:{root}/models"}) == []
        assert faults(model={"name": "/etc/x.json", "pretrained": None}) == ["#/spec/model/name"]
        assert faults(model={"name": "ViT-B-16", "pretrained": "../../x"}) == [
            "#/spec/model/pretrained"
        ]


@pytest.mark.parametrize("allowed", [False, True])
def test_remote_models__what_would_be_downloaded_is_refused_where_that_is_off(
    make_settings, sqlite_url, home, monkeypatch, allowed
):
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with as_admin(make_settings(database_url=sqlite_url, allow_remote_models=allowed)) as caller:

        def faults(name, pretrained=None):
            spec = SPEC | {"model": {"name": name, "pretrained": pretrained}}
            answer = caller.post("/api/v1/runs/validate", json={"spec": spec}).json()
            for error in answer["errors"]:
                assert "CALIFT_ALLOW_REMOTE_MODELS=1 allows them" in error["message"]
                assert "local-dir:FOLDER" in error["message"]
            return [e["pointer"].removeprefix("#/spec/model/") for e in answer["errors"]]

        assert faults("hf-hub:org/model") == ([] if allowed else ["name"])
        for name, tag in (("ViT-B-16", "openai"), ("ViT-B-16", "metaclip_400m"), ("No", "such")):
            assert faults(name, tag) == ([] if allowed else ["pretrained"])
        assert faults("ViT-B-16") == []  # random weights
        assert faults("calift-tiny", "fashion-mnist") == []
        assert faults("ViT-B-16", f"{home}/weights.safetensors") == []
        assert faults(f"local-dir:{home}/model") == []
        repository = "models--timm--vit_base_patch16_clip_224.openai"
        snapshot = home / "hub" / "hub" / repository / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / "open_clip_model.safetensors").write_bytes(b"here")
        assert faults("ViT-B-16", "openai") == []

        monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
        suite = {"id": "hf:acme/birds", "shifts": {"night": f"hf:{home}/night"}}
        requested = {"spec": SPEC | {"suite": suite}}
        output = caller.post("/api/v1/runs/validate", json=requested).json()["errors"]
        refused = [e["message"] for e in output if "Downloads are off here" in e["message"]]
        assert len(refused) == (0 if allowed else 1)


def test_patch__changes_only_what_was_given(api):
    run = submit(api, spec=SPEC | {"notes": "old", "tags": ["a"]})
    path = f"/api/v1/runs/{run['id']}"
    patched = api.patch(path, json={"tags": ["b", "c", "b"], "archived": True}).json()
    assert patched == run | {"tags": ["b", "c"], "archived": True}
    assert api.get("/api/v1/runs").json()["items"] == []
    assert api.get("/api/v1/runs?archived=any&tag=b").json()["total"] == 1
    assert api.get("/api/v1/runs?archived=true&tag=a").json()["total"] == 0
    found = problem(api.patch(path, json={"name": "<b>"}), 422, "INVALID_SPEC")
    assert found.errors[0]["pointer"] == "#/name"
    assert api.patch(path, json={}).json() == patched


def test_clone__merges_changes(api):
    run = submit(api, spec=SPEC | {"notes": "old"}, priority=3)
    response = api.post(
        f"/api/v1/runs/{run['id']}/clone",
        json={"changes": {"train": {"epochs": 3}, "notes": None, "method": {"kind": "flyp"}}},
    )
    # A merge patch keeps the options of the other method, which flyp does not have.
    assert response.status_code == 422
    method = dict.fromkeys(run["spec"]["method"]) | {"kind": "flyp"}
    response = api.post(
        f"/api/v1/runs/{run['id']}/clone",
        json={"changes": {"train": {"epochs": 3}, "notes": None, "method": method}},
    )
    assert response.status_code == 202, response.text
    clone = response.json()
    assert clone["cloned_from"] == run["id"]
    assert clone["spec"]["train"] == run["spec"]["train"] | {"epochs": 3}
    assert clone["spec"]["method"] == {"kind": "flyp"}
    assert (clone["notes"], clone["priority"]) == ("", 3)
    assert clone["name"] == "a run (copy)"
    named = api.post(f"/api/v1/runs/{run['id']}/clone", json={"name": "mine"}).json()
    assert named["name"] == "mine"
    assert named["spec_sha256"] == run["spec_sha256"]


def test_cancel_and_retry__are_repeatable(api):
    path = f"/api/v1/runs/{submit(api)['id']}"
    for _ in range(2):
        response = api.post(f"{path}/cancel")
        assert (response.status_code, response.json()["phase"]) == (202, "CANCELLED")
    for _ in range(2):
        response = api.post(f"{path}/retry")
        assert (response.status_code, response.json()["phase"]) == (202, "QUEUED")


def test_delete__takes_the_files_that_no_other_run_names(api, services, finished_run):
    first = finished_run(services.store, services.artifacts, seed=1)
    second = finished_run(services.store, services.artifacts, seed=1)
    root = services.artifacts.root
    stored = {p.name for p in root.rglob("*") if p.is_file()}
    assert len(stored) == 2
    assert api.delete(f"/api/v1/runs/{first}").status_code == 204
    assert {p.name for p in root.rglob("*") if p.is_file()} == stored
    assert api.delete(f"/api/v1/runs/{second}").status_code == 204
    assert [p for p in root.rglob("*") if p.is_file()] == []
    problem(api.delete(f"/api/v1/runs/{second}"), 404, "NOT_FOUND")


@pytest.fixture
def working(services, api):
    run_id = services.store.runs.submit(spec_of())
    assert services.store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    return run_id


def test_metrics__since_step_and_max_points(api, services, working):
    values = [float(v) for v in np.random.default_rng(0).normal(size=500)]
    values[123] = 99.0
    services.store.records.record(
        working,
        1,
        [
            r.MetricsRecord(step=s, epoch=0.0, values={"loss": v, "lr": 1.0})
            for s, v in enumerate(values, start=1)
        ],
    )
    path = f"/api/v1/runs/{working}/metrics"
    whole = api.get(path).json()
    assert [s["name"] for s in whole["series"]] == ["loss", "lr"]
    assert whole["series"][0]["values"] == values
    assert whole["last_step"] == 500
    later = api.get(path, params={"since_step": 490, "names": "loss"}).json()
    assert [s["steps"] for s in later["series"]] == [list(range(491, 501))]
    assert api.get(path, params={"since_step": 500}).json() == {"series": [], "last_step": 500}
    for points in (1, 2, 3, 4, 5, 50, 499, 500, 1000):
        thinned = api.get(path, params={"max_points": points, "names": "loss"}).json()["series"][0]
        assert len(thinned["steps"]) <= points
        assert thinned["steps"][-1] == 500
        assert thinned["steps"] == sorted(set(thinned["steps"]))
        assert thinned["values"] == [values[s - 1] for s in thinned["steps"]]
        if points >= 4:
            assert thinned["steps"][0] == 1
        if points >= 3:
            assert max(thinned["values"]) == 99.0
            assert min(thinned["values"]) == min(values)


def messages(body: str) -> list[dict[str, str]]:
    """Server-sent events, read as the standard says."""
    found = []
    for block in body.split("\n\n"):
        fields = [line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")]
        if fields:
            found.append(dict(fields))
    return found


def test_events__stream_equals_polling_and_ends(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    path = f"/api/v1/runs/{run_id}/events"
    polled = api.get(f"{path}/history").json()
    response = api.get(path)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, end = messages(response.text)
    assert [json.loads(e["data"]) for e in events] == polled
    assert [int(e["id"]) for e in events] == [p["id"] for p in polled]
    assert [e["event"] for e in events] == [p["kind"] for p in polled]
    assert (end["event"], json.loads(end["data"])) == ("end", {"phase": "SUCCEEDED"})
    assert "id" not in end, "resuming after the end must not skip anything"
    assert polled[-1]["data"]["phase"] == "SUCCEEDED"
    kinds = {p["kind"] for p in polled}
    assert kinds == {
        "state", "phase", "metrics", "spectrum", "checkpoint", "evaluation", "done"
    }  # fmt: skip
    middle = polled[len(polled) // 2]["id"]
    resumed = messages(api.get(path, headers={"Last-Event-ID": str(middle)}).text)
    assert [json.loads(e["data"]) for e in resumed[:-1]] == [p for p in polled if p["id"] > middle]
    assert messages(api.get(path, params={"after": middle}).text) == resumed
    assert api.get(f"{path}/history", params={"after": middle}).json() == [
        p for p in polled if p["id"] > middle
    ]
    problem(api.get("/api/v1/runs/nobody/events"), 404, "NOT_FOUND")
    problem(api.get(path, headers={"Last-Event-ID": "x"}), 422, "INVALID_REQUEST")


def test_logs__over_the_api(api, services, working):
    services.store.records.append_log(working, 1, "hello ü\n")
    page = api.get(f"/api/v1/runs/{working}/logs").json()
    assert page == {
        "text": "hello ü\n", "offset": 0, "next_offset": 9, "size_bytes": 9, "complete": False,
    }  # fmt: skip
    assert api.get(f"/api/v1/runs/{working}/logs?offset=-3").json()["text"] == "ü\n"
    services.store.records.append_log(working, 1, "two\nthree\nfour")
    end = api.get(f"/api/v1/runs/{working}/logs?tail=2&offset=5").json()
    assert (end["text"], end["offset"], end["next_offset"]) == ("three\nfour", 13, 23)
    on = api.get(f"/api/v1/runs/{working}/logs?offset={end['next_offset']}").json()
    assert (on["text"], on["next_offset"], on["size_bytes"]) == ("", 23, 23)
    short = api.get(f"/api/v1/runs/{working}/logs?tail=9&limit=6").json()
    assert short["text"] == "e\nfour"
    assert api.get(f"/api/v1/runs/{working}/logs?tail=0").status_code == 422


def test_suites__are_those_of_runs_in_these_phases_the_newest_first(api, services):
    store = services.store

    def run(suite, *, ends):
        run_id = store.runs.submit(spec_of(suite={"id": suite}))
        if ends:
            assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
            assert store.claims.finish(run_id, 1, phase="SUCCEEDED")
        return str(run_id)

    assert api.get("/api/v1/suites").json() == []
    for suite, ends in (("pacs", True), ("cifar10", True), ("pacs", True), ("vlcs", False)):
        last = run(suite, ends=ends)
    every = api.get("/api/v1/suites").json()
    assert [(s["suite"], s["runs"]) for s in every] == [("vlcs", 1), ("pacs", 2), ("cifar10", 1)]
    done = api.get("/api/v1/suites?phase=SUCCEEDED").json()
    assert [(s["suite"], s["runs"]) for s in done] == [("pacs", 2), ("cifar10", 1)]
    store.runs.patch(last, archived=True)
    assert len(api.get("/api/v1/suites").json()) == 2


def test_checkpoints__are_the_artifacts_of_that_kind(api, services, working):
    blob = services.artifacts.put_bytes(b"weights")
    for name, kind in (("checkpoint/5.safetensors", "checkpoint"), ("report.json", "report")):
        services.store.files.add(working, 1, name=name, kind=kind, sha256=blob.sha256, size_bytes=7)
    listed = api.get(f"/api/v1/runs/{working}/artifacts").json()
    assert [a["name"] for a in listed] == ["checkpoint/5.safetensors", "report.json"]
    assert api.get(f"/api/v1/runs/{working}/checkpoints").json() == listed[:1]
    got = api.get(f"/api/v1/runs/{working}/artifacts/checkpoint/5.safetensors")
    assert got.content == b"weights"
    assert got.headers["etag"] == f'"{blob.sha256}"'
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["x-content-type-options"] == "nosniff"
    for name in ("%2e%2e/token", "checkpoint/%2e%2e/report.json", "..%2f..%2ftoken"):
        assert api.get(f"/api/v1/runs/{working}/artifacts/{name}").status_code == 404
    services.artifacts.path(blob.sha256).write_bytes(b"WEIGHTS")
    problem(api.get(f"/api/v1/runs/{working}/artifacts/report.json"), 500, "STORAGE_FAILED")


def test_spectra__training_first_final_last(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    spectra = api.get(f"/api/v1/runs/{run_id}/spectra").json()
    assert [(s["step"], s["final"]) for s in spectra] == [(20, False), (20, True)]
    assert spectra[0]["singular_values"] == example_spectrum().singular_values


def test_evaluations__lists_agree(api, services, finished_run):
    runs = [finished_run(services.store, services.artifacts, seed=s) for s in range(3)]
    own = api.get(f"/api/v1/runs/{runs[0]}/evaluations").json()
    assert [e["dataset"] for e in own] == ["id", "sketch"]
    assert api.get(f"/api/v1/evaluations/{own[0]['id']}").json() == own[0]
    page = api.get("/api/v1/evaluations", params={"run_id": runs[0], "limit": 200}).json()
    assert sorted(page["items"], key=lambda e: e["dataset"]) == own
    assert api.get("/api/v1/evaluations?role=shift").json()["total"] == 3
    assert api.get("/api/v1/evaluations?dataset=id&dataset=sketch").json()["total"] == 6
    whole = api.get("/api/v1/evaluations?limit=200").json()["items"]
    assert walked(api, "/api/v1/evaluations", limit=4) == whole


def test_reliability__is_that_of_the_stored_predictions(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    evaluation = api.get(f"/api/v1/runs/{run_id}/evaluations").json()[0]
    path = f"/api/v1/evaluations/{evaluation['id']}/reliability"
    diagram = api.get(path).json()
    assert diagram["nll"] == pytest.approx(evaluation["nll"])
    assert sum(b["count"] for b in diagram["bins"]) == diagram["n"] == evaluation["n"]
    # The error is the count-weighted mean gap of the bins that are drawn.
    gap = sum(b["count"] * abs(b["accuracy"] - b["mean_confidence"]) for b in diagram["bins"])
    assert gap / diagram["n"] == pytest.approx(diagram["ece"])
    predictions = example_predictions(0)
    for query in ({"n_bins": 7, "scheme": "equal_width"}, {"temperature": 2.5},
                  {"norm": "l2"}, {"norm": "max", "n_bins": 4}):  # fmt: skip
        got = api.get(path, params=query).json()
        binning = {"n_bins": 15, "scheme": "equal_mass", "norm": "l1"} | query
        probs = predictions.probs(binning.pop("temperature", 1.0))
        scores = calibration.score_probs(probs, predictions.labels)
        expected = calibration.ece(scores, calibration.Binning(**binning))
        assert got["ece"] == pytest.approx(expected), query
        assert api.get(path, params=query).json() == got
    assert api.get(path, params={"temperature": 3}).json()["accuracy"] == diagram["accuracy"]
    problem(api.get(path, params={"temperature": 0}), 422, "INVALID_REQUEST")
    problem(api.get(path, params={"n_bins": 0}), 422, "INVALID_REQUEST")


def test_reliability__lost_or_damaged_predictions_are_named(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    own = api.get(f"/api/v1/runs/{run_id}/evaluations").json()
    paths = [
        services.artifacts.path(services.store.results.predictions_of(e["id"]).sha256) for e in own
    ]
    paths[0].unlink()
    paths[1].write_bytes(b"x")
    for evaluation, status, code in ((own[0], 404, "NOT_FOUND"), (own[1], 500, "STORAGE_FAILED")):
        for what in ("reliability", "predictions"):
            problem(api.get(f"/api/v1/evaluations/{evaluation['id']}/{what}"), status, code)


def test_compare__pairs_on_the_same_samples(api, services, finished_run):
    make = finished_run
    base = make(services.store, services.artifacts, seed=0, name="base")
    same = make(services.store, services.artifacts, seed=0, name="same", train={"epochs": 3})
    ids = [base, same]
    comparison = api.get("/api/v1/compare", params={"run_id": ids}).json()
    assert comparison["baseline"] == base
    assert comparison["parameters"] == {"/train/epochs": [10, 3]}
    assert comparison["runs"][0]["differences"] == []
    differences = comparison["runs"][1]["differences"]
    assert len(differences) == 2 * len(("accuracy", "ece", "nll", "brier"))
    for difference in differences:
        assert difference["difference"] == 0
        assert not difference["distinguishable"]
    turned = api.get("/api/v1/compare", params={"run_id": ids, "baseline": same}).json()
    assert turned["runs"][0]["differences"]
    problem(
        api.get("/api/v1/compare", params={"run_id": ids, "baseline": "other"}), 422, "INVALID_SPEC"
    )


def test_compare__says_what_cannot_be_paired(api, services, finished_run):
    make = finished_run
    a = make(services.store, services.artifacts, seed=0)
    # Other labels for the same images: not the same data.
    b = make(services.store, services.artifacts, seed=1, datasets=(("id", "id"),))
    comparison = api.get("/api/v1/compare", params={"run_id": [a, b]}).json()
    assert comparison["runs"][1]["differences"] == []
    assert any("must have one label" in sentence for sentence in comparison["warnings"])
    assert any("sketch" in sentence for sentence in comparison["warnings"])


def test_report__is_what_the_runner_wrote(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    report = api.get(f"/api/v1/runs/{run_id}/report").json()
    assert report["run_id"] == run_id
    detail = api.get(f"/api/v1/runs/{run_id}").json()
    assert detail["summary"] == report["summary"]
    assert detail["environment"] == {"python": "3"}
    assert detail["resolved"] == {"lr": 1e-5}


def _point(alpha: float) -> dict[str, Any]:
    numbers = {"accuracy": 0.5 + alpha / 4, "ece": 0.1, "ece_floor": 0.02, "nll": 1.0}
    sets = [
        {"dataset": name, "role": role, "n": 10} | numbers
        for name, role in (("id", "id"), ("art", "shift"))
    ]
    flat = {f"{place}_{k}": v for place in ("id", "ood", "val") for k, v in numbers.items()}
    return {"alpha": alpha, **flat, "datasets": sets}


def with_frontier(services: Any, run: str) -> str:
    """A finished WiSE-FT run of another run that chose α = 0.5, whatever α its spec names."""
    store = services.store
    method = {"kind": "wise_ft", "run": run, "choose": "one_se", "alpha": 1.0}
    spec = spec_of(name="between", method=method)
    run_id: str = store.runs.submit(spec)
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    body = store.results.report(run) | {
        "run_id": run_id,
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "resolved": {"alpha": 0.5},
        "frontier": [_point(a) for a in (0.0, 0.5, 1.0)],
    }
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED", report=body)
    return run_id


def test_frontier__is_what_the_runner_measured(api, services, finished_run):
    tuned = finished_run(services.store, services.artifacts)
    run_id = with_frontier(services, tuned)
    response = api.get(f"/api/v1/runs/{run_id}/frontier")
    assert response.status_code == 200, response.text
    found = response.json()
    assert (found["run_id"], found["input_run"], found["alpha"]) == (run_id, tuned, 0.5)
    assert [p["alpha"] for p in found["points"]] == [0.0, 0.5, 1.0]
    assert found["points"] == api.get(f"/api/v1/runs/{run_id}/report").json()["frontier"]
    # Its label may change when what it was made from is gone.
    assert api.delete(f"/api/v1/runs/{tuned}").status_code == 204
    assert api.patch(f"/api/v1/runs/{run_id}", json={"name": "kept"}).is_success


def test_frontier__of_another_method_or_an_unfinished_run_is_404(api, services, finished_run):
    other = finished_run(services.store, services.artifacts)
    missing = problem(api.get(f"/api/v1/runs/{other}/frontier"), 404, "NOT_FOUND")
    assert "its method is carot" in missing.detail
    assert "wise_ft" in missing.hint
    waiting = submit(api)["id"]
    assert "QUEUED" in problem(
        api.get(f"/api/v1/runs/{waiting}/frontier"), 404, "NOT_FOUND"
    ).detail  # fmt: skip


def test_submit__merges_name_finished_runs_by_their_ids(api, services, finished_run):
    done = [finished_run(services.store, services.artifacts, seed=seed) for seed in (0, 1)]
    waiting = submit(api)["id"]

    def ask(method, status=422):
        body = {"spec": SPEC | {"method": method}}
        if status == 202:
            assert api.post("/api/v1/runs", json=body).status_code == 202
            return []
        errors = problem(api.post("/api/v1/runs", json=body), 422, "INVALID_SPEC").errors
        dry = api.post("/api/v1/runs/validate", json=body).json()
        assert dry["errors"] == errors
        return errors

    for name, output in (
        ("nobody", "there is no run"),
        (waiting, "must have SUCCEEDED, it is QUEUED"),
        ("/srv/runs/tuned", "folders are for"),
        ("runs/../../tuned", "folders are for"),
        ("..", "folders are for"),
    ):
        (error,) = ask({"kind": "wise_ft", "run": name})
        assert error["pointer"] == "#/spec/method/run"
        assert output in error["message"]
    errors = ask({"kind": "model_stock", "runs": [done[0], "nobody", waiting]})
    assert [e["pointer"] for e in errors] == ["#/spec/method/runs/1", "#/spec/method/runs/2"]
    ask({"kind": "wise_ft", "run": done[0]}, 202)
    ask({"kind": "model_stock", "runs": done}, 202)


def test_clone__of_a_merge_checks_its_runs_again(api, services, finished_run):
    tuned = finished_run(services.store, services.artifacts)
    run_id = with_frontier(services, tuned)
    body = {"changes": {"method": {"alpha": 0.75}}}
    cloned = api.post(f"/api/v1/runs/{run_id}/clone", json=body)
    assert cloned.status_code == 202, cloned.text
    assert cloned.json()["spec"]["method"]["run"] == tuned
    api.delete(f"/api/v1/runs/{tuned}")
    refused = problem(api.post(f"/api/v1/runs/{run_id}/clone", json=body), 422, "INVALID_SPEC")
    assert refused.errors[0]["pointer"] == "#/changes/method/run"


def test_groups__are_runs_that_differ_in_their_seed_alone(api, services, finished_run):
    store = services.store

    def done(seed, **train):
        name, train = f"carot seed {seed}", {"seed": seed} | train
        return finished_run(store, services.artifacts, seed=seed, name=name, train=train)

    alike = [done(seed) for seed in range(3)]
    waits = store.runs.submit(spec_of(name="carot seed 3", train={"seed": 3}))
    other = done(0, lr=1e-3)
    every = api.get("/api/v1/runs/groups?q=carot").json()
    (single,) = [g for g in every if g["run_ids"] == [other]]
    (group,) = [g for g in every if g != single]
    assert group["name"] == "carot"
    assert group["run_ids"] == [waits, *reversed(alike)]
    for name in ("id_accuracy", "ood_ece", "sigma_min"):
        values = [getattr(store.runs.get(run).summary, name) for run in alike]
        found = group["numbers"][name]
        assert found["n"] == 3
        assert found["mean"] == pytest.approx(np.mean(values))
        assert found["sd"] == pytest.approx(np.std(values, ddof=1))
        assert found["se"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert single["numbers"]["id_accuracy"].items() >= {"n": 1, "sd": None, "se": None}.items()


def test_continue__names_its_run_and_the_epochs(api, services, finished_run):
    long = {"epochs": 9, "warmup_steps": 5000, "batch_size": 64}
    done = finished_run(services.store, services.artifacts, train=long, name="n" * 118)
    place, key = f"/api/v1/runs/{done}/continue", {"Idempotency-Key": "once"}
    made = api.post(place, json={"epochs": 3}, headers=key)
    assert made.status_code == 202, made.text
    run = made.json()
    assert run["name"] == "n" * 104 + " (3 more epochs)"
    train = {"epochs": 3, "initial_run": done, "warmup_steps": None, "batch_size": 64}
    assert train.items() <= run["spec"]["train"].items()
    assert run["id"] != done
    again = api.post(place, json={"epochs": 3}, headers=key).json()
    assert again["id"] == run["id"]
    problem(api.post(place, json={"epochs": 0}), 422, "INVALID_REQUEST")
    for other, output in (
        (run["id"], "must have SUCCEEDED, it is QUEUED"),
        (finished_run(services.store, services.artifacts, method={"kind": "zero_shot"}),
         "cannot go on from a finished run's model"),
    ):  # fmt: skip
        refused = problem(api.post(f"/api/v1/runs/{other}/continue", json={}), 422, "INVALID_SPEC")
        assert output in refused.errors[0]["message"]
    problem(api.post("/api/v1/runs/nobody/continue", json={}), 404, "NOT_FOUND")


def test_catalogue__methods_models_datasets(api):
    methods = {m["kind"]: m for m in api.get("/api/v1/methods").json()}
    assert methods["carot"]["defaults"]["lambda_sd"] == 1.5
    assert methods["carot"]["spec_schema"]["properties"]["lambda_oc"]["default"] == 0.2
    assert not methods["zero_shot"]["trains"]
    models = api.get("/api/v1/models").json()
    own = {m["pretrained"]: m["available"] for m in models if m["name"] == "calift-tiny"}
    assert own == {"typefaces": True, "fashion-mnist": False}
    assert models[0]["pretrained"] == "typefaces"
    assert any(m["name"] == "ViT-B-16" and m["pretrained"] == "openai" for m in models)
    datasets = api.get("/api/v1/datasets").json()
    assert {d["id"]: d["available"] for d in datasets}["typefaces"]
    assert "fashion-mnist" in {d["id"] for d in datasets}


def test_catalogue__own_weights_are_found(api, home):
    folder = home / "models" / "calift-tiny"
    (folder / "abc").mkdir(parents=True)
    (folder / "abc" / "model.safetensors").write_bytes(b"w")
    (folder / "fashion-mnist.json").write_text('{"folder": "abc"}')
    (folder / "broken.json").write_text("[]")
    models = {
        m["pretrained"]: m for m in api.get("/api/v1/models").json() if m["name"] == "calift-tiny"
    }
    assert models["fashion-mnist"]["available"]
    assert models["fashion-mnist"]["size_bytes"] == 1
    assert len(models["fashion-mnist"]["sha256"]) == 64
    assert not models["broken"]["available"]


def test_stats__count_what_is_there(api, services):
    submit(api)
    services.store.workers.seen("w-1", host="h", queues=["cpu"], device="cpu", run_id=None)
    stats = api.get("/api/v1/stats").json()
    assert stats["runs_by_phase"] == {"QUEUED": 1}
    assert stats["queue_depth"] == 1
    assert stats["oldest_queued_s"] >= 0
    assert [w["alive"] for w in stats["workers"]] == [True]
    assert stats["broker_ok"]
    assert stats["free_bytes"] > 0
    with writing(services.store.engine) as connection:
        connection.execute(text("UPDATE workers SET seen_at = seen_at - 100"))
    assert [w["alive"] for w in api.get("/api/v1/workers").json()] == [False]


def test_api__many_callers_at_once_never_meet_a_locked_database(api, services):
    def use():
        for _ in range(5):
            response = api.post("/api/v1/runs", json={"spec": SPEC})
            path = f"/api/v1/runs/{response.json()['id']}"
            assert response.status_code == 202
            assert api.patch(path, json={"notes": "x"}).status_code == 200
            assert api.post(f"{path}/cancel").status_code == 202

    at_once(*[use] * 6)


def current_document() -> str:
    """The snapshot's text. `python -m tests.backend.test_api` writes it."""
    import tempfile

    from backend.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(home=Path(folder), broker_url="memory://"), housekeeping=False)
        app.state.services.store.close()
        return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


def test_openapi__is_the_snapshot():
    assert current_document() == SNAPSHOT.read_text(encoding="utf-8"), (
        "the API's description changed; if that was meant, run `python -m tests.backend.test_api`"
    )


def test_openapi__operation_ids_are_unique_and_errors_declared(app):
    document = app.openapi()
    operations_ = [o for item in document["paths"].values() for o in item.values()]
    ids = [o["operationId"] for o in operations_]
    assert len(ids) == len(set(ids))
    for operation in operations_:
        errors = {k: v for k, v in operation["responses"].items() if k >= "400"}
        assert errors
        for response in errors.values():
            assert list(response["content"]) == [MEDIA_TYPE]


if __name__ == "__main__":
    SNAPSHOT.write_text(current_document(), encoding="utf-8")
