"""Bring a database to the current revision; safe to call from several processes at once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from calift_core.errors import StorageError

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


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Apply what is missing, all or nothing.

    On SQLite a table is changed by copying it, and dropping the old copy would delete all child
    rows through ON DELETE CASCADE. So foreign keys are off while it works; then every key is
    checked, and no table may have lost a row.

    Raises:
        StorageError: a migration broke foreign keys or lost rows; it was rolled back.
    """
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _ADVISORY_LOCK})
            command.upgrade(config(connection), revision)
        return
    with engine.connect().execution_options(calift_writes=True) as connection:
        # The pragma has no effect inside a transaction, hence on the bare connection.
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                before = _row_counts(connection)
                command.upgrade(config(connection), revision)
                _check(connection, before)
        finally:
            raw.execute("PRAGMA foreign_keys=ON")


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
