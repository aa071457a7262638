"""Evaluation jobs: finished runs judged on more data, queued to workers like training."""

from typing import Annotated

from fastapi import APIRouter, Body, Query

from backend.routes.deps import (
    IdempotencyKey,
    JobId,
    PrincipalDep,
    ServicesDep,
    StoreDep,
    allow,
    check_owner,
    check_priority,
    slot_for,
)
from backend.routes.jobs import QueueingDep
from backend.services.submission import body_hash
from backend.store.submitting import JobRequest
from calift_core.schema.evaluation_job import (
    EvaluationJob,
    EvaluationJobPage,
    EvaluationJobSpec,
    EvaluationJobsQuery,
    EvaluationSubmit,
)
from calift_core.schema.wire.queries import Cursor, Limit
from calift_core.schema.wire.results import EvaluationPage
from calift_core.schema.wire.runs import Validation

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


@router.post("/evaluations/validate", dependencies=[slot_for("scans")])
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
def delete_evaluation_job(job_id: JobId, store: StoreDep, queueing: QueueingDep) -> None:
    """Delete a job and its log. Its results stay with the runs. Not while it works."""
    queueing.delete(store.evaluation_jobs, job_id)


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
