"""Using the model of a finished run: asked about a picture, or taken away."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from backend.http.concurrency import Admission
from backend.http.middleware import PICTURE_TYPE
from backend.http.problems import HttpError
from backend.routes.deps import (
    RunId,
    ServicesDep,
    admission_for,
    allow,
    changes_nothing,
    slot_for,
    uploads,
)
from calift_core.schema.wire.answers import TextFeatures, TriedPicture
from calift_core.schema.wire.queries import ModelQuery, TextQuery

router = APIRouter(tags=["results"])


@router.post(
    "/runs/{run_id}/try",
    responses={404: {}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A picture's file, of any format that Pillow reads",
            "content": {PICTURE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@allow("read")
@uploads(PICTURE_TYPE)
@changes_nothing
async def try_picture(
    run_id: RunId,
    request: Request,
    services: ServicesDep,
    admission: Annotated[Admission, admission_for("pictures")],
) -> TriedPicture:
    """What a run says of a picture: labels with probabilities, abstention, and images alike.

    The model is loaded when it is first asked, which takes seconds, and kept for a while; the
    picture is decoded by a process with limits and stored nowhere.
    """
    try:
        picture = await request.body()
    except ClientDisconnect:
        raise HttpError(400, "BAD_REQUEST", "the picture ended too early.") from None
    async with admission.slot():
        return await (services.model_host or services.trials).ask(run_id, picture)


@router.get("/runs/{run_id}/text-features", responses={409: {}})
@allow("read")
async def get_text_features(
    run_id: RunId,
    services: ServicesDep,
    query: Annotated[TextQuery, Query()],
    admission: Annotated[Admission, admission_for("pictures")],
) -> TextFeatures:
    """A unit vector of a text in the space of a run's image features, by its own text tower.

    The model is loaded when it is first asked, which takes seconds, and kept for a while.
    """
    async with admission.slot():
        return await (services.model_host or services.trials).text_features(run_id, query.text)


@router.get(
    "/runs/{run_id}/model",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "The folder of `calift export`"},
        409: {},
    },
    dependencies=[slot_for("exports")],
)
@allow("read")
async def download_model(
    run_id: RunId, services: ServicesDep, query: Annotated[ModelQuery, Query()]
) -> Response:
    """A run's model as a folder that stands alone, zipped: weights, head, calibrator, model card.

    With `initial` it is two towers: twice the weights, and two passes for every image. It is made
    when it is first asked for, which takes seconds, and kept for a while.
    """
    if services.model_host is not None:
        return await services.model_host.zipped(run_id, query)
    path, sha256 = await run_in_threadpool(services.exports.zipped, run_id, query)
    return FileResponse(
        path,
        media_type="application/zip",
        filename=f"model-{run_id}.zip",
        headers={"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"},
    )
