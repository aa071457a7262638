"""What there is: methods, models, data sets, workers, and how the service is doing."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from backend.dispatch.queue import broker_answers
from backend.http.concurrency import Admission
from backend.http.docs_page import docs_page
from backend.http.middleware import ZIP_TYPE
from backend.http.problems import HttpError, as_response
from backend.routes.deps import (
    PrincipalDep,
    ServicesDep,
    StoreDep,
    admission_for,
    allow,
    note,
    open_by_setting,
    open_on_loopback,
    slot_for,
    uploads,
)
from backend.services.readiness import CHECKS
from backend.services.scanning import Scanner
from calift_core import __version__, catalogue
from calift_core.schema.wire.queries import SuiteQuery
from calift_core.schema.wire.runs import RunPhase
from calift_core.schema.wire.service import (
    DatasetInfo,
    FolderList,
    Health,
    MethodInfo,
    ModelInfo,
    Ready,
    Stats,
    SuiteCopies,
    SuiteRuns,
    SuiteScan,
    UploadedData,
    WorkerInfo,
)

router = APIRouter(tags=["catalogue"])
#: What load balancers and health checks ask, however often: every application of this service has
#: it, without a token and beyond all rates.
probes = APIRouter(tags=["catalogue"])


@probes.get("/health", openapi_extra={"security": []})
@allow("open")
async def get_health() -> Health:
    """Whether the process lives; nothing else is asked. Restart it when it does not answer."""
    return Health(version=__version__)


@probes.get("/readyz", openapi_extra={"security": []}, responses={503: {}})
@allow("open")
def get_readiness(request: Request, services: ServicesDep) -> Ready:
    """Whether database, tables, broker, artifact store and disk work; 503 says which do not.

    Send work elsewhere, or wait, while it is 503. Looked at every two seconds at most.
    """
    found = services.ready.ask(services.readiness.lacking)
    if not found:
        return Ready(checks=list(CHECKS))
    error = HttpError(
        503,
        "NOT_READY",
        f"the service is not ready: {' '.join(found.values())}",
        hint="Runs that work go on; the service's log says more.",
        errors=[{"check": check, "message": message} for check, message in found.items()],
        headers={"Retry-After": "2"},
    )
    # Not raised: asked ten times a second, it would fill the log.
    return as_response(error, request.state.request_id)  # type: ignore[return-value]


@router.get("/stats")
@allow("read")
def get_stats(services: ServicesDep) -> Stats:
    """The overview's numbers."""
    store = services.store
    phases = store.runs.by_phase()
    return Stats(
        runs_by_phase=phases,
        queue_depth=store.runs.queue_depth(),
        oldest_queued_s=store.runs.oldest_queued_s(),
        workers=store.workers.recent(),
        broker_ok=services.broker.ask(lambda: broker_answers(services.celery)),
        free_bytes=services.artifacts.free_bytes(),
    )


@router.get("/methods")
@allow("read")
def list_methods() -> list[MethodInfo]:
    """Methods with the JSON schema that a form is built from."""
    return list(catalogue.methods())


@router.get("/models")
@allow("read")
def list_models(services: ServicesDep) -> list[ModelInfo]:
    """Models that are known by name; any other open_clip name works as well."""
    return catalogue.models(services.settings.home)


@router.get("/datasets")
@allow("read")
def list_datasets(services: ServicesDep) -> list[DatasetInfo]:
    """Suites, which are here, and how to get the others; last the zips that were brought."""
    return [*catalogue.datasets(), *services.datasets.infos()]


@router.get("/datasets/folders", responses={404: {}}, dependencies=[slot_for("scans")])
@allow("submit")
def list_folders(
    services: ServicesDep,
    path: Annotated[
        str | None, Query(min_length=1, max_length=4096, description="None: the registered folders")
    ] = None,
) -> FolderList:
    """The folders in a registered folder, one level, and what each seems to hold.

    Registered are those of `CALIFT_DATA_ROOTS`; where none is and only this machine reaches the
    service, it is the home of whoever runs it. Links that lead out of them are left out.
    """
    return Scanner(services.settings, services.submission, services.thumbnails).browse(path)


@router.post(
    "/datasets",
    status_code=201,
    responses={413: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A zip of class folders, or of train/, val/, test/ … folders of them",
            "content": {ZIP_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@allow("submit")
@uploads(ZIP_TYPE)
async def upload_dataset(
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    admission: Annotated[Admission, admission_for("uploads")],
    name: Annotated[
        str, Query(min_length=1, max_length=200, description="Of the file, such as `birds.zip`")
    ] = "images.zip",
) -> UploadedData:
    """Bring a zip of images; the answer says how a RunSpec names it.

    It is kept as it is, below the service's home, once it is known to be a zip whose names stay in
    it, whose images hold what they say and whose size and number of files are within the limits.
    """
    receiving = services.imports.receive(request.stream(), "a zip of images")
    async with receiving as received, admission.slot():
        found = await run_in_threadpool(
            services.datasets.take, received, name, owner=principal.name
        )
    note(request, suite=found.suite, size_bytes=found.size_bytes)
    return found


@router.delete("/datasets", status_code=204, responses={404: {}, 409: {}})
@allow("submit")
def delete_dataset(
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    suite: Annotated[
        str, Query(min_length=1, max_length=4096, description="As it is listed: `zip:FILE`")
    ],
) -> None:
    """Delete a zip that was brought here: one's own, or as an admin anybody's.

    Not while a run, an evaluation job or a sweep that is not over needs it. Finished runs keep
    their numbers; their images are shown no more, and they cannot be judged on it again.
    """
    services.datasets.remove(suite, principal)
    note(request, suite=suite)


@router.get("/datasets/scan", dependencies=[slot_for("scans")])
@allow("submit")
async def scan_dataset(
    services: ServicesDep, principal: PrincipalDep, query: Annotated[SuiteQuery, Query()]
) -> SuiteScan:
    """A look at data before anything runs on it: classes, numbers, a few of its images.

    Files are listed as for a dry run; a few images of the test part are opened, in a process with
    limits. Nothing is downloaded.
    """
    scanner = Scanner(services.settings, services.submission, services.thumbnails)
    slot = partial(services.limits["thumbnails"].slot, principal.name)
    return await scanner.scan(query.suite, query.group_by, slot=slot)


@router.get("/datasets/copies", dependencies=[slot_for("copies")])
@allow("submit")
def find_copies(services: ServicesDep, query: Annotated[SuiteQuery, Query()]) -> SuiteCopies:
    """Equal and nearly equal images in several parts of a suite, and what they can be worth.

    Every image is decoded once, in a process with limits; one request at a time is answered.
    """
    scanner = Scanner(services.settings, services.submission, services.thumbnails)
    return scanner.copies(query.suite, query.group_by)


@router.get("/suites")
@allow("read")
def list_suites(
    store: StoreDep,
    phase: Annotated[list[RunPhase], Query(description="Any of these; none: all")] = [],  # noqa: B006
) -> list[SuiteRuns]:
    """The suites of the runs that are not archived, at most 200, that of the newest run first."""
    return store.runs.suites(phase)


@router.get("/workers")
@allow("read")
def list_workers(store: StoreDep) -> list[WorkerInfo]:
    """Workers that have reported in during the last day."""
    return store.workers.recent()


@router.get("/openapi.json", include_in_schema=False)
@allow("read")
@open_on_loopback
def get_openapi(request: Request) -> JSONResponse:
    """This API's description."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)


pages = APIRouter(include_in_schema=False)


@pages.get("/docs")
@allow("read")
@open_on_loopback
def get_docs(request: Request) -> HTMLResponse:
    """This API's description as a page."""
    page, policy = docs_page(request.app.openapi(), str(request.base_url).rstrip("/"))
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@pages.get("/metrics")
@allow("read")
@open_on_loopback
@open_by_setting
def scrape_metrics(services: ServicesDep) -> Response:
    """What Prometheus scrapes."""
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)
