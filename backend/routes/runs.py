"""Runs: submit, list, change, steer."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query
from pydantic import ValidationError

from backend.http.authentication import Principal
from backend.http.problems import of_faults
from backend.routes.deps import (
    IdempotencyKey,
    PrincipalDep,
    RunId,
    ServicesDep,
    StoreDep,
    allow,
    changes_nothing,
    check_priority,
    most_priority,
    skip_owner_check,
    slot_for,
)
from backend.routes.jobs import QueueingDep
from backend.services.submission import body_hash, check_text, invalid_spec, merge_patch
from backend.store.submitting import JobRequest
from calift_core.schema.base import JsonObject
from calift_core.schema.spec import RunSpec, with_more_epochs
from calift_core.schema.wire.queries import RunFilter, RunsQuery
from calift_core.schema.wire.runs import (
    RunClone,
    RunContinue,
    RunDetail,
    RunGroup,
    RunPage,
    RunPatch,
    RunSubmit,
    RunSummary,
    Validation,
)

router = APIRouter(tags=["runs"])

_SUBMIT_EXAMPLES = {
    "carot": {
        "summary": "CaRot on the embedded suite",
        "value": {
            "spec": {
                "name": "carot-fashion",
                "model": {"name": "calift-tiny", "pretrained": "fashion-mnist"},
                "method": {"kind": "carot", "lambda_oc": 0.2, "lambda_sd": 1.5},
                "suite": {"id": "fashion-mnist"},
                "train": {"epochs": 2, "batch_size": 256},
            },
            "priority": 0,
        },
    },
    "bare": {
        "summary": "A RunSpec and nothing around it",
        "value": {
            "name": "zero-shot-fashion",
            "method": {"kind": "zero_shot"},
            "suite": {"id": "fashion-mnist"},
        },
    },
}


@dataclass(frozen=True)
class _Submitted:
    """What a submission asks for, and where its spec is in the body that was sent."""

    wanted: RunSubmit
    pointer: str


def _read_submission(
    body: Annotated[JsonObject, Body(openapi_examples=_SUBMIT_EXAMPLES)],
) -> _Submitted:
    """A RunSpec, bare or as the `spec` of a RunSubmit; no RunSpec has a field of that name."""
    if "spec" not in body:
        return _Submitted(RunSubmit(spec=body), "#")
    try:
        return _Submitted(RunSubmit.model_validate(body), "#/spec")
    except ValidationError as error:
        raise of_faults(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        ) from error


SubmissionDep = Annotated[_Submitted, Depends(_read_submission)]


@router.post("/runs", status_code=202)
@allow("submit")
def submit_run(
    submitted: SubmissionDep,
    services: ServicesDep,
    principal: PrincipalDep,
    queueing: QueueingDep,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Queue a run: a RunSpec, bare or as `spec` beside `priority` and `max_attempts`.

    The same `Idempotency-Key` and body give the same run again.
    """
    body = submitted.wanted

    def make() -> tuple[RunSpec, JobRequest]:
        check_priority(principal, body.priority)
        spec = services.submission.parse(body.spec, prefix=submitted.pointer)
        return spec, {"priority": body.priority, "max_attempts": body.max_attempts}

    return queueing.submit(services.store.runs, key, body_hash("submit", body.model_dump()), make)


@router.post("/runs/validate", dependencies=[slot_for("scans")])
@allow("submit")
@changes_nothing
def validate_run(submitted: SubmissionDep, services: ServicesDep) -> Validation:
    """A dry run: what is wrong with a spec, what is missing here, what it will cost."""
    return services.submission.validate(submitted.wanted, prefix=submitted.pointer)


@router.get("/runs")
@allow("read")
def list_runs(store: StoreDep, query: Annotated[RunsQuery, Query()]) -> RunPage:
    """Runs, filtered and sorted on the server. Missing numbers sort last."""
    items, next_cursor, total = store.runs.page(query)
    return RunPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/runs/groups")
@allow("read")
def list_run_groups(store: StoreDep, query: Annotated[RunFilter, Query()]) -> list[RunGroup]:
    """Runs in groups that differ in their seed alone, with means and standard errors.

    Of the newest 1,000 that match, newest group first; a sweep's configurations are groups of their
    own.
    """
    return store.runs.groups(query)


@router.get("/runs/{run_id}/initial-runs")
@allow("read")
def list_initial_runs(run_id: RunId, store: StoreDep) -> list[RunSummary]:
    """Zero-shot runs that hold the model which a run started from, the newest first.

    Calibrators of two towers read the predictions of one of them beside the run's own.
    """
    return store.runs.summaries(store.results.initial_runs(run_id))


@router.patch("/runs/{run_id}")
@allow("submit")
def patch_run(run_id: RunId, body: RunPatch, services: ServicesDep) -> RunDetail:
    """Change name, notes, tags or the archived flag; what is left out stays."""
    changes = body.model_dump(exclude_none=True)
    current = services.store.runs.get(run_id)
    labels = {key: value for key, value in changes.items() if key != "archived"}
    if labels:
        # The labels obey the rules of a RunSpec, whose own copy stays as it was submitted; what
        # its method names may be gone by now.
        services.submission.parse(
            {"name": current.name, "method": {"kind": "zero_shot"}, **labels}, prefix="#"
        )
    return services.store.runs.patch(run_id, **changes)


@router.get("/runs/{run_id}")
@allow("read")
def get_run(run_id: RunId, store: StoreDep) -> RunDetail:
    """One run with its spec."""
    return store.runs.get(run_id)


@router.delete("/runs/{run_id}", status_code=204)
@allow("admin")
def delete_run(run_id: RunId, store: StoreDep, queueing: QueueingDep) -> None:
    """Delete a run, its rows and the files that no other run names. Not while it works."""
    queueing.delete(store.runs, run_id)


def _as_urgent(source: RunDetail, principal: Principal) -> JobRequest:
    """How a run that is made of another is queued: as that, where the token may."""
    priority = min(source.priority, most_priority(principal))
    return {"priority": priority, "max_attempts": source.max_attempts}


@router.post("/runs/{run_id}/clone", status_code=202)
@allow("submit")
@skip_owner_check
def clone_run(
    run_id: RunId,
    body: RunClone,
    services: ServicesDep,
    principal: PrincipalDep,
    queueing: QueueingDep,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Queue a new run with this one's spec and some changes (RFC 7396 merge patch).

    Its priority is the source's where the token may have it, else 0. The same `Idempotency-Key` and
    body give the same run again.
    """

    def make() -> tuple[RunSpec, JobRequest]:
        source = services.store.runs.get(run_id)
        if faults := check_text(body.changes, "#/changes"):
            raise invalid_spec(faults)
        changed: dict[str, Any] = merge_patch(source.spec, body.changes)
        if body.name is not None:
            changed["name"] = body.name
        elif "name" not in body.changes:
            changed["name"] = f"{source.name[:112]} (copy)"
        request: JobRequest = {**_as_urgent(source, principal), "cloned_from": run_id}
        return services.submission.parse(changed, prefix="#/changes"), request

    meaning = body_hash(f"clone {run_id}", body.model_dump())
    return queueing.submit(services.store.runs, key, meaning, make)


@router.post("/runs/{run_id}/continue", status_code=202)
@allow("submit")
@skip_owner_check
def continue_run(
    run_id: RunId,
    body: RunContinue,
    services: ServicesDep,
    principal: PrincipalDep,
    queueing: QueueingDep,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Queue a new run that trains a finished one's model for more epochs.

    Its spec is the finished run's with `train.initial_run`, which names that: the weights go on,
    with new optimiser moments and a warm-up and cosine of their own. The same `Idempotency-Key` and
    body give the same run again.
    """

    def make() -> tuple[RunSpec, JobRequest]:
        source = services.store.runs.get(run_id)
        more = with_more_epochs(source.spec, run_id, body.epochs)
        if body.name is not None:
            more["name"] = body.name
        return services.submission.parse(more, prefix="#"), _as_urgent(source, principal)

    meaning = body_hash(f"continue {run_id}", body.model_dump())
    return queueing.submit(services.store.runs, key, meaning, make)
