"""Several processes on one SQLite file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from backend.store.engine import open_engine, writing

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


def test_sqlite__a_process_that_ends_takes_nothing_away_from_those_that_stay(
    tmp_path: Path,
) -> None:
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
