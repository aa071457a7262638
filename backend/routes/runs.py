"""Runs: submit, watch, steer, fetch."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import ValidationError

from backend.deps import (
    MAX_CHOICES,
    Cursor,
    IdempotencyKey,
    IfNoneMatch,
    Limit,
    PrincipalDep,
    RunId,
    ServicesDep,
    StoreDep,
    allow,
    of_anybody,
)
from backend.problems import HttpError, of_faults
from backend.store.runs import RunFilters
from backend.submission import body_hash, check_text, invalid_spec, merge_patch
from calift_core.schema.report import Report
from calift_core.schema.wire import (
    TERMINAL_PHASES,
    Artifact,
    Evaluation,
    Frontier,
    LogPage,
    Metrics,
    RunClone,
    RunDetail,
    RunEvent,
    RunPage,
    RunPatch,
    RunPhase,
    RunSubmit,
    SortKey,
    Spectrum,
    Validation,
)

router = APIRouter(tags=["runs"])

_POLL_S = 0.5
#: How long a stream may outlive its token.
_RECHECK_S = 2.0
_BATCH = 500
_STEP_MAX = 2**53

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
    body: Annotated[dict[str, Any], Body(openapi_examples=_SUBMIT_EXAMPLES)],
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
    response: Response,
    services: ServicesDep,
    principal: PrincipalDep,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Queue a run: a RunSpec, bare or as `spec` beside `priority` and `max_attempts`.

    The same `Idempotency-Key` and body give the same run again.
    """
    body = submitted.wanted
    spec = services.submission.parse(body.spec, prefix=submitted.pointer)
    run_id = services.store.runs.submit(
        spec,
        priority=body.priority,
        max_attempts=body.max_attempts,
        idempotency_key=key,
        body_hash=body_hash("submit", body.model_dump(mode="json")),
        token_id=principal.token_id,
        submitted_by=principal.name,
        max_queued=services.settings.max_queued,
    )
    return _accepted(services, response, services.store.runs.get(run_id))


def _accepted(services: ServicesDep, response: Response, run: RunDetail) -> RunDetail:
    services.housekeeper.wake()
    response.headers["Location"] = f"/api/v1/runs/{run.id}"
    return run


@router.post("/runs/validate")
@allow("submit")
def validate_run(submitted: SubmissionDep, services: ServicesDep) -> Validation:
    """A dry run: what is wrong with a spec, what is missing here, what it will cost."""
    return services.submission.validate(submitted.wanted, prefix=submitted.pointer)


@router.get("/runs")
@allow("read")
def list_runs(
    store: StoreDep,
    phase: Annotated[
        list[RunPhase], Query(max_length=MAX_CHOICES, description="Any of these")
    ] = [],  # noqa: B006
    method: Annotated[list[str], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    model: Annotated[
        list[str], Query(max_length=MAX_CHOICES, description="`name/weights`, any of these")
    ] = [],  # noqa: B006
    suite: Annotated[list[str], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    tag: Annotated[list[str], Query(max_length=20, description="All of these")] = [],  # noqa: B006
    q: Annotated[str, Query(max_length=200, description="Words in name, notes or id")] = "",
    archived: Annotated[
        Literal["false", "true", "any"], Query(description="Whether archived ones are shown")
    ] = "false",
    sort: SortKey = "-created",
    cursor: Cursor = None,
    limit: Limit = 50,
) -> RunPage:
    """Runs, filtered and sorted on the server. Missing numbers sort last."""
    filters = RunFilters(
        phases=tuple(phase),
        methods=tuple(method),
        models=tuple(model),
        suites=tuple(suite),
        tags=tuple(tag),
        text=q,
        archived=None if archived == "any" else archived == "true",
    )
    items, next_cursor, total = store.runs.page(filters, sort=sort, cursor=cursor, limit=limit)
    return RunPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/runs/{run_id}")
@allow("read")
def get_run(run_id: RunId, store: StoreDep) -> RunDetail:
    """One run with its spec."""
    return store.runs.get(run_id)


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


@router.delete("/runs/{run_id}", status_code=204)
@allow("admin")
def delete_run(run_id: RunId, services: ServicesDep) -> None:
    """Delete a run, its rows and the files that no other run names. Not while it works."""
    digests = services.store.runs.delete(run_id)
    services.artifacts.collect(
        services.store.files, grace_s=services.settings.artifact_grace_s, digests=digests
    )


@router.post("/runs/{run_id}/cancel", status_code=202)
@allow("submit")
def cancel_run(run_id: RunId, response: Response, services: ServicesDep) -> RunDetail:
    """Ask a run to stop; repeatable. A working run is CANCELLING until its checkpoint is safe."""
    return _accepted(services, response, services.store.runs.request_cancel(run_id))


@router.post("/runs/{run_id}/retry", status_code=202)
@allow("submit")
def retry_run(run_id: RunId, response: Response, services: ServicesDep) -> RunDetail:
    """Queue a failed or cancelled run again; it goes on from its newest checkpoint."""
    run = services.store.runs.retry(run_id, max_queued=services.settings.max_queued)
    return _accepted(services, response, run)


@router.post("/runs/{run_id}/clone", status_code=202)
@allow("submit")
@of_anybody
def clone_run(
    run_id: RunId,
    body: RunClone,
    response: Response,
    services: ServicesDep,
    principal: PrincipalDep,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Queue a new run with this one's spec and some changes (RFC 7396 merge patch)."""
    source = services.store.runs.get(run_id)
    faults = check_text(body.changes, "#/changes")
    if faults:
        raise invalid_spec(faults)
    changed: dict[str, Any] = merge_patch(source.spec, body.changes)
    if body.name is not None:
        changed["name"] = body.name
    elif "name" not in body.changes:
        changed["name"] = f"{source.name[:112]} (copy)"
    spec = services.submission.parse(changed, prefix="#/changes")
    new_id = services.store.runs.submit(
        spec,
        priority=source.priority,
        max_attempts=source.max_attempts,
        idempotency_key=key,
        body_hash=body_hash(f"clone {run_id}", body.model_dump(mode="json")),
        cloned_from=run_id,
        token_id=principal.token_id,
        submitted_by=principal.name,
        max_queued=services.settings.max_queued,
    )
    return _accepted(services, response, services.store.runs.get(new_id))


@router.get("/runs/{run_id}/metrics")
@allow("read")
def get_metrics(
    run_id: RunId,
    store: StoreDep,
    names: Annotated[
        list[str], Query(max_length=MAX_CHOICES, description="These curves; none: all")
    ] = [],  # noqa: B006
    since_step: Annotated[int, Query(ge=-1, le=_STEP_MAX, description="Only later steps")] = -1,
    max_points: Annotated[
        int | None, Query(ge=1, le=100_000, description="Points per curve, extremes kept")
    ] = None,
) -> Metrics:
    """Curves. Poll with `since_step` set to the last answer's `last_step`."""
    return store.history.metrics(run_id, names=names, since_step=since_step, max_points=max_points)


async def _place_in_line(
    run_id: RunId,
    services: ServicesDep,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=_STEP_MAX)] = None,
    after: Annotated[
        int, Query(ge=0, le=_STEP_MAX, description="Events after this id; the header wins")
    ] = 0,
) -> AsyncIterator[int]:
    """Hold one of the places for streams; the id to start after."""
    # Errors must come before the stream begins; after that there is no status to set.
    await run_in_threadpool(services.store.claims.phase, run_id)
    if services.streams.value >= services.settings.max_streams:
        raise HttpError(
            503,
            "TOO_MANY_STREAMS",
            f"{services.settings.max_streams} event streams are open, and no more may be.",
            hint="Close one, or poll /events/history.",
            headers={"Retry-After": "10"},
        )
    services.streams.value += 1
    try:
        yield after if last_event_id is None else last_event_id
    finally:
        services.streams.value -= 1


@router.get("/runs/{run_id}/events", response_class=EventSourceResponse)
@allow("read")
async def stream_events(
    run_id: RunId,
    services: ServicesDep,
    principal: PrincipalDep,
    start: Annotated[int, Depends(_place_in_line)],
) -> AsyncIterator[ServerSentEvent]:
    """Events as they happen (SSE). Ids grow; `Last-Event-ID` resumes; `end` closes the stream.

    Each message's data is a RunEvent; that of `end` is `{"phase": …}`. Without an `end` the run
    goes on: ask again, which tells why the stream was closed (its token has expired, the service
    restarts).
    """
    last, checked = start, time.monotonic()
    while not services.stopping.is_set():
        if time.monotonic() - checked > _RECHECK_S:
            if not await services.authenticator.holds(principal):
                return
            checked = time.monotonic()
        events, phase = await run_in_threadpool(
            services.store.history.events_after, run_id, last, _BATCH
        )
        for event in events:
            yield ServerSentEvent(
                data=event.model_dump(mode="json"), event=event.kind, id=str(event.id)
            )
            last = event.id
        if events:
            continue
        if phase in TERMINAL_PHASES:
            yield ServerSentEvent(data={"phase": phase}, event="end")
            return
        await anyio.sleep(_POLL_S)


@router.get("/runs/{run_id}/events/history")
@allow("read")
def list_events(
    run_id: RunId,
    store: StoreDep,
    after: Annotated[int, Query(ge=0, le=_STEP_MAX, description="Events after this id")] = 0,
    limit: Limit = 200,
) -> list[RunEvent]:
    """The same events by polling."""
    return store.history.events_after(run_id, after, limit)[0]


@router.get("/runs/{run_id}/checkpoints")
@allow("read")
def list_checkpoints(run_id: RunId, store: StoreDep) -> list[Artifact]:
    """Stored checkpoints of a run."""
    return store.files.of_run(run_id, kind="checkpoint")


@router.get("/runs/{run_id}/artifacts")
@allow("read")
def list_artifacts(run_id: RunId, store: StoreDep) -> list[Artifact]:
    """Stored files of a run."""
    return store.files.of_run(run_id)


@router.get(
    "/runs/{run_id}/artifacts/{name:path}",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        304: {"description": "The copy with this ETag is still the file"},
    },
)
@allow("read")
def download_artifact(
    run_id: RunId, name: str, services: ServicesDep, known: IfNoneMatch = None
) -> Response:
    """A stored file; its bytes are checked against its SHA-256, which is the ETag."""
    artifact = services.store.files.get(run_id, name)
    return file_response(services, artifact.sha256, artifact.name, known)


def file_response(services: ServicesDep, sha256: str, name: str, known: str | None) -> Response:
    """A stored content as a download; never something that a browser would run.

    Args:
        services: of the application.
        sha256: of the content.
        name: of the file.
        known: the request's `If-None-Match`; 304 where it holds the content's ETag.
    """
    # A name may come to stand for another content, so a copy is to be asked about before its use.
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}
    if known is not None and _knows(known, sha256):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        services.artifacts.verified(sha256),
        media_type="application/octet-stream",
        filename=name.rsplit("/", 1)[-1],
        headers=headers,
    )


def _knows(if_none_match: str, sha256: str) -> bool:
    """Whether a list of ETags holds this one, by the weak comparison of RFC 9110 (8.8.3.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return if_none_match.strip() == "*" or f'"{sha256}"' in tags


@router.get("/runs/{run_id}/logs")
@allow("read")
def get_logs(
    run_id: RunId,
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
    """A piece of the run's log. To follow it: `tail` first, then `offset` from `next_offset` on."""
    return store.history.logs(run_id, offset=offset, limit=limit, tail=tail)


@router.get("/runs/{run_id}/evaluations")
@allow("read")
def list_run_evaluations(run_id: RunId, store: StoreDep) -> list[Evaluation]:
    """A run's evaluations in the order they were made."""
    return store.results.run_evaluations(run_id)


@router.get("/runs/{run_id}/spectra")
@allow("read")
def list_spectra(run_id: RunId, store: StoreDep) -> list[Spectrum]:
    """Singular values by step; the finished model's last."""
    return store.history.spectra(run_id)


@router.get("/runs/{run_id}/report")
@allow("read")
def get_report(run_id: RunId, store: StoreDep) -> Report:
    """`report.json` of a finished run."""
    return Report.model_validate(store.results.report(run_id))


@router.get("/runs/{run_id}/frontier")
@allow("read")
def get_frontier(run_id: RunId, store: StoreDep) -> Frontier:
    """The path of a WiSE-FT run: accuracy, ECE, its floor and NLL at every α.

    404 when the run measured none. What the shifts show is for looking at: choose an α on the
    validation values.
    """
    return store.results.frontier(run_id)
