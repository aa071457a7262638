"""Bring a database to the current revision; safe to call from several processes at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from backend.store.models import Base
from calift_core import __version__
from calift_core.errors import SpecError, StorageError

#: Any number will do, as long as every calift process takes the same one.
_ADVISORY_LOCK = 0x63616C69


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without an ini file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


@cache
def newest_revision() -> str | None:
    """The revision that this version of calift needs."""
    return ScriptDirectory.from_config(config()).get_current_head()


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(s.revision for s in ScriptDirectory.from_config(config()).walk_revisions())


def check_known(revision: str | None, whose: str) -> None:
    """Refuse tables that a newer version made.

    Args:
        revision: of the tables; None: there are none.

    Raises:
        NewerDatabaseError: this version does not know the revision.
    """
    if revision is not None and revision not in _known_revisions():
        raise NewerDatabaseError(
            f"{whose} was last used by a newer version of calift: its tables are of revision "
            f"{revision}, and this version ({__version__}) knows them up to {newest_revision()}.",
            hint="Use that version or a newer one, or restore a backup that an older one made.",
        )


class NewerDatabaseError(SpecError):
    """A database that a newer version of calift has brought up to date."""

    code = "DATABASE_NEWER"


def _revision_of(connection: Connection) -> str | None:
    if "alembic_version" not in inspect(connection).get_table_names():
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def upgrade(engine: Engine) -> None:
    """Make the tables, or apply what is missing of them, all or nothing.

    On SQLite a table is changed by copying it, and dropping the old copy would delete all child
    rows through ON DELETE CASCADE. So foreign keys are off while it works; then every key is
    checked, and no table may have lost a row.

    Raises:
        NewerDatabaseError: the tables are of a newer version; nothing was changed.
        StorageError: a migration broke foreign keys or lost rows; it was rolled back.
    """
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _ADVISORY_LOCK})
            _bring_up(connection)
        return
    with engine.connect().execution_options(calift_writes=True) as connection:
        # The pragma has no effect inside a transaction, hence on the bare connection.
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                before = _row_counts(connection)
                _bring_up(connection)
                _check(connection, before)
        finally:
            raw.execute("PRAGMA foreign_keys=ON")


def _bring_up(connection: Connection) -> None:
    revision = _revision_of(connection)
    check_known(revision, "the database")
    if revision is None:
        Base.metadata.create_all(connection)
        command.stamp(config(connection), "head")
    else:
        command.upgrade(config(connection), "head")


def _row_counts(connection: Connection) -> dict[str, int]:
    names = [n for n in inspect(connection).get_table_names() if n != "alembic_version"]
    return {
        name: int(connection.exec_driver_sql(f'SELECT count(*) FROM "{name}"').scalar_one())
        for name in names
    }


def _check(connection: Connection, before: dict[str, int]) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise StorageError(
            f"the migration left {len(broken)} rows without their parent, first in "
            f"{broken[0][0]!r}; it was rolled back."
        )
    after = _row_counts(connection)
    for name, count in before.items():
        if name in after and after[name] < count:
            raise StorageError(
                f"the migration lost rows of {name!r}: {count} before, {after[name]} after; "
                "it was rolled back."
            )
