"""Ends of runs and sweeps that a webhook is still to be told of.

A row is written in the transaction that ends its subject, and leaves when it was delivered or when
nobody wants it: what is told may be told twice, and is never lost in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Engine, delete, insert, select, update

from backend.store.engine import NOW, reading, writing
from backend.store.models import Notification, Run, Sweep

#: So long whoever took one has it; one that died meanwhile has it sent by another.
_HOLD_S = 60.0
#: Seconds before the second attempt; each further one waits twice as long, two hours at most.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 7_200.0
#: One that could not be delivered for so long is given up.
GIVE_UP_S = 2 * 86_400.0


@dataclass(frozen=True)
class Ended:
    """A run, an evaluation job or a sweep that has ended.

    Attributes:
        kind: `run` or `sweep`.
        summary: of a run's report, where it has one.
    """

    notification: int
    kind: Literal["run", "sweep"]
    subject: str
    phase: str
    at: float
    name: str
    about: str
    submitted_by: str
    message: str
    summary: dict[str, Any]


def add_notification(
    connection: Connection, kind: Literal["run", "sweep"], subject: str, phase: str, now: float
) -> None:
    """Somebody may want to hear of this end."""
    values = {"kind": kind, "subject": subject, "phase": phase, "at": now, "next_at": now}
    connection.execute(insert(Notification).values(attempts=0, **values))


class Notifications:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self) -> Ended | None:
        """The one that has been due longest; nobody else is given it for a minute.

        Ends of imported predictions and of a sweep's own runs that succeeded are left out.
        """
        due = select(Notification).where(Notification.next_at <= NOW).order_by(Notification.id)
        with reading(self._engine) as connection:
            if connection.execute(due.limit(1)).first() is None:
                return None  # the usual case, which need not keep writers waiting
        with writing(self._engine) as connection:
            while True:
                row = connection.execute(
                    due.limit(1).with_for_update(skip_locked=True, of=Notification)
                ).first()
                if row is None:
                    return None
                this = Notification.id == row.id
                if (ended := _ended(connection, row)) is not None:
                    connection.execute(
                        update(Notification)
                        .where(this)
                        .values(next_at=NOW + _HOLD_S, attempts=Notification.attempts + 1)
                    )
                    return ended
                connection.execute(delete(Notification).where(this))

    def delivered(self, notification: int) -> None:
        """It was delivered."""
        with writing(self._engine) as connection:
            connection.execute(delete(Notification).where(Notification.id == notification))

    def failed(self, notification: int) -> bool:
        """It could not be delivered; whether it will be tried again."""
        with writing(self._engine) as connection:
            row = connection.execute(
                select(Notification.attempts, (NOW - Notification.at).label("age")).where(
                    Notification.id == notification
                )
            ).first()
            if row is None or row.age > GIVE_UP_S:
                connection.execute(delete(Notification).where(Notification.id == notification))
                return False
            wait = min(_FIRST_WAIT_S * 2.0 ** (row.attempts - 1), _LONGEST_WAIT_S)
            connection.execute(
                update(Notification)
                .where(Notification.id == notification)
                .values(next_at=NOW + wait)
            )
            return True

    def forget(self) -> None:
        """Nobody is to be told of what has ended so far."""
        with reading(self._engine) as connection:
            if connection.execute(select(Notification.id).limit(1)).first() is None:
                return
        with writing(self._engine) as connection:
            connection.execute(delete(Notification))


def _ended(connection: Connection, row: Any) -> Ended | None:
    """What a notification is about; None where it is gone, or nobody asks."""
    if row.kind == "sweep":
        sweep = connection.execute(
            select(Sweep.name, Sweep.submitted_by, Sweep.message).where(Sweep.id == row.subject)
        ).first()
        if sweep is None:
            return None
        about, summary = "sweep", None
        name, by, message = sweep
    else:
        run = connection.execute(
            select(
                Run.name, Run.submitted_by, Run.message, Run.summary, Run.method, Run.kind,
                Run.sweep_id,
            ).where(Run.id == row.subject)
        ).first()  # fmt: skip
        if run is None or run.method == "imported":
            return None
        if run.sweep_id is not None and row.phase == "SUCCEEDED":
            return None
        about = "evaluation job" if run.kind == "evaluation" else "run"
        name, by, message, summary = run.name, run.submitted_by, run.message, run.summary
    return Ended(
        row.id, row.kind, row.subject, row.phase, row.at, name, about, by or "", message or "",
        dict(summary or {}),
    )  # fmt: skip
