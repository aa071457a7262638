"""What keeps a service in order, as its callers meet it."""

import io
import json
import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from starlette.testclient import TestClient

from backend.logs import named, set_up
from backend.main import create_app
from backend.store.engine import writing
from calift_core.schema.wire.operations import (
    AuditPage,
    BulkDone,
    Pruned,
    SavedView,
    TokenInfo,
    TokenMade,
)
from calift_core.schema.wire.service import GpuUse, WorkerInfo
from tests.backend.test_api import problem, submit
from tests.conftest import as_admin, spec_of


@pytest.fixture
def ada(api, app):
    """A caller with a token of scope submit that the admin made."""
    made = api.post("/api/v1/tokens", json={"owner": "ada", "note": "laptop"})
    assert made.status_code == 201, made.text
    token = TokenMade.model_validate(made.json())
    assert made.headers["location"] == f"/api/v1/tokens/{token.id}"
    caller = TestClient(app, base_url="http://127.0.0.1")
    caller.headers["Authorization"] = f"Bearer {token.token}"
    return caller


def audit(api: TestClient, **asked: Any) -> list[tuple[str, str, str]]:
    page = AuditPage.model_validate(api.get("/api/v1/audit", params=asked).json())
    return [(e.actor, e.action, e.target) for e in page.items]


def test_tokens__are_made_listed_and_revoked_by_rest(api, ada):
    seen = [TokenInfo.model_validate(t) for t in ada.get("/api/v1/tokens").json()]
    assert [(t.owner, t.scope, t.note, t.state) for t in seen] == [
        ("ada", "submit", "laptop", "valid")
    ]
    assert "token" not in ada.get("/api/v1/tokens").json()[0]
    other = api.post("/api/v1/tokens", json={"owner": "ben", "scope": "read", "days": 1}).json()
    assert len(api.get("/api/v1/tokens").json()) == 2, "an admin sees everybody's"
    problem(ada.delete(f"/api/v1/tokens/{other['id']}"), 404, "NOT_FOUND")
    # One's own token gives no more than the one that makes it: whose, what, how long.
    week = {"owner": "ada", "scope": "submit", "days": 7}
    made = ada.post("/api/v1/tokens", json=week)
    assert made.status_code == 201
    lasting = TestClient(ada.app, base_url="http://127.0.0.1")
    lasting.headers["Authorization"] = f"Bearer {made.json()['token']}"
    for more in ({"owner": "ben"}, {"scope": "admin"}, {"days": 8}, {"days": None}):
        problem(lasting.post("/api/v1/tokens", json=week | more), 403, "FORBIDDEN")
    less = lasting.post("/api/v1/tokens", json=week | {"scope": "read", "days": 6})
    assert less.status_code == 201
    (entry,) = api.get("/api/v1/audit", params={"target": less.json()["id"]}).json()["items"]
    assert entry["detail"] == {"owner": "ada", "scope": "read", "days": 6}
    assert entry["token_id"] == made.json()["id"]
    for token in (made, less):
        assert ada.delete(f"/api/v1/tokens/{token.json()['id']}").status_code == 204
    assert ada.delete(f"/api/v1/tokens/{seen[0].id}").status_code == 204
    problem(ada.get("/api/v1/runs"), 401, "TOKEN_INVALID")
    states = {t["owner"]: t["state"] for t in api.get("/api/v1/tokens").json()}
    assert states == {"ada": "revoked", "ben": "valid"}
    refused = api.post("/api/v1/tokens", json={"owner": "admin", "scope": "submit"})
    assert "must have the scope admin" in problem(refused, 422, "INVALID_SPEC").detail


def test_audit__says_who_changed_what_and_not_who_looked_or_failed(api, ada):
    run_id = submit(ada)["id"]
    ada.get(f"/api/v1/runs/{run_id}")
    ada.post("/api/v1/runs/validate", json={"spec": {"method": {"kind": "carot"}}})
    ada.patch(f"/api/v1/runs/{run_id}", json={"notes": "mine"})
    problem(ada.delete(f"/api/v1/runs/{run_id}"), 403, "FORBIDDEN")
    cancelled = api.post(f"/api/v1/runs/{run_id}/cancel", headers={"X-Request-ID": "request-7"})
    assert cancelled.status_code == 202
    assert api.delete(f"/api/v1/runs/{run_id}").status_code == 204
    assert audit(api, target=run_id) == [
        ("admin", "delete_run", run_id),
        ("admin", "cancel_run", run_id),
        ("ada", "patch_run", run_id),
        ("ada", "submit_run", run_id),
    ]
    assert audit(api, actor="ada", action="submit_run") == [("ada", "submit_run", run_id)]
    newest = AuditPage.model_validate(api.get("/api/v1/audit", params={"limit": 2}).json())
    assert newest.items[1].request_id == "request-7"
    assert newest.next_before == newest.items[1].id
    older = audit(api, before=newest.next_before)
    assert older[0] == ("ada", "patch_run", run_id)
    problem(ada.get("/api/v1/audit"), 403, "FORBIDDEN")


def test_audit__is_forgotten_after_its_time(api, services):
    submit(api)
    with writing(services.store.engine) as connection:
        connection.execute(text("UPDATE audit SET at = at - 400 * 86400.0"))
    submit(api)
    services.housekeeper._collect()
    assert len(audit(api)) == 1


def bulk(caller: TestClient, **body: Any) -> BulkDone:
    response = caller.post("/api/v1/runs/bulk", json=body)
    assert response.status_code == 200, response.text
    return BulkDone.model_validate(response.json())


def test_bulk__changes_what_may_be_changed_and_says_what_not(api, ada):
    own = [submit(ada)["id"] for _ in range(2)]
    foreign = submit(api)["id"]
    done = bulk(ada, action="tag", ids=[*own, foreign, "nothing"], tags=["photos"])
    assert done.done == own
    assert {r.id: r.code for r in done.refused} == {foreign: "NOT_YOURS", "nothing": "NOT_FOUND"}
    assert bulk(ada, action="untag", ids=own[:1], tags=["photos"]).done == own[:1]
    assert bulk(api, action="cancel", filter={"tag": ["photos"]}).done == [own[1]]
    assert bulk(api, action="archive", filter={"phase": ["CANCELLED"]}).done == [own[1]]
    assert bulk(api, action="unarchive", filter={"archived": True}).done == [own[1]]
    assert bulk(api, action="retry", ids=[own[1]]).done == [own[1]]
    problem(ada.post("/api/v1/runs/bulk", json={"action": "delete", "ids": own}), 403, "FORBIDDEN")
    assert set(bulk(api, action="delete", filter={"method": ["carot"]}).done) == {*own, foreign}
    assert api.get("/api/v1/runs").json()["total"] == 0
    entry = api.get("/api/v1/audit", params={"action": "change_runs"}).json()["items"][0]
    assert set(entry["detail"]["ids"]) == {*own, foreign}
    assert entry["detail"]["action"] == "delete"


@pytest.mark.parametrize(
    "body",
    [
        {"action": "cancel"},
        {"action": "cancel", "ids": ["a"], "filter": {}},
        {"action": "cancel", "ids": []},
        {"action": "cancel", "ids": ["a"], "tags": ["x"]},
        {"action": "tag", "ids": ["a"]},
        {"action": "tag", "ids": ["a"], "tags": ["x" * 100]},
        {"action": "explode", "ids": ["a"]},
        {"action": "delete", "filter": {}},
        {"action": "cancel", "ids": ["a\0b"]},
        {"action": "cancel", "filter": {"q": "\ud800"}},
    ],
)
def test_bulk__what_means_nothing_is_422(api, body):
    sent = json.dumps(body).encode()
    answer = api.post(
        "/api/v1/runs/bulk", content=sent, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422


def test_views__are_shared_and_only_their_owner_or_an_admin_deletes_them(api, ada):
    body = {"name": "failed CaRot runs", "page": "runs", "query": "status=FAILED&method=carot"}
    made = api.post("/api/v1/views", json=body)
    assert made.status_code == 201
    view = SavedView.model_validate(made.json())
    assert made.headers["location"] == f"/api/v1/views/{view.id}"
    assert ada.get(f"/api/v1/views/{view.id}").json() == made.json()
    assert [v["id"] for v in ada.get("/api/v1/views", params={"page": "runs"}).json()] == [view.id]
    assert ada.get("/api/v1/views", params={"page": "shifts"}).json() == []
    problem(ada.delete(f"/api/v1/views/{view.id}"), 403, "NOT_YOURS")
    assert api.delete(f"/api/v1/views/{view.id}").status_code == 204
    problem(ada.get(f"/api/v1/views/{view.id}"), 404, "NOT_FOUND")
    for wrong in ({"page": "//evil.example"}, {"query": "a\r\nSet-Cookie: x"}, {"name": " "}):
        assert api.post("/api/v1/views", json=body | wrong).status_code == 422


def test_worker__is_drained_and_resumed_and_says_what_it_does(api, ada, services):
    store = services.store
    run_id = store.runs.submit(spec_of(name="a long one"))
    store.claims.claim(run_id, worker_id="w", ttl_s=60)
    gpu = GpuUse(name="H100", memory_used_mib=1024, memory_total_mib=81920, utilisation=0.5)
    store.workers.seen(
        "w", host="h", queues=["gpu", "cpu"], device="cuda", run_id=run_id, gpus=[gpu]
    )
    problem(ada.post("/api/v1/workers/w/drain"), 403, "FORBIDDEN")
    worker = WorkerInfo.model_validate(api.post("/api/v1/workers/w/drain").json())
    assert (worker.drained_by, worker.run_name, worker.gpus) == ("admin", "a long one", [gpu])
    waiting = store.runs.submit(spec_of())
    words = api.get(f"/api/v1/runs/{waiting}").json()["waiting"]
    assert "admin asked it to take no run for now" in words
    # It reports in as before; that it is drained is not its to forget.
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="cuda", run_id=run_id)
    assert store.workers.drained_by("w") == "admin"
    assert api.post("/api/v1/workers/w/resume").json()["drained_by"] is None
    problem(api.post("/api/v1/workers/nobody/drain"), 404, "NOT_FOUND")
    assert ("admin", "drain_worker", "w") in audit(api)


def aged(services: Any, run_id: str, days: float) -> None:
    with writing(services.store.engine) as connection:
        connection.execute(
            text("UPDATE runs SET finished_at = finished_at - :s WHERE id = :r"),
            {"s": days * 86_400.0, "r": run_id},
        )


def test_retention__shows_first_and_then_removes_just_that(api, services, finished_run, tmp_path):
    store, artifacts = services.store, services.artifacts
    old, archived, young = (finished_run(store, artifacts, seed=s) for s in range(3))
    shared = artifacts.put_bytes(b"model")
    for run_id in (old, archived, young):
        with writing(store.engine) as connection:
            connection.execute(
                text(
                    "INSERT INTO artifacts (run_id, name, kind, sha256, size_bytes, attempt, "
                    "created_at) VALUES (:r, 'checkpoint/model', 'checkpoint', :s, 5, 1, 0)"
                ),
                {"r": run_id, "s": shared.sha256},
            )
    store.runs.patch(archived, archived=True)
    for run_id in (old, archived):
        aged(services, run_id, 31)
    requested = {"kinds": ["checkpoints", "archived_predictions"], "older_than_days": 30}
    shown = Pruned.model_validate(api.post("/api/v1/retention/preview", json=requested).json())
    sizes = sum(f.size_bytes for f in store.files.of_run(archived) if f.kind == "predictions")
    assert (shown.done, shown.runs, shown.files) == (False, 0, 4)
    assert shown.freed_bytes == sizes, "the model is named by the young run too"
    assert set(shown.run_ids) == {old, archived}
    before = dict(artifacts.walk()).keys()
    done = Pruned.model_validate(api.post("/api/v1/retention", json=requested).json())
    assert done == shown.model_copy(update={"done": True})
    assert len(before - dict(artifacts.walk()).keys()) == 2
    assert artifacts.has(shared.sha256)
    assert {f.kind for f in store.files.of_run(old)} == {"predictions"}
    assert api.get(f"/api/v1/runs/{archived}/report").status_code == 200, "its numbers stay"
    whole = {"kinds": ["archived_runs"], "older_than_days": 30}
    assert api.post("/api/v1/retention", json=whole).json()["runs"] == 1
    problem(api.get(f"/api/v1/runs/{archived}"), 404, "NOT_FOUND")
    assert api.get(f"/api/v1/runs/{young}").status_code == 200


def test_retention__by_itself_where_it_is_set(make_settings, sqlite_url, finished_run):
    settings = make_settings(database_url=sqlite_url, retain_days=10)
    services = create_app(settings, housekeeping=False).state.services
    run_id = finished_run(services.store, services.artifacts)
    services.store.runs.patch(run_id, archived=True)
    services.housekeeper._collect()
    assert len(services.store.files.of_run(run_id)) == 2
    aged(services, run_id, 11)
    services.housekeeper._collect()
    assert services.store.files.of_run(run_id) == []
    assert dict(services.artifacts.walk()) == {}


def scraped(response: Any) -> dict[tuple[str, ...], float]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics__count_what_is_there(api, services, finished_run, app):
    store = services.store
    finished_run(store, services.artifacts)
    run_id = submit(api)["id"]
    gpu = GpuUse(name="H100", memory_used_mib=2, memory_total_mib=4, utilisation=0.25)
    store.workers.seen("w", host="h", queues=["cpu"], device="cpu", gpus=[gpu])
    stranger = TestClient(app, base_url="http://127.0.0.1")
    found = scraped(stranger.get("/metrics"))  # on loopback without a token
    assert found["calift_runs", "QUEUED"] == 1
    assert found["calift_runs", "SUCCEEDED"] == 1
    assert found["calift_queue_depth", "auto"] == 1
    assert found["calift_queue_oldest_seconds", "auto"] >= 0
    assert found["calift_outbox_unsent",] == 1
    assert found["calift_workers", "idle"] == 1
    assert found["calift_gpu_utilisation", "0: H100", "w"] == 0.25
    assert found["calift_artifact_files",] == 2
    assert found["calift_artifact_bytes",] == sum(
        f.size_bytes for r in store.runs.page()[0] for f in store.files.of_run(r.id)
    )
    assert found["calift_ready", "database"] == 1
    assert found["calift_request_seconds_count", "POST", "submit_run", "2xx"] == 1
    store.claims.claim(run_id, worker_id="w", ttl_s=60)
    found = scraped(stranger.get("/metrics"))
    assert (found["calift_leases",], found["calift_leases_expired",]) == (1, 0)
    assert 0 < found["calift_lease_shortest_seconds",] <= 60
    assert ("calift_queue_depth", "auto") not in found


def test_metrics__exposed_need_a_token_or_a_setting(make_settings, sqlite_url):
    exposed = {
        "database_url": sqlite_url,
        "host": "0.0.0.0",
        "token": "ops." + "s" * 32,
        "allowed_hosts": ["lab"],
    }
    for opened in (False, True):
        settings = make_settings(**exposed, metrics_open=opened)
        with as_admin(settings, base_url="http://lab") as caller:
            scraped(caller.get("/metrics"))
            del caller.headers["Authorization"]
            problem(caller.get("/docs"), 401, "UNAUTHENTICATED")
            assert caller.get("/metrics").status_code == (200 if opened else 401)


@pytest.fixture
def json_log():
    """What a service that is set to JSON logs."""
    root = logging.getLogger()
    held, level = list(root.handlers), root.level
    stream = io.StringIO()
    set_up("json", stream=stream)
    yield stream
    root.handlers[:], root.level = held, level
    logging.getLogger("calift.runner").setLevel(logging.WARNING)


def test_log__json_carries_the_ids_and_the_run_keeps_that_of_its_request(json_log, api, services):
    answer = api.post(
        "/api/v1/runs",
        json={"spec": {"name": "a", "method": {"kind": "carot"}}},
        headers={"X-Request-ID": "request-of-ada"},
    )
    claim = services.store.claims.claim(answer.json()["id"], worker_id="w", ttl_s=60)
    assert claim.request_id == "request-of-ada"
    with named(run_id=claim.run_id, attempt=1, request_id=claim.request_id, nothing=""):
        logging.getLogger("worker").info("run %s starts", claim.run_id)
        logging.getLogger("calift.runner").info("epoch 1")
        try:
            raise ValueError("a fault")
        except ValueError:
            logging.getLogger("worker").exception("it failed")
    lines = [json.loads(line) for line in json_log.getvalue().splitlines()]
    reply = [line for line in lines if line.get("run_id") == claim.run_id]
    assert [line["event"] for line in reply] == [
        f"run {claim.run_id} starts",
        "epoch 1",
        "it failed",
    ]
    assert {line["request_id"] for line in reply} == {"request-of-ada"}
    assert {"timestamp", "level", "logger"} <= reply[0].keys()
    assert "ValueError: a fault" in reply[2]["exception"]
    assert "nothing" not in reply[0]


def test_log__a_request_that_fails_is_found_by_its_id(json_log, app, settings, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(app.state.services.store.workers), "recent", broken)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as caller:
        answer = caller.get(
            "/api/v1/workers", headers={"Authorization": f"Bearer {settings.admin_token()}"}
        )
    assert answer.status_code == 500
    lines = [json.loads(line) for line in json_log.getvalue().splitlines()]
    (reply,) = [line for line in lines if "a bug" in line.get("exception", "")]
    assert reply["request_id"] == answer.headers["x-request-id"]
