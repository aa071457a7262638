"""Questions that need a model, passed on to a process of this service that may load one.

The API's container image has no torch. `python -m backend models` is the same application, with the
routes of `backend.routes.trying` alone, where torch is (the worker's image); `CALIFT_MODELS_URL`
tells the API of it. Both read the same database and files. The API has decided who may ask, and
asks as the administrator whose token both know.
"""

import json
from collections.abc import Mapping

import httpx2 as httpx
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from backend.http.middleware import PICTURE_TYPE
from backend.http.problems import HttpError
from calift_core.client.connection import url_path
from calift_core.schema.wire.answers import TextFeatures, TriedPicture
from calift_core.schema.wire.queries import ModelQuery

#: A model may take minutes to load or to export; an address that is none is told at once.
_TIMEOUT = httpx.Timeout(900.0, connect=5.0)
_PASSED_ON = ("content-type", "content-length", "content-disposition", "etag", "cache-control")


class ModelHost:
    """Asks it.

    Args:
        url: of the other process, as in `http://models:8000`.
        token: the administrator's.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=f"{self._url}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            trust_env=False,
        )

    async def stop(self) -> None:
        await self._http.aclose()

    async def ask(self, run_id: str, picture: bytes) -> TriedPicture:
        """What a run says of a picture.

        Raises:
            HttpError: as `backend.services.trying.Trials.ask`; 503 too where nothing answers there.
        """
        answer = await self._send(
            "POST",
            url_path("/runs", run_id, "try"),
            content=picture,
            headers={"Content-Type": PICTURE_TYPE},
        )
        return TriedPicture.model_validate_json(await _body(answer))

    async def text_features(self, run_id: str, text: str) -> TextFeatures:
        """A unit vector of a text, by a run's text tower.

        Raises:
            HttpError: as `ask`.
        """
        path = url_path("/runs", run_id, "text-features")
        answer = await self._send("GET", path, params={"text": text})
        return TextFeatures.model_validate_json(await _body(answer))

    async def zipped(self, run_id: str, query: ModelQuery) -> Response:
        """The zip of a run's model, as it comes.

        Raises:
            HttpError: as `backend.services.exporting.Exports.zipped`; 503 too where nothing
                answers there.
        """
        params = query.model_dump(exclude_defaults=True)
        answer = await self._send("GET", url_path("/runs", run_id, "model"), params=params)
        headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        return StreamingResponse(
            answer.aiter_raw(), headers=headers, background=BackgroundTask(answer.aclose)
        )

    async def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """A good answer, its body not yet read."""
        outgoing = self._http.build_request(
            method, path, content=content, params=params, headers=headers
        )
        try:
            answer = await self._http.send(outgoing, stream=True)
            if answer.status_code == 200:
                return answer
            body = await answer.aread()
        except httpx.TransportError as error:
            raise HttpError(
                503,
                "MODELS_AWAY",
                f"the part of this service that loads models does not answer at {self._url}.",
                hint="Try again; whoever runs the service sees it as CALIFT_MODELS_URL.",
            ) from error
        raise _problem(answer.status_code, body)


async def _body(answer: httpx.Response) -> bytes:
    body = await answer.aread()
    await answer.aclose()
    return body


def _problem(status: int, body: bytes) -> HttpError:
    """What the other process refused, as if it were refused here."""
    try:
        problem = json.loads(body)
        return HttpError(
            status,
            str(problem["code"]),
            str(problem["detail"]),
            hint=str(problem.get("hint") or ""),
        )
    except (ValueError, KeyError, TypeError):
        return HttpError(
            503,
            "MODELS_AWAY",
            f"what answers at CALIFT_MODELS_URL says {status}, and not as calift does.",
            hint="It must be `python -m backend models` of this version.",
        )
