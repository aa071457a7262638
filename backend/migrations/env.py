"""Run by Alembic. The connection comes from `backend.migrations.upgrade`, or from the settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from backend.models import Base


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Migrate over the given connection, or over one of our own for the `alembic` command."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _run(connection)
        return
    from backend.settings import load_settings
    from backend.store.engine import open_engine, writing

    engine = open_engine(load_settings().database_url)
    try:
        with writing(engine) as own:
            _run(own)
    finally:
        engine.dispose()


main()
