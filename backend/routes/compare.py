"""Runs side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from backend.deps import (
    ServicesDep,
    allow,
)
from calift_core.schema.wire.results import Comparison

router = APIRouter(tags=["results"])


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
    return services.comparer.compare(run_id, baseline)
