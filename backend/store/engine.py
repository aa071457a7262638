"""How SQLite and Postgres are opened, read, written and asked for the time.

SQLite and Postgres behave alike. On SQLite a writer begins with ``BEGIN IMMEDIATE``: a deferred
transaction that turns into a writer fails with "locked" whatever the timeout.
"""

import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Double, Engine, create_engine, event, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from backend.store.models import Base
from calift_core.errors import CaliftError, SpecError
from calift_core.files import storage_error

#: A transaction that says nothing for so long belongs to a process that is frozen or cut off. Until
#: the server ends it, the rows that it has changed can be changed by nobody, not even the reaper.
IDLE_IN_TRANSACTION_S = 60.0

#: Nobody connects to a file between its making and the end of it; see `_keep_private`.
_making = threading.Lock()


def open_engine(url: str) -> Engine:
    """Open a database: SQLite or Postgres (through psycopg 3).

    Raises:
        SpecError: the URL is of another kind.
    """
    parsed = make_url(url)
    backend_name = parsed.get_backend_name()
    if backend_name == "postgres":
        parsed, backend_name = parsed.set(drivername="postgresql+psycopg"), "postgresql"
    if backend_name == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(
            parsed,
            # A connection that a restarted server forgot is replaced before it is used.
            pool_pre_ping=True,
            # All are kept: one beyond the pool would be a new process of the server each time.
            pool_size=15,
            max_overflow=0,
            hide_parameters=True,  # errors are logged, and people's notes need not be
            connect_args={
                "connect_timeout": 5,
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                # Of a database in SQL_ASCII, psycopg would hand out bytes for text.
                "client_encoding": "utf8",
            },
        )
        event.listen(engine, "connect", _set_up_postgres)
        return engine
    if backend_name != "sqlite":
        raise SpecError(f"database_url must be sqlite or postgresql, got {backend_name!r}")
    engine = create_engine(parsed, connect_args={"timeout": 10}, hide_parameters=True)
    if (file := database_file(engine)) is not None:
        event.listen(engine, "do_connect", lambda *_: _keep_private(file))
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def database_file(engine: Engine) -> Path | None:
    """The file of an SQLite database; None of one in memory, and of a server's."""
    name = engine.url.database or ":memory:"
    if engine.dialect.name != "sqlite" or name.startswith((":memory:", "file:")):
        return None
    return Path(name)


def _keep_private(path: Path) -> None:
    """Make the file 0600, whatever the umask; SQLite gives its companions the same rights.

    A file that its group may write is shared on purpose and stays so.

    A file that is there is never opened here. To close it would drop the locks of every connection
    that this process has (fcntl(2)), and the next other process that closes its last one would take
    itself for alone and remove the write-ahead log: what is committed here from then on, nobody
    else would ever see.

    Raises:
        StorageError: it cannot be opened or made.
    """
    try:
        with _making:
            _make_private(path)
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            with suppress(FileNotFoundError, PermissionError):
                mode = stat.S_IMODE(file.stat().st_mode)
                if mode & 0o077 and not mode & 0o020:
                    file.chmod(0o600)
    except OSError as error:
        raise storage_error(error, path, "open") from error


def _make_private(path: Path) -> None:
    """Make the file where there is none; raise OSError where it cannot be written."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _set_up_postgres(connection: Any, _record: Any) -> None:
    connection.autocommit = True  # or a rollback takes it back
    connection.execute(
        f"SET idle_in_transaction_session_timeout = {round(1000 * IDLE_IN_TRANSACTION_S)}"
    )
    connection.autocommit = False


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # sqlite3's own transaction control would begin late and deferred.
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout=10000")
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Turn the write-ahead log on; in a new file that others open too it is asked for again.

    Two that turn it on at once hold each other's lock, so SQLite tells one of them "locked" without
    waiting.
    """
    deadline = time.monotonic() + 10.0
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("calift_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection to read over; fetch every answer whole before the next statement."""
    with engine.connect() as connection, _thrown_away_if_broken(connection):
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write from its first statement on."""
    with (
        engine.connect().execution_options(calift_writes=True) as connection,
        _thrown_away_if_broken(connection),
        connection.begin(),
    ):
        yield connection


@contextmanager
def _thrown_away_if_broken(connection: Connection) -> Iterator[None]:
    """Keep a connection out of the pool once anything unexpected has happened over it.

    On SQLite a half-read answer holds its snapshot through the rollback for as long as something,
    such as a logged traceback, refers to it: whoever got the connection next would read old rows
    and could not write.
    """
    try:
        yield
    except (CaliftError, IntegrityError):
        raise
    except BaseException as error:
        connection.invalidate(error)
        raise


class _Clock(FunctionElement[float]):
    # A FunctionElement has a key: a plain ColumnElement has none, and every statement that held one
    # would be compiled again each time.
    inherit_cache = True
    type = Double()


@compiles(_Clock, "sqlite")
def _sqlite_clock(*_: Any, **__: Any) -> str:
    return "unixepoch('subsec')"


@compiles(_Clock, "postgresql")
def _postgres_clock(*_: Any, **__: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::float8"


#: Wall-clock seconds since the epoch at a statement, by the database's clock and nobody else's.
NOW: ColumnElement[float] = _Clock()


def seconds_now(engine: Engine) -> float:
    """The database's clock, seconds since the epoch."""
    with reading(engine) as connection:
        return float(connection.execute(select(NOW)).scalar_one())


def schema_revision(engine: Engine) -> str | None:
    with reading(engine) as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return cast("str | None", found)


def upsert(
    connection: Connection, model: type[Base], key: Sequence[str], update_columns: Sequence[str]
) -> Any:
    """An INSERT that replaces these columns where a row of this key is there already."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(model)
    return statement.on_conflict_do_update(
        index_elements=list(key), set_={name: statement.excluded[name] for name in update_columns}
    )


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def when(seconds: float | None) -> datetime | None:
    """A time that may not have come."""
    return None if seconds is None else moment(seconds)


def plain(text: str | None) -> str | None:
    """A text as both databases take it: Postgres knows no NUL, and UTF-8 no half surrogates.

    What a runner said last may hold either.
    """
    if text is None:
        return None
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()
