"""Predictions that were made elsewhere."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from backend.http.concurrency import Admission
from backend.http.middleware import UPLOAD_TYPE, ZIP_TYPE
from backend.routes.deps import (
    IdempotencyKey,
    PrincipalDep,
    ServicesDep,
    admission_for,
    allow,
    changes_nothing,
    check_owner,
    uploads,
)
from calift_core.predictions.types import Role
from calift_core.schema.wire.judging import Judged
from calift_core.schema.wire.runs import RunDetail

router = APIRouter(tags=["predictions"])


@router.post(
    "/predictions",
    status_code=201,
    responses={404: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A predictions file of calift, or a Parquet table with labels and probs "
            "or logits",
            "content": {UPLOAD_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@allow("submit")
@uploads(UPLOAD_TYPE)
async def import_predictions(
    request: Request,
    response: Response,
    services: ServicesDep,
    principal: PrincipalDep,
    admission: Annotated[Admission, admission_for("uploads")],
    name: Annotated[
        str | None, Query(min_length=1, max_length=120, description="Of the run to make")
    ] = None,
    dataset: Annotated[
        str | None, Query(min_length=1, max_length=200, description="None: what the file says")
    ] = None,
    role: Annotated[Role | None, Query(description="None: what the file says, else `id`")] = None,
    run: Annotated[
        str | None, Query(max_length=64, description="The imported run to add to; none: a new one")
    ] = None,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Make a finished run of predictions that were made elsewhere, or add a data set to one.

    The file is checked and measured before anything is stored; a file that breaks its contract is
    a 422 that says where. Adding the same file once more changes nothing.
    """
    if run is not None:
        await run_in_threadpool(check_owner, services.store, principal, run)
    async with services.imports.receive(request.stream(), "a predictions file") as received:
        upload = replace(received, name=name, dataset=dataset, role=role, run_id=run)
        async with admission.slot():
            run_id = await run_in_threadpool(
                services.imports.take,
                upload,
                token_id=principal.token_id,
                submitted_by=principal.name,
                idempotency_key=key,
            )
    response.headers["Location"] = f"/api/v1/runs/{run_id}"
    return await run_in_threadpool(services.store.runs.get, run_id)


@router.post(
    "/judge",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A zip of predictions files with labels (NPZ, Parquet, CSV, JSON "
            "lines): the first is the model's own data, the others are shifts; one in the folder "
            "`against/` is another model's, of the first file's samples",
            "content": {ZIP_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@allow("read")
@uploads(ZIP_TYPE)
@changes_nothing
async def judge_predictions(
    request: Request,
    services: ServicesDep,
    admission: Annotated[Admission, admission_for("uploads")],
) -> Judged:
    """Say how far predictions can be trusted, in three sentences and the numbers behind them.

    As `calift judge`. The files are read by a process with limits and stored nowhere; one that
    breaks its contract is a 422 that says where.
    """
    receiving = services.imports.receive(request.stream(), "a zip of predictions files")
    async with receiving as received, admission.slot():
        return await run_in_threadpool(services.imports.judge, received)
