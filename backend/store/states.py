"""A run's state: which phases work, the fence around a worker's writes, the event that tells."""

from typing import Any

from sqlalchemy import Connection, Row, insert, literal_column, select, update
from sqlalchemy.sql.elements import ColumnElement

from backend.store.engine import NOW, plain
from backend.store.models import Event, Run
from backend.store.notifications import add_notification
from calift_core.errors import NotFoundError
from calift_core.schema.wire.runs import TERMINAL_PHASES

WORKING_PHASES = ("STARTING", "RUNNING", "CANCELLING")


def waiting(run: Any = Run) -> ColumnElement[bool]:
    """Whether a run waits, as SQLite knows the condition of a partial index again: a literal."""
    waits: ColumnElement[bool] = run.phase == literal_column("'QUEUED'")
    return waits


def working(run: Any = Run) -> ColumnElement[bool]:
    """Whether a run is at work, for the same reason in literals."""
    works: ColumnElement[bool] = run.phase.in_(
        [literal_column(f"'{phase}'") for phase in WORKING_PHASES]
    )
    return works


def fenced(
    connection: Connection, run_id: str, attempt: int, /, **values: Any
) -> Row[*tuple[Any, ...]] | None:
    """Update the run's row if this attempt still holds it. A worker's writes begin here.

    The UPDATE locks the row, so what follows in the transaction is ordered against every other
    writer of the run.
    """
    return connection.execute(
        update(Run)
        .where(Run.id == run_id, Run.attempt == attempt, Run.phase.in_(WORKING_PHASES))
        .values(**values)
        .returning(
            Run.event_seq,
            Run.log_bytes,
            Run.phase,
            Run.priority,
            Run.cancel_requested,
            NOW.label("now"),
        )
    ).first()


_INSERT = insert(Event)


def add_state_event(
    connection: Connection,
    run_id: str,
    event_id: int,
    attempt: int,
    phase: str,
    now: float,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    """Write the event that says in which phase a run is now, and why."""
    data = {"phase": phase, "reason": plain(reason), "message": plain(message)}
    row = {"run_id": run_id, "id": event_id, "attempt": attempt, "kind": "state", "at": now}
    connection.execute(_INSERT, row | {"data": data})
    if phase in TERMINAL_PHASES:
        add_notification(connection, "run", run_id, phase, now)


def must_exist(connection: Connection, run_id: str) -> Row[*tuple[Any, ...]]:
    """The run's row, which most answers begin with.

    Raises:
        NotFoundError: no such run.
    """
    row = connection.execute(
        select(Run.id, Run.name, Run.method, Run.phase, Run.log_bytes).where(Run.id == run_id)
    ).first()
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}.")
    return row
