"""What a run found out: curves, evaluations, spectra, report, frontier."""

from typing import Annotated

from fastapi import APIRouter, Query

from backend.routes.deps import RunId, StoreDep, allow
from calift_core.schema.report import Report
from calift_core.schema.wire.queries import CurvesQuery
from calift_core.schema.wire.results import Evaluation, Frontier, Spectrum
from calift_core.schema.wire.runs import Metrics

router = APIRouter(tags=["runs"])


@router.get("/runs/{run_id}/evaluations")
@allow("read")
def list_run_evaluations(run_id: RunId, store: StoreDep) -> list[Evaluation]:
    """A run's evaluations in the order they were made."""
    return store.results.run_evaluations(run_id)


@router.get("/runs/{run_id}/metrics")
@allow("read")
def get_metrics(run_id: RunId, store: StoreDep, query: Annotated[CurvesQuery, Query()]) -> Metrics:
    """Curves. Poll with `since_step` set to the last answer's `last_step`."""
    return store.history.metrics(run_id, **query.model_dump())


@router.get("/runs/{run_id}/spectra")
@allow("read")
def list_spectra(run_id: RunId, store: StoreDep) -> list[Spectrum]:
    """Singular values by step; the finished model's last."""
    return store.history.spectra(run_id)


@router.get("/runs/{run_id}/report")
@allow("read")
def get_report(run_id: RunId, store: StoreDep) -> Report:
    """`report.json` of a finished run."""
    return Report.model_validate(store.results.report(run_id))


@router.get("/runs/{run_id}/frontier")
@allow("read")
def get_frontier(run_id: RunId, store: StoreDep) -> Frontier:
    """The path of a WiSE-FT run: accuracy, ECE, its floor and NLL at every α.

    404 when the run measured none. What the shifts show is for looking at: choose an α on the
    validation values.
    """
    return store.results.frontier(run_id)
