"""Migrations: the tables they make are the tables of the models, and nothing is lost on the way."""

import json
from functools import partial

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
from tests.conftest import at_once, fresh_postgres, spec_of


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        with fresh_postgres(request.getfixturevalue("postgres"), empty=True) as url:
            yield url


@pytest.fixture
def empty(empty_url):
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    """Columns, keys, constraints and indexes of every table, as the database knows them."""
    found = inspect(engine)
    rows = []
    for name in set(found.get_table_names()) - {"alembic_version"}:
        columns = enumerate(found.get_columns(name))
        rows += [(name, found.get_pk_constraint(name)), *((name, one) for one in columns)]
        for ask in ("foreign_keys", "unique_constraints", "check_constraints", "indexes"):
            rows += [(name, ask, one) for one in getattr(found, f"get_{ask}")(name)]
    return {json.dumps(one, default=str, sort_keys=True) for one in rows}


def require_models(engine: Engine) -> None:
    """The tables are those of the models."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade__equals_the_models(empty):
    """Also from the first revision on; `test_recorded_home` has a database that it made."""
    migrations.upgrade(empty)
    made = tables(empty)
    with writing(empty) as connection:
        migrations.command.downgrade(migrations.config(connection), "0001")
    assert made > tables(empty)
    migrations.upgrade(empty)
    assert made ^ tables(empty) == set()
    require_models(empty)
    assert [c["name"] for c in inspect(empty).get_check_constraints("runs")] == ["ck_runs_phase"]


def test_upgrade__twice_and_at_once_is_once(empty_url):
    engines = [open_engine(empty_url) for _ in range(4)]
    at_once(*(partial(migrations.upgrade, engine) for engine in engines))
    migrations.upgrade(engines[0])
    with engines[0].connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    assert found == migrations.newest_revision()
    for engine in engines:
        engine.dispose()


def test_upgrade__keeps_rows_and_leaves_foreign_keys_on(empty):
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
def test_upgrade__that_breaks_sqlite_rows_is_rolled_back(tmp_path, monkeypatch, damage):
    engine = open_engine(f"sqlite:///{tmp_path / 'a.db'}")
    migrations.upgrade(engine)
    store = Stores.on(engine)
    run_id = store.runs.submit(spec_of(tags=["t"]))

    def revision(configuration, _target):
        context = MigrationContext.configure(configuration.attributes["connection"])
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
