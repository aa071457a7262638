"""Evaluation jobs, and what runs have in common with them: submission, cancel, events, log."""

import time
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from backend.routes.deps import (
    IdempotencyKey,
    JobId,
    JobsDep,
    PrincipalDep,
    RequestId,
    ServicesDep,
    StoreDep,
    admission_for,
    allow,
    check_owner,
    check_priority,
    slot_for,
)
from backend.services.submission import body_hash
from backend.store.jobs import Jobs
from backend.store.submitting import JobRequest
from calift_core.errors import NotFoundError
from calift_core.schema.base import Frozen
from calift_core.schema.evaluation_job import (
    EvaluationJob,
    EvaluationJobPage,
    EvaluationJobSpec,
    EvaluationJobsQuery,
    EvaluationSubmit,
)
from calift_core.schema.wire.queries import Cursor, Limit
from calift_core.schema.wire.results import EvaluationPage
from calift_core.schema.wire.runs import (
    TERMINAL_PHASES,
    JobSummary,
    LogPage,
    RunDetail,
    RunEvent,
    Validation,
)

router = APIRouter()

#: A stream looks so often whether there is anything new; the database is asked once for all.
_LOOK_S = 0.25
#: How long a stream may outlive its token.
_RECHECK_S = 2.0
_BATCH = 500
_STEP_MAX = 2**53
_RUNS: list[str | Enum] = ["runs"]
_JOBS: list[str | Enum] = ["evaluation jobs"]


_Spec = TypeVar("_Spec", bound=Frozen)
_Job = TypeVar("_Job", bound=JobSummary)


class Queueing:
    """Puts jobs in line, one for each `Idempotency-Key`, and wakes whoever passes them on."""

    def __init__(
        self,
        response: Response,
        services: ServicesDep,
        principal: PrincipalDep,
        request_id: RequestId,
    ) -> None:
        self._response, self._services, self._principal = response, services, principal
        self._request_id = request_id

    def submit(
        self,
        jobs: Jobs[_Spec, _Job],
        key: str | None,
        meaning: str,
        make: Callable[[], tuple[_Spec, JobRequest]],
    ) -> _Job:
        """The job that this request asks for, or the one that it made before.

        Args:
            key: its `Idempotency-Key`.
            meaning: of the request, see `body_hash`.
            make: checks a new request, and says how its job is to be queued.
        """
        request: JobRequest = {
            "idempotency_key": key,
            "body_hash": meaning,
            "token_id": self._principal.token_id,
            "submitted_by": self._principal.name,
            "request_id": self._request_id,
        }
        job_id = self._services.store.runs.earlier_request(request)
        if job_id is None:
            spec, wanted = make()
            max_queued = self._services.settings.max_queued
            request.update(wanted)
            job_id = jobs.submit(spec, max_queued=max_queued, **request)
        return self.accepted(jobs.get(job_id))

    def delete(self, jobs: Jobs[Any, Any], job_id: str) -> None:
        """Delete a job, its rows and the files that no other names."""
        digests = jobs.delete(job_id)
        grace_s = self._services.settings.artifact_grace_s
        self._services.artifacts.collect(
            self._services.store.files, grace_s=grace_s, digests=digests
        )

    def accepted(self, job: _Job) -> _Job:
        self._services.housekeeper.wake()
        place = "runs" if isinstance(job, RunDetail) else "evaluation-jobs"
        self._response.headers["Location"] = f"/api/v1/{place}/{job.id}"
        return job


QueueingDep = Annotated[Queueing, Depends()]


@router.post(
    "/runs/{job_id}/cancel",
    name="cancel_run",
    tags=_RUNS,
    status_code=202,
    response_model=RunDetail,
)
@router.post(
    "/evaluation-jobs/{job_id}/cancel",
    name="cancel_evaluation_job",
    tags=_JOBS,
    status_code=202,
    response_model=EvaluationJob,
)
@allow("submit")
def cancel_job(job_id: JobId, jobs: JobsDep, queueing: QueueingDep) -> JobSummary:
    """Ask it to stop; repeatable.

    A working run is CANCELLING until its checkpoint is safe. What an evaluation job has finished
    stays under the runs.
    """
    return queueing.accepted(jobs.request_cancel(job_id))


@router.post(
    "/runs/{job_id}/retry", name="retry_run", tags=_RUNS, status_code=202, response_model=RunDetail
)
@router.post(
    "/evaluation-jobs/{job_id}/retry",
    name="retry_evaluation_job",
    tags=_JOBS,
    status_code=202,
    response_model=EvaluationJob,
)
@allow("submit")
def retry_job(
    job_id: JobId, jobs: JobsDep, queueing: QueueingDep, services: ServicesDep
) -> JobSummary:
    """Queue a failed or cancelled one again; it goes on where it was."""
    return queueing.accepted(jobs.retry(job_id, max_queued=services.settings.max_queued))


def _start_after(
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=_STEP_MAX)] = None,
    after: Annotated[
        int, Query(ge=0, le=_STEP_MAX, description="Events after this id; the header wins")
    ] = 0,
) -> int:
    return after if last_event_id is None else last_event_id


async def _known(job_id: JobId, jobs: JobsDep, start: Annotated[int, Depends(_start_after)]) -> int:
    """The id to start after, of one that is there."""
    await run_in_threadpool(jobs.get, job_id)
    return start


#: A stream is refused before it begins; after that there is no status to set.
_STREAM = [admission_for("streams", to_the_end=True)]


@router.get(
    "/runs/{job_id}/events",
    name="stream_events",
    tags=_RUNS,
    response_class=EventSourceResponse,
    dependencies=_STREAM,
)
@router.get(
    "/evaluation-jobs/{job_id}/events",
    name="stream_evaluation_job_events",
    tags=_JOBS,
    response_class=EventSourceResponse,
    dependencies=_STREAM,
)
@allow("read")
async def stream_events(
    job_id: JobId,
    services: ServicesDep,
    principal: PrincipalDep,
    start: Annotated[int, Depends(_known)],
) -> AsyncIterator[ServerSentEvent]:
    """Events as they happen (SSE). Ids grow; `Last-Event-ID` resumes; `end` closes the stream.

    Each message's data is a RunEvent; that of `end` is `{"phase": …}`. Without an `end` the run
    goes on: ask again, which tells why the stream was closed (its token has expired, the service
    restarts). `evaluation` of an evaluation job names the run that it is of.
    """
    last, checked = start, time.monotonic()
    with services.watch.of(job_id):
        while not services.stopping.is_set():
            if time.monotonic() - checked > _RECHECK_S:
                if not await services.watch.holds(principal, _RECHECK_S):
                    return
                checked = time.monotonic()
            here = await services.watch.position(job_id)
            if here is None:
                return  # deleted meanwhile
            events: list[RunEvent] = []
            if here.last_event > last:
                try:
                    events, _ = await run_in_threadpool(
                        services.store.history.events_after, job_id, last, _BATCH
                    )
                except NotFoundError:
                    return  # deleted in between
            for event in events:
                yield ServerSentEvent(
                    data=event.model_dump(mode="json"), event=event.kind, id=str(event.id)
                )
                last = event.id
            if events:
                continue
            if here.phase in TERMINAL_PHASES:
                yield ServerSentEvent(data={"phase": here.phase}, event="end")
                return
            await anyio.sleep(_LOOK_S)


@router.get("/runs/{job_id}/events/history", name="list_events", tags=_RUNS)
@router.get(
    "/evaluation-jobs/{job_id}/events/history", name="list_evaluation_job_events", tags=_JOBS
)
@allow("read")
def list_events(
    job_id: JobId,
    store: StoreDep,
    after: Annotated[int, Query(ge=0, le=_STEP_MAX, description="Events after this id")] = 0,
    limit: Limit = 200,
) -> list[RunEvent]:
    """The events after an id, by polling instead of one long answer."""
    return store.history.events_after(job_id, after, limit)[0]


@router.get("/runs/{job_id}/logs", name="get_logs", tags=_RUNS)
@router.get("/evaluation-jobs/{job_id}/logs", name="get_evaluation_job_logs", tags=_JOBS)
@allow("read")
def get_logs(
    job_id: JobId,
    store: StoreDep,
    offset: Annotated[
        int, Query(ge=-_STEP_MAX, le=_STEP_MAX, description="Byte; negative: from the end")
    ] = 0,
    limit: Annotated[int, Query(ge=4, le=1 << 20, description="Bytes")] = 65_536,
    tail: Annotated[
        int | None,
        Query(ge=1, le=100_000, description="The last lines within `limit`; `offset` is ignored"),
    ] = None,
) -> LogPage:
    """A piece of the log. To follow it: `tail` first, then `offset` from `next_offset` on."""
    return store.history.logs(job_id, offset=offset, limit=limit, tail=tail)


# ---- Evaluation jobs ---------------------------------------------------------------------------

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
EvaluationBody = Annotated[EvaluationSubmit, Body(openapi_examples=_EXAMPLES)]


@router.post("/evaluations", tags=_JOBS, status_code=202)
@allow("submit")
def submit_evaluation(
    body: EvaluationBody,
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


@router.post("/evaluations/validate", tags=_JOBS, dependencies=[slot_for("scans")])
@allow("submit")
def validate_evaluation(body: EvaluationBody, services: ServicesDep) -> Validation:
    """A dry run: what stands in the way of a job, and what it will cost."""
    return services.evaluation_submission.validate(body.spec)


@router.get("/evaluation-jobs", tags=_JOBS)
@allow("read")
def list_evaluation_jobs(
    store: StoreDep, query: Annotated[EvaluationJobsQuery, Query()]
) -> EvaluationJobPage:
    """Evaluation jobs, newest first."""
    items, next_cursor, total = store.evaluation_jobs.page(query)
    return EvaluationJobPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/evaluation-jobs/{job_id}", tags=_JOBS)
@allow("read")
def get_evaluation_job(job_id: JobId, store: StoreDep) -> EvaluationJob:
    """One evaluation job."""
    return store.evaluation_jobs.get(job_id)


@router.delete("/evaluation-jobs/{job_id}", tags=_JOBS, status_code=204)
@allow("admin")
def delete_evaluation_job(job_id: JobId, store: StoreDep, queueing: QueueingDep) -> None:
    """Delete a job and its log. Its results stay with the runs. Not while it works."""
    queueing.delete(store.evaluation_jobs, job_id)


@router.get("/evaluation-jobs/{job_id}/evaluations", tags=_JOBS)
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
