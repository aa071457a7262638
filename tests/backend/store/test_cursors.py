"""Cursors are input like any other, and no error leaves a pooled connection in a bad state."""

import base64
import json
import random
import re
import string
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import literal, select
from sqlalchemy.exc import DBAPIError
from starlette.testclient import TestClient

import backend
from backend.main import create_app
from backend.store.cursors import CursorError, Cursors, scope_of
from backend.store.engine import reading, writing
from backend.store.stores import Stores
from calift_core.errors import NotFoundError
from calift_core.schema.wire.queries import MAX_CURSOR, RunsQuery
from tests.backend.test_api import problem, submit
from tests.conftest import spec_of, walked

#: Values that SQL, a driver or a comparison chokes on.
EVIL = [10**30, -(10**30), 2**63, 1e308, "\ud800", "a\x00b", None, [1], True, float("nan")]


@pytest.fixture
def settings(make_settings, database_url):
    """Both kinds of database."""
    return make_settings(database_url=database_url)


def forged(*values: Any) -> str:
    """A cursor as the first version wrote it: anybody could."""
    raw = json.dumps(values, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def two_connections(store: Stores) -> None:
    """Fill the pool, which hands its connections out in turn."""
    with reading(store.engine), reading(store.engine):
        pass


@pytest.mark.parametrize("value", EVIL, ids=repr)
def test_cursor__tampered_is_422_and_submits_go_on_answering(bare, value):
    scope = scope_of(RunsQuery().model_dump(exclude={"cursor", "limit"}), None)
    for _ in range(3):
        submit(bare)
    two_connections(bare.app.state.services.store)
    for last in ("x", "\ud800"):
        for _ in range(3):
            answer = bare.get(
                "/api/v1/runs", params={"cursor": forged(scope, value, last), "limit": 1}
            )
            problem(answer, 422, "INVALID_CURSOR")
    for _ in range(4):
        run_id = submit(bare)["id"]
        assert bare.get(f"/api/v1/runs/{run_id}").status_code == 200
    assert bare.get("/api/v1/runs").json()["total"] == 7


def test_cursor__every_changed_character_is_refused(bare):
    for _ in range(3):
        submit(bare)
    good = bare.get("/api/v1/runs", params={"limit": 1}).json()["next_cursor"]
    assert bare.get("/api/v1/runs", params={"limit": 1, "cursor": good}).status_code == 200
    changed = [
        good[:i] + ("A" if good[i] != "A" else "B") + good[i + 1 :] for i in range(len(good))
    ]
    # The last character of an unpadded text has bits that nobody reads.
    more = [good + "A", good[:-1], good * 20, "", ".", "é", good.split(".")[0]]
    for cursor in [*changed[:-1], *more]:
        answer = bare.get("/api/v1/runs", params={"limit": 1, "cursor": cursor})
        assert answer.status_code == 422, cursor
        assert answer.json()["code"] in ("INVALID_CURSOR", "INVALID_REQUEST")
    # It belongs to one list, one order and one set of filters.
    for path, query in (
        ("/api/v1/evaluations", {}),
        ("/api/v1/runs", {"sort": "name"}),
        ("/api/v1/runs", {"q": "run"}),
    ):
        answer = bare.get(path, params=query | {"cursor": good})
        problem(answer, 422, "INVALID_CURSOR")


def test_cursor__of_the_longest_names_fits(bare):
    rng = random.Random(0)
    names = ["".join(rng.choices(string.ascii_letters, k=120)) for _ in range(3)]
    for name in names:
        submit(bare, spec={"name": name, "method": {"kind": "carot"}})
    cursor = bare.get("/api/v1/runs", params={"sort": "name", "limit": 1}).json()["next_cursor"]
    assert len(cursor) < MAX_CURSOR / 2
    found = walked(bare, "/api/v1/runs", sort="name", limit=1)
    assert [run["name"] for run in found] == sorted(names)


def test_cursor__several_api_processes_read_each_others(settings):
    first, second = (create_app(settings, housekeeping=False) for _ in range(2))
    stores = [app.state.services.store for app in (first, second)]
    with TestClient(first, base_url="http://127.0.0.1"):
        for _ in range(3):
            stores[0].runs.submit(spec_of())
        _, cursor, _ = stores[0].runs.page(limit=1)
        assert stores[1].runs.page(limit=1, cursor=cursor)[0]
        stranger = Stores.on(stores[0].engine)
        with pytest.raises(CursorError):
            stranger.runs.page(limit=1, cursor=cursor)
        stores[1].close()


def test_cursor__key_is_not_the_token(settings):
    token = settings.admin_token()
    assert settings.derived_key("cursor") != settings.derived_key("session")
    written = Cursors(settings.derived_key("cursor")).write("scope", [1])
    with pytest.raises(CursorError):
        Cursors(token.encode()).read(written, "scope")
    assert token.partition(".")[2] not in written


def test_store__connection_that_saw_an_error_is_thrown_away(store):
    """Even values that we signed ourselves, were they wrong, would leave no stale snapshot."""
    for _ in range(3):
        store.runs.submit(spec_of())
    two_connections(store)
    value = 10**30 if store.engine.dialect.name == "sqlite" else "no number"
    cursor = store.cursors.write(
        scope_of(RunsQuery().model_dump(exclude={"cursor", "limit"}), None), [value, "x"]
    )
    held = []  # as a logged traceback does
    for _ in range(3):
        with pytest.raises((OverflowError, DBAPIError)) as caught:
            store.runs.page(limit=1, cursor=cursor)
        held.append(caught.value)
    for _ in range(6):
        run_id = store.runs.submit(spec_of())
        for _ in range(2):
            assert store.runs.get(run_id).id == run_id


def test_store__half_read_answer_holds_no_snapshot(store):
    store.runs.submit(spec_of())
    two_connections(store)
    held = []

    def half():
        with reading(store.engine) as connection:
            answer = connection.execute(select(literal(1)).union_all(select(literal(2))))
            held.append(answer)
            next(answer)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            half()
    for _ in range(6):
        run_id = store.runs.submit(spec_of())
        assert store.runs.get(run_id).id == run_id


def test_store__expected_errors_keep_their_connection(store):
    store.runs.submit(spec_of())
    before = store.engine.pool.checkedin()
    for _ in range(3):
        with pytest.raises(NotFoundError):
            store.runs.get("nobody")
        with pytest.raises(NotFoundError):
            store.runs.request_cancel("nobody")
    assert store.engine.pool.checkedin() == before
    with pytest.raises(ZeroDivisionError), writing(store.engine):
        raise ZeroDivisionError
    assert store.engine.pool.checkedin() == before - 1 if before > 1 else True


def test_backend__connections_are_opened_in_two_places_alone():
    """`reading` and `writing` throw a broken connection away; a third way would not."""
    folder = Path(backend.__file__).parent
    opens = re.compile(r"engine\.(?:connect|begin)\(\)")
    found = {
        path.relative_to(folder).as_posix(): n
        for path in folder.rglob("*.py")
        if (n := len(opens.findall(path.read_text(encoding="utf-8"))))
    }
    assert found.keys() == {"store/engine.py", "store/migrations/__init__.py"}
    assert found["store/engine.py"] == 2
