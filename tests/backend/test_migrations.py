"""Migrations: the tables they make are the tables of the models, and nothing is lost on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, inspect, text

from backend.store import migrations
from backend.store.engine import open_engine, writing
from backend.store.models import Base
from backend.store.stores import Stores
from calift_core.errors import StorageError
from tests.conftest import fresh_postgres, spec_of


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        with fresh_postgres(request.getfixturevalue("postgres"), empty=True) as url:
            yield url


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


def test_upgrade__equals_the_models(empty: Engine) -> None:
    migrations.upgrade(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade__constraints_have_the_models_names(empty: Engine) -> None:
    migrations.upgrade(empty)
    found = inspect(empty)
    for table in Base.metadata.sorted_tables:
        primary = found.get_pk_constraint(table.name)
        assert primary["name"] == table.primary_key.name
        assert primary["constrained_columns"] == [c.name for c in table.primary_key]
        keys = {k["name"]: k["options"].get("ondelete") for k in found.get_foreign_keys(table.name)}
        assert keys == {str(k.name): k.ondelete for k in table.foreign_key_constraints}
    assert [c["name"] for c in found.get_check_constraints("runs")] == ["ck_runs_phase"]


def test_upgrade__twice_and_at_once_is_once(empty_url: str) -> None:
    engines = [open_engine(empty_url) for _ in range(4)]
    failures: list[BaseException] = []

    def up(engine: Engine) -> None:
        try:
            migrations.upgrade(engine)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=up, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    migrations.upgrade(engines[0])
    with engines[0].connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    assert found == migrations.newest_revision()
    for engine in engines:
        engine.dispose()


def test_upgrade__keeps_rows_and_leaves_foreign_keys_on(empty: Engine) -> None:
    migrations.upgrade(empty)
    store = Stores.on(empty)
    run_id = store.runs.submit(spec_of(tags=["t"]))
    migrations.upgrade(empty)
    assert store.runs.get(run_id).tags == ["t"]
    if empty.dialect.name == "sqlite":
        with empty.connect() as connection:
            assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 1
            assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 10_000


@pytest.mark.parametrize("damage", ["rows are lost", "children are orphaned", "nothing"])
def test_upgrade__that_breaks_sqlite_rows_is_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'a.db'}")
    migrations.upgrade(engine)
    store = Stores.on(engine)
    run_id = store.runs.submit(spec_of(tags=["t"]))

    def revision(configuration: object, _target: str) -> None:
        context = MigrationContext.configure(
            configuration.attributes["connection"]  # type: ignore[attr-defined]
        )
        with Operations.context(context):
            if damage == "rows are lost":
                op.execute("DELETE FROM run_tags")
            elif damage == "children are orphaned":
                op.execute("UPDATE run_tags SET run_id = 'nobody'")
            else:
                # Copies the table and drops the old one, which has children that cascade.
                with op.batch_alter_table("runs", recreate="always") as batch:
                    batch.alter_column("name", nullable=True)

    monkeypatch.setattr(migrations.command, "upgrade", revision)
    if damage == "nothing":
        migrations.upgrade(engine)
    else:
        with pytest.raises(StorageError, match="rolled back"):
            migrations.upgrade(engine)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT run_id, tag FROM run_tags")).all()
    assert [tuple(row) for row in rows] == [(run_id, "t")]
    assert [e.kind for e in store.history.events_after(run_id)[0]] == ["state"]
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()


def test_upgrade__waiting_runs_keep_their_place_and_apple_runs_get_a_queue(empty: Engine) -> None:
    migrations.upgrade(empty, "0005")
    with writing(empty) as connection:
        for run_id, device, created, queued, drains in (
            ("drained", "cpu", 10.0, 90.0, 1),
            ("retried", "cpu", 20.0, 80.0, 0),
            ("waits", "mps", 30.0, 30.0, 0),
        ):
            columns = inspect(connection).get_columns("runs")
            row = {c["name"]: 0 for c in columns if not c["nullable"] and c["name"] != "id"}
            for name in ("name", "notes", "token_id", "spec_sha256", "method", "model", "suite"):
                row[name] = "x"
            row |= {"id": run_id, "phase": "QUEUED", "queue": "gpu", "hint": "", "tags": "[]"}
            row |= {"created_at": created, "queued_at": queued, "drains": drains}
            row |= {"archived": False, "cancel_requested": False, "max_attempts": 3}
            row["spec"] = json.dumps(spec_of(train={"device": device}).model_dump(mode="json"))
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO runs ({names}) VALUES ({values})"), row)
    migrations.upgrade(empty)
    store = Stores.on(empty)
    taken = [
        store.claims.claim_next(["gpu", "mps"], message_run=None, worker_id="w", ttl_s=60)
        for _ in range(3)
    ]
    assert [claim.run_id for claim in taken if claim] == ["drained", "waits", "retried"]
    with empty.connect() as connection:
        queues = connection.execute(text("SELECT queue FROM runs ORDER BY id")).scalars().all()
    assert queues == ["gpu", "gpu", "mps"]


def test_downgrade__leaves_nothing(empty: Engine) -> None:
    migrations.upgrade(empty)
    with writing(empty) as connection:
        migrations.command.downgrade(migrations.config(connection), "base")
    assert inspect(empty).get_table_names() == ["alembic_version"]


def test_upgrade__runs_that_are_there_get_looks_in_their_order(empty_url: str) -> None:
    engine = open_engine(empty_url)
    migrations.upgrade(engine)
    store = Stores.on(engine)
    ids = [store.runs.submit(spec_of(name=str(i))) for i in range(3)]
    assert [run.look for run in store.runs.summaries(ids)] == [0, 1, 2]
    with writing(engine) as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            op.execute("UPDATE runs SET look = 7")
            op.drop_column("runs", "look")
        connection.execute(text("UPDATE alembic_version SET version_num = '0010'"))
    migrations.upgrade(engine)
    assert [run.look for run in store.runs.summaries(ids)] == [0, 1, 2]
    store.close()
