"""What routes depend on, each named once, and the scope check that guards them all."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from celery import Celery
from fastapi import Depends, Header, Path, Request
from fastapi.concurrency import run_in_threadpool

from backend.children.model_host import ModelHost
from backend.dispatch.housekeeper import Housekeeper
from backend.explore.bound import Monitor
from backend.explore.library import StoreLibrary
from backend.explore.sweeps import SweepComparison
from backend.http.authentication import Authenticator, Principal
from backend.http.concurrency import Admission, FairLimiter, Kind
from backend.http.middleware import takes_uploads
from backend.http.problems import HttpError, unauthenticated
from backend.services.bulk import BulkActions
from backend.services.corrections import Corrections
from backend.services.datasets import Datasets
from backend.services.evaluation_submission import EvaluationSubmission
from backend.services.exporting import Exports
from backend.services.imports import Imports
from backend.services.maps import Maps
from backend.services.metrics import Metrics
from backend.services.readiness import Readiness
from backend.services.submission import Submission
from backend.services.sweeps import Sweeping
from backend.services.thumbnails import Thumbnails
from backend.services.trying import Trials
from backend.services.watching import Watch
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.jobs import Jobs
from backend.store.stores import Stores
from calift_core.analysis.comparer import Comparer
from calift_core.analysis.explorer import Explorer
from calift_core.errors import NotFoundError
from calift_core.schema.evaluation_job import is_job_id
from calift_core.schema.wire.runs import JobSummary

_Answer = TypeVar("_Answer")


class Recent(Generic[_Answer]):
    """The last answer to a slow question, for a few seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._last: tuple[float, _Answer] | None = None
        self._lock = threading.Lock()

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Return the last answer, or ask anew where it is too old and nobody is asking already."""
        last = self._last
        if last is not None and time.monotonic() - last[0] <= self._ttl_s:
            return last[1]
        # Whoever comes while a slow question is asked gets the last answer and keeps no thread.
        if not self._lock.acquire(blocking=last is None):
            assert last is not None
            return last[1]
        try:
            if self._last is last:
                self._last = time.monotonic(), question()
            assert self._last is not None
            return self._last[1]
        finally:
            self._lock.release()


@dataclass(frozen=True)
class Services:
    """What one application holds, made once in `create_app`."""

    settings: Settings
    authenticator: Authenticator
    store: Stores
    artifacts: ArtifactStore
    celery: Celery
    housekeeper: Housekeeper
    library: StoreLibrary
    explorer: Explorer
    comparer: Comparer
    monitor: Monitor
    submission: Submission
    evaluation_submission: EvaluationSubmission
    imports: Imports
    datasets: Datasets
    sweeping: Sweeping
    judge: SweepComparison
    thumbnails: Thumbnails
    maps: Maps
    trials: Trials
    exports: Exports
    model_host: ModelHost | None
    corrections: Corrections
    readiness: Readiness
    bulk: BulkActions
    metrics: Metrics
    watch: Watch
    limits: Mapping[Kind, FairLimiter]
    stopping: threading.Event = field(default_factory=threading.Event)
    broker: Recent[bool] = field(default_factory=lambda: Recent(2.0))
    ready: Recent[dict[str, str]] = field(default_factory=lambda: Recent(2.0))


_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


def allow(scope: Literal["open", "read", "submit", "admin"]) -> Callable[[_Endpoint], _Endpoint]:
    """Say which scope a route needs. A route without this needs admin."""

    def mark(endpoint: _Endpoint) -> _Endpoint:
        endpoint.calift_scope = scope  # type: ignore[attr-defined]
        return endpoint

    return mark


def scope_of(endpoint: Any) -> Literal["open", "read", "submit", "admin"]:
    found: Literal["open", "read", "submit", "admin"] = getattr(endpoint, "calift_scope", "admin")
    return found


def open_on_loopback(endpoint: _Endpoint) -> _Endpoint:
    """Say that a route takes no token where only this machine reaches the service."""
    endpoint.calift_open_on_loopback = True  # type: ignore[attr-defined]
    return endpoint


def open_by_setting(endpoint: _Endpoint) -> _Endpoint:
    """Say that a route takes no token where `CALIFT_METRICS_OPEN` says so."""
    endpoint.calift_open_by_setting = True  # type: ignore[attr-defined]
    return endpoint


def skip_owner_check(endpoint: _Endpoint) -> _Endpoint:
    """Say that a route which writes does not change the run in its path: anybody's will do."""
    endpoint.calift_of_anybody = True  # type: ignore[attr-defined]
    return endpoint


def _is_of_anybody(endpoint: Any) -> bool:
    return getattr(endpoint, "calift_of_anybody", False) is True


def logs_in(endpoint: _Endpoint) -> _Endpoint:
    """Say that a route also answers to what is good for opening a session alone."""
    endpoint.calift_logs_in = True  # type: ignore[attr-defined]
    return endpoint


def uploads(kind: str) -> Callable[[_Endpoint], _Endpoint]:
    """Say that a route takes a file of this media type as its body, and nothing else."""

    def mark(endpoint: _Endpoint) -> _Endpoint:
        endpoint.calift_uploads = kind  # type: ignore[attr-defined]
        return endpoint

    return mark


def changes_nothing(endpoint: _Endpoint) -> _Endpoint:
    """Say that a route which is no GET changes nothing, so that the audit log leaves it out."""
    endpoint.calift_changes_nothing = True  # type: ignore[attr-defined]
    return endpoint


def note(request: Request, **detail: Any) -> None:
    """Add to what the audit log will say of a request."""
    request.state.audit = detail


async def guard(request: Request) -> None:
    """Let a request through to its route or refuse it; the whole application depends on this.

    Raises:
        HttpError: 401 without a good token, 403 when its scope is too small or the run is
            another's, 415 when its body is an upload and the route takes none, or the other way
            round.
        NotFoundError: the run that would be changed does not exist.
    """
    endpoint = request.scope.get("endpoint")
    needed = scope_of(endpoint)
    settings = get_services(request).settings
    if (getattr(endpoint, "calift_open_on_loopback", False) and settings.is_loopback) or (
        getattr(endpoint, "calift_open_by_setting", False) and settings.metrics_open
    ):
        needed = "open"
    principal: Principal | None = request.state.principal
    if needed != "open":
        if principal is None:
            raise getattr(request.state, "problem", None) or unauthenticated("this needs a token.")
        if principal.only_logs_in and not getattr(endpoint, "calift_logs_in", False):
            raise unauthenticated("this only opens a session.", "LOG_IN_ONLY")
        if not principal.may(needed):
            raise HttpError(
                403,
                "FORBIDDEN",
                f"this needs a token of scope {needed}, yours has {principal.scope}.",
                hint="Ask whoever runs the service for another token.",
            )
    if request.state.upload not in (None, takes_uploads(endpoint)):  # None: there is no body
        wanted = takes_uploads(endpoint) or "application/json"
        raise HttpError(415, "UNSUPPORTED_MEDIA_TYPE", f"the body must be {wanted}.")
    given = request.path_params
    job_id = given.get("run_id") or given.get("job_id")
    if job_id is not None:
        _check_kind(request, str(job_id))
    if needed in ("submit", "admin") and not _is_of_anybody(endpoint):
        services = get_services(request)
        owned: list[tuple[Literal["run", "sweep"], str | None]] = [
            ("run", job_id),
            ("sweep", given.get("sweep_id")),
        ]
        for kind, named in owned:
            if named is not None:
                await run_in_threadpool(
                    check_owner, services.store, get_principal(request), str(named), kind
                )
    request.state.authorised = True


def _check_kind(request: Request, job_id: str) -> None:
    wants_job = "/evaluation-jobs/{" in request.scope["route"].path
    if is_job_id(job_id) and not wants_job:
        raise NotFoundError(
            f"{job_id} is an evaluation job and no run.",
            hint=f"It is at /evaluation-jobs/{job_id}.",
        )
    if wants_job and not is_job_id(job_id):
        raise NotFoundError(f"there is no evaluation job {job_id!r}.")


def check_owner(
    store: Stores, principal: Principal, name: str, kind: Literal["run", "sweep"] = "run"
) -> None:
    """Raise unless the principal may change a run, an evaluation job or a sweep.

    Raises:
        NotFoundError: there is none of that id.
        HttpError: 403, it is another's.
    """
    if principal.scope == "admin":
        return
    owner = (store.runs if kind == "run" else store.sweeps).submitter(name)
    if not principal.owns(owner):
        whose = f"belongs to {owner}" if owner else "has no owner"
        raise HttpError(
            403,
            "NOT_YOURS",
            f"{kind} {name} {whose}, and you are {principal.name}: a token of scope submit changes "
            f"its own {kind}s alone.",
            hint="Clone it to make a run of yours, or ask an admin."
            if kind == "run"
            else "Begin one of your own with its spec, or ask an admin.",
        )


def most_priority(principal: Principal) -> int:
    """The highest priority that somebody's runs may have: to overtake others is an admin's."""
    return 10 if principal.may("admin") else 0


def check_priority(principal: Principal, priority: int) -> None:
    """Raise unless somebody's runs may have a priority.

    Raises:
        HttpError: 403, it is above 0 and the scope is not `admin`.
    """
    if priority > most_priority(principal):
        raise HttpError(
            403,
            "FORBIDDEN",
            f"a priority above 0 needs a token of scope admin, got priority {priority} and scope "
            f"{principal.scope}.",
            hint="Leave it out, or ask whoever runs the service.",
        )


def get_services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


def get_store(request: Request) -> Stores:
    return get_services(request).store


def get_principal(request: Request) -> Principal:
    """Who asks. Routes that are open have nobody."""
    return cast("Principal", request.state.principal)


def get_request_id(request: Request) -> str:
    """The id of the request, for logs."""
    return str(request.state.request_id)


def admission_for(kind: Kind, *, to_the_end: bool = False) -> Any:
    """Admits a route's requests of one kind; a slot is for the route to wait for.

    Args:
        to_the_end: it is held until the answer has gone out, and not until the route has made it.
    """

    async def hold(request: Request) -> AsyncIterator[Admission]:
        limiter = get_services(request).limits[kind]
        with limiter.admit(get_principal(request).name) as admission:
            yield admission

    return Depends(hold, scope="request" if to_the_end else "function")


def slot_for(kind: Kind) -> Any:
    """Admits a route's requests of one kind, and waits for a slot before the route."""
    of_kind = admission_for(kind)

    async def wait(admission: Admission = of_kind) -> AsyncIterator[None]:
        async with admission.slot():
            yield

    return Depends(wait, scope="function")


#: What recomputes something from stored predictions.
ANALYSIS = slot_for("analyses")
RequestId = Annotated[str, Depends(get_request_id)]
ServicesDep = Annotated[Services, Depends(get_services)]
StoreDep = Annotated[Stores, Depends(get_store)]
PrincipalDep = Annotated[Principal, Depends(get_principal)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern="^[!-~]{1,200}$",
        description="The same key and body give the same run again; another body is a 409",
    ),
]
IfNoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", max_length=4000, description="ETags of copies")
]
RunId = Annotated[str, Path(max_length=64, description="A run's id")]
JobId = Annotated[str, Path(max_length=64, description="The id of the run or evaluation job")]
SweepId = Annotated[str, Path(max_length=64, description="A sweep's id")]
EvaluationId = Annotated[str, Path(max_length=64, description="An evaluation's id")]


def get_jobs(job_id: JobId, store: StoreDep) -> Jobs[Any, JobSummary]:
    """Those of the kind that an id is of."""
    return store.evaluation_jobs if is_job_id(job_id) else store.runs


JobsDep = Annotated[Jobs[Any, JobSummary], Depends(get_jobs)]
