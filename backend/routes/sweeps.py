"""Sweeps: begin, look at, steer, judge."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Response

from backend.http.problems import HttpError
from backend.routes.deps import (
    ANALYSIS,
    IdempotencyKey,
    PrincipalDep,
    ServicesDep,
    StoreDep,
    SweepId,
    allow,
    check_priority,
    slot_for,
)
from backend.services.submission import body_hash
from calift_core.schema.base import JsonObject
from calift_core.schema.wire.queries import Cursor, Limit
from calift_core.schema.wire.runs import RunPage, SortKey
from calift_core.schema.wire.sweeps import (
    SweepDetail,
    SweepPage,
    SweepResume,
    SweepValidation,
    SweepVerdict,
)

router = APIRouter(tags=["sweeps"])

_EXAMPLES = {
    "methods": {
        "summary": "Two methods on the embedded suite, three seeds, a rate chosen for each",
        "value": {
            "name": "flyp or carot",
            "base": {"suite": {"id": "fashion-mnist"}, "train": {"epochs": 2, "batch_size": 256}},
            "methods": ["flyp", "carot"],
            "seeds": [0, 1, 2],
            "max_runs": 30,
            "max_hours": 2,
        },
    },
    "values": {
        "summary": "A grid over one coefficient",
        "value": {
            "name": "carot by L_OC",
            "base": {"method": {"kind": "carot"}, "suite": {"id": "fashion-mnist"}},
            "values": {"method.lambda_oc": [0.0, 0.2, 1.0]},
            "rate": None,
        },
    },
    "preset": {
        "summary": "Three seeds of one RunSpec",
        "value": {
            "preset": "three-seeds",
            "base": {"name": "mine", "method": {"kind": "flyp"}, "suite": {"id": "fashion-mnist"}},
        },
    },
}
SweepBody = Annotated[JsonObject, Body(openapi_examples=_EXAMPLES)]


@router.post("/sweeps", status_code=202)
@allow("submit")
def submit_sweep(
    body: SweepBody,
    response: Response,
    services: ServicesDep,
    principal: PrincipalDep,
    key: IdempotencyKey = None,
) -> SweepDetail:
    """Begin a sweep: a SweepSpec. Its runs are queued as what they follow from has finished.

    The same `Idempotency-Key` and body give the same sweep again.
    """
    sweep_id, errors = services.sweeping.begin(
        body,
        check_priority=partial(check_priority, principal),
        token_id=principal.token_id,
        submitted_by=principal.name,
        idempotency_key=key,
        body_hash=body_hash("sweep", body),
    )
    if errors:
        first = f"{errors[0]['pointer']}: {errors[0]['message']}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise HttpError(
            422, "INVALID_SPEC", f"the SweepSpec is not valid: {first}{more}", errors=errors
        )
    services.sweeping.advance(sweep_id)
    response.headers["Location"] = f"/api/v1/sweeps/{sweep_id}"
    return _changed(services, sweep_id)


def _changed(services: ServicesDep, sweep_id: str) -> SweepDetail:
    services.housekeeper.wake()
    return services.sweeping.detail(sweep_id)


@router.post("/sweeps/validate", dependencies=[slot_for("scans")])
@allow("submit")
def validate_sweep(body: SweepBody, services: ServicesDep) -> SweepValidation:
    """A dry run: what is wrong with a SweepSpec, what is missing, what it will cost."""
    return services.sweeping.validate(body)


@router.get("/sweeps")
@allow("read")
def list_sweeps(store: StoreDep, cursor: Cursor = None, limit: Limit = 50) -> SweepPage:
    """Sweeps, the newest first."""
    items, next_cursor, total = store.sweeps.page(cursor=cursor, limit=limit)
    return SweepPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/sweeps/{sweep_id}")
@allow("read")
def get_sweep(sweep_id: SweepId, services: ServicesDep) -> SweepDetail:
    """One sweep: its configurations with their rates, and what it has cost and will cost."""
    return services.sweeping.detail(sweep_id)


@router.get("/sweeps/{sweep_id}/runs")
@allow("read")
def list_sweep_runs(
    sweep_id: SweepId,
    store: StoreDep,
    sort: SortKey = "created",
    cursor: Cursor = None,
    limit: Limit = 50,
) -> RunPage:
    """The runs that a sweep has queued so far, archived ones too."""
    store.sweeps.summary(sweep_id)
    items, next_cursor, total = store.runs.page(
        sweep=sweep_id, archived="any", sort=sort, cursor=cursor, limit=limit
    )
    return RunPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/sweeps/{sweep_id}/verdict", dependencies=[ANALYSIS])
@allow("read")
def get_sweep_verdict(sweep_id: SweepId, services: ServicesDep) -> SweepVerdict:
    """What a sweep says so far: in a sentence, and in model confidence sets and paired intervals.

    Once with each method at its own rate and once at equal ID accuracy. 404 while no method has all
    of its evaluation runs.
    """
    return services.judge.verdict(sweep_id)


@router.post("/sweeps/{sweep_id}/cancel", status_code=202)
@allow("submit")
def cancel_sweep(sweep_id: SweepId, services: ServicesDep) -> SweepDetail:
    """Cancel a sweep and all of its runs that have not ended. Repeatable."""
    services.sweeping.cancel(sweep_id)
    return _changed(services, sweep_id)


@router.post("/sweeps/{sweep_id}/pause", status_code=202)
@allow("submit")
def pause_sweep(sweep_id: SweepId, services: ServicesDep) -> SweepDetail:
    """Queue nothing more and take waiting runs out of line; those that work go on. Repeatable."""
    services.sweeping.pause(sweep_id)
    return _changed(services, sweep_id)


@router.post("/sweeps/{sweep_id}/resume", status_code=202)
@allow("submit")
def resume_sweep(sweep_id: SweepId, body: SweepResume, services: ServicesDep) -> SweepDetail:
    """Go on with a paused sweep, with another cap on its hours if one is given. Repeatable."""
    services.sweeping.resume(sweep_id, max_hours=body.max_hours)
    return _changed(services, sweep_id)


@router.post("/sweeps/{sweep_id}/retry", status_code=202)
@allow("submit")
def retry_sweep(sweep_id: SweepId, services: ServicesDep) -> SweepDetail:
    """Queue the failed and cancelled runs of a sweep again, and go on with it."""
    services.sweeping.retry(sweep_id)
    return _changed(services, sweep_id)
