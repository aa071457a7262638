"""Evaluation jobs: finished runs judged on more data, queued to workers like training."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from backend.routes.deps import (
    IdempotencyKey,
    JobId,
    PrincipalDep,
    ServicesDep,
    StoreDep,
    allow,
    check_owner,
    check_priority,
    turn_for,
)
from backend.routes.events import STREAM, After, LogBytes, LogOffset, LogTail, StartAfter, follow
from backend.routes.queueing import QueueingDep
from backend.services.submission import body_hash
from backend.store.jobs import JobRequest
from calift_core.schema.evaluation_job import (
    EvaluationJob,
    EvaluationJobPage,
    EvaluationJobSpec,
    EvaluationJobsQuery,
    EvaluationSubmit,
)
from calift_core.schema.wire.queries import Cursor, Limit
from calift_core.schema.wire.results import EvaluationPage
from calift_core.schema.wire.runs import LogPage, RunEvent, Validation

router = APIRouter(tags=["evaluation jobs"])

_EXAMPLES = {
    "shift": {
        "summary": "Two runs on a folder and two corruptions",
        "value": {
            "runs": ["3f9c2a71b0de", "81c04e5a9f13"],
            "shifts": {"art": "folder:/data/pacs/art_painting"},
            "corruptions": {"names": ["gaussian_noise", "jpeg_compression"], "severities": [3]},
        },
    },
    "suite": {
        "summary": "A named suite of the run's classes",
        "value": {"runs": ["3f9c2a71b0de"], "suites": ["imagenet-c"], "device": "cuda"},
    },
}
Asked = Annotated[EvaluationSubmit, Body(openapi_examples=_EXAMPLES)]


@router.post("/evaluations", status_code=202)
@allow("submit")
def submit_evaluation(
    body: Asked,
    services: ServicesDep,
    principal: PrincipalDep,
    queueing: QueueingDep,
    key: IdempotencyKey = None,
) -> EvaluationJob:
    """Queue an evaluation of finished runs, which puts its results under each of them.

    Runs whose models are alike share one pass over the data. What a run was judged on before, the
    same images under the same name, is passed over. A submit token judges its own runs alone: the
    results change their reports. The same `Idempotency-Key` and body give the same job again.
    """

    def make() -> tuple[EvaluationJobSpec, JobRequest]:
        check_priority(principal, body.priority)
        services.evaluation_submission.require_valid(body.spec)
        for run_id in body.spec.runs:
            check_owner(services.store, principal, run_id)
        return body.spec, {"priority": body.priority, "max_attempts": body.max_attempts}

    meaning = body_hash("evaluate", body.model_dump())
    return queueing.submit(services.store.evaluation_jobs, key, meaning, make)


@router.post("/evaluations/validate", dependencies=[turn_for("scans")])
@allow("submit")
def validate_evaluation(body: Asked, services: ServicesDep) -> Validation:
    """A dry run: what stands in the way of a job, and what it will cost."""
    return services.evaluation_submission.validate(body.spec)


@router.get("/evaluation-jobs")
@allow("read")
def list_evaluation_jobs(
    store: StoreDep, query: Annotated[EvaluationJobsQuery, Query()]
) -> EvaluationJobPage:
    """Evaluation jobs, newest first."""
    items, next_cursor, total = store.evaluation_jobs.page(query)
    return EvaluationJobPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/evaluation-jobs/{job_id}")
@allow("read")
def get_evaluation_job(job_id: JobId, store: StoreDep) -> EvaluationJob:
    """One evaluation job."""
    return store.evaluation_jobs.get(job_id)


@router.delete("/evaluation-jobs/{job_id}", status_code=204)
@allow("admin")
def delete_evaluation_job(job_id: JobId, services: ServicesDep) -> None:
    """Delete a job and its log. Its results stay with the runs. Not while it works."""
    digests = services.store.evaluation_jobs.delete(job_id)
    services.artifacts.collect(
        services.store.files, grace_s=services.settings.artifact_grace_s, digests=digests
    )


@router.post("/evaluation-jobs/{job_id}/cancel", status_code=202)
@allow("submit")
def cancel_evaluation_job(
    job_id: JobId, services: ServicesDep, queueing: QueueingDep
) -> EvaluationJob:
    """Ask a job to stop; repeatable. What it has finished stays under the runs."""
    return queueing.cancel(services.store.evaluation_jobs, job_id)


@router.post("/evaluation-jobs/{job_id}/retry", status_code=202)
@allow("submit")
def retry_evaluation_job(
    job_id: JobId, services: ServicesDep, queueing: QueueingDep
) -> EvaluationJob:
    """Queue a failed or cancelled job again; it goes on where it was."""
    return queueing.retry(services.store.evaluation_jobs, job_id)


@router.get("/evaluation-jobs/{job_id}/evaluations")
@allow("read")
def list_job_evaluations(
    job_id: JobId, store: StoreDep, cursor: Cursor = None, limit: Limit = 50
) -> EvaluationPage:
    """The results of a job so far, newest first."""
    store.evaluation_jobs.get(job_id)
    items, next_cursor, total = store.results.list_evaluations(
        job_id=job_id, cursor=cursor, limit=limit
    )
    return EvaluationPage(items=items, next_cursor=next_cursor, total=total)


async def _known(job_id: JobId, services: ServicesDep, start: StartAfter) -> int:
    """The id to start after, of a job that is there."""
    await run_in_threadpool(services.store.evaluation_jobs.get, job_id)
    return start


@router.get(
    "/evaluation-jobs/{job_id}/events", response_class=EventSourceResponse, dependencies=[STREAM]
)
@allow("read")
async def stream_evaluation_job_events(
    job_id: JobId,
    services: ServicesDep,
    principal: PrincipalDep,
    start: Annotated[int, Depends(_known)],
) -> AsyncIterator[ServerSentEvent]:
    """Events as they happen (SSE), as for runs; `evaluation` names the run that it is of."""
    async for event in follow(job_id, services, principal, start):
        yield event


@router.get("/evaluation-jobs/{job_id}/events/history")
@allow("read")
def list_evaluation_job_events(
    job_id: JobId, store: StoreDep, after: After = 0, limit: Limit = 200
) -> list[RunEvent]:
    """The events after an id, by polling instead of one long answer."""
    store.evaluation_jobs.get(job_id)
    return store.history.events_after(job_id, after, limit)[0]


@router.get("/evaluation-jobs/{job_id}/logs")
@allow("read")
def get_evaluation_job_logs(
    job_id: JobId,
    store: StoreDep,
    offset: LogOffset = 0,
    limit: LogBytes = 65_536,
    tail: LogTail = None,
) -> LogPage:
    """A piece of the job's log, as for runs."""
    store.evaluation_jobs.get(job_id)
    return store.history.logs(job_id, offset=offset, limit=limit, tail=tail)
