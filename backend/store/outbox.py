"""Doorbells: written in the transaction that queues a run, rung by a relay.

The message in the broker may be lost or rung twice; the run's row is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Select, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from backend.line import queue_for
from backend.models import Outbox, Run
from backend.store.engine import NOW, reading, writing
from backend.store.workers import live_workers

#: So long a relay keeps doorbells to itself; one that died meanwhile has them rung by another.
_HOLD_S = 60.0


@dataclass(frozen=True)
class Doorbell:
    """A doorbell to ring. `queue` is one of `backend.queue.QUEUES`; higher `priority` first."""

    id: int
    run_id: str
    queue: str
    priority: int


class Doorbells:
    """The doorbells that are to be rung.

    Args:
        engine: of `open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def unsent(self, limit: int = 100) -> list[Doorbell]:
        """Doorbells that are not rung yet, the most urgent first, held or not: to look at them.

        Those of runs that wait no more are left out.
        """
        with reading(self._engine) as connection:
            return _rows(connection, [], limit)

    def take(self, limit: int = 100) -> list[Doorbell]:
        """Doorbells for the caller alone to ring, the most urgent first.

        Nobody else is given them for a minute; mark each when it is rung, or give them back.
        """
        free = [or_(Outbox.held_until.is_(None), Outbox.held_until < NOW)]
        with reading(self._engine) as connection:
            if not _rows(connection, free, 1):
                return []  # the usual case, which need not keep writers waiting
        with writing(self._engine) as connection:
            wanted = _query(free).limit(limit).with_for_update(skip_locked=True, of=Outbox)
            rows = connection.execute(wanted).all()
            if rows:
                connection.execute(
                    update(Outbox)
                    .where(Outbox.id.in_([r.id for r in rows]))
                    .values(held_until=NOW + _HOLD_S)
                )
            live = live_workers(connection)
        return [Doorbell(r.id, r.run_id, queue_for(r.queue, live), r.priority) for r in rows]

    def give_back(self, outbox_ids: Sequence[int]) -> None:
        """The broker did not take these: anybody may ring them now."""
        with writing(self._engine) as connection:
            connection.execute(
                update(Outbox)
                .where(Outbox.id.in_(list(outbox_ids)), Outbox.sent_at.is_(None))
                .values(held_until=None)
            )

    def mark_sent(self, outbox_id: int) -> None:
        """The broker took the message."""
        with writing(self._engine) as connection:
            run_id = connection.execute(
                update(Outbox)
                .where(Outbox.id == outbox_id)
                .values(sent_at=NOW)
                .returning(Outbox.run_id)
            ).scalar()
            if run_id is not None:
                connection.execute(
                    update(Run)
                    .where(Run.id == run_id, Run.phase == "QUEUED")
                    .values(dispatched_at=NOW)
                )


def ring(connection: Connection, run_id: str, priority: int, now: float) -> None:
    """Leave a doorbell for a run that waits."""
    connection.execute(insert(Outbox).values(run_id=run_id, priority=priority, created_at=now))


def _query(conditions: Sequence[ColumnElement[bool]]) -> Select[*tuple[Any, ...]]:
    return (
        select(Outbox.id, Outbox.run_id, Run.queue, Outbox.priority)
        .join(Run, Run.id == Outbox.run_id)
        .where(Outbox.sent_at.is_(None), Run.phase == "QUEUED", *conditions)
        .order_by(Outbox.priority.desc(), Run.line_at, Outbox.id)
    )


def _rows(
    connection: Connection, conditions: Sequence[ColumnElement[bool]], limit: int
) -> list[Doorbell]:
    rows = connection.execute(_query(conditions).limit(limit)).all()
    live = live_workers(connection) if rows else []
    return [Doorbell(r.id, r.run_id, queue_for(r.queue, live), r.priority) for r in rows]
