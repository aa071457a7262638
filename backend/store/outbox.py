"""Outbox messages: written in the transaction that queues a run, sent by a relay.

The message in the broker may be lost or sent twice; the run's row is the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, insert, or_, select, update

from backend.store.engine import NOW, reading, writing
from backend.store.models import Outbox, Run
from backend.store.workers import auto_queue

#: So long a relay keeps messages to itself; one that died meanwhile has them sent by another.
_HOLD_S = 60.0


@dataclass(frozen=True)
class OutboxMessage:
    """A message to send to one of the queues of workers; higher `priority` first."""

    id: int
    run_id: str
    queue: str
    priority: int


class OutboxStore:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def unsent(self, limit: int = 100) -> list[OutboxMessage]:
        """Messages that are not sent yet, the most urgent first, held or not: to read them.

        Those of runs that wait no more are left out.
        """
        with reading(self._engine) as connection:
            rows = connection.execute(
                _unsent(Outbox.id, Outbox.run_id, Run.queue, Outbox.priority)
                .order_by(Outbox.priority.desc(), Outbox.id)
                .limit(limit)
            ).all()
            return _messages(rows, auto_queue(connection))

    def take(self, limit: int = 100) -> list[OutboxMessage]:
        """Outbox messages for the caller alone to send, the most urgent first.

        Nobody else is given them for a minute; mark each when it is sent, or give them back.
        """
        free = or_(Outbox.held_until.is_(None), Outbox.held_until < NOW)
        # One priority at a time: each is a stretch of one index, read from its begin.
        highest = _unsent(Outbox.priority).where(free).order_by(Outbox.priority.desc()).limit(1)
        with reading(self._engine) as connection:
            priority = connection.execute(highest).scalar()
            if priority is None:
                return []  # the usual case, which need not keep writers waiting
        rows: list[Row[Any]] = []
        with writing(self._engine) as connection:
            while priority is not None and len(rows) < limit:
                some = connection.execute(
                    _unsent(Outbox.id, Outbox.run_id, Run.queue, Outbox.priority)
                    .where(free, Outbox.priority == priority)
                    .order_by(Outbox.id)
                    .limit(limit - len(rows))
                    .with_for_update(skip_locked=True, of=Outbox)
                ).all()
                if not some:
                    break  # another relay takes them at this moment
                connection.execute(
                    update(Outbox)
                    .where(Outbox.id.in_([r.id for r in some]))
                    .values(held_until=NOW + _HOLD_S)
                )
                rows += some
                priority = connection.execute(highest).scalar()
            auto = auto_queue(connection)
        return _messages(rows, auto)

    def give_back(self, outbox_ids: Sequence[int]) -> None:
        """The broker did not take these: anybody may send them now."""
        with writing(self._engine) as connection:
            connection.execute(
                update(Outbox)
                .where(Outbox.id.in_(list(outbox_ids)), Outbox.sent_at.is_(None))
                .values(held_until=None)
            )

    def mark_sent(self, *outbox_ids: int) -> None:
        with writing(self._engine) as connection:
            run_ids = connection.execute(
                update(Outbox)
                .where(Outbox.id.in_(outbox_ids))
                .values(sent_at=NOW)
                .returning(Outbox.run_id)
            ).scalars()
            # One that somebody changes at this moment is left to them: many rows at once would
            # otherwise wait for each other in two orders. At worst it is sent for once more.
            waiting = (
                select(Run.id)
                .where(Run.id.in_(run_ids.all()), Run.phase == "QUEUED")
                .with_for_update(skip_locked=True)
            )
            connection.execute(
                update(Run)
                .where(Run.id.in_(connection.execute(waiting).scalars().all()))
                .values(dispatched_at=NOW)
            )


_INSERT = insert(Outbox)


def enqueue(connection: Connection, run_id: str, priority: int, now: float) -> None:
    row = {"run_id": run_id, "priority": priority, "created_at": now}
    connection.execute(_INSERT, row)


def _unsent(*wanted: Any) -> Select[Any]:
    """Columns of messages that wait to be sent, of runs that wait."""
    return (
        select(*wanted)
        .join(Run, Run.id == Outbox.run_id)
        .where(Outbox.sent_at.is_(None), Run.phase == "QUEUED")
    )


def _messages(rows: Sequence[Row[Any]], auto: str) -> list[OutboxMessage]:
    return [
        OutboxMessage(r.id, r.run_id, auto if r.queue == "auto" else r.queue, r.priority)
        for r in rows
    ]
