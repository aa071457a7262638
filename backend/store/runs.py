"""Runs as people see them: submitted, listed, changed, cancelled, retried, deleted.

Phases: ``QUEUED → STARTING → RUNNING → SUCCEEDED | FAILED``; a cancel turns ``QUEUED`` into
``CANCELLED`` and a working run into ``CANCELLING``, which its worker ends.

Long, because what people may do with a run, and what they see of it, is one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Text,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.elements import ColumnElement

from backend.store.cursors import Cursors, how_many, scope_of
from backend.store.engine import NOW, moment, reading, when, writing
from backend.store.errors import ConflictError
from backend.store.fairness import Quotas
from backend.store.models import ArtifactRow, ReportRow, Run, RunTag, SpectrumRow, Sweep
from backend.store.outbox import enqueue
from backend.store.queues import queue_of
from backend.store.states import WORKING_PHASES, add_state_event
from backend.store.states import waiting as is_waiting
from backend.store.submitting import (
    find_earlier,
    insert_row,
    model_label,
    queue_once,
    require_room,
    set_tags,
)
from backend.store.workers import why_jobs_wait
from calift_core.errors import NotFoundError
from calift_core.schema.report import SpectrumReport
from calift_core.schema.spec import RunSpec
from calift_core.schema.wire.runs import RunDetail, RunPhase, RunSummary, SortKey
from calift_core.schema.wire.service import SuiteRuns

RETRYABLE_PHASES = ("FAILED", "CANCELLED")


@dataclass(frozen=True)
class RunFilters:
    """Which runs a list holds. Empty fields do not filter; `tags` must all be there."""

    phases: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    text: str = ""
    archived: bool | None = False
    sweep: str | None = None


class Runs:
    """Runs and their rows.

    Args:
        engine: of `open_engine`.
        cursors: of the lists.
        quotas: what each owner may have; None: anything.
    """

    def __init__(self, engine: Engine, cursors: Cursors, quotas: Quotas | None = None) -> None:
        self._engine = engine
        self._cursors = cursors
        self._quotas = quotas or Quotas()

    def submit(
        self,
        spec: RunSpec,
        *,
        priority: int = 0,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        cloned_from: str | None = None,
        token_id: str | None = None,
        submitted_by: str | None = None,
        request_id: str | None = None,
        max_queued: int | None = None,
    ) -> str:
        """Queue a run and return its id, or the id that the same key and body gave before.

        Args:
            spec: what to run.
            priority: a higher one starts earlier.
            max_attempts: attempts that may be lost (worker gone) before the run fails.
            idempotency_key: names this request among those of the token.
            body_hash: of the whole request; the key must come back with the same.
            cloned_from: the run that the spec was copied from.
            token_id: who asks.
            submitted_by: whose run it is: the name of the token.
            request_id: of the request, for logs.
            max_queued: how many runs the token may have waiting.

        Raises:
            IdempotencyError: the key came with another body before.
            QueueFullError: as many runs of the token or of its owner are waiting as may.
            ArtifactQuotaError: the owner's files take up too much.
        """
        return queue_once(
            self._engine,
            self._quotas,
            partial(queue_run, spec=spec),
            token_id=token_id,
            submitted_by=submitted_by,
            idempotency_key=idempotency_key,
            body_hash=body_hash,
            max_queued=max_queued,
            priority=priority,
            max_attempts=max_attempts,
            cloned_from=cloned_from,
            request_id=request_id,
        )

    def earlier_request(self, token_id: str, key: str | None, body_hash: str) -> str | None:
        """The run, or the evaluation job, that a request with this key made before, if any.

        Raises:
            IdempotencyError: the key came with another body then.
        """
        return find_earlier(self._engine, token_id, key, body_hash)

    def request_cancel(self, run_id: str) -> RunDetail:
        """Cancel a run: at once while it waits, else by its worker. Repeatable; ended runs stay.

        Raises:
            NotFoundError: no such run.
        """
        waiting = Run.phase == "QUEUED"
        with writing(self._engine) as connection:
            row = connection.execute(
                update(Run)
                .where(
                    Run.id == run_id,
                    Run.phase.in_(("QUEUED", *WORKING_PHASES)),
                    Run.cancel_requested.is_(False),
                )
                .values(
                    cancel_requested=True,
                    phase=case((waiting, "CANCELLED"), else_="CANCELLING"),
                    reason="USER_CANCELLED",
                    message=case((waiting, "cancelled before it started"), else_="asked to stop"),
                    finished_at=case((waiting, NOW), else_=None),
                    event_seq=Run.event_seq + 1,
                )
                .returning(Run.phase, Run.attempt, Run.message, Run.event_seq, NOW.label("now"))
            ).first()
            if row is not None:
                add_state_event(
                    connection,
                    run_id,
                    row.event_seq,
                    row.attempt,
                    row.phase,
                    row.now,
                    "USER_CANCELLED",
                    row.message,
                )
            return self._detail(connection, run_id)

    def retry(self, run_id: str, *, max_queued: int | None = None) -> RunDetail:
        """Queue a run that failed or was cancelled again; it goes on from its last checkpoint.

        A run that already waits or works is returned as it is, so that the call is repeatable.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run succeeded.
            QueueFullError: `max_queued` runs of its token are waiting.
        """
        with writing(self._engine) as connection:
            current = _row(connection, run_id)
            if current.phase == "SUCCEEDED":
                raise ConflictError(
                    f"run {run_id} succeeded; there is nothing to retry.",
                    hint="Clone it to run it again.",
                )
            if current.phase in RETRYABLE_PHASES:
                require_room(
                    connection, self._quotas, current.token_id, current.submitted_by, max_queued
                )
                row = connection.execute(
                    update(Run)
                    .where(Run.id == run_id, Run.phase.in_(RETRYABLE_PHASES))
                    .values(
                        phase="QUEUED",
                        reason=None,
                        message=None,
                        hint="",
                        cancel_requested=False,
                        lost_attempts=0,
                        storage_requeues=0,
                        queued_at=NOW,
                        line_at=NOW,
                        dispatched_at=None,
                        finished_at=None,
                        owner=None,
                        progress=None,
                        event_seq=Run.event_seq + 1,
                    )
                    .returning(Run.attempt, Run.priority, Run.event_seq, NOW.label("now"))
                ).first()
                if row is not None:
                    add_state_event(
                        connection, run_id, row.event_seq, row.attempt, "QUEUED", row.now, "RETRY"
                    )
                    enqueue(connection, run_id, row.priority, row.now)
            return self._detail(connection, run_id)

    def patch(
        self,
        run_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        archived: bool | None = None,
    ) -> RunDetail:
        """Change what people may change; None leaves a field as it is.

        Raises:
            NotFoundError: no such run.
        """
        given = {"name": name, "notes": notes, "tags": tags, "archived": archived}
        values = {key: value for key, value in given.items() if value is not None}
        if tags is not None:
            values["tags"] = list(dict.fromkeys(tags))
        with writing(self._engine) as connection:
            if values:
                connection.execute(update(Run).where(Run.id == run_id).values(**values))
            detail = self._detail(connection, run_id)
            if tags is not None:
                set_tags(connection, run_id, tags)
            return detail

    def delete(self, run_id: str) -> list[str]:
        """Delete a run with all its rows; the SHA-256s of its files, which may now be unreferenced.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run works; cancel it first.
        """
        with writing(self._engine) as connection:
            phase = connection.execute(
                select(Run.phase).where(Run.id == run_id).with_for_update()
            ).scalar()
            if phase is None:
                raise NotFoundError(f"there is no run {run_id!r}.")
            if phase in WORKING_PHASES:
                raise ConflictError(
                    f"run {run_id} is {phase}; only a run that does not work can be deleted.",
                    hint="Cancel it first.",
                )
            digests = connection.execute(
                select(ArtifactRow.sha256).where(ArtifactRow.run_id == run_id).distinct()
            ).scalars()
            found = list(digests)
            connection.execute(delete(Run).where(Run.id == run_id))
            return found

    def get(self, run_id: str) -> RunDetail:
        """One run.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self._engine) as connection:
            return self._detail(connection, run_id)

    def spec(self, run_id: str) -> dict[str, Any]:
        """What a run was asked to do, without its report, which may have megabytes.

        Raises:
            NotFoundError: no such run.
        """
        return cast("dict[str, Any]", self._field(run_id, Run.spec))

    def submitter(self, run_id: str) -> str | None:
        """Who submitted the run; None: it was made before that was stored.

        Raises:
            NotFoundError: no such run.
        """
        return cast("str | None", self._field(run_id, Run.submitted_by))

    def _field(self, run_id: str, field: InstrumentedAttribute[Any]) -> Any:
        with reading(self._engine) as connection:
            row = connection.execute(select(field).where(Run.id == run_id)).first()
        if row is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return row[0]

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """Rows of the run list, in the order asked for.

        Raises:
            NotFoundError: one of them does not exist.
        """
        with reading(self._engine) as connection:
            rows = {
                row.id: row
                for row in connection.execute(
                    select(*_LIST_COLUMNS).where(Run.id.in_(list(run_ids)), _IS_RUN)
                )
            }
        for run_id in run_ids:
            if run_id not in rows:
                raise NotFoundError(f"there is no run {run_id!r}.")
        return [RunSummary(**_summary_fields(rows[run_id])) for run_id in run_ids]

    def page(
        self,
        filters: RunFilters | None = None,
        *,
        sort: SortKey = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[RunSummary], str | None, int]:
        """A page of runs, the cursor of the next one, and `how_many` match. Nulls come last.

        Raises:
            CursorError: the cursor is of another list.
        """
        filters = filters or RunFilters()
        where = _conditions(filters)
        scope = scope_of(filters, sort)
        key, down = _sort_key(sort)
        position: ColumnElement[bool] = literal(True)
        if cursor is not None:
            value, last_id = self._cursors.read(cursor, scope)
            here = tuple_(key, Run.id)
            there = tuple_(literal(value), literal(last_id))
            position = here < there if down else here > there
        order = (key.desc(), Run.id.desc()) if down else (key.asc(), Run.id.asc())
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*_LIST_COLUMNS, key.label("sort_key"))
                .where(*where, position)
                .order_by(*order)
                .limit(limit + 1)
            ).all()
            first_page = len(rows) if cursor is None else None
            total = how_many(connection, Run, where, first_page=first_page, limit=limit)
        next_cursor = None
        if len(rows) > limit:
            rows = rows[:limit]
            next_cursor = self._cursors.write(scope, [rows[-1].sort_key, rows[-1].id])
        return [RunSummary(**_summary_fields(row)) for row in rows], next_cursor, total

    def with_spectra(
        self, suite: str, *, limit: int
    ) -> list[tuple[RunSummary, dict[str, Any], SpectrumReport]]:
        """The newest finished runs on a suite with their specs and the spectra of their models.

        Models made by `pretrain` were tuned on nothing and are left out.
        """
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(*_LIST_COLUMNS, Run.spec, SpectrumRow.spectrum)
                .join(SpectrumRow, and_(SpectrumRow.run_id == Run.id, SpectrumRow.final.is_(True)))
                .where(Run.phase == "SUCCEEDED", Run.suite == suite, Run.method != "pretrain")
                .where(Run.archived.is_(False), _IS_RUN)
                .order_by(Run.created_at.desc(), Run.id.desc())
                .limit(limit)
            ).all()
        return [
            (
                RunSummary(**_summary_fields(row)),
                row.spec,
                SpectrumReport.model_validate(row.spectrum),
            )
            for row in rows
        ]

    def suites(self, phases: Sequence[RunPhase] = (), *, limit: int = 200) -> list[SuiteRuns]:
        """The suites of runs that are not archived, that of the newest run first."""
        where = _conditions(RunFilters(phases=tuple(phases), archived=False))
        newest = func.max(Run.created_at)
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(Run.suite, func.count(), newest)
                .where(*where)
                .group_by(Run.suite)
                .order_by(newest.desc(), Run.suite)
                .limit(limit)
            ).all()
        return [SuiteRuns(suite=s, runs=n, newest_at=moment(at)) for s, n, at in rows]

    def unfinished_with(self, words: str) -> list[str]:
        """Ids of runs, evaluation jobs and sweeps that are not over, whose specs hold these words.

        Args:
            words: ASCII without quotes and backslashes, as JSON writes them.
        """
        pattern = f"%{words}%"
        with reading(self._engine) as connection:
            return [
                *connection.scalars(
                    select(Run.id)
                    .where(Run.phase.in_(("QUEUED", *WORKING_PHASES)))
                    .where(cast_to(Run.spec, Text).like(pattern))
                ),
                *connection.scalars(
                    select(Sweep.id)
                    .where(Sweep.phase.in_(("RUNNING", "PAUSED", "CANCELLING")))
                    .where(cast_to(Sweep.spec, Text).like(pattern))
                ),
            ]

    def _detail(self, connection: Connection, run_id: str) -> RunDetail:
        return _detail(connection, run_id, self._quotas)

    def by_phase(self) -> dict[str, int]:
        """How many runs are in each phase that has any."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                select(Run.phase, func.count()).where(_IS_RUN).group_by(Run.phase)
            ).all()
        return {phase: int(count) for phase, count in rows}

    def queue_depth(self) -> int:
        """How many jobs wait, evaluation jobs among them."""
        with reading(self._engine) as connection:
            queued = select(func.count()).where(is_waiting(Run))
            return int(connection.execute(queued).scalar_one())

    def oldest_queued_s(self) -> float | None:
        """How long the job that waits longest has waited, in seconds."""
        with reading(self._engine) as connection:
            age = connection.execute(
                select(NOW - func.min(Run.queued_at)).where(is_waiting(Run))
            ).scalar()
        return None if age is None else max(0.0, float(age))


#: What is listed and counted as a run; evaluation jobs are rows of the same table.
_IS_RUN = Run.kind == "training"

_LIST_COLUMNS = tuple(
    column
    for column in Run.__table__.columns
    if column.key not in ("spec", "notes", "body_hash", "idempotency_key")
)


def queue_run(connection: Connection, spec: RunSpec, **values: Any) -> str:
    """Insert a run that waits, with its first event and its message; its id."""
    now = connection.execute(select(NOW)).scalar_one()
    run_id = insert_row(
        connection,
        spec,
        now,
        model=model_label(spec),
        seed=spec.train.seed,
        queue=queue_of(spec),
        **values,
    )
    add_state_event(connection, run_id, 1, 0, "QUEUED", now)
    enqueue(connection, run_id, values["priority"], now)
    return run_id


def _row(connection: Connection, run_id: str) -> Row[*tuple[Any, ...]]:
    row = connection.execute(select(*Run.__table__.columns).where(Run.id == run_id)).first()
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}.")
    return row


def _detail(connection: Connection, run_id: str, quotas: Quotas) -> RunDetail:
    row = _row(connection, run_id)
    report = connection.execute(select(ReportRow.body).where(ReportRow.run_id == run_id)).scalar()
    report = report or {}
    return RunDetail(
        **_summary_fields(row),
        spec=row.spec,
        spec_sha256=row.spec_sha256,
        notes=row.notes,
        hint=row.hint,
        worker=row.owner,
        waiting=why_jobs_wait(connection, quotas, [row]).get(run_id, ""),
        cloned_from=row.cloned_from,
        environment=report.get("environment") or {},
        resolved=report.get("resolved") or {},
    )


def _sort_key(sort: SortKey) -> tuple[ColumnElement[Any], bool]:
    down = sort.startswith("-")
    name = sort.lstrip("-")
    if name == "created":
        return Run.__table__.c.created_at, down
    if name == "name":
        return Run.__table__.c.name, down
    # A number that is missing sorts after all others, whichever way: no run is hidden by it.
    return func.coalesce(Run.__table__.c[name], -1e300 if down else 1e300), down


def _conditions(filters: RunFilters) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [_IS_RUN]
    for column, values in (
        (Run.phase, filters.phases),
        (Run.method, filters.methods),
        (Run.model, filters.models),
        (Run.suite, filters.suites),
    ):
        if values:
            where.append(column.in_(values))
    where += [exists().where(RunTag.run_id == Run.id, RunTag.tag == tag) for tag in filters.tags]
    if filters.archived is not None:
        where.append(Run.archived.is_(filters.archived))
    if filters.sweep is not None:
        where.append(Run.sweep_id == filters.sweep)
    for word in filters.text.split():
        where.append(
            or_(
                Run.name.icontains(word, autoescape=True),
                Run.notes.icontains(word, autoescape=True),
                Run.id.startswith(word, autoescape=True),
            )
        )
    return where


def _summary_fields(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "phase": row.phase,
        "reason": row.reason,
        "message": row.message,
        "method": row.method,
        "model": row.model,
        "suite": row.suite,
        "seed": row.seed,
        "color_index": row.color_index,
        "tags": row.tags,
        "archived": row.archived,
        "priority": row.priority,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "lost_attempts": row.lost_attempts,
        "drain_requeues": row.drain_requeues,
        "storage_requeues": row.storage_requeues,
        "revision": row.event_seq,
        "owner": row.submitted_by,
        "sweep_id": row.sweep_id,
        "sweep_role": row.sweep_role,
        "created_at": moment(row.created_at),
        "started_at": when(row.started_at),
        "finished_at": when(row.finished_at),
        "heartbeat_at": when(row.heartbeat_at),
        "progress": row.progress,
        "summary": row.summary,
    }
