"""Calibrators fitted on stored predictions, and how they carry over from data to data."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend.analysis import Norm
from backend.deps import (
    Bins,
    BinScheme,
    CalibratorKind,
    EvaluationId,
    FitOn,
    Oracle,
    RunId,
    ServicesDep,
    allow,
)
from calift_core.schema.wire import (
    TRANSFER_SETS,
    CalibratorEffect,
    TransferMatrix,
)

router = APIRouter(tags=["results"])


@router.get("/evaluations/{evaluation_id}/calibrators")
@allow("read")
def get_calibrator(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    kind: CalibratorKind = "temperature",
    fit_on: FitOn = None,
    oracle: Oracle = False,
    n_bins: Bins = None,
    scheme: BinScheme = None,
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


@router.get("/runs/{run_id}/calibrators/transfer")
@allow("read")
def get_transfer(
    run_id: RunId,
    services: ServicesDep,
    kind: CalibratorKind = "temperature",
    dataset: Annotated[
        list[str],
        Query(max_length=TRANSFER_SETS, description="Any of these; none: ID data and shifts"),
    ] = [],  # noqa: B006
    n_bins: Bins = None,
    scheme: BinScheme = None,
    norm: Norm = "l1",
) -> TransferMatrix:
    """A calibrator fitted on A and tested on B, for every pair of a run's data sets.

    The row of the ID calibration split is the honest one; every other row is an `oracle`.
    """
    return services.analysis.transfer(
        run_id, kind, datasets=dataset, n_bins=n_bins, scheme=scheme, norm=norm
    )
