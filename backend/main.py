"""The application. `python -m backend` serves it; `create_app` suits `uvicorn --factory` too."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from backend.children.model_host import ModelHost
from backend.dispatch.housekeeper import Housekeeper
from backend.dispatch.notifier import Notifier
from backend.dispatch.queue import make_celery
from backend.explore.bound import Monitor
from backend.explore.library import StoreLibrary
from backend.explore.precomputing import ComparisonPrecomputer
from backend.explore.sweeps import SweepComparison
from backend.http import oidc, problems
from backend.http.authentication import Authenticator
from backend.http.concurrency import limiters
from backend.http.middleware import RequestGuard
from backend.routes import (
    catalogue,
    compare,
    evaluations,
    files,
    jobs,
    operations,
    predictions,
    reports,
    runs,
    samples,
    sessions,
    sweeps,
    trying,
)
from backend.routes.deps import Recent, Services, check_owner, guard
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
from backend.settings import Settings, load_settings
from backend.storage.bucket import open_artifacts
from backend.store import migrations
from backend.store.engine import open_engine
from backend.store.fairness import Quotas
from backend.store.gauges import Gauges
from backend.store.stores import Stores
from calift_core import __version__
from calift_core.analysis.comparer import Comparer
from calift_core.analysis.explorer import Explorer
from calift_core.schema.spec import RunSpec
from calift_core.schema.sweep import SweepSpec
from calift_core.schema.wire.runs import RunSubmit

PREFIX = "/api/v1"

_ROUTES = (
    operations,  # before runs: `/runs/bulk` is no run
    runs,
    jobs,
    files,
    reports,
    evaluations,
    compare,
    predictions,
    samples,
    catalogue,
    sessions,
    sweeps,
    trying,
)

_DESCRIPTION = """Fine-tune vision-language models and measure how far their confidence can be
trusted. Accuracy and calibration errors are fractions, never percent. Times are UTC. Every error
is `application/problem+json`."""


def create_models_app(settings: Settings | None = None) -> FastAPI:
    """What loads models for an API that has no torch: the routes that need one, and health.

    Raises:
        SpecError, StorageError: as `create_app`.
    """
    settings = (settings or load_settings()).model_copy(update={"models_url": ""})
    return create_app(settings, housekeeping=False, routes=(trying,), pages=False)


def create_app(
    settings: Settings | None = None,
    *,
    housekeeping: bool = True,
    routes: Sequence[ModuleType] = _ROUTES,
    pages: bool = True,
) -> FastAPI:
    """Build the application.

    Args:
        settings: None reads `CALIFT_…` from the environment.
        housekeeping: run the relay, the lease reaper and the file collector in this process.
        routes: modules of `backend.routes`.
        pages: whether the description of the API is served.

    Raises:
        SpecError: the bind would be exposed without tokens and host names, or a token is malformed.
        StorageError: the token file cannot be read or made.
    """
    settings = settings or load_settings()
    settings.check_exposure()
    engine = open_engine(settings.database_url)
    store = Stores.on(
        engine,
        cursor_key=settings.derived_key("cursor"),
        quotas=Quotas(
            queued=settings.quota_queued,
            running=settings.quota_running,
            artifact_bytes=settings.quota_artifact_bytes,
        ),
    )
    artifacts = open_artifacts(settings)
    library = StoreLibrary(store, artifacts, settings.home / "cache")
    explorer = Explorer(library)
    comparer = Comparer(library, explorer)
    precomputer = ComparisonPrecomputer(store, comparer, explorer, library.memory)
    notifier = Notifier(store, settings)
    submission = Submission(settings, store)
    celery = make_celery(settings)
    readiness = Readiness(
        engine, celery, artifacts, free_space_floor_bytes=settings.free_space_floor_bytes
    )
    limits, ready = limiters(settings.max_streams), Recent[dict[str, str]](2.0)
    metrics = Metrics(
        Gauges(engine),
        store.workers,
        artifacts,
        lacking=lambda: ready.ask(readiness.lacking),
        streams=lambda: limits["streams"].admitted,
    )
    sweeping = Sweeping(settings, store, submission)
    authenticator = Authenticator(settings.admin_token(), store, oidc.provider(settings))
    services = Services(
        settings=settings,
        authenticator=authenticator,
        watch=Watch(store.history, authenticator),
        store=store,
        artifacts=artifacts,
        celery=celery,
        housekeeper=Housekeeper(
            engine,
            celery,
            artifacts,
            settings,
            advance_sweeps=sweeping.advance_all,
        ),
        library=library,
        explorer=explorer,
        comparer=comparer,
        monitor=Monitor(store, library.memory),
        submission=submission,
        evaluation_submission=EvaluationSubmission(submission, store, artifacts),
        imports=Imports(settings, store, artifacts),
        datasets=Datasets(settings, store),
        readiness=readiness,
        metrics=metrics,
        limits=limits,
        ready=ready,
        bulk=BulkActions(settings, store, artifacts, submission, partial(check_owner, store)),
        sweeping=sweeping,
        judge=SweepComparison(store, library, explorer, sweeping),
        thumbnails=Thumbnails(settings, store, submission),
        maps=Maps(settings, library.maps),
        trials=Trials(settings, store, artifacts),
        exports=Exports(settings, store, artifacts),
        model_host=ModelHost(settings.models_url, settings.admin_token())
        if settings.models_url
        else None,
        corrections=Corrections(store, submission),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        await run_in_threadpool(migrations.upgrade, engine)
        if housekeeping:
            services.housekeeper.start()
            precomputer.start()
            notifier.start()
        try:
            yield
        finally:
            await run_in_threadpool(precomputer.stop)
            await run_in_threadpool(notifier.stop)
            await run_in_threadpool(services.housekeeper.stop)
            await run_in_threadpool(services.thumbnails.stop)
            await run_in_threadpool(services.trials.stop)
            await run_in_threadpool(services.maps.stop)
            if services.model_host is not None:
                await services.model_host.stop()
            store.close()

    app = FastAPI(
        title="calift",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(guard)],
        generate_unique_id_function=_operation_id,
        # Served by a route of ours, behind the token like everything else.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would answer before the scope of anything has been looked at.
        redirect_slashes=False,
    )
    app.state.services = services
    for module in routes:
        app.include_router(module.router, prefix=PREFIX)
    before = len(app.routes)
    app.include_router(catalogue.probes, prefix=PREFIX)
    probes = app.routes[before:]
    if pages:
        app.include_router(catalogue.pages)
    problems.install(app)
    app.add_middleware(
        RequestGuard,
        settings=settings,
        authenticator=services.authenticator,
        audit=store.audit,
        observe=metrics.observe,
        probes=probes,
    )
    _describe(app)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _name_the_spec(document: dict[str, Any]) -> None:
    """Say what a submission is; the server checks that itself, with pointers into the body."""
    schema = RunSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document["components"]["schemas"]
    schemas |= schema.pop("$defs", {})
    schemas["RunSpec"] = schema
    submit = RunSubmit.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas["RunSubmit"] = submit
    sweep = SweepSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= sweep.pop("$defs", {})
    schemas["SweepSpec"] = sweep
    for path in ("sweeps", "sweeps/validate"):
        body = document["paths"][f"{PREFIX}/{path}"]["post"]["requestBody"]
        body["content"]["application/json"]["schema"] = {"$ref": "#/components/schemas/SweepSpec"}
    submit["properties"]["spec"] = {"$ref": "#/components/schemas/RunSpec"}
    either = [{"$ref": f"#/components/schemas/{name}"} for name in ("RunSpec", "RunSubmit")]
    for path in ("runs", "runs/validate"):
        body = document["paths"][f"{PREFIX}/{path}"]["post"]["requestBody"]
        body["content"]["application/json"]["schema"] = {"anyOf": either}


def _describe(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            document["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"}
            }
            document["security"] = [{"token": []}]
            _name_the_spec(document)
            problems.declare(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
