"""A database as one file, at one moment, while others go on writing; and back."""

import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, func, inspect, select, text

from backend.store.engine import reading
from backend.store.models import ArtifactRow, Run, Token
from calift_core.errors import SpecError, StorageError
from calift_core.files import atomic_path

#: A dump or a restore of a database that takes longer hangs.
_LONGEST_S = 6 * 3600.0
#: Until a session that was closed is gone.
_CLOSING_S = 2.0
_DUMPED = select(ArtifactRow.sha256, func.max(ArtifactRow.size_bytes)).group_by(ArtifactRow.sha256)


@dataclass(frozen=True)
class Dumped:
    """What a dump holds.

    Attributes:
        contents: SHA-256 → size in bytes, of every stored file that a row names.
    """

    revision: str
    runs: int
    contents: dict[str, int]


def dump(engine: Engine, target: Path) -> Dumped:
    """Write a database to a file: `VACUUM INTO` on SQLite, `pg_dump`'s archive on Postgres.

    Raises:
        SpecError: `pg_dump` is not installed.
        StorageError: it failed, or the file cannot be written.
    """
    if engine.dialect.name == "postgresql":
        return _dump_postgres(engine, target)
    with atomic_path(target) as temporary:
        raw = engine.raw_connection()
        try:
            assert raw.driver_connection is not None
            raw.driver_connection.execute("VACUUM INTO ?", (str(temporary),))
        except sqlite3.Error as error:
            raise StorageError(f"the database cannot be copied to {target}: {error}") from error
        finally:
            raw.close()
        temporary.chmod(0o600)
        return look_into(temporary)


def look_into(path: Path) -> Dumped:
    """What an SQLite file holds; it is found to be whole first.

    Raises:
        StorageError: it is damaged, or no database of calift's.
    """
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            (report,) = connection.execute("PRAGMA integrity_check").fetchone()
            if report != "ok":
                raise StorageError(f"{path} is damaged: {report}")
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
            named = connection.execute(str(_DUMPED.compile(compile_kwargs={"literal_binds": True})))
            return Dumped(str(revision), int(runs), dict(named.fetchall()))
    except (sqlite3.Error, TypeError) as error:
        raise StorageError(f"{path} is no database of calift's: {error}") from error


def restore(engine: Engine, source: Path) -> None:
    """Make a Postgres database what an archive of `dump` holds, all or nothing.

    Raises:
        SpecError: `pg_restore` is not installed.
        StorageError: it failed; the database is as it was.
    """
    options = ["--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction"]
    _postgres_tool(engine, "pg_restore", [*options, "--exit-on-error", str(source)], "--dbname")


def is_empty(engine: Engine) -> bool:
    """Whether a database holds neither runs nor tokens, or no table at all."""
    with reading(engine) as connection:
        tables = inspect(connection).get_table_names()
        return not any(
            connection.execute(select(func.count()).select_from(model)).scalar_one()
            for model in (Run, Token)
            if model.__tablename__ in tables
        )


def others(engine: Engine) -> int:
    """How many other sessions use a Postgres database; 0 on SQLite, which does not know.

    Postgres knows of one that its client has closed for a moment yet: it is waited for.
    """
    if engine.dialect.name != "postgresql":
        return 0
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    deadline = time.monotonic() + _CLOSING_S
    while True:
        with reading(engine) as connection:
            found = int(connection.execute(text(query)).scalar_one())
        if found == 0 or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _dump_postgres(engine: Engine, target: Path) -> Dumped:
    with _snapshot(engine) as (connection, snapshot), atomic_path(target) as temporary:
        temporary.touch(mode=0o600)
        options = ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
        _postgres_tool(engine, "pg_dump", [*options, f"--file={temporary}"], "--dbname")
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        runs = connection.execute(select(func.count()).select_from(Run)).scalar_one()
        named = connection.execute(_DUMPED).all()
    return Dumped(str(revision), int(runs), {sha256: int(size) for sha256, size in named})


@contextmanager
def _snapshot(engine: Engine) -> Iterator[tuple[Connection, str]]:
    """One moment of a Postgres database that other connections can look at too."""
    with reading(engine) as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        yield connection, str(connection.execute(text("SELECT pg_export_snapshot()")).scalar_one())


def _postgres_tool(engine: Engine, name: str, arguments: list[str], database: str) -> None:
    """Run a tool of Postgres on a database; the password goes by the environment.

    Raises:
        SpecError: it is not installed.
        StorageError: it failed.
    """
    url = engine.url.set(drivername="postgresql")
    environment = dict(os.environ)
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
        url = url.set(password=None)
    place = url.render_as_string(hide_password=False)
    command = [_find(name), f"{database}={place}", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_LONGEST_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"{name} cannot be run: {error}") from error
    if done.returncode:
        report = [line for line in done.stderr.splitlines() if line.strip()]
        raise StorageError(
            f"{name} failed: {' '.join(report[:3]) or f'exit status {done.returncode}'}",
            hint=f"{name} must be of the server's version or newer: install that "
            "postgresql-client.",
        )


def _find(name: str) -> str:
    """The newest of a tool that is installed.

    Raises:
        SpecError: there is none.
    """

    def version(path: Path) -> int:
        found = re.search(r"\d+", path.parent.parent.name)
        return int(found[0]) if found else 0

    # Debian keeps one a version there; the one in PATH chooses among them by itself, and not well.
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=version)
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise SpecError(
            f"a Postgres database is backed up and restored with {name}, which is not installed.",
            hint="Install Postgres's client programs (Debian: apt-get install postgresql-client).",
        )
    return found
