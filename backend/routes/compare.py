"""Runs side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend.deps import (
    MAX_CHOICES,
    ServicesDep,
    allow,
)
from calift_core.schema.wire.results import Comparison, Leaders

router = APIRouter(tags=["results"])


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
