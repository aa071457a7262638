"""Calibrators fitted on stored predictions, and how they carry over from data to data."""

from typing import Annotated

from fastapi import APIRouter, Query

from backend.routes.deps import ANALYSIS, EvaluationId, RunId, ServicesDep, allow
from calift_core.schema.wire.queries import CalibratorQuery, TransferQuery
from calift_core.schema.wire.results import CalibratorEffect, TransferMatrix

router = APIRouter(tags=["results"], dependencies=[ANALYSIS])


@router.get("/evaluations/{evaluation_id}/calibrators")
@allow("read")
def get_calibrator(
    evaluation_id: EvaluationId, services: ServicesDep, query: Annotated[CalibratorQuery, Query()]
) -> CalibratorEffect:
    """Fit a calibrator, and the diagram before and after it.

    It is fitted on the run's ID calibration split. Any other data is refused with the code
    `LEAKAGE`, unless `oracle=true`; what is fitted so says `oracle` for good.
    """
    return services.explorer.calibrate(services.library.subject(evaluation_id), query)


@router.get("/runs/{run_id}/calibrators/transfer")
@allow("read")
def get_transfer(
    run_id: RunId, services: ServicesDep, query: Annotated[TransferQuery, Query()]
) -> TransferMatrix:
    """A calibrator fitted on A and tested on B, for every pair of a run's data sets.

    The row of the ID calibration split is the honest one; every other row is an `oracle`.
    """
    return services.explorer.transfer(run_id, query)
