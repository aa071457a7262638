"""Evaluations across runs, and what is recomputed from their predictions."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from backend.routes.deps import (
    ANALYSIS,
    EvaluationId,
    IfNoneMatch,
    RunId,
    ServicesDep,
    StoreDep,
    allow,
    slot_for,
)
from backend.routes.files import file_response
from calift_core.schema.wire.queries import (
    AuditQuery,
    BudgetQuery,
    CalibratorQuery,
    EvaluationsQuery,
    MetricsQuery,
    PromptsQuery,
    ReliabilityQuery,
    RunSlicesQuery,
    SlicesQuery,
    TransferQuery,
)
from calift_core.schema.wire.results import (
    Budget,
    CalibratorEffect,
    Evaluation,
    EvaluationPage,
    MeasureSet,
    PromptEffects,
    Reliability,
    SlicePage,
    TransferMatrix,
)

router = APIRouter(tags=["results"])


@router.get("/evaluations")
@allow("read")
def list_evaluations(
    store: StoreDep, query: Annotated[EvaluationsQuery, Query()]
) -> EvaluationPage:
    """Evaluations of all runs, newest first."""
    items, next_cursor, total = store.results.list_evaluations(
        run_ids=query.run_id,
        datasets=query.dataset,
        roles=query.role,
        cursor=query.cursor,
        limit=query.limit,
    )
    return EvaluationPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/evaluations/{evaluation_id}")
@allow("read")
def get_evaluation(evaluation_id: EvaluationId, store: StoreDep) -> Evaluation:
    """One evaluation. Accuracy and every ECE are fractions."""
    return store.results.get_evaluation(evaluation_id)


@router.get("/evaluations/{evaluation_id}/reliability", dependencies=[ANALYSIS])
@allow("read")
def get_reliability(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[ReliabilityQuery, Query()]
) -> Reliability:
    """A reliability diagram as numbers, recomputed from the stored predictions.

    `ece` is a fraction; `null_mean` and `null_q95` are what it would read for a perfectly
    calibrated model of this size. `smooth` is the kernel curve of the smooth calibration error.
    """
    return services.explorer.reliability(services.library.subject(evaluation_id), query)


@router.get("/evaluations/{evaluation_id}/prompts", dependencies=[ANALYSIS])
@allow("read")
def list_prompts(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[PromptsQuery, Query()]
) -> PromptEffects:
    """What other prompts would have said of the same images, the run's own first.

    The classifier is made anew from the text tower's stored embeddings and put on the stored image
    features. Where they are not stored the list is empty and `why` says what is missing.
    """
    return services.explorer.prompts(services.library.subject(evaluation_id), query)


@router.get("/evaluations/{evaluation_id}/metrics", dependencies=[ANALYSIS])
@allow("read")
def get_measures(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[MetricsQuery, Query()]
) -> MeasureSet:
    """Every measure at the chosen binning, norm and temperature, with floor and interval."""
    return services.explorer.measures(services.library.subject(evaluation_id), query)


@router.get("/evaluations/{evaluation_id}/audit", dependencies=[ANALYSIS])
@allow("read")
def get_audit(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[AuditQuery, Query()]
) -> MeasureSet:
    """The same predictions under the estimators in use: why published numbers differ.

    Batch-averaged at several batch sizes, 10 and 15 bins of equal width and mass, debiased, smooth,
    class-wise, KS; each with what it would read for a perfectly calibrated model.
    """
    return services.explorer.audit(services.library.subject(evaluation_id), query)


@router.get("/evaluations/{evaluation_id}/slices", dependencies=[ANALYSIS])
@allow("read")
def list_slices(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[SlicesQuery, Query()]
) -> SlicePage:
    """Calibration by class, confidence or source, of the samples that meet a condition."""
    return services.explorer.slices(services.library.subject(evaluation_id), query)


@router.get("/evaluations/{evaluation_id}/budget", dependencies=[ANALYSIS])
@allow("read")
def get_budget(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[BudgetQuery, Query()]
) -> Budget:
    """How many samples are needed to show a difference, from the noise of these."""
    return services.explorer.budget(services.library.subject(evaluation_id), query)


@router.get("/runs/{run_id}/slices", dependencies=[ANALYSIS])
@allow("read")
def list_run_slices(
    run_id: RunId, services: ServicesDep, query: Annotated[RunSlicesQuery, Query()]
) -> SlicePage:
    """The samples that meet a condition on every data set of a run: one slice each."""
    return services.explorer.run_slices(run_id, query)


@router.get("/evaluations/{evaluation_id}/calibrators", dependencies=[ANALYSIS])
@allow("read")
def get_calibrator(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[CalibratorQuery, Query()]
) -> CalibratorEffect:
    """Fit a calibrator, and the diagram before and after it.

    It is fitted on the run's ID calibration split. Any other data is refused with the code
    `LEAKAGE`, unless `oracle=true`; what is fitted so says `oracle` for good.
    """
    return services.explorer.calibrate(services.library.subject(evaluation_id), query)


@router.get("/runs/{run_id}/calibrators/transfer", dependencies=[ANALYSIS])
@allow("read")
def get_transfer(
    run_id: RunId, services: ServicesDep, query: Annotated[TransferQuery, Query()]
) -> TransferMatrix:
    """A calibrator fitted on A and tested on B, for every pair of a run's data sets.

    The row of the ID calibration split is the honest one; every other row is an `oracle`.
    """
    return services.explorer.transfer(run_id, query)


@router.get(
    "/evaluations/{evaluation_id}/predictions",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "Parquet"},
        304: {"description": "The copy with this ETag is still the file"},
    },
    dependencies=[slot_for("downloads")],
)
@allow("read")
def download_predictions(
    evaluation_id: EvaluationId, services: ServicesDep, known: IfNoneMatch = None
) -> Response:
    """The per-sample predictions as Parquet."""
    found = services.store.results.predictions_of(evaluation_id)
    return file_response(services, found.sha256, found.name or f"{evaluation_id}.parquet", known)
