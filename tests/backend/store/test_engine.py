"""How a database is opened: several processes on one SQLite file, frozen writers, the clock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from backend.store import engine as engines
from backend.store.engine import NOW, open_engine, writing
from backend.store.errors import database_away
from backend.store.models import Run, Worker
from backend.store.stores import Stores
from tests.backend.store.helpers import claimed, expire

_OTHER = """
import sys
from sqlalchemy import text
from backend.store.engine import open_engine, writing
engine = open_engine(sys.argv[1])
with writing(engine) as connection:
    connection.execute(text("INSERT INTO said VALUES ('other')"))
    print(*connection.execute(text("SELECT word FROM said")).scalars())
engine.dispose()
"""


def another(url: str) -> list[str]:
    """A process that opens the file, writes, reads, and ends in good order; what it read."""
    done = subprocess.run(
        [sys.executable, "-c", _OTHER, url],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_sqlite__a_process_that_ends_takes_nothing_away_from_those_that_stay(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    engine = open_engine(url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE said (word TEXT)"))
    # A pool of two, as any process with threads has.
    with engine.connect(), engine.connect():
        pass
    assert another(url) == ["other"]
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO said VALUES ('ours')"))
    assert another(url) == ["other", "ours", "other"]
    with engine.connect() as connection:
        found = connection.execute(text("SELECT word FROM said")).scalars().all()
    assert found == ["other", "ours", "other"]
    engine.dispose()


def test_postgres__a_transaction_that_froze_does_not_hold_up_the_lease_reaper(
    postgres_database, monkeypatch
):
    store = Stores.on(open_engine(postgres_database))
    claim = claimed(store)
    expire(store, claim.run_id)
    monkeypatch.setattr(engines, "IDLE_IN_TRANSACTION_S", 0.5)
    frozen = open_engine(postgres_database)
    swept = []

    def change_sleep_and_change():
        change = text("UPDATE runs SET name = 'mine' WHERE id = :id")
        with writing(frozen) as held:
            held.execute(change, {"id": claim.run_id})
            # The server ends the transaction; until then this waits.
            swept.extend(s.action for s in store.reaper.sweep() if s.run_id == claim.run_id)
            held.execute(change, {"id": claim.run_id})

    with pytest.raises(DBAPIError, match="idle-in-transaction") as caught:
        change_sleep_and_change()
    assert database_away(caught.value)
    assert swept == ["requeued"]
    frozen.dispose()
    store.close()


def test_clock__a_statement_with_the_database_s_time_is_compiled_once(store):
    def compiled(statement):
        """Whether the statement was found among those compiled before."""
        context = connection.execute(statement).context
        return bool(context.cache_hit.name == "CACHE_HIT")

    with store.engine.connect() as connection:
        for make in (
            lambda: select(NOW),
            lambda: select(Worker.id).where(Worker.seen_at > NOW - 60.0),
            lambda: update(Run).where(Run.id == "none").values(dispatched_at=NOW),
        ):
            connection.execute(make())
            assert compiled(make())
