"""What the store refuses, and what a database error means for people; never its SQL."""

import sqlite3
from dataclasses import dataclass

import psycopg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from calift_core.errors import CaliftError, reason_of


class ConflictError(CaliftError):
    """The request does not fit the state that the thing is in."""

    code = "CONFLICT"


class IdempotencyError(ConflictError):
    """An idempotency key came back with another body."""

    code = "IDEMPOTENCY_KEY_REUSED"


class QueueFullError(CaliftError):
    """The token, or the owner, has as many queued runs as it may have."""

    code = "QUEUE_FULL"


class ArtifactQuotaError(ConflictError):
    """The owner's stored files take up as much as they may."""

    code = "ARTIFACT_QUOTA"


def database_away(error: Exception) -> bool:
    """Whether a database error says that it is worth asking again."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def words_of(error: Exception) -> str:
    """An unexpected error in words that anybody may read."""
    # A database error's text holds the statement and its values, which are nobody's business.
    if isinstance(error, SQLAlchemyError):
        return f"the database refused what it was given ({type(error).__name__})"
    return f"{type(error).__name__}: {reason_of(error)}"


@dataclass(frozen=True)
class DatabaseFault:
    """One kind of trouble. `passes` says that trying again in a moment may help."""

    code: str
    message: str
    hint: str
    status: int = 503
    passes: bool = True


UNAVAILABLE = DatabaseFault(
    "DATABASE_UNAVAILABLE",
    "the database does not answer.",
    "Runs that work go on; try again in a moment.",
)
BUSY = DatabaseFault(
    "DATABASE_BUSY",
    "the database is busy: others have been using it for too long.",
    "Nothing was changed; try again in a moment.",
)
FULL = DatabaseFault(
    "DATABASE_FULL",
    "the database's disk is full.",
    "Nothing was changed; free some space where the database lies.",
    status=507,
    passes=False,
)
READ_ONLY = DatabaseFault(
    "DATABASE_READ_ONLY",
    "the database takes no changes: it is read-only.",
    "Look at the owner of its file, or at which server the service is connected to.",
    passes=False,
)
REFUSED = DatabaseFault(
    "DATABASE_REFUSED",
    "the database refuses the service.",
    "Look at user, password, rights and database name in CALIFT_DATABASE_URL.",
    passes=False,
)
OTHER_SCHEMA = DatabaseFault(
    "DATABASE_SCHEMA",
    "the database's tables are those of another version of calift.",
    "Restart the API, which brings them up to date, and run one version everywhere.",
    passes=False,
)
DAMAGED = DatabaseFault(
    "DATABASE_DAMAGED",
    "the database is damaged.",
    "Stop the service and restore the database from a copy.",
    status=500,
    passes=False,
)

#: By SQLSTATE, the longest prefix first (Postgres, appendix A).
_POSTGRES = {
    "08": UNAVAILABLE,
    "57P": UNAVAILABLE,
    "53100": FULL,
    "53": BUSY,
    "40": BUSY,
    "55P03": BUSY,
    "57014": BUSY,
    "25006": READ_ONLY,
    "28": REFUSED,
    "3D000": REFUSED,
    "42501": REFUSED,
    "42P01": OTHER_SCHEMA,
    "42703": OTHER_SCHEMA,
    "58": UNAVAILABLE,
    "XX001": DAMAGED,
    "XX002": DAMAGED,
}

_SQLITE = {
    sqlite3.SQLITE_BUSY: BUSY,
    sqlite3.SQLITE_LOCKED: BUSY,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_IOERR: UNAVAILABLE,
    sqlite3.SQLITE_CANTOPEN: UNAVAILABLE,
    sqlite3.SQLITE_PERM: REFUSED,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}


#: SQLite has one code for every mistake in a statement.
_LACKS = ("no such table", "no such column", "has no column named")


def fault_of(error: SQLAlchemyError) -> DatabaseFault | None:
    """The kind of trouble; None: it is none of the database's, but a mistake in our statements."""
    if isinstance(error, PoolTimeoutError):
        return BUSY
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause)
    if isinstance(cause, psycopg.Error):
        return _of_postgres(cause)
    return None


def _of_sqlite(error: sqlite3.Error) -> DatabaseFault | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None  # raised by the driver itself, about how it is used
    known = _SQLITE.get(code & 0xFF)  # the low byte; the rest only refines it
    if known is None and any(words in str(error) for words in _LACKS):
        return OTHER_SCHEMA
    return known


def _of_postgres(error: psycopg.Error) -> DatabaseFault | None:
    state = error.sqlstate
    if state is None:
        # No server said so: the connection was lost or never made.
        return UNAVAILABLE if isinstance(error, psycopg.OperationalError) else None
    prefixes = sorted((p for p in _POSTGRES if state.startswith(p)), key=len)
    return _POSTGRES[prefixes[-1]] if prefixes else None
