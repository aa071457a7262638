"""Evaluations across runs, and what is recomputed from their predictions."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from backend.routes.deps import (
    ANALYSIS,
    MAX_CHOICES,
    AsEvaluated,
    Calibrator,
    Condition,
    Cursor,
    EvaluationId,
    FitOn,
    IfNoneMatch,
    Limit,
    MinSamples,
    Offset,
    Oracle,
    RunId,
    ServicesDep,
    StoreDep,
    Temperature,
    allow,
    turn_for,
)
from backend.routes.files import file_response
from calift_core.analysis.slices import By, Sort
from calift_core.schema.report import Role
from calift_core.schema.wire.results import (
    Budget,
    Evaluation,
    EvaluationPage,
    MeasureSet,
    PromptEffects,
    Reliability,
    SlicePage,
)

router = APIRouter(tags=["results"])


@router.get("/evaluations")
@allow("read")
def list_evaluations(
    store: StoreDep,
    run_id: Annotated[list[str], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    dataset: Annotated[list[str], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    role: Annotated[list[Role], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    cursor: Cursor = None,
    limit: Limit = 50,
) -> EvaluationPage:
    """Evaluations of all runs, newest first."""
    items, next_cursor, total = store.results.list_evaluations(
        run_ids=run_id, datasets=dataset, roles=role, cursor=cursor, limit=limit
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
    evaluation_id: EvaluationId,
    services: ServicesDep,
    binning: AsEvaluated,
    temperature: Temperature = None,
    calibrator: Annotated[
        Calibrator | None,
        Query(description="Show what a fitted calibrator makes of the predictions"),
    ] = None,
    fit_on: FitOn = None,
    oracle: Oracle = False,
    prompts: Annotated[
        str | None,
        Query(max_length=1024, description="What other prompts would have said, see `/prompts`"),
    ] = None,
) -> Reliability:
    """A reliability diagram as numbers, recomputed from the stored predictions.

    `ece` is a fraction; `null_mean` and `null_q95` are what it would read for a perfectly
    calibrated model of this size. `smooth` is the kernel curve of the smooth calibration error.
    """
    return services.explorer.reliability(
        services.library.subject(evaluation_id),
        binning=binning,
        temperature=temperature,
        calibrator=calibrator,
        fit_on=[fit_on] if fit_on else [],
        oracle=oracle,
        prompts=prompts,
    )


@router.get("/evaluations/{evaluation_id}/prompts", dependencies=[ANALYSIS])
@allow("read")
def list_prompts(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    binning: AsEvaluated,
    temperature: Temperature = None,
) -> PromptEffects:
    """What other prompts would have said of the same images, the run's own first.

    The classifier is made anew from the text tower's stored embeddings and put on the stored image
    features. Where they are not stored the list is empty and `why` says what is missing.
    """
    return services.explorer.prompts(
        services.library.subject(evaluation_id), binning, temperature=temperature
    )


@router.get("/evaluations/{evaluation_id}/metrics", dependencies=[ANALYSIS])
@allow("read")
def get_measures(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    binning: AsEvaluated,
    temperature: Temperature = None,
    classwise: Annotated[
        bool, Query(description="With the class-wise error, which takes all logits")
    ] = True,
) -> MeasureSet:
    """Every measure at the chosen binning, norm and temperature, with floor and interval."""
    return services.explorer.measures(
        services.library.subject(evaluation_id),
        binning=binning,
        temperature=temperature,
        classwise=classwise,
    )


@router.get("/evaluations/{evaluation_id}/audit", dependencies=[ANALYSIS])
@allow("read")
def get_audit(
    evaluation_id: EvaluationId, services: ServicesDep, temperature: Temperature = None
) -> MeasureSet:
    """The same predictions under the estimators in use: why published numbers differ.

    Batch-averaged at several batch sizes, 10 and 15 bins of equal width and mass, debiased, smooth,
    class-wise, KS; each with what it would read for a perfectly calibrated model.
    """
    return services.explorer.audit(services.library.subject(evaluation_id), temperature=temperature)


@router.get("/evaluations/{evaluation_id}/slices", dependencies=[ANALYSIS])
@allow("read")
def list_slices(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    binning: AsEvaluated,
    by: Annotated[By, Query(description="What makes a slice")] = "class",
    where: Condition = None,
    sort: Annotated[Sort, Query(description="`key` is the order of classes or bins")] = "key",
    descending: bool = False,
    min_n: MinSamples = 30,
    temperature: Temperature = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> SlicePage:
    """Calibration by class, confidence or source, of the samples that meet a condition."""
    return services.explorer.slices(
        services.library.subject(evaluation_id),
        by=by,
        where=where,
        sort=sort,
        descending=descending,
        min_n=min_n,
        binning=binning,
        temperature=temperature,
        offset=offset,
        limit=limit,
    )


@router.get("/evaluations/{evaluation_id}/budget", dependencies=[ANALYSIS])
@allow("read")
def get_budget(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    difference: Annotated[
        float,
        Query(gt=0, le=100, description="To be shown, in the metric's unit: 0.01 is one point"),
    ],
    metric: Literal["accuracy", "ece", "nll", "brier", "confidence"] = "ece",
    against: Annotated[
        str | None,
        Query(
            max_length=64,
            description="Another model's evaluation on the same samples; none: samples of its own",
        ),
    ] = None,
    level: Annotated[float, Query(gt=0.5, lt=1)] = 0.95,
    power: Annotated[float, Query(gt=0.1, lt=1)] = 0.8,
) -> Budget:
    """How many samples are needed to show a difference, from the noise of these."""
    return services.explorer.budget(
        services.library.subject(evaluation_id),
        difference=difference,
        metric=metric,
        against=services.library.subject(against) if against is not None else None,
        level=level,
        power=power,
    )


@router.get("/runs/{run_id}/slices", dependencies=[ANALYSIS])
@allow("read")
def list_run_slices(
    run_id: RunId,
    services: ServicesDep,
    binning: AsEvaluated,
    where: Condition = None,
    role: Annotated[list[Role], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    min_n: MinSamples = 30,
    temperature: Temperature = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> SlicePage:
    """The samples that meet a condition on every data set of a run: one slice each."""
    return services.explorer.run_slices(
        run_id,
        where=where,
        roles=role,
        min_n=min_n,
        binning=binning,
        temperature=temperature,
        offset=offset,
        limit=limit,
    )


@router.get(
    "/evaluations/{evaluation_id}/predictions",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "Parquet"},
        304: {"description": "The copy with this ETag is still the file"},
    },
    dependencies=[turn_for("downloads")],
)
@allow("read")
def download_predictions(
    evaluation_id: EvaluationId, services: ServicesDep, known: IfNoneMatch = None
) -> Response:
    """The per-sample predictions as Parquet."""
    found = services.store.results.predictions_of(evaluation_id)
    return file_response(services, found.sha256, found.name or f"{evaluation_id}.parquet", known)
