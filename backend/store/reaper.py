"""Puts right what a vanished worker or a lost message left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine, and_, case, delete, exists, func, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from backend.store.engine import NOW, reading, upsert, writing
from backend.store.models import Chore, Outbox, Run, Worker
from backend.store.outbox import enqueue
from backend.store.queues import queue_for
from backend.store.states import WORKING_PHASES, add_state_event, waiting, working
from backend.store.workers import WORKER_KEPT_S, live_workers

_SWEEP = "sweep"


@dataclass(frozen=True)
class Swept:
    """What the lease reaper did to a run."""

    run_id: str
    attempt: int
    action: Literal["requeued", "failed", "cancelled", "redispatched"]


class LeaseReaper:
    """Queues runs with an expired lease again, or fails them at `max_attempts`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, every_s: float) -> bool:
        """Whether nobody has begun to sweep for so long; whoever asks is to sweep now.

        Every API and every worker has a lease reaper, and one that sweeps is enough for all.
        """
        last = select(Chore.at).where(Chore.name == _SWEEP)
        with reading(self._engine) as connection:
            at, now = connection.execute(select(last.scalar_subquery(), NOW)).one()
            # A clock that was set back must not keep all from sweeping.
            if at is not None and 0 <= now - at < every_s:
                return False
        with writing(self._engine) as connection:
            if at is None:
                statement = upsert(connection, Chore, ("name",), ("name",))
                connection.execute(statement, {"name": _SWEEP, "at": 0.0})
                at = 0.0
            taken = connection.execute(
                update(Chore).where(Chore.name == _SWEEP, Chore.at == at).values(at=NOW)
            )
            return taken.rowcount == 1

    def sweep(self, *, redispatch_s: float = 120.0) -> list[Swept]:
        """Put right what a vanished worker or a lost message left; run it in a loop, anywhere.

        Args:
            redispatch_s: when nothing was sent in a queue for so long, though runs wait there and a
                worker that could take them is idle, a message is sent for each idle worker. One
                that is awake goes on by itself.
        """
        done: list[Swept] = []
        with reading(self._engine) as connection:
            expired = connection.execute(
                select(Run.id, Run.attempt).where(working(Run), Run.lease_expires < NOW)
            ).all()
        for run_id, attempt in expired:
            action = self._expire(run_id, attempt)
            if action is not None:
                done.append(Swept(run_id, attempt, action))
        done += self._redispatch(redispatch_s)
        return done

    def _expire(
        self, run_id: str, attempt: int
    ) -> Literal["requeued", "failed", "cancelled"] | None:
        spent = Run.lost_attempts + 1 >= Run.max_attempts
        lost = "the worker stopped answering"
        with writing(self._engine) as connection:
            # The lease is looked at again: a heartbeat may have come since it was read.
            row = connection.execute(
                update(Run)
                .where(
                    Run.id == run_id,
                    Run.attempt == attempt,
                    Run.phase.in_(WORKING_PHASES),
                    Run.lease_expires < NOW,
                )
                .values(
                    phase=case(
                        (Run.cancel_requested, "CANCELLED"), (spent, "FAILED"), else_="QUEUED"
                    ),
                    reason=case((Run.cancel_requested, "USER_CANCELLED"), else_="WORKER_LOST"),
                    message=case(
                        (Run.cancel_requested, f"cancelled on request; {lost}"),
                        (spent, f"{lost}, in as many attempts as the run may lose"),
                        else_=f"{lost}; queued again",
                    ),
                    hint=case(
                        (
                            and_(spent, ~Run.cancel_requested),
                            "Look at the worker's log (memory?), then retry the run.",
                        ),
                        else_="",
                    ),
                    finished_at=case((or_(Run.cancel_requested, spent), NOW), else_=None),
                    lost_attempts=Run.lost_attempts + 1,
                    queued_at=NOW,
                    dispatched_at=None,
                    owner=None,
                    lease_expires=None,
                    event_seq=Run.event_seq + 1,
                )
                .returning(
                    Run.phase,
                    Run.reason,
                    Run.message,
                    Run.priority,
                    Run.event_seq,
                    NOW.label("now"),
                )
            ).first()
            if row is None:
                return None
            add_state_event(
                connection,
                run_id,
                row.event_seq,
                attempt,
                row.phase,
                row.now,
                row.reason,
                row.message,
            )
            if row.phase == "QUEUED":
                enqueue(connection, run_id, row.priority, row.now)
                return "requeued"
            return "failed" if row.phase == "FAILED" else "cancelled"

    def _redispatch(self, redispatch_s: float) -> list[Swept]:
        rung_at = func.coalesce(Run.dispatched_at, Run.queued_at)
        with reading(self._engine) as connection:
            live = live_workers(connection)
            # Where all are busy, as in front of a long queue, it need not be looked through.
            queues = (
                connection.execute(
                    select(Run.queue, (NOW - func.max(rung_at)).label("quiet_s"))
                    .where(waiting(Run))
                    .group_by(Run.queue)
                ).all()
                if any(not w.busy and not w.trouble for w in live)
                else []
            )
            leftovers = connection.execute(select(exists().where(_finished_outbox()))).scalar_one()
            forgotten = Worker.seen_at < NOW - WORKER_KEPT_S
            left = connection.execute(select(exists().where(forgotten))).scalar_one()
        done: list[Swept] = []
        for queue in {queue_for(row.queue, live) for row in queues}:
            idle = sum(queue in w.queues and not w.busy and not w.trouble for w in live)
            here = [row for row in queues if queue_for(row.queue, live) == queue]
            if idle and min(row.quiet_s for row in here) >= redispatch_s:
                done += self._send_again([row.queue for row in here], redispatch_s, idle)
        if leftovers:
            with writing(self._engine) as connection:
                connection.execute(delete(Outbox).where(_finished_outbox()))
        if left:
            with writing(self._engine) as connection:
                connection.execute(delete(Worker).where(forgotten))
        return done

    def _send_again(self, queues: Sequence[str], age_s: float, limit: int) -> list[Swept]:
        stale = and_(
            Run.phase == "QUEUED",
            Run.queue.in_(list(queues)),
            func.coalesce(Run.dispatched_at, Run.queued_at) < NOW - age_s,
            ~exists().where(Outbox.run_id == Run.id, Outbox.sent_at.is_(None)),
        )
        done = []
        with writing(self._engine) as connection:
            candidates = connection.execute(
                select(Run.id)
                .where(stale)
                .order_by(Run.priority.desc(), Run.line_at, Run.id)
                .limit(limit)
            ).scalars()
            for run_id in candidates.all():
                row = connection.execute(
                    update(Run)
                    .where(Run.id == run_id, stale)
                    .values(dispatched_at=NOW)
                    .returning(Run.attempt, Run.priority, NOW.label("now"))
                ).first()
                if row is not None:
                    enqueue(connection, run_id, row.priority, row.now)
                    done.append(Swept(run_id, row.attempt, "redispatched"))
        return done


def _finished_outbox() -> ColumnElement[bool]:
    waits = exists().where(Run.id == Outbox.run_id, Run.phase == "QUEUED")
    return or_(Outbox.sent_at < NOW - 3600.0, and_(Outbox.sent_at.is_(None), ~waits))
