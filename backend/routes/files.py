"""The stored files of a run."""

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from backend.routes.deps import IfNoneMatch, RunId, ServicesDep, StoreDep, allow, slot_for
from calift_core.schema.wire.runs import Artifact

router = APIRouter(tags=["runs"])


@router.get("/runs/{run_id}/checkpoints")
@allow("read")
def list_checkpoints(run_id: RunId, store: StoreDep) -> list[Artifact]:
    """Stored checkpoints of a run."""
    return store.files.of_run(run_id, kind="checkpoint")


@router.get("/runs/{run_id}/artifacts")
@allow("read")
def list_artifacts(run_id: RunId, store: StoreDep) -> list[Artifact]:
    """Stored files of a run."""
    return store.files.of_run(run_id)


@router.get(
    "/runs/{run_id}/artifacts/{name:path}",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        304: {"description": "The copy with this ETag is still the file"},
    },
    dependencies=[slot_for("downloads")],
)
@allow("read")
def download_artifact(
    run_id: RunId, name: str, services: ServicesDep, known: IfNoneMatch = None
) -> Response:
    """A stored file; its bytes are checked against its SHA-256, which is the ETag."""
    artifact = services.store.files.get(run_id, name)
    return file_response(services, artifact.sha256, artifact.name, known)


def file_response(services: ServicesDep, sha256: str, name: str, known: str | None) -> Response:
    """A stored content as a download; never something that a browser would run.

    Args:
        known: the request's `If-None-Match`; 304 where it holds the content's ETag.
    """
    # A name may come to stand for another content, so a copy is to be asked about before its use.
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}
    if known is not None and knows(known, sha256):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        services.artifacts.verified(sha256),
        media_type="application/octet-stream",
        filename=name.rsplit("/", 1)[-1],
        headers=headers,
    )


def knows(if_none_match: str, sha256: str) -> bool:
    """Whether a list of ETags holds this one, by the weak comparison of RFC 9110 (8.8.3.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return if_none_match.strip() == "*" or f'"{sha256}"' in tags
