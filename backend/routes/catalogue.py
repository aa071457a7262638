"""What there is: methods, models, data sets, workers, and how the service is doing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from backend import catalogue
from backend.deps import ServicesDep, StoreDep, allow
from backend.queue import broker_answers
from calift_core import __version__
from calift_core.schema.wire import DatasetInfo, Health, MethodInfo, ModelInfo, Stats, WorkerInfo

router = APIRouter(tags=["catalogue"])


@router.get("/health", openapi_extra={"security": []})
@allow("open")
async def get_health() -> Health:
    """Whether the service answers. The only route without a token."""
    return Health(version=__version__)


@router.get("/stats")
@allow("read")
def get_stats(services: ServicesDep) -> Stats:
    """The overview's numbers."""
    store = services.store
    phases = store.runs_by_phase()
    return Stats(
        runs_by_phase=phases,
        queue_depth=phases.get("QUEUED", 0),
        oldest_queued_s=store.oldest_queued_s(),
        workers=store.workers(),
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
def list_datasets() -> list[DatasetInfo]:
    """Suites, which are here, and how to get the others."""
    return catalogue.datasets()


@router.get("/workers")
@allow("read")
def list_workers(store: StoreDep) -> list[WorkerInfo]:
    """Workers that have reported in during the last day."""
    return store.workers()


@router.get("/openapi.json", include_in_schema=False)
@allow("read")
def get_openapi(request: Request) -> JSONResponse:
    """This API's description."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document)
