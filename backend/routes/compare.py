"""Runs side by side."""

from typing import Annotated

from fastapi import APIRouter, Query

from backend.routes.deps import ANALYSIS, RunId, ServicesDep, allow
from calift_core.schema.wire.answers import BoundMonitor, Decision, Leaders, Ledger
from calift_core.schema.wire.ood import OodDetection
from calift_core.schema.wire.queries import (
    BoundQuery,
    CompareQuery,
    DecisionQuery,
    LeadersQuery,
    LedgerQuery,
    OodQuery,
)
from calift_core.schema.wire.results import Comparison

router = APIRouter(tags=["results"], dependencies=[ANALYSIS])


@router.get("/compare", responses={404: {}})
@allow("read")
def compare_runs(services: ServicesDep, query: Annotated[CompareQuery, Query()]) -> Comparison:
    """Runs side by side: parameters that differ, and paired differences with their intervals.

    Differences are kept by the predictions that they are of: asked for again they cost nothing.
    """
    return services.comparer.compare(query)


@router.get("/compare/leaders", responses={404: {}})
@allow("read")
def get_leaders(services: ServicesDep, query: Annotated[LeadersQuery, Query()]) -> Leaders:
    """Which runs may be the best, by each metric: on ID data, over the shifts and the corruptions.

    Means over the data sets that all of the runs were tested on; a model confidence set (Hansen et
    al. 2011) over draws that data sets of the same source images share.
    """
    return services.comparer.leaders(query)


@router.get("/runs/{run_id}/ledger", responses={404: {}})
@allow("read")
def get_ledger(
    run_id: RunId, services: ServicesDep, query: Annotated[LedgerQuery, Query()]
) -> Ledger:
    """What a run has gained and lost against another, image by image, on each data set.

    Its images are at `/evaluations/{evaluation_id}/samples` with `against` and `outcome`.
    """
    return services.explorer.ledger(run_id, query)


@router.get("/runs/{run_id}/decision", responses={404: {}})
@allow("read")
def get_decision(
    run_id: RunId, services: ServicesDep, query: Annotated[DecisionQuery, Query()]
) -> Decision:
    """A threshold on the confidence with a promise, and what it gives on ID data and every shift.

    It is of the probabilities after the calibrator that a shipped model has by default, chosen on
    the ID validation part by fixed-sequence testing of Clopper-Pearson bounds.
    """
    return services.explorer.decision(run_id, query)


@router.get("/runs/{run_id}/ood", responses={404: {}})
@allow("read")
def get_ood(
    run_id: RunId, services: ServicesDep, query: Annotated[OodQuery, Query()]
) -> OodDetection:
    """How well scores tell the run's ID test images from each shift, with paired intervals.

    Five scores of out-of-distribution detection, of logits and features that are stored; images at
    the threshold that accepts 95 % of the ID images, and both densities.
    """
    return services.explorer.ood(run_id, query)


@router.get("/bound")
@allow("read")
def get_bound_monitor(services: ServicesDep, query: Annotated[BoundQuery, Query()]) -> BoundMonitor:
    """The newest finished runs on a suite with the bound's terms, and how these rank with errors.

    Spearman's rank correlation inside models, with intervals over variants: an association over
    runs, no effect of anything.
    """
    return services.monitor.monitor(query.suite)
