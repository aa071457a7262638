"""Two questions: does the process live, and can it do its work?"""

import errno
import re
import threading
from typing import Any

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from backend.routes.deps import Recent
from backend.store import migrations
from backend.store.engine import open_engine, seconds_now, writing
from tests.backend.test_api import problem
from tests.conftest import as_admin, free_port


@pytest.fixture
def stranger(app):
    """Without a token; server errors come as answers."""
    object.__setattr__(app.state.services, "ready", Recent(-1.0))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as caller:
        yield caller


def lacking(response: Any) -> dict[str, str]:
    found = problem(response, 503, "NOT_READY")
    assert int(response.headers["retry-after"]) >= 1
    return {error["check"]: error["message"] for error in found.errors}


def test_ready__when_everything_answers(stranger):
    response = stranger.get("/api/v1/readyz")
    assert response.status_code == 200, response.text
    assert response.json() == {
        "status": "ready",
        "checks": ["database", "schema", "broker", "artifacts", "disk"],
    }
    assert stranger.head("/api/v1/readyz").status_code == 200


def test_ready__not_without_the_database(stranger, app):
    readiness = app.state.services.readiness
    there = app.state.services.store.engine
    readiness._engine = open_engine(f"postgresql://x:hunter2@127.0.0.1:{free_port()}/x")
    assert lacking(stranger.get("/api/v1/readyz")) == {"database": "the database does not answer."}
    assert "hunter2" not in stranger.get("/api/v1/readyz").text
    # The process lives, which is all that this asks for.
    assert stranger.get("/api/v1/health").status_code == 200
    readiness._engine = there
    assert stranger.get("/api/v1/readyz").status_code == 200


@pytest.mark.parametrize("revision", ["0000", "9999"])
def test_ready__not_with_tables_of_another_version(stranger, app, revision):
    engine = app.state.services.store.engine
    newest = migrations.newest_revision()
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
    try:
        assert set(lacking(stranger.get("/api/v1/readyz"))) == {"schema"}
    finally:
        with writing(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": newest})
    assert stranger.get("/api/v1/readyz").status_code == 200


@pytest.mark.parametrize(
    ("values", "check", "words"),
    [
        ({"broker_url": "redis://:hunter2@127.0.0.1:9/0"}, "broker", "the broker does not answer."),
        ({"free_space_floor_bytes": 1 << 60}, "disk", "the disk has no room."),
    ],
    ids=["broker", "disk"],
)
def test_ready__not_without_broker_or_room(make_settings, sqlite_url, values, check, words):
    settings = make_settings(database_url=sqlite_url, **values)
    with as_admin(settings) as caller:
        response = caller.get("/api/v1/readyz")
        assert lacking(response) == {check: words}
        assert not re.search(f"hunter2|{settings.home}", response.text)
        assert caller.get("/api/v1/health").status_code == 200


def test_ready__not_without_the_artifact_store(stranger, app, settings):
    settings.artifacts_dir.parent.mkdir(exist_ok=True)
    settings.artifacts_dir.write_text("no folder")
    response = stranger.get("/api/v1/readyz")
    assert set(lacking(response)) == {"artifacts"}
    assert str(settings.home) not in response.text
    settings.artifacts_dir.unlink()
    assert stranger.get("/api/v1/readyz").status_code == 200


def test_ready__not_where_nothing_can_be_written(stranger, monkeypatch):
    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("backend.storage.health._try_to_write", refuse)
        assert set(lacking(stranger.get("/api/v1/readyz"))) == {"disk"}
    assert stranger.get("/api/v1/readyz").status_code == 200


def test_ready__slow_question_keeps_nobody_else(until):
    recent = Recent(-1.0)
    assert recent.ask(lambda: 1) == 1
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(20)
        return 2

    asker = threading.Thread(target=lambda: recent.ask(slow))
    asker.start()
    assert begun.wait(20)
    assert recent.ask(lambda: 3) == 1, "the last answer, at once"
    go_on.set()
    asker.join(20)
    assert recent.ask(lambda: 4) == 4


def test_ready__is_asked_once_in_a_while_however_often_strangers_ask(app, monkeypatch):
    requested = []
    monkeypatch.setattr(
        "backend.services.readiness.seconds_now",
        lambda engine: (requested.append(1), seconds_now(engine))[1],
    )
    with TestClient(app, base_url="http://127.0.0.1") as caller:
        for _ in range(20):
            assert caller.get("/api/v1/readyz").status_code == 200
    assert len(requested) < 5
