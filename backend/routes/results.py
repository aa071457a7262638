"""Evaluations across runs, what is recomputed from their predictions, and comparisons."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from backend.analysis import Norm, Scheme
from backend.deps import (
    MAX_CHOICES,
    Cursor,
    EvaluationId,
    IfNoneMatch,
    Limit,
    RunId,
    ServicesDep,
    StoreDep,
    allow,
)
from backend.routes.runs import file_response
from calift_core.schema.report import Role
from calift_core.schema.wire import (
    TRANSFER_SETS,
    Budget,
    CalibratorEffect,
    Comparison,
    Evaluation,
    EvaluationPage,
    MeasureSet,
    Reliability,
    SlicePage,
    TransferMatrix,
)
from calift_core.slices import MAX_CONDITION, By, Sort

router = APIRouter(tags=["results"])

Bins = Annotated[int | None, Query(ge=1, le=1000, description="None: as evaluated")]
Binning = Annotated[Scheme | None, Query(description="None: as evaluated")]
Temperature = Annotated[float | None, Query(ge=0.01, le=100, description="None: as evaluated")]
Kind = Annotated[
    Literal["temperature", "vector", "histogram", "isotonic", "tsp"],
    Query(description="What is fitted"),
]
FitOn = Annotated[
    str | None,
    Query(
        max_length=64,
        description="An evaluation of the same run, with `oracle=true`; none: the run's ID "
        "calibration split",
    ),
]
Oracle = Annotated[
    bool, Query(description="Allow `fit_on`: the calibrator then counts as an oracle")
]
Where = Annotated[
    str | None,
    Query(
        max_length=MAX_CONDITION,
        description="A condition on confidence, correct, label, predicted, rank, nll, brier, id "
        "and cluster",
        openapi_examples={
            "confident errors": {"value": "confidence >= 0.9 and not correct"},
            "two classes": {"value": 'label in ("shirt", "coat") or predicted == 3'},
        },
    ),
]
MinSamples = Annotated[
    int, Query(ge=10, le=100_000, description="Fewest samples that a slice's ECE is given for")
]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="Slices before the page")]


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


@router.get("/evaluations/{evaluation_id}/reliability")
@allow("read")
def get_reliability(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    n_bins: Bins = None,
    scheme: Binning = None,
    norm: Norm = "l1",
    temperature: Temperature = None,
    calibrator: Annotated[
        Literal["temperature", "vector", "histogram", "isotonic", "tsp"] | None,
        Query(description="Show what a fitted calibrator makes of the predictions"),
    ] = None,
    fit_on: FitOn = None,
    oracle: Oracle = False,
) -> Reliability:
    """A reliability diagram as numbers, recomputed from the stored predictions.

    `ece` is a fraction; `null_mean` and `null_q95` are what it would read for a perfectly
    calibrated model of this size. `smooth` is the kernel curve of the smooth calibration error.
    """
    evaluation = services.store.results.get_evaluation(evaluation_id)
    return services.analysis.reliability(
        evaluation,
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        temperature=temperature,
        calibrator=calibrator,
        fit_on=fit_on,
        oracle=oracle,
    )


@router.get("/evaluations/{evaluation_id}/metrics")
@allow("read")
def get_measures(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    n_bins: Bins = None,
    scheme: Binning = None,
    norm: Norm = "l1",
    temperature: Temperature = None,
    classwise: Annotated[
        bool, Query(description="With the class-wise error, which takes all logits")
    ] = True,
) -> MeasureSet:
    """Every measure at the chosen binning, norm and temperature, with floor and interval."""
    evaluation = services.store.results.get_evaluation(evaluation_id)
    return services.analysis.measures(
        evaluation,
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        temperature=temperature,
        classwise=classwise,
    )


@router.get("/evaluations/{evaluation_id}/audit")
@allow("read")
def get_audit(
    evaluation_id: EvaluationId, services: ServicesDep, temperature: Temperature = None
) -> MeasureSet:
    """The same predictions under the estimators in use: why published numbers differ.

    Batch-averaged at several batch sizes, 10 and 15 bins of equal width and mass, debiased, smooth,
    class-wise, KS; each with what it would read for a perfectly calibrated model.
    """
    evaluation = services.store.results.get_evaluation(evaluation_id)
    return services.analysis.audit(evaluation, temperature=temperature)


@router.get("/evaluations/{evaluation_id}/slices")
@allow("read")
def list_slices(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    by: Annotated[By, Query(description="What makes a slice")] = "class",
    where: Where = None,
    sort: Annotated[Sort, Query(description="`key` is the order of classes or bins")] = "key",
    descending: bool = False,
    min_n: MinSamples = 30,
    n_bins: Bins = None,
    scheme: Binning = None,
    norm: Norm = "l1",
    temperature: Temperature = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> SlicePage:
    """Calibration by class, confidence or source, of the samples that meet a condition."""
    evaluation = services.store.results.get_evaluation(evaluation_id)
    return services.analysis.slices(
        evaluation,
        by=by,
        where=where,
        sort=sort,
        descending=descending,
        min_n=min_n,
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        temperature=temperature,
        offset=offset,
        limit=limit,
    )


@router.get("/evaluations/{evaluation_id}/calibrators")
@allow("read")
def get_calibrator(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    kind: Kind = "temperature",
    fit_on: FitOn = None,
    oracle: Oracle = False,
    n_bins: Bins = None,
    scheme: Binning = None,
    norm: Norm = "l1",
) -> CalibratorEffect:
    """Fit a calibrator, and the diagram before and after it.

    It is fitted on the run's ID calibration split. Any other data is refused with the code
    `LEAKAGE`, unless `oracle=true`; what is fitted so says `oracle` for good.
    """
    evaluation = services.store.results.get_evaluation(evaluation_id)
    return services.analysis.calibrate(
        evaluation, kind, fit_on=fit_on, oracle=oracle, n_bins=n_bins, scheme=scheme, norm=norm
    )


@router.get("/evaluations/{evaluation_id}/budget")
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
    evaluation = services.store.results.get_evaluation(evaluation_id)
    return services.analysis.budget(
        evaluation, difference=difference, metric=metric, against=against, level=level, power=power
    )


@router.get("/runs/{run_id}/slices")
@allow("read")
def list_run_slices(
    run_id: RunId,
    services: ServicesDep,
    where: Where = None,
    role: Annotated[list[Role], Query(max_length=MAX_CHOICES, description="Any of these")] = [],  # noqa: B006
    min_n: MinSamples = 30,
    n_bins: Bins = None,
    scheme: Binning = None,
    norm: Norm = "l1",
    temperature: Temperature = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> SlicePage:
    """The samples that meet a condition on every data set of a run: one slice each."""
    return services.analysis.run_slices(
        run_id,
        where=where,
        roles=role,
        min_n=min_n,
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        temperature=temperature,
        offset=offset,
        limit=limit,
    )


@router.get("/runs/{run_id}/calibrators/transfer")
@allow("read")
def get_transfer(
    run_id: RunId,
    services: ServicesDep,
    kind: Kind = "temperature",
    dataset: Annotated[
        list[str],
        Query(max_length=TRANSFER_SETS, description="Any of these; none: ID data and shifts"),
    ] = [],  # noqa: B006
    n_bins: Bins = None,
    scheme: Binning = None,
    norm: Norm = "l1",
) -> TransferMatrix:
    """A calibrator fitted on A and tested on B, for every pair of a run's data sets.

    The row of the ID calibration split is the honest one; every other row is an `oracle`.
    """
    return services.analysis.transfer(
        run_id, kind, datasets=dataset, n_bins=n_bins, scheme=scheme, norm=norm
    )


@router.get(
    "/evaluations/{evaluation_id}/predictions",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "Parquet"},
        304: {"description": "The copy with this ETag is still the file"},
    },
)
@allow("read")
def download_predictions(
    evaluation_id: EvaluationId, services: ServicesDep, known: IfNoneMatch = None
) -> Response:
    """The per-sample predictions as Parquet."""
    found = services.store.results.predictions_of(evaluation_id)
    return file_response(services, found.sha256, found.name or f"{evaluation_id}.parquet", known)


@router.get("/compare", responses={404: {}})
@allow("read")
def compare_runs(
    services: ServicesDep,
    run_id: Annotated[list[str], Query(min_length=2, max_length=10, description="The runs")],
    baseline: Annotated[
        str | None, Query(max_length=64, description="One of the runs; none: the first")
    ] = None,
) -> Comparison:
    """Runs side by side: parameters that differ, and paired differences with their intervals."""
    return services.analysis.compare(run_id, baseline)
