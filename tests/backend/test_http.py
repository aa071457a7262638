"""HTTP by its rules: HEAD, ETags, ranges, deep bodies, and streams that end with their token."""

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from backend.__main__ import main
from backend.http.authentication import hash_token
from backend.main import create_app
from backend.store import migrations
from backend.store.engine import open_engine, writing
from backend.store.stores import Stores
from calift_core.client import Client
from calift_core.errors import StorageError
from tests.backend.test_api import SPEC, problem, submit
from tests.conftest import example_predictions, serving, spec_of, until


def test_transfer__of_a_run_without_evaluations_is_404(api):
    run_id = submit(api)["id"]
    found = problem(api.get(f"/api/v1/runs/{run_id}/calibrators/transfer"), 404, "NOT_FOUND")
    assert "QUEUED" in found.detail


def test_budget__against_other_data_is_422(api, services, finished_run):
    def predict(*_, name):
        made = example_predictions()
        return replace(made, ids=np.array([f"{name} {i}" for i in range(len(made))]))

    ours, theirs = (
        services.store.results.run_evaluations(
            finished_run(services.store, services.artifacts, predict=partial(predict, name=name))
        )[0].id
        for name in ("ours", "theirs")
    )
    response = api.get(
        f"/api/v1/evaluations/{ours}/budget", params={"difference": 0.01, "against": theirs}
    )
    found = problem(response, 422, "NOT_PAIRED")
    assert "no common id" in found.detail
    assert "same data set" in found.hint


@pytest.mark.parametrize("days", ["nan", "inf", "-inf", "-1", "0", "1e300"])
def test_token__days_must_be_positive_and_finite(home, capsys, monkeypatch, days):
    argv = ["backend", "token", "add", "ann", f"--days={days}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert main() == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert "days" in answer.err
    monkeypatch.setattr(sys, "argv", ["backend", "token", "list"])
    assert main() == 0
    assert capsys.readouterr().out == ""


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("runs/{id}/clone", lambda deep: {"changes": {"notes": deep}}, "#/changes"),
        ("runs", lambda deep: SPEC | {"notes": deep}, "#"),
        ("runs", lambda deep: {"spec": SPEC | {"notes": deep}}, "#"),
        ("runs/validate", lambda deep: {"spec": {"method": deep}}, "#"),
        ("sweeps", lambda deep: {"name": "s", "base": {"method": deep}}, "#"),
        ("sweeps/validate", lambda deep: {"values": {"train.lr": deep}}, "#"),
        ("evaluations", lambda deep: {"runs": deep}, "#/runs"),
    ],
)
def test_body__that_nests_deep_is_422(api, path, body, place):
    run_id = submit(api)["id"]
    response = api.post(f"/api/v1/{path.format(id=run_id)}", json=body(nested(500)))
    found = problem(response, 422, "INVALID_REQUEST")
    assert found.errors[0]["pointer"].startswith(place)


def test_clone__is_replayed_after_its_source_has_gone(api):
    source, key = submit(api)["id"], {"Idempotency-Key": "once"}
    first = api.post(f"/api/v1/runs/{source}/clone", json={"name": "mine"}, headers=key)
    assert first.status_code == 202
    assert api.post(f"/api/v1/runs/{source}/cancel").status_code == 202
    assert api.delete(f"/api/v1/runs/{source}").status_code == 204
    again = api.post(f"/api/v1/runs/{source}/clone", json={"name": "mine"}, headers=key)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    other = api.post(f"/api/v1/runs/{source}/clone", json={"name": "other"}, headers=key)
    problem(other, 409, "IDEMPOTENCY_KEY_REUSED")
    problem(api.post(f"/api/v1/runs/{source}/clone", json={"name": "mine"}), 404, "NOT_FOUND")


@pytest.fixture
def stranger(app):
    """Without a token; server errors come as answers and redirects are not followed."""
    with TestClient(
        app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False
    ) as caller:
        yield caller


def test_slash__at_the_end_is_404_that_says_so(stranger, settings, app):
    token = {"Authorization": f"Bearer {settings.admin_token()}"}
    paths = [re.sub(r"\{[^}]+\}", "abc", path) for path in app.openapi()["paths"]]
    for path in [*paths, "/api/v1/openapi.json", "/api/v1", "//api/v1/runs"]:
        for method in ("GET", "POST", "HEAD"):
            without = stranger.request(method, f"{path}/")
            assert without.status_code == 401, (method, path)
            answer = stranger.request(method, f"{path}/", headers=token)
            # The name of a file may be anything, so its address takes a slash.
            assert answer.status_code in (404, 405), (method, path)
    found = problem(stranger.get("/api/v1/runs/", headers=token), 404, "NOT_FOUND")
    assert "/api/v1/runs" in found.hint
    assert not problem(stranger.get("/api/v1/x/", headers=token), 404, "NOT_FOUND").hint


def test_head__is_get_without_a_body_everywhere(api, app, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    evaluation = api.get(f"/api/v1/runs/{run_id}/evaluations").json()[0]["id"]
    ids = {"run_id": run_id, "evaluation_id": evaluation, "name": "predictions/id.parquet"}
    ids["sample_id"] = "image 0"
    ids |= dict.fromkeys(("worker_id", "view_id", "token_id", "job_id", "sweep_id"), "none")
    seen = 0
    for path, item in app.openapi()["paths"].items():
        path = path.replace("/runs/{job_id}", "/runs/{run_id}")
        if "get" not in item:
            refused = api.head(path.format(**ids))
            assert refused.status_code in (404, 405)
            assert refused.content == b""
            continue
        filled = path.format(**ids)
        query = {"difference": "0.1"} if filled.endswith("/budget") else {}
        if filled.endswith("/ledger"):
            query = {"against": run_id}
        if "/compare" in filled:
            query = {"run_id": [run_id, submit(api)["id"]]}
        got = api.get(filled, params=query)
        head = api.head(filled, params=query)
        assert head.status_code == got.status_code, filled
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        if not filled.endswith("/stats"):  # which are others every time
            assert head.headers.get("content-length") == got.headers.get("content-length"), filled
        assert head.headers.get("etag") == got.headers.get("etag")
        seen += got.status_code == 200
    assert seen > 25


def test_head__of_an_endless_stream_ends(served, settings, app):
    run_id = app.state.services.store.runs.submit(spec_of())
    with httpx.Client(headers={"Authorization": f"Bearer {settings.admin_token()}"}) as caller:
        for _ in range(3):
            answer = caller.head(f"{served}/api/v1/runs/{run_id}/events", timeout=10)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
    until(
        lambda: app.state.services.limits["streams"].admitted == 0,
        what="the streams to be given back",
    )


def test_etag__that_is_known_is_304(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    evaluation = api.get(f"/api/v1/runs/{run_id}/evaluations").json()[0]["id"]
    for path in (
        f"/api/v1/runs/{run_id}/artifacts/predictions/id.parquet",
        f"/api/v1/evaluations/{evaluation}/predictions",
    ):
        first = api.get(path)
        etag = first.headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*", f'W/"x",{etag}'):
            for method in ("GET", "HEAD"):
                again = api.request(method, path, headers={"If-None-Match": known})
                assert again.status_code == 304, known
                assert again.content == b""
                assert again.headers["etag"] == etag
        for other in ('"other"', etag.strip('"'), "", '"*"', f"{etag}x"):
            assert api.get(path, headers={"If-None-Match": other}).status_code == 200, other
        # The name may come to stand for another file, so the copy must be asked about.
        assert "no-cache" in first.headers["cache-control"]
        assert "immutable" not in first.headers["cache-control"]
        part = api.get(path, headers={"Range": "bytes=0-3", "If-Range": etag})
        assert (part.status_code, part.content) == (206, first.content[:4])


@contextmanager
def opened(served: str, run_id: str, token: str) -> Iterator[Any]:
    with (
        httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=30) as caller,
        caller.stream("GET", f"{served}/api/v1/runs/{run_id}/events") as response,
    ):
        yield response


@pytest.mark.parametrize("end", ["revoked", "expired", "removed", "replaced", "logged out"])
def test_stream__ends_with_its_token(served, app, monkeypatch, end):
    monkeypatch.setattr("backend.routes.jobs._RECHECK_S", 0.05)
    store = app.state.services.store
    run_id = store.runs.submit(spec_of())
    token = f"clft_r.{'s' * 32}"
    store.tokens.add("clft_r", name="r", scope="read", secret_sha256=hash_token(token))
    if end == "logged out":
        with Client(served, token) as client:
            token = client.open_session().token
    with opened(served, run_id, token) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: state"
        if end == "revoked":
            store.tokens.revoke("clft_r")
        elif end == "logged out":
            store.sessions.end(token.partition(".")[0])
        else:
            change = {
                "removed": "DELETE FROM tokens",
                "expired": "UPDATE tokens SET expires_at=1",
                "replaced": "UPDATE tokens SET secret_sha256='x'",
            }[end]
            with writing(store.engine) as connection:
                connection.execute(text(change))
        assert "event: end" not in list(lines), "the run has not ended"
    with opened(served, run_id, token) as response:
        assert response.status_code == 401


def test_stream__of_the_services_own_token_stays(served, app, settings, monkeypatch):
    monkeypatch.setattr("backend.routes.jobs._RECHECK_S", 0.0)
    store = app.state.services.store
    run_id = store.runs.submit(spec_of())
    with opened(served, run_id, settings.admin_token()) as response:
        lines = response.iter_lines()
        next(line for line in lines if line.startswith("event"))
        store.runs.request_cancel(run_id)
        assert "event: end" in list(lines)


def test_stream__one_too_many_is_503_without_a_traceback(make_settings, sqlite_url, caplog):
    settings = make_settings(database_url=sqlite_url, max_streams=4)
    app = create_app(settings, housekeeping=False)
    token, store = settings.admin_token(), app.state.services.store
    another = f"clft_ann.{'s' * 32}"
    store.tokens.add(
        "clft_ann", name="ann", scope="read", secret_sha256=hash_token(another), ttl_s=None
    )
    with serving(app) as served:
        run_id = store.runs.submit(spec_of())
        with opened(served, run_id, token) as first, opened(served, run_id, token) as second:
            assert (first.status_code, second.status_code) == (200, 200)
            for _ in range(3):
                with opened(served, run_id, token) as third:
                    third.read()
                    found = problem(third, 503, "TOO_MANY_STREAMS")
                    assert "2" in found.detail
                    assert int(third.headers["retry-after"]) >= 1
            with opened(served, run_id, another) as theirs:  # half of them are for others
                assert theirs.status_code == 200
        assert [r for r in caplog.records if r.exc_info] == []
        until(
            lambda: app.state.services.limits["streams"].admitted == 0, what="the streams to close"
        )
        with opened(served, run_id, token) as again:
            assert again.status_code == 200


def test_database_file__is_readable_by_its_owner_alone(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        store = Stores.on(open_engine(f"sqlite:///{home / 'calift.db'}"))
        migrations.upgrade(store.engine)
        store.runs.submit(spec_of())
        files = sorted(home.iterdir())
        assert [f.name for f in files] == ["calift.db", "calift.db-shm", "calift.db-wal"]
        assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
        store.close()
        # One that an earlier version made is closed when it is opened next.
        (home / "calift.db").chmod(0o644)
        store = Stores.on(open_engine(f"sqlite:///{home / 'calift.db'}"))
        assert store.runs.by_phase() == {"QUEUED": 1}
        assert {stat.S_IMODE(f.stat().st_mode) for f in home.iterdir()} == {0o600}
        store.close()
    finally:
        os.umask(before)


def test_database_file__in_a_missing_folder_is_a_sentence(tmp_path):
    store = Stores.on(open_engine(f"sqlite:///{tmp_path / 'no' / 'where' / 'calift.db'}"))
    with pytest.raises(StorageError, match="no/where"):
        store.runs.by_phase()


def test_error__that_a_library_answers_is_a_problem_too(api, services, finished_run):
    run_id = finished_run(services.store, services.artifacts)
    path = f"/api/v1/runs/{run_id}/artifacts/predictions/id.parquet"
    size = len(api.get(path).content)
    problem(api.get(path, headers={"Range": "bytes=5-1"}), 400, "BAD_REQUEST")
    beyond = api.get(path, headers={"Range": f"bytes={size}-"})
    problem(beyond, 416, "RANGE_NOT_SATISFIABLE")
    assert beyond.headers["content-range"] == f"bytes */{size}"


def test_filter__takes_a_bounded_number_of_values(api):
    for name in ("phase", "method", "model", "suite", "tag"):
        value = "QUEUED" if name == "phase" else "a"
        response = api.get("/api/v1/runs", params={name: [value] * 5000})
        found = problem(response, 422, "INVALID_REQUEST")
        assert found.errors[0]["parameter"] == name


def test_validate__of_a_large_tree_looks_at_a_part_of_it(api, monkeypatch, tmp_path):
    for number in range(4):
        (tmp_path / f"class {number}").mkdir()
        for image in range(1000):
            (tmp_path / f"class {number}" / f"{image}.png").touch()
    monkeypatch.setattr("backend.services.submission.SCAN_ENTRIES", 2000)
    looked, scandir = [], os.scandir

    def counted(*place):
        looked.append(place)
        return scandir(*place)

    monkeypatch.setattr(os, "scandir", counted)
    spec = SPEC | {"suite": {"id": "pacs:/no/where", "shifts": {"all": f"folder:{tmp_path}"}}}
    found = api.post("/api/v1/runs/validate", json={"spec": spec}).json()
    assert "more than 2,000 files" in found["estimate"]["basis"]
    assert 1 < len(looked) < 2500
