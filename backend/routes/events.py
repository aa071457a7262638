"""What a run says, to follow it: curves, events, log."""

import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from backend.http.authentication import Principal
from backend.routes.deps import (
    PrincipalDep,
    RunId,
    Services,
    ServicesDep,
    StoreDep,
    allow,
    place_for,
)
from calift_core.errors import NotFoundError
from calift_core.schema.wire.queries import CurvesQuery, Limit
from calift_core.schema.wire.runs import TERMINAL_PHASES, LogPage, Metrics, RunEvent

router = APIRouter(tags=["runs"])

#: A stream looks so often whether there is anything new; the database is asked once for all.
_LOOK_S = 0.25
#: How long a stream may outlive its token.
_RECHECK_S = 2.0
_BATCH = 500
_STEP_MAX = 2**53


@router.get("/runs/{run_id}/metrics")
@allow("read")
def get_metrics(run_id: RunId, store: StoreDep, query: Annotated[CurvesQuery, Query()]) -> Metrics:
    """Curves. Poll with `since_step` set to the last answer's `last_step`."""
    return store.history.metrics(run_id, **query.model_dump())


def _start_after(
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=_STEP_MAX)] = None,
    after: Annotated[
        int, Query(ge=0, le=_STEP_MAX, description="Events after this id; the header wins")
    ] = 0,
) -> int:
    return after if last_event_id is None else last_event_id


StartAfter = Annotated[int, Depends(_start_after)]
After = Annotated[int, Query(ge=0, le=_STEP_MAX, description="Events after this id")]
LogOffset = Annotated[
    int, Query(ge=-_STEP_MAX, le=_STEP_MAX, description="Byte; negative: from the end")
]
LogBytes = Annotated[int, Query(ge=4, le=1 << 20, description="Bytes")]
LogTail = Annotated[
    int | None,
    Query(ge=1, le=100_000, description="The last lines within `limit`; `offset` is ignored"),
]


#: A stream is refused before it begins; after that there is no status to set.
STREAM = place_for("streams", to_the_end=True)


async def _known(run_id: RunId, services: ServicesDep, start: StartAfter) -> int:
    """The id to start after, of a run that is there."""
    await run_in_threadpool(services.store.claims.phase, run_id)
    return start


@router.get("/runs/{run_id}/events", response_class=EventSourceResponse, dependencies=[STREAM])
@allow("read")
async def stream_events(
    run_id: RunId,
    services: ServicesDep,
    principal: PrincipalDep,
    start: Annotated[int, Depends(_known)],
) -> AsyncIterator[ServerSentEvent]:
    """Events as they happen (SSE). Ids grow; `Last-Event-ID` resumes; `end` closes the stream.

    Each message's data is a RunEvent; that of `end` is `{"phase": …}`. Without an `end` the run
    goes on: ask again, which tells why the stream was closed (its token has expired, the service
    restarts).
    """
    async for event in follow(run_id, services, principal, start):
        yield event


async def follow(
    run_id: str, services: Services, principal: Principal, start: int
) -> AsyncIterator[ServerSentEvent]:
    """The events of a run or job after an id, to its end, or until the token is good no more."""
    last, checked = start, time.monotonic()
    with services.watch.of(run_id):
        while not services.stopping.is_set():
            if time.monotonic() - checked > _RECHECK_S:
                if not await services.watch.holds(principal, _RECHECK_S):
                    return
                checked = time.monotonic()
            here = await services.watch.position(run_id)
            if here is None:
                return  # deleted meanwhile
            events: list[RunEvent] = []
            if here.last_event > last:
                try:
                    events, _ = await run_in_threadpool(
                        services.store.history.events_after, run_id, last, _BATCH
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


@router.get("/runs/{run_id}/events/history")
@allow("read")
def list_events(
    run_id: RunId, store: StoreDep, after: After = 0, limit: Limit = 200
) -> list[RunEvent]:
    """The events after an id, by polling instead of one long answer."""
    return store.history.events_after(run_id, after, limit)[0]


@router.get("/runs/{run_id}/logs")
@allow("read")
def get_logs(
    run_id: RunId,
    store: StoreDep,
    offset: LogOffset = 0,
    limit: LogBytes = 65_536,
    tail: LogTail = None,
) -> LogPage:
    """A piece of the run's log. To follow it: `tail` first, then `offset` from `next_offset` on."""
    return store.history.logs(run_id, offset=offset, limit=limit, tail=tail)
