"""Asking finished runs about a picture that somebody brings along."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from backend.deps import RunId, ServicesDep, allow, changes_nothing, uploads
from backend.middleware import PICTURE_TYPE
from backend.problems import HttpError
from calift_core.schema.wire.answers import TriedPicture

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
async def try_picture(run_id: RunId, request: Request, services: ServicesDep) -> TriedPicture:
    """What a run says of a picture: labels with probabilities, abstention, and images alike.

    The model is loaded when it is first asked, which takes seconds, and kept for a while; the
    picture is decoded by a process with limits and stored nowhere.
    """
    try:
        picture = await request.body()
    except ClientDisconnect:
        raise HttpError(400, "BAD_REQUEST", "the picture ended too early.") from None
    return await services.trials.ask(run_id, picture)
