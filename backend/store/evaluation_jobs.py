"""Evaluation jobs: rows of `runs` of another kind, which live by the same rules (`jobs`)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.sql.elements import ColumnElement

from backend.store.cursors import scope_of
from backend.store.engine import NOW, reading
from backend.store.errors import ConflictError
from backend.store.jobs import JOB_COLUMNS, Jobs, completion
from backend.store.models import EvaluatedRun, EvaluationRow, Run
from backend.store.outbox import enqueue
from backend.store.queues import queue_of_device
from backend.store.states import add_state_event
from backend.store.submitting import new_id
from backend.store.workers import why_jobs_wait
from calift_core.schema.evaluation_job import (
    JOB_PREFIX,
    EvaluationJob,
    EvaluationJobSpec,
    EvaluationJobsQuery,
)

KIND = "evaluation"


class EvaluationJobs(Jobs[EvaluationJobSpec, EvaluationJob]):
    """Jobs that evaluate finished runs."""

    kind, noun = KIND, "evaluation job"
    instead_of_retry = "Submit another: what the runs were evaluated on already is passed over."

    def _insert(self, connection: Connection, spec: EvaluationJobSpec, **values: Any) -> str:
        return _queue(connection, spec, **values)

    def _read(self, connection: Connection, row: Row[*tuple[Any, ...]]) -> EvaluationJob:
        return self._all(connection, [row])[0]

    def _all(
        self, connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]]
    ) -> list[EvaluationJob]:
        waits = why_jobs_wait(connection, self._quotas, rows)
        counted = connection.execute(
            select(EvaluationRow.job_id, func.count())
            .where(EvaluationRow.job_id.in_([row.id for row in rows]))
            .group_by(EvaluationRow.job_id)
        )
        results = {job_id: n for job_id, n in counted}
        jobs = [EvaluationJob.model_validate(row, from_attributes=True) for row in rows]
        return [
            job.model_copy(
                update={
                    "waiting": waits.get(job.id, ""),
                    "results": results.get(job.id, 0),
                    **completion(job),
                }
            )
            for job in jobs
        ]

    def page(
        self, query: EvaluationJobsQuery | None = None, **params: Any
    ) -> tuple[list[EvaluationJob], str | None, int]:
        """A page of jobs, newest first, the next cursor, and how many match.

        Raises:
            CursorError: the cursor is of another list.
        """
        query = EvaluationJobsQuery.of(query, params)
        where: list[ColumnElement[bool]] = [Run.kind == KIND]
        if query.phase:
            where.append(Run.phase.in_(query.phase))
        if query.run_id:
            judging = select(EvaluatedRun.job_id).where(EvaluatedRun.run_id.in_(query.run_id))
            where.append(Run.id.in_(judging))
        scope = scope_of("evaluation jobs", sorted(query.run_id), sorted(query.phase))
        with reading(self._engine) as connection:
            total = connection.execute(
                select(func.count()).select_from(Run).where(*where)
            ).scalar_one()
            rows, next_cursor = self._cursors.newest(
                connection,
                select(*JOB_COLUMNS).where(*where),
                Run,
                scope,
                query.cursor,
                query.limit,
            )
            return self._all(connection, rows), next_cursor, int(total)


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
