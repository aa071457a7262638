"""Evaluation jobs as people see them: rows of `runs` of another kind, which live by the same rules.

Claim, lease, fence, lease reaper, outbox, events and log are those of runs; here is what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, insert, select
from sqlalchemy.sql.elements import ColumnElement

from backend.store.cursors import Cursors, scope_of
from backend.store.engine import NOW, moment, reading, when
from backend.store.errors import ConflictError
from backend.store.fairness import Quotas
from backend.store.models import EvaluatedRun, EvaluationRow, Run
from backend.store.outbox import enqueue
from backend.store.queues import queue_of_device
from backend.store.runs import RETRYABLE_PHASES, Runs
from backend.store.states import add_state_event
from backend.store.submitting import new_id, queue_once
from backend.store.workers import why_jobs_wait
from calift_core.errors import NotFoundError
from calift_core.schema.evaluation_job import JOB_PREFIX, EvaluationJobSpec
from calift_core.schema.wire.evaluation_jobs import EvaluationJob

KIND = "evaluation"


class EvaluationJobs:
    """Jobs that judge finished runs.

    Args:
        engine: of `open_engine`.
        cursors: of the lists.
        quotas: what each owner may have; None: anything.
    """

    def __init__(self, engine: Engine, cursors: Cursors, quotas: Quotas | None = None) -> None:
        self._engine, self._cursors = engine, cursors
        self._quotas = quotas or Quotas()
        self._runs = Runs(engine, cursors, self._quotas)

    def submit(
        self,
        spec: EvaluationJobSpec,
        *,
        priority: int = 0,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        token_id: str | None = None,
        submitted_by: str | None = None,
        request_id: str | None = None,
        max_queued: int | None = None,
    ) -> str:
        """Queue a job and return its id, or the id that the same key and body gave before.

        The arguments are those of `Runs.submit`.

        Raises:
            IdempotencyError: the key came with another body before.
            QueueFullError: as many jobs of the token or of its owner are waiting as may.
            ArtifactQuotaError: the owner's files take up too much.
            ConflictError: one of the runs has not succeeded, or is gone by now.
        """
        return queue_once(
            self._engine,
            self._quotas,
            partial(_queue, spec=spec),
            token_id=token_id,
            submitted_by=submitted_by,
            idempotency_key=idempotency_key,
            body_hash=body_hash,
            max_queued=max_queued,
            priority=priority,
            max_attempts=max_attempts,
            request_id=request_id,
        )

    def get(self, job_id: str) -> EvaluationJob:
        """One job.

        Raises:
            NotFoundError: no such job.
        """
        with reading(self._engine) as connection:
            row = connection.execute(_query().where(Run.id == job_id)).first()
            if row is None:
                raise NotFoundError(f"there is no evaluation job {job_id!r}.")
            return _job(row, why_jobs_wait(connection, self._quotas, [row]))

    def page(
        self,
        *,
        run_ids: Sequence[str] = (),
        phases: Sequence[str] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[EvaluationJob], str | None, int]:
        """A page of jobs, newest first, the next cursor, and how many match.

        Args:
            run_ids: that judge any of these.
            phases: in any of these.
            cursor: of the page before.
            limit: jobs at most.

        Raises:
            CursorError: the cursor is of another list.
        """
        where: list[ColumnElement[bool]] = [Run.kind == KIND]
        if phases:
            where.append(Run.phase.in_(list(phases)))
        if run_ids:
            judging = select(EvaluatedRun.job_id).where(EvaluatedRun.run_id.in_(list(run_ids)))
            where.append(Run.id.in_(judging))
        scope = scope_of("evaluation jobs", sorted(run_ids), sorted(phases))
        with reading(self._engine) as connection:
            total = connection.execute(
                select(func.count()).select_from(Run).where(*where)
            ).scalar_one()
            rows, next_cursor = self._cursors.newest(
                connection, _query().where(*where), Run, scope, cursor, limit
            )
            waits = why_jobs_wait(connection, self._quotas, rows)
        return [_job(row, waits) for row in rows], next_cursor, int(total)

    def request_cancel(self, job_id: str) -> EvaluationJob:
        """Cancel a job: at once while it waits, else by its worker. Repeatable; ended ones stay.

        Raises:
            NotFoundError: no such job.
        """
        self.get(job_id)
        self._runs.request_cancel(job_id)
        return self.get(job_id)

    def retry(self, job_id: str, *, max_queued: int | None = None) -> EvaluationJob:
        """Queue a job that failed or was cancelled again; what it had finished is not done again.

        Raises:
            NotFoundError: no such job.
            ConflictError: it succeeded.
            QueueFullError: `max_queued` jobs of its token are waiting.
        """
        job = self.get(job_id)
        if job.phase == "SUCCEEDED":
            raise ConflictError(
                f"evaluation job {job_id} succeeded; there is nothing to retry.",
                hint="Submit another: what the runs were judged on already is passed over.",
            )
        if job.phase in RETRYABLE_PHASES:
            self._runs.retry(job_id, max_queued=max_queued)
        return self.get(job_id)

    def delete(self, job_id: str) -> list[str]:
        """Delete a job; its results stay. The SHA-256s of its own files.

        Raises:
            NotFoundError: no such job.
            ConflictError: it works; cancel it first.
        """
        self.get(job_id)
        return self._runs.delete(job_id)


def _queue(connection: Connection, spec: EvaluationJobSpec, **values: Any) -> str:
    rows = connection.execute(
        select(Run.id)
        .where(Run.id.in_(spec.runs), Run.kind != KIND, Run.phase == "SUCCEEDED")
        .order_by(Run.id)
        .with_for_update(read=True)  # none is deleted before the job names it
    ).scalars()
    absent = sorted(set(spec.runs) - set(rows))
    if absent:
        raise ConflictError(f"there is no finished run {', '.join(absent)} any more.")
    now = connection.execute(select(NOW)).scalar_one()
    job_id = JOB_PREFIX + new_id()
    connection.execute(
        insert(Run).values(
            id=job_id,
            kind=KIND,
            name=spec.title,
            spec=spec.model_dump(mode="json"),
            spec_sha256=spec.content_hash(),
            method=KIND,
            model="",
            suite="",
            seed=0,
            queue=queue_of_device(spec.device),
            created_at=now,
            queued_at=now,
            line_at=now,
            event_seq=1,
            **values,
        )
    )
    connection.execute(
        insert(EvaluatedRun), [{"job_id": job_id, "run_id": run_id} for run_id in spec.runs]
    )
    add_state_event(connection, job_id, 1, 0, "QUEUED", now)
    enqueue(connection, job_id, values["priority"], now)
    return job_id


def _query() -> Select[Any]:
    results = (
        select(func.count()).where(EvaluationRow.job_id == Run.id).correlate(Run).scalar_subquery()
    )
    return select(*Run.__table__.columns, results.label("results")).where(Run.kind == KIND)


def _job(row: Row[*tuple[Any, ...]], waits: Mapping[str, str]) -> EvaluationJob:
    return EvaluationJob(
        id=row.id,
        name=row.name,
        phase=row.phase,
        reason=row.reason,
        message=row.message,
        hint=row.hint,
        spec=row.spec,
        results=row.results,
        priority=row.priority,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        lost_attempts=row.lost_attempts,
        drain_requeues=row.drain_requeues,
        storage_requeues=row.storage_requeues,
        owner=row.submitted_by,
        worker=row.owner,
        waiting=waits.get(row.id, ""),
        created_at=moment(row.created_at),
        started_at=when(row.started_at),
        finished_at=when(row.finished_at),
        heartbeat_at=when(row.heartbeat_at),
        progress=row.progress,
    )
