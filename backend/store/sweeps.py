"""Sweeps and their runs: made, held by one API process at a time, steered.

A run of a sweep is inserted under a lock of the sweep's row, where the sweep still works, and under
a key that is unique in the sweep: none is queued twice, and none after a cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack, cast

from sqlalchemy import Connection, Engine, Row, and_, case, func, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from backend.store.cursors import Cursors, scope_of
from backend.store.engine import NOW, moment, reading, when, writing
from backend.store.errors import ArtifactQuotaError, QueueFullError
from backend.store.fairness import Quotas
from backend.store.models import ReportRow, Run
from backend.store.models import Sweep as SweepRow
from backend.store.notifications import add_notification
from backend.store.outbox import enqueue
from backend.store.runs import queue_run
from backend.store.states import add_state_event
from backend.store.submitting import JobRequest, at_most_once, find_earlier, new_id, require_room
from calift_core.errors import NotFoundError
from calift_core.schema.spec import RunSpec
from calift_core.schema.sweep import SweepSpec
from calift_core.schema.wire.sweeps import SWEEP_ENDS, SweepPhase, SweepRole, SweepSummary

#: Why a waiting run was taken out of line while its sweep pauses; it is queued again with it.
PAUSED_WITH_SWEEP = "SWEEP_PAUSED"
_ACTIVE: tuple[SweepPhase, ...] = ("RUNNING", "CANCELLING")


@dataclass(frozen=True)
class StoredSweep:
    """A sweep's row. `estimate` holds seconds of a run of each arm."""

    id: str
    spec: SweepSpec
    phase: SweepPhase
    max_hours: float | None
    estimate: Sequence[float | None]
    token_id: str
    submitted_by: str | None


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep, as its plan needs it.

    Attributes:
        seconds: that it has worked, none while it waits.
        val_accuracy: on the ID validation split, of a finished run.
    """

    key: str
    run_id: str
    phase: str
    reason: str | None
    message: str | None
    seconds: float | None
    val_accuracy: float | None


class Sweeps:
    """Sweeps and their runs.

    Args:
        quotas: what each owner may have; None: anything.
    """

    def __init__(self, engine: Engine, cursors: Cursors, quotas: Quotas | None = None) -> None:
        self._engine, self._cursors = engine, cursors
        self._quotas = quotas or Quotas()

    def create(
        self,
        spec: SweepSpec,
        *,
        methods: Sequence[str],
        estimate: Sequence[float | None],
        runs_at_most: int,
        **request: Unpack[JobRequest],
    ) -> str:
        """Store a sweep that works and return its id, or that of the same request before.

        Raises:
            IdempotencyError: the key came with another body before.
        """

        def make(connection: Connection) -> str:
            sweep_id = new_id()
            connection.execute(
                insert(SweepRow).values(
                    id=sweep_id,
                    name=spec.name,
                    **request,
                    spec=spec.model_dump(mode="json"),
                    methods=list(methods),
                    estimate=list(estimate),
                    max_hours=spec.max_hours,
                    runs_at_most=runs_at_most,
                    created_at=connection.execute(select(NOW)).scalar_one(),
                )
            )
            return sweep_id

        return at_most_once(self._engine, make, request, SweepRow)

    def earlier_request(self, request: JobRequest) -> str | None:
        """The sweep that a request with this key made before, if any.

        Raises:
            IdempotencyError: the key came with another body then.
        """
        return find_earlier(self._engine, request, SweepRow)

    def get(self, sweep_id: str) -> StoredSweep:
        """One sweep.

        Raises:
            NotFoundError: no such sweep.
        """
        with reading(self._engine) as connection:
            row = _row(connection, sweep_id)
        return StoredSweep(
            id=row.id,
            spec=SweepSpec.model_validate(row.spec).model_copy(update={"max_hours": row.max_hours}),
            phase=row.phase,
            max_hours=row.max_hours,
            estimate=row.estimate,
            token_id=row.token_id,
            submitted_by=row.submitted_by,
        )

    def summary(self, sweep_id: str) -> SweepSummary:
        """One row of the list.

        Raises:
            NotFoundError: no such sweep.
        """
        with reading(self._engine) as connection:
            return _summary(_row(connection, sweep_id))

    def submitter(self, sweep_id: str) -> str | None:
        """Whose sweep it is.

        Raises:
            NotFoundError: no such sweep.
        """
        with reading(self._engine) as connection:
            return cast("str | None", _row(connection, sweep_id).submitted_by)

    def page(
        self, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[SweepSummary], str | None, int]:
        """A page of sweeps, newest first, the next cursor, and how many there are.

        Raises:
            CursorError: the cursor is of another list.
        """
        with reading(self._engine) as connection:
            total = connection.execute(select(func.count()).select_from(SweepRow)).scalar_one()
            rows, next_cursor = self._cursors.newest(
                connection, _query(), SweepRow, scope_of("sweeps"), cursor, limit
            )
        return [_summary(row) for row in rows], next_cursor, int(total)

    def runs(self, sweep_id: str) -> list[SweepRun]:
        """The runs that were queued so far, in the order they were."""
        accuracy = ReportRow.body[("selection", "validation", "val_accuracy")]
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(
                    Run.sweep_key,
                    Run.id,
                    Run.phase,
                    Run.reason,
                    Run.message,
                    case(
                        (Run.phase == "QUEUED", None),  # the time in line is no work
                        else_=func.coalesce(Run.finished_at, NOW) - Run.started_at,
                    ).label("seconds"),
                    accuracy.label("val_accuracy"),
                )
                # Reports are large, and only those that rates are chosen by are looked into.
                .outerjoin(
                    ReportRow, and_(ReportRow.run_id == Run.id, Run.sweep_role == "selection")
                )
                .where(Run.sweep_id == sweep_id)
                .order_by(Run.created_at, Run.id)
            ).all()
        return [
            SweepRun(
                r.sweep_key, r.id, r.phase, r.reason, r.message,
                None if r.seconds is None else max(0.0, float(r.seconds)),
                None if r.val_accuracy is None else float(r.val_accuracy),
            )
            for r in rows
        ]  # fmt: skip

    # -- one process at a time ----------------------------------------------------------------

    def hold_next(self, hold_s: float) -> str | None:
        """A sweep for the caller alone to advance, the one that waited longest; None: none is due.

        Nobody else is given it for so long, unless it is released before.
        """
        due = (
            SweepRow.phase.in_(_ACTIVE),
            or_(SweepRow.held_until.is_(None), SweepRow.held_until < NOW),
        )
        with reading(self._engine) as connection:
            sweep_id = connection.execute(
                select(SweepRow.id)
                .where(*due)
                .order_by(func.coalesce(SweepRow.held_until, 0.0), SweepRow.id)
                .limit(1)
            ).scalar()
        if sweep_id is None:
            return None
        return sweep_id if self._hold(sweep_id, due, hold_s) else None

    def _hold(self, sweep_id: str, due: Sequence[ColumnElement[bool]], hold_s: float) -> bool:
        with writing(self._engine) as connection:
            held = connection.execute(
                update(SweepRow)
                .where(SweepRow.id == sweep_id, *due)
                .values(held_until=NOW + hold_s)
                .returning(SweepRow.id)
            ).scalar()
        return held is not None

    def release(self, sweep_id: str, again_s: float) -> None:
        """Let anybody advance it, not before `again_s` from now."""
        with writing(self._engine) as connection:
            connection.execute(
                update(SweepRow)
                .where(SweepRow.id == sweep_id)
                .values(held_until=NOW + again_s if again_s > 0 else None)
            )

    def add_run(
        self,
        sweep: StoredSweep,
        key: str,
        role: SweepRole,
        spec: RunSpec,
        *,
        max_queued: int | None = None,
    ) -> Literal["added", "known", "full", "stopped"]:
        """Queue a run of a sweep that works.

        Args:
            max_queued: how many runs the sweep's token may have waiting.

        Returns:
            `known`: it was queued before. `full`: too many runs wait, or the owner's files take up
            too much. `stopped`: the sweep works no
            more.
        """
        with writing(self._engine) as connection:
            if _locked_phase(connection, sweep.id) != "RUNNING":
                return "stopped"
            if connection.execute(
                select(Run.id).where(Run.sweep_id == sweep.id, Run.sweep_key == key)
            ).scalar():
                return "known"
            try:
                require_room(
                    connection, self._quotas, sweep.token_id, sweep.submitted_by, max_queued
                )
            except (QueueFullError, ArtifactQuotaError):
                return "full"
            queue_run(
                connection,
                spec,
                priority=sweep.spec.priority,
                max_attempts=sweep.spec.max_attempts,
                token_id=sweep.token_id,
                submitted_by=sweep.submitted_by,
                sweep_id=sweep.id,
                sweep_key=key,
                sweep_role=role,
            )
            return "added"

    # -- steering -----------------------------------------------------------------------------

    def move(
        self,
        sweep_id: str,
        phase: SweepPhase,
        *,
        before: Sequence[SweepPhase],
        reason: str | None = None,
        message: str | None = None,
        max_hours: float | None = None,
    ) -> bool:
        """Change the phase if it is one of `before`; whether it was. It is due at once.

        Raises:
            NotFoundError: no such sweep.
        """
        ends = phase in SWEEP_ENDS
        values: dict[str, Any] = {
            "phase": phase,
            "reason": reason,
            "message": message,
            "finished_at": NOW if ends else None,
            "held_until": None,
        }
        if max_hours is not None:
            values["max_hours"] = max_hours
        with writing(self._engine) as connection:
            _row(connection, sweep_id)
            now = connection.execute(
                update(SweepRow)
                .where(SweepRow.id == sweep_id, SweepRow.phase.in_(list(before)))
                .values(**values)
                .returning(NOW)
            ).scalar()
            if now is not None and ends:
                add_notification(connection, "sweep", sweep_id, phase, now)
            return now is not None

    def take_out_of_line(self, sweep_id: str) -> int:
        """Take waiting runs of a paused sweep out of line; how many. Those that work go on."""
        message = "taken out of line: its sweep is paused"
        with writing(self._engine) as connection:
            rows = connection.execute(
                update(Run)
                .where(Run.sweep_id == sweep_id, Run.phase == "QUEUED")
                .values(
                    phase="CANCELLED",
                    reason=PAUSED_WITH_SWEEP,
                    message=message,
                    finished_at=NOW,
                    event_seq=Run.event_seq + 1,
                )
                .returning(Run.id, Run.attempt, Run.event_seq, NOW.label("now"))
            ).all()
            for row in rows:
                add_state_event(
                    connection, row.id, row.event_seq, row.attempt, "CANCELLED", row.now,
                    PAUSED_WITH_SWEEP, message,
                )  # fmt: skip
        return len(rows)

    def put_back_in_line(self, sweep_id: str) -> int:
        """Queue the runs of a sweep that works again which a pause took out of line; how many."""
        paused = (Run.sweep_id == sweep_id, Run.phase == "CANCELLED",
                  Run.reason == PAUSED_WITH_SWEEP)  # fmt: skip
        with reading(self._engine) as connection:
            if not connection.execute(select(Run.id).where(*paused).limit(1)).scalar():
                return 0  # the usual case, which need not keep writers waiting
        with writing(self._engine) as connection:
            if _locked_phase(connection, sweep_id) != "RUNNING":
                return 0
            rows = connection.execute(
                update(Run)
                .where(*paused)
                .values(
                    phase="QUEUED",
                    reason=None,
                    message=None,
                    queued_at=NOW,
                    dispatched_at=None,
                    finished_at=None,
                    event_seq=Run.event_seq + 1,
                )
                .returning(Run.id, Run.attempt, Run.priority, Run.event_seq, NOW.label("now"))
            ).all()
            for row in rows:
                add_state_event(
                    connection, row.id, row.event_seq, row.attempt, "QUEUED", row.now, "RESUMED"
                )
                enqueue(connection, row.id, row.priority, row.now)
        return len(rows)


def _locked_phase(connection: Connection, sweep_id: str) -> str | None:
    """A sweep's phase, which nobody changes until this transaction has ended."""
    found = select(SweepRow.phase).where(SweepRow.id == sweep_id).with_for_update()
    return connection.execute(found).scalar()


def _query() -> Any:
    done = (
        select(func.count())
        .where(Run.sweep_id == SweepRow.id, Run.phase == "SUCCEEDED")
        .correlate(SweepRow)
        .scalar_subquery()
        .label("runs_done")
    )
    return select(*SweepRow.__table__.columns, done)


def _row(connection: Connection, sweep_id: str) -> Row[*tuple[Any, ...]]:
    row = connection.execute(_query().where(SweepRow.id == sweep_id)).first()
    if row is None:
        raise NotFoundError(f"there is no sweep {sweep_id!r}.")
    return row


def _summary(row: Row[*tuple[Any, ...]]) -> SweepSummary:
    return SweepSummary(
        id=row.id,
        name=row.name,
        phase=row.phase,
        reason=row.reason,
        message=row.message,
        preset=row.spec.get("preset"),
        methods=row.methods,
        priority=row.spec.get("priority", 0),
        owner=row.submitted_by,
        created_at=moment(row.created_at),
        finished_at=when(row.finished_at),
        runs_done=row.runs_done,
        runs_at_most=row.runs_at_most,
    )
