"""Runs side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend.routes.deps import (
    ANALYSIS,
    MAX_CHOICES,
    RunId,
    ServicesDep,
    allow,
)
from calift_core.schema.wire.answers import BoundMonitor, Decision, Leaders, Ledger
from calift_core.schema.wire.results import Comparison

router = APIRouter(tags=["results"], dependencies=[ANALYSIS])


RunIds = Annotated[list[str], Query(min_length=2, max_length=10, description="The runs")]


@router.get("/compare", responses={404: {}})
@allow("read")
def compare_runs(
    services: ServicesDep,
    run_id: RunIds,
    baseline: Annotated[
        str | None, Query(max_length=64, description="One of the runs; none: the first")
    ] = None,
    dataset: Annotated[
        list[str],
        Query(
            max_length=MAX_CHOICES,
            description="Differences and confidence sets on these alone; none: on all",
        ),
    ] = [],  # noqa: B006
    paired: Annotated[
        bool, Query(description="With differences and confidence sets, which take time")
    ] = True,
) -> Comparison:
    """Runs side by side: parameters that differ, and paired differences with their intervals.

    Differences are kept by the predictions that they are of: asked for again they cost nothing.
    """
    return services.comparer.compare(run_id, baseline, datasets=dataset, paired=paired)


@router.get("/compare/leaders", responses={404: {}})
@allow("read")
def get_leaders(services: ServicesDep, run_id: RunIds) -> Leaders:
    """Which runs may be the best, by each metric: on ID data, over the shifts and the corruptions.

    Means over the data sets that all of the runs were tested on; a model confidence set (Hansen et
    al. 2011) over draws that data sets of the same source images share.
    """
    return services.comparer.leaders(run_id)


@router.get("/runs/{run_id}/ledger", responses={404: {}})
@allow("read")
def get_ledger(
    run_id: RunId,
    services: ServicesDep,
    against: Annotated[
        str, Query(max_length=64, description="Another run, such as its zero-shot model")
    ],
    dataset: Annotated[
        list[str], Query(max_length=MAX_CHOICES, description="None: all that both were tested on")
    ] = [],  # noqa: B006
    step: Annotated[
        float, Query(ge=0, le=1, description="A confidence that moved by no more has not moved")
    ] = 0.1,
) -> Ledger:
    """What a run has gained and lost against another, image by image, on each data set.

    Its images are at `/evaluations/{evaluation_id}/samples` with `against` and `outcome`.
    """
    return services.explorer.ledger(run_id, against, datasets=dataset, step=step)


@router.get("/runs/{run_id}/decision", responses={404: {}})
@allow("read")
def get_decision(
    run_id: RunId,
    services: ServicesDep,
    risk: Annotated[
        float, Query(gt=0, lt=1, description="Largest share of errors among what is kept")
    ] = 0.05,
    level: Annotated[float, Query(gt=0.5, lt=1, description="How often the promise holds")] = 0.95,
    dataset: Annotated[
        list[str], Query(max_length=MAX_CHOICES, description="None: all that it was tested on")
    ] = [],  # noqa: B006
) -> Decision:
    """A threshold on the confidence with a promise, and what it gives on ID data and every shift.

    It is of the probabilities after the calibrator that a shipped model has by default, chosen on
    the ID validation part by fixed-sequence testing of Clopper-Pearson bounds.
    """
    return services.explorer.decide(run_id, risk=risk, level=level, datasets=dataset)


@router.get("/bound")
@allow("read")
def get_bound_monitor(
    services: ServicesDep,
    suite: Annotated[str, Query(min_length=1, max_length=500, description="As `/suites` names it")],
) -> BoundMonitor:
    """The newest finished runs on a suite with the bound's terms, and how these rank with errors.

    Spearman's rank correlation inside models, with intervals over variants: an association over
    runs, no effect of anything.
    """
    return services.monitor.monitor(suite)
