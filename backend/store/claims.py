"""A worker's hold on a run: claim, lease, end.

* **Claim** is one conditional UPDATE that raises `attempt` and sets a lease by the database's
  clock. A message wakes a worker, which takes the first run in line: by priority, then of the
  owner who has the fewest runs at work and was served longest ago, then by `line_at`, so that a run
  that was given back goes before those that its owner submitted after it.
* **Fence**: every later write of a worker carries the attempt (`backend.store.states.fenced`). When
  the run went to another attempt or ended, nothing is written and the caller learns that it must
  stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    and_,
    case,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from backend.store.engine import NOW, plain, reading, writing
from backend.store.fairness import take_turn
from backend.store.line import first_in_line
from backend.store.models import ArtifactRow, Outbox, Run
from backend.store.outbox import enqueue
from backend.store.rows import store_report, summary_values
from backend.store.states import add_state_event, fenced
from backend.store.workers import auto_queue
from calift_core.errors import NotFoundError
from calift_core.schema.records import JobKind
from calift_core.schema.wire.runs import TERMINAL_PHASES, Progress, RunPhase

#: A run fails after it could not be stored where it ran so many times: there is no room for it.
MAX_STORAGE_REQUEUES = 5


@dataclass(frozen=True)
class Claim:
    """What a worker holds after it won a run. `previous_attempts` may have left checkpoints.

    `request_id` is that of the request that submitted the run, for logs.
    """

    run_id: str
    attempt: int
    spec: dict[str, Any]
    previous_attempts: list[int]
    cancel_requested: bool
    kind: JobKind = "training"
    request_id: str = ""


@dataclass(frozen=True)
class Lease:
    """The answer to a heartbeat: is the run still ours, and should it stop?"""

    held: bool
    cancel_requested: bool


class Claims:
    """Runs in the hands of workers. Safe between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(self, run_id: str, *, worker_id: str, ttl_s: float) -> Claim | None:
        """Take this queued run. None: somebody else has it, or it waits no more; do nothing."""
        with writing(self._engine) as connection:
            return _claim(connection, run_id, worker_id, ttl_s)

    def claim_next(
        self,
        queues: Sequence[str],
        *,
        message_run: str | None,
        worker_id: str,
        ttl_s: float,
        quota_running: int = 0,
    ) -> Claim | None:
        """Take the first run in line that a worker may take. None: none waits for it.

        Args:
            message_run: the run whose message woke the worker; it may take that one too. None: it
                comes by itself.
            ttl_s: how long the claim lives without a heartbeat.
            quota_running: owners who have so many runs at work wait; 0: nobody does.
        """
        with writing(self._engine) as connection:
            auto = auto_queue(connection)
            served = [*queues, *(["auto"] if auto in queues else [])]
            row = first_in_line(
                connection, served, message_run=message_run, quota_running=quota_running
            )
            if row is None:
                return None
            claim = _claim(connection, row.id, worker_id, ttl_s)
            if claim is not None and message_run is not None and message_run != row.id:
                _pass_on_message(connection, message_run, row, auto)
            return claim

    def heartbeat(
        self, run_id: str, attempt: int, *, ttl_s: float, progress: Progress | None = None
    ) -> Lease:
        """Renew the lease by `ttl_s` from now. Not held: kill the runner, throw its work away."""
        values: dict[str, Any] = {"lease_expires": NOW + ttl_s, "heartbeat_at": NOW}
        if progress is not None:
            values["progress"] = progress.model_dump(mode="json")
        with writing(self._engine) as connection:
            row = fenced(connection, run_id, attempt, **values)
        if row is None:
            return Lease(held=False, cancel_requested=False)
        return Lease(held=True, cancel_requested=bool(row.cancel_requested))

    def finish(
        self,
        run_id: str,
        attempt: int,
        *,
        phase: Literal["SUCCEEDED", "FAILED", "CANCELLED"],
        reason: str | None = None,
        message: str | None = None,
        hint: str = "",
        report: Mapping[str, Any] | None = None,
    ) -> bool:
        """End the run. False: fenced off, and nothing has changed.

        Args:
            reason: a code for machines, such as `OOM`.
            report: the content of `report.json`.
        """
        if phase not in TERMINAL_PHASES:
            raise ValueError(f"phase must be one of {sorted(TERMINAL_PHASES)}, got {phase!r}")
        values: dict[str, Any] = {
            "phase": phase,
            "reason": plain(reason),
            "message": plain(message),
            "hint": plain(hint),
            "lease_expires": None,
            "heartbeat_at": NOW,
            "finished_at": NOW,
            "event_seq": Run.event_seq + 1,
        }
        if phase == "FAILED":
            values["failures"] = Run.failures + 1
        if report is not None and report.get("summary"):
            values |= summary_values(report["summary"])
        with writing(self._engine) as connection:
            row = fenced(connection, run_id, attempt, **values)
            if row is None:
                return False
            add_state_event(
                connection, run_id, row.event_seq, attempt, phase, row.now, reason, message
            )
            if report is not None:
                store_report(connection, run_id, attempt, report)
            if phase == "SUCCEEDED":  # nobody goes on from them any more
                connection.execute(
                    delete(ArtifactRow).where(
                        ArtifactRow.run_id == run_id, ArtifactRow.kind == "state"
                    )
                )
            return True

    def requeue(
        self,
        run_id: str,
        attempt: int,
        *,
        reason: str = "DRAINED",
        message: str | None = None,
        hint: str = "",
        lost: bool = False,
        setback: bool = False,
    ) -> bool:
        """Give a run back: queued again, or cancelled if that was asked. False: fenced off.

        It keeps its place in line, before the runs that were submitted after it.

        Args:
            hint: what to do about it, kept where the run fails.
            lost: the attempt's process vanished. Only this counts against `max_attempts`, and the
                run fails when it has lost as many; an orderly stop may happen any number of times.
            setback: the machine could not store what the run made. The run fails after
                `MAX_STORAGE_REQUEUES` of these, which costs it no attempt.
        """
        message, hint = plain(message), plain(hint) or ""
        spent: ColumnElement[bool] = false()
        count: dict[str, Any] = {"drain_requeues": Run.drain_requeues + 1}
        if lost:
            spent, count = (
                Run.lost_attempts + 1 >= Run.max_attempts,
                {"lost_attempts": Run.lost_attempts + 1},
            )
        elif setback:
            spent, count = (
                Run.storage_requeues + 1 >= MAX_STORAGE_REQUEUES,
                {"storage_requeues": Run.storage_requeues + 1},
            )
        ends = or_(Run.cancel_requested, spent)
        with writing(self._engine) as connection:
            row = fenced(
                connection,
                run_id,
                attempt,
                phase=case((Run.cancel_requested, "CANCELLED"), (spent, "FAILED"), else_="QUEUED"),
                reason=case((Run.cancel_requested, "USER_CANCELLED"), else_=reason),
                message=case((Run.cancel_requested, "cancelled on request"), else_=message),
                hint=case((and_(spent, ~Run.cancel_requested), hint), else_=""),
                finished_at=case((ends, NOW), else_=None),
                queued_at=NOW,
                owner=None,
                lease_expires=None,
                dispatched_at=None,
                event_seq=Run.event_seq + 1,
                **count,
            )
            if row is None:
                return False
            cancelled = row.phase == "CANCELLED"
            add_state_event(
                connection,
                run_id,
                row.event_seq,
                attempt,
                row.phase,
                row.now,
                "USER_CANCELLED" if cancelled else reason,
                "cancelled on request" if cancelled else message,
            )
            if row.phase == "QUEUED":
                enqueue(connection, run_id, row.priority, row.now)
            return True

    def phase(self, run_id: str) -> RunPhase:
        """The run's phase.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self._engine) as connection:
            phase = connection.execute(select(Run.phase).where(Run.id == run_id)).scalar()
        if phase is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return cast("RunPhase", phase)


def _claim(connection: Connection, run_id: str, worker_id: str, ttl_s: float) -> Claim | None:
    row = connection.execute(
        update(Run)
        .where(Run.id == run_id, Run.phase == "QUEUED")
        .values(
            phase="STARTING",
            attempt=Run.attempt + 1,
            owner=worker_id,
            lease_expires=NOW + ttl_s,
            heartbeat_at=NOW,
            started_at=func.coalesce(Run.started_at, NOW),
            reason=None,
            message=None,
            hint="",
            progress=None,
            event_seq=Run.event_seq + 1,
        )
        .returning(
            Run.attempt,
            Run.kind,
            Run.spec,
            Run.cancel_requested,
            Run.event_seq,
            Run.heartbeat_at,
            Run.submitted_by,
            Run.request_id,
        )
    ).first()
    if row is None:
        return None
    take_turn(connection, row.submitted_by, row.heartbeat_at)
    add_state_event(connection, run_id, row.event_seq, row.attempt, "STARTING", row.heartbeat_at)
    return Claim(
        run_id=run_id,
        attempt=row.attempt,
        spec=row.spec,
        previous_attempts=list(range(1, row.attempt)),
        cancel_requested=bool(row.cancel_requested),
        kind=cast("JobKind", row.kind),
        request_id=row.request_id or "",
    )


def _pass_on_message(
    connection: Connection, message_run: str, taken: Row[*tuple[Any, ...]], auto: str
) -> None:
    """Enqueue the run whose message was used up when a worker took another run by it."""
    run = connection.execute(
        select(Run.queue, Run.priority, NOW.label("now")).where(
            Run.id == message_run, Run.phase == "QUEUED"
        )
    ).first()
    if run is None:
        return
    unsent = and_(Outbox.sent_at.is_(None), Outbox.held_until.is_(None))
    # Not yet sent for the run that was taken: sent for the other one instead.
    moved = connection.execute(
        update(Outbox)
        .where(Outbox.run_id == taken.id, unsent)
        .values(run_id=message_run, priority=run.priority)
        .returning(Outbox.id)
    ).all()
    now = {"auto": auto}
    if moved or now.get(run.queue, run.queue) == now.get(taken.queue, taken.queue):
        return  # else the message of the run that was taken wakes who could take this one
    if not connection.execute(
        select(exists().where(Outbox.run_id == message_run, Outbox.sent_at.is_(None)))
    ).scalar_one():
        enqueue(connection, message_run, run.priority, run.now)
