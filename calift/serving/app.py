"""The HTTP side of `calift serve`: limits, a token, answers. It loads no torch and opens no image.

Images are decoded by processes of little memory (`calift_core.shipping.decoder`), the model lives
in others (`calift_core.shipping.answering`). Nothing is fetched: an image is what the request
carries.
"""

import asyncio
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from calift.serving.batches import Batches, BusyError
from calift_core import __version__
from calift_core.calibration.ood import ALARM_RATE
from calift_core.child_process import Child, ChildEndedError
from calift_core.shipping.questions import pack_images, unpack_pixels

_MIB = 1 << 20
#: How often an image is decoded before it is blamed for a decoder that ended under it.
_DECODES = 2
#: Images that a decoder takes at once.
_TOGETHER = 8


@dataclass(frozen=True)
class Limits:
    """What a request may ask.

    Attributes:
        decoder_bytes: of memory that a decoding process may have.
        answer_s: that one pass of the model may take.
    """

    image_bytes: int = 20 * _MIB
    request_bytes: int = 100 * _MIB
    pixels: int = 50_000_000
    images: int = 64
    decoder_bytes: int = 1536 * _MIB
    decode_s: float = 20.0
    answer_s: float = 120.0


class Guess(BaseModel):
    """A class and its calibrated probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """What the model says of one image."""

    label: str = Field(description="The likeliest class")
    confidence: float = Field(description="Its calibrated probability")
    top: list[Guess] = Field(description="The likeliest classes, the likeliest first")
    none_of_these: bool | None = Field(
        default=None,
        description="Whether the image is unlike the model's ID data; null where it has no "
        "threshold for this",
    )
    false_alarms: float | None = Field(
        default=None, description="Share of images like the ID data that this is said of"
    )


class Problem(BaseModel):
    """Why an image, or a request, has no answer (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str


class Answers(BaseModel):
    """One answer an image, in the order of the request; a problem in its place if it has none."""

    answers: list[Answer | Problem]


class RefusedError(Exception):
    """The request is answered with a problem."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(title=code.replace("_", " ").capitalize(), status=status,
                               code=code, detail=detail)  # fmt: skip


class Figures:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("calift_serve_requests", "Requests by status", ["status"], **of)
        self.images = Counter("calift_serve_images", "Images by outcome", ["outcome"], **of)
        self.seconds = Histogram("calift_serve_seconds", "Seconds a request took", **of)
        self.waiting = Gauge("calift_serve_waiting", "Images that wait for the model", **of)
        self.starts = Gauge("calift_serve_starts", "Starts of processes", ["process"], **of)


class Server:
    """The processes behind the app, and what an image becomes on its way through them."""

    def __init__(
        self,
        model: Path,
        *,
        device: str = "auto",
        workers: int = 1,
        decoders: int = 2,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        argv = [sys.executable, "-m", "calift_core.shipping.answering", str(model), device]
        self.workers = [
            Child(argv, "the model's process", timeout_s=self.limits.answer_s)
            for _ in range(workers)
        ]
        self.n_decoders = decoders
        self.decoders: list[Child] = []
        self.figures = Figures()
        self.model: dict[str, Any] = {}
        self.batches: Batches | None = None
        self._free: asyncio.Queue[Child] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="decoders")

    async def start(self) -> None:
        """Start every process; the model is loaded when this returns."""
        await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in self.workers))
        self.model = dict(self.workers[0].hello)
        argv = [
            *(sys.executable, "-m", "calift_core.shipping.decoder"),
            json.dumps(self.model["preprocess"]),
            str(self.limits.pixels),
            str(self.limits.decoder_bytes),
        ]
        for _ in range(self.n_decoders):
            child = Child(argv, "the decoder", timeout_s=self.limits.decode_s)
            self.decoders.append(child)
            self._free.put_nowait(child)
        await asyncio.gather(*(asyncio.to_thread(child.start) for child in self.decoders))
        self.batches = Batches(self.workers, len(self.model["classes"]) + 1)
        self.batches.start()

    async def stop(self) -> None:
        """End every process."""
        if self.batches is not None:
            await self.batches.stop()
        for child in (*self.workers, *self.decoders):
            child.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def threshold(self, false_alarms: float) -> float | None:
        """Below which score an image is none of these; None: the model has no threshold for it."""
        unlike = self.model["none_of_these"]
        if unlike is None:
            return None
        known: dict[float, float | None]
        known = {one["false_alarms"]: one["threshold"] for one in unlike["thresholds"]}
        if false_alarms not in known:
            rates = ", ".join(f"{rate:g}" for rate in known)
            fault = f"false_alarms must be one of {rates}, got {false_alarms:g}"
            raise RefusedError(422, "INVALID_REQUEST", fault)
        return known[false_alarms]

    async def answers(
        self, images: Sequence[bytes], top: int, false_alarms: float
    ) -> list[Answer | Problem]:
        """Each image's answer, or why there is none."""
        # The model answers for some while others are decoded.
        size = min(_TOGETHER, -(-len(images) // self.n_decoders))
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        found = await asyncio.gather(*(self._part(part, top, false_alarms) for part in parts))
        return [answer for part in found for answer in part]

    async def _part(
        self, images: Sequence[bytes], top: int, false_alarms: float
    ) -> list[Answer | Problem]:
        assert self.batches is not None
        decoded = await self._decoded(images)
        pixels = [one for one in decoded if isinstance(one, bytes)]
        rows = iter(await self.batches.answer(pixels))
        self.figures.images.labels("answered").inc(len(pixels))
        self.figures.images.labels("refused").inc(len(images) - len(pixels))
        return [
            RefusedError(422, "UNREADABLE_IMAGE", one).problem
            if isinstance(one, str)
            else self._answer(next(rows), top, false_alarms)
            for one in decoded
        ]

    def _answer(self, row: NDArray[np.float64], top: int, false_alarms: float) -> Answer:
        probs, like, threshold = row[:-1], row[-1], self.threshold(false_alarms)
        order = np.argsort(-probs, kind="stable")[:top]
        guesses = [
            Guess(label=self.model["classes"][i], probability=float(probs[i])) for i in order
        ]
        return Answer(
            label=guesses[0].label,
            confidence=guesses[0].probability,
            top=guesses,
            none_of_these=None if threshold is None else bool(like < threshold),
            false_alarms=None if threshold is None else false_alarms,
        )

    async def _decoded(self, images: Sequence[bytes]) -> list[bytes | str]:
        """Of each image its pixels, or why there are none."""
        most = self.limits.image_bytes
        faults = {len(image): f"the image must have 1 to {most:,} bytes, it has {len(image):,}"
                  for image in images if not 0 < len(image) <= most}  # fmt: skip
        good = [image for image in images if len(image) not in faults]
        child, loop = await self._free.get(), asyncio.get_running_loop()
        try:
            for _ in range(_DECODES if len(good) == 1 else 1):  # then by one that was just started
                with suppress(ChildEndedError):
                    answer = await loop.run_in_executor(self._threads, child.ask, pack_images(good))
                    pixels = unpack_pixels(answer)
                    return [faults.get(len(image)) or next(pixels) for image in images]
        finally:
            self._free.put_nowait(child)
        if len(good) > 1:  # one of them ends decoders, and costs no other its answer
            return [(await self._decoded([image]))[0] for image in images]
        fault = "the image cannot be decoded within the memory and the time that one may take"
        return [faults.get(len(image), fault) for image in images]


def make_app(server: Server, token: str | None = None) -> FastAPI:
    """The app of one server.

    Args:
        server: not started; the app starts and stops it.
        token: that requests must carry (`Authorization: Bearer …`), `/health` excepted; None: all
            may ask.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    app = FastAPI(
        title="calift serve",
        version=__version__,
        description="Labels with calibrated probabilities.",
        lifespan=lifespan,
    )

    schema = Problem.model_json_schema()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        began = time.monotonic()
        try:
            if token is not None and request.url.path != "/health":
                _require_token(request, token)
            response: Response = await call_next(request)
        except RefusedError as error:
            response = _refused(error)
        server.figures.requests.labels(str(response.status_code)).inc()
        server.figures.seconds.observe(time.monotonic() - began)
        return response

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return _refused(error)

    @app.exception_handler(HTTPException)
    async def bare(request: Request, error: HTTPException) -> Response:
        code = HTTPStatus(error.status_code).phrase.upper().replace(" ", "_")
        what = f"{request.method} {request.url.path}"
        return _refused(
            RefusedError(error.status_code, code, f"{what}: {error.detail}; see /docs"),
            error.headers,
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}, got {str(one['input'])[:80]!r}"
            for one in error.errors()
        )
        return _refused(RefusedError(422, "INVALID_REQUEST", faults))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _refused(RefusedError(500, "INTERNAL", "something went wrong; the log has it"))

    @app.post(
        "/predict",
        operation_id="predict",
        responses={
            code: {"content": {"application/problem+json": {"schema": schema}}}
            for code in (400, 401, 413, 415, 422, 500, 503)
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "image/*": {"schema": {"type": "string", "format": "binary"}},
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "images": {
                                    "type": "array",
                                    "items": {"type": "string", "format": "binary"},
                                }
                            },
                        }
                    },
                },
            }
        },
    )
    async def predict(request: Request, top: int = 5, false_alarms: float = ALARM_RATE) -> Answers:
        """Answer for the image that is the body, or for the files of a form.

        `none_of_these` is wrong of a share `false_alarms` of images like the model's ID data: 0.01,
        0.05 or 0.1.
        """
        server.threshold(false_alarms)  # before any image is read
        images = await _images(request, server.limits)
        top = max(1, min(top, len(server.model["classes"])))
        try:
            found = await server.answers(images, top, false_alarms)
        except BusyError:
            raise RefusedError(503, "BUSY", "too many images wait; try again later") from None
        except ChildEndedError as error:
            raise RefusedError(503, "MODEL_AWAY", error.message) from None
        if len(found) == 1 and isinstance(found[0], Problem):
            raise RefusedError(found[0].status, found[0].code, found[0].detail)
        return Answers(answers=found)

    @app.get("/health", operation_id="health")
    async def health() -> dict[str, str]:
        """Whether the model is there."""
        return {"status": "ok", "version": __version__}

    @app.get("/model", operation_id="model")
    async def model() -> dict[str, Any]:
        """What the model is: classes, calibrator, preprocessing, device, `none_of_these`."""
        return server.model

    @app.get("/metrics", operation_id="metrics")
    async def metrics() -> Response:
        """Requests, images, seconds and what waits, for Prometheus."""
        figures = server.figures
        figures.waiting.set(0 if server.batches is None else server.batches.waiting)
        for name, children in (("model", server.workers), ("decoder", server.decoders)):
            figures.starts.labels(name).set(sum(child.starts for child in children))
        return Response(generate_latest(figures.registry), media_type="text/plain; version=0.0.4")

    return app


def _refused(error: RefusedError, more: Mapping[str, str] | None = None) -> JSONResponse:
    headers = dict(more or {})
    if error.problem.status == 503:
        headers["Retry-After"] = "1"
    if error.problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        error.problem.model_dump(),
        error.problem.status,
        headers,
        media_type="application/problem+json",
    )


def _require_token(request: Request, token: str) -> None:
    kind, _, credentials = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(credentials.strip().encode("utf-8", "replace"), token.encode())
    if kind.lower() != "bearer" or not same:
        raise RefusedError(401, "UNAUTHORIZED", "the request must carry the server's token")


async def _images(request: Request, limits: Limits) -> Sequence[bytes]:
    """The images of a request; no more is read than may be."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/json":
        raise RefusedError(
            415, "NOT_AN_IMAGE", "send the image itself, or a form with files; nothing is fetched"
        )
    if kind != b"multipart/form-data":
        return [await _read(request, limits.image_bytes)]
    boundary = options.get(b"boundary")
    if not boundary:
        raise RefusedError(400, "BAD_FORM", "a form must name its boundary, this one does not")
    return _parts(await _read(request, limits.request_bytes), boundary, limits)


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise RefusedError(
                413, "TOO_LARGE", f"a request may have at most {most:,} bytes, it has more"
            )
    return bytes(body)


def _parts(body: bytes, boundary: bytes, limits: Limits) -> list[bytes]:
    """The files of a form, whatever its fields are called."""
    found: list[bytearray] = []

    def begin() -> None:
        found.append(bytearray())
        if len(found) > limits.images:
            raise RefusedError(
                413, "TOO_MANY_IMAGES", f"a request may have at most {limits.images} images"
            )

    def data(chunk: bytes, start: int, end: int) -> None:
        found[-1] += chunk[start:end]

    try:
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data})
        parser.write(body)
        parser.finalize()
    except RefusedError:
        raise
    except Exception as error:  # of the parser, of any kind
        raise RefusedError(400, "BAD_FORM", f"the form cannot be read: {error}") from None
    if not found:
        raise RefusedError(400, "BAD_FORM", "a form must have at least one file, it has none")
    return [bytes(part) for part in found]
