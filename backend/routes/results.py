"""Evaluations across runs, what is recomputed from their predictions, and comparisons."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from backend.analysis import Norm, Scheme
from backend.deps import Cursor, EvaluationId, Limit, ServicesDep, StoreDep, allow
from backend.routes.runs import file_response
from calift_core.schema.report import Role
from calift_core.schema.wire import Comparison, Evaluation, EvaluationPage, Reliability

router = APIRouter(tags=["results"])


@router.get("/evaluations")
@allow("read")
def list_evaluations(
    store: StoreDep,
    run_id: Annotated[list[str], Query(description="Any of these")] = [],  # noqa: B006
    dataset: Annotated[list[str], Query(description="Any of these")] = [],  # noqa: B006
    role: Annotated[list[Role], Query(description="Any of these")] = [],  # noqa: B006
    cursor: Cursor = None,
    limit: Limit = 50,
) -> EvaluationPage:
    """Evaluations of all runs, newest first."""
    items, next_cursor, total = store.list_evaluations(
        run_ids=run_id, datasets=dataset, roles=role, cursor=cursor, limit=limit
    )
    return EvaluationPage(items=items, next_cursor=next_cursor, total=total)


@router.get("/evaluations/{evaluation_id}")
@allow("read")
def get_evaluation(evaluation_id: EvaluationId, store: StoreDep) -> Evaluation:
    """One evaluation. Accuracy and every ECE are fractions."""
    return store.get_evaluation(evaluation_id)


@router.get("/evaluations/{evaluation_id}/reliability")
@allow("read")
def get_reliability(
    evaluation_id: EvaluationId,
    services: ServicesDep,
    n_bins: Annotated[int | None, Query(ge=1, le=1000, description="None: as evaluated")] = None,
    scheme: Annotated[Scheme | None, Query(description="None: as evaluated")] = None,
    norm: Norm = "l1",
    temperature: Annotated[
        float | None, Query(ge=0.01, le=100, description="None: as evaluated")
    ] = None,
) -> Reliability:
    """A reliability diagram as numbers, recomputed from the stored predictions.

    `ece` is a fraction; `null_mean` and `null_q95` are what it would read for a perfectly
    calibrated model of this size.
    """
    evaluation = services.store.get_evaluation(evaluation_id)
    return services.analysis.reliability(
        evaluation, n_bins=n_bins, scheme=scheme, norm=norm, temperature=temperature
    )


@router.get(
    "/evaluations/{evaluation_id}/predictions",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "Parquet"}},
)
@allow("read")
def download_predictions(evaluation_id: EvaluationId, services: ServicesDep) -> FileResponse:
    """The per-sample predictions as Parquet."""
    found = services.store.predictions_of(evaluation_id)
    return file_response(services, found.sha256, found.name or f"{evaluation_id}.parquet")


@router.get("/compare")
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
