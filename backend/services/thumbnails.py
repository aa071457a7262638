"""Thumbnails of samples: drawn by a process with limits, kept on disk up to so many bytes.

The API opens no image itself; see `calift_core.data.thumbnails`. What was drawn once is kept under
everything that it was made of, so that a folder that changes does not change what a run has seen.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from cachetools import LRUCache
from fastapi.concurrency import run_in_threadpool

from backend.children.model_process import child
from backend.http.concurrency import Slot
from backend.http.problems import HttpError
from backend.services.submission import Submission, path_of
from backend.settings import Settings
from backend.store.stores import Stores
from calift_core.analysis.gallery import Measured
from calift_core.child_process import Child, ChildEndedError
from calift_core.data.suites import SUITES
from calift_core.data.suites.base import variable_of
from calift_core.errors import NotFoundError, SpecError, StorageError, UnreadableImageError
from calift_core.files.disk_cache import DiskCache
from calift_core.schema.wire.results import Evaluation

_log = logging.getLogger(__name__)
T = TypeVar("T")
#: Changes when the same image, or a corruption of it, would be drawn otherwise.
_VERSION = 1
_MEMORY_BYTES = 3 << 30
#: Drawn pictures that are kept.
_CACHE_BYTES = 256 << 20
#: Pictures that are drawn at once. Each child lists the folders for itself.
_LINES = 2
#: One image may take 30 s, and the first of a set 30 s more for its folders.
_TIMEOUT_S = 90.0
#: Images whose looks are remembered, and the longer side that they are decoded at.
_LOOKS, _MEASURED, _HASH_BYTES = 20_000, 256, 16
_MAX_BODY = 4 << 20
#: How long a request may wait. What is drawn after somebody has given up is kept, so who asks again
#: has it.
_PATIENCE_S, _AGAIN_S = 20.0, 2
#: What the child sees of our environment: nothing that could be a secret.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "HOME", "SYSTEMROOT")
_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class Thumbnail(NamedTuple):
    body: bytes
    media_type: str


class Thumbnails:
    """Draws and keeps thumbnails. Safe to share between threads and tasks."""

    def __init__(self, settings: Settings, store: Stores, submission: Submission) -> None:
        self._settings, self._store, self._submission = settings, store, submission
        self._kept = DiskCache(settings.home / "cache" / "thumbnails", _CACHE_BYTES)
        self._looks: LRUCache[str, Measured] = LRUCache(_LOOKS)
        self._workers = [
            _ThumbnailWorker(self._environment()) for _ in range(min(_LINES, os.cpu_count() or 1))
        ]

    def _environment(self) -> dict[str, str]:
        named = [variable_of(name) for name in SUITES]
        found = {n: os.environ[n] for n in (*_PASSED_ON, *named) if n in os.environ}
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        return found | dict.fromkeys(threads, "1") | {"CALIFT_HOME": str(self._settings.home)}

    def request(self, evaluation: Evaluation, sample: str, label: int, size: int) -> dict[str, Any]:
        """What the child is asked.

        Raises:
            HttpError: 404, the run names no data that this service may read.
        """
        imported = evaluation.method == "imported"
        if imported and not self._settings.data_roots:
            raise _no_image(
                "no image of this sample is known: its predictions were imported, and no folder of "
                "images is registered.",
                _REGISTERED,
            )
        return self._request(
            [] if imported else self._suites(evaluation),
            size,
            imported=imported,
            sample=sample,
            label=label,
            **evaluation.model_dump(include={"dataset", "role", "corruption", "severity"}),
        )

    def request_of_run(
        self, run_id: str, dataset: str, sample: str, label: int, size: int
    ) -> dict[str, Any]:
        """What the child is asked about an image of a run's training part, or of a far set.

        Raises:
            HttpError: 404, the run names no data that this service may read.
        """
        suite = dict(self._store.runs.spec(run_id).get("suite") or {})
        readable = [self._readable(suite)] if suite and self._may_read(suite["id"]) else []
        role = "train" if dataset == "train" else "far"
        return self._request(readable, size, dataset=dataset, role=role, sample=sample, label=label)

    def _request(
        self, suites: list[dict[str, Any]], size: int, *, imported: bool = False, **image: Any
    ) -> dict[str, Any]:
        if not imported and not suites:
            raise _outside()
        return {
            "imported": imported,
            "roots": [str(root) for root in self._settings.data_roots],
            "size": size,
            "image": {"suites": suites, "corruption": None, "severity": None, **image},
        }

    def _suites(self, evaluation: Evaluation) -> list[dict[str, Any]]:
        """Suites that may hold an evaluation's data, as far as they may be read."""
        found = self._store.suites_of(evaluation)
        return [self._readable(suite) for suite in found if self._may_read(suite["id"])]

    def _readable(self, suite: dict[str, Any]) -> dict[str, Any]:
        for sets in ("shifts", "ood"):
            named = suite.get(sets) or {}
            suite = {**suite, sets: {n: uri for n, uri in named.items() if self._may_read(uri)}}
        return suite

    def _may_read(self, uri: str) -> bool:
        path = path_of(uri)
        return path is None or not list(self._submission.path_refusals("", path))

    async def draw(self, request: Mapping[str, Any], slot: Slot) -> Thumbnail:
        """Draw a picture when a slot is free, or give the one that is kept.

        Raises:
            HttpError: 404, no image is known; 503, no slot was free in time.
            UnreadableImageError: the image cannot be decoded within its limits.
        """
        text = json.dumps([_VERSION, request], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        body = await run_in_threadpool(self._kept.get, key)
        # A file that was cut short, or is another's, is drawn anew.
        if body is None or _media_type(body) is None:
            body = await self._in_line(
                lambda drawer: self._draw(drawer, key, request), slot, _PATIENCE_S
            )
        return Thumbnail(body, _media_type(body) or "")

    async def measure(
        self, requests: Sequence[Mapping[str, Any]], slot: Slot
    ) -> list[Measured | str]:
        """How images look; for one that cannot be had, the reason.

        Args:
            requests: as of `request`; their size is left alone.
        """
        return await asyncio.gather(*(self._measure(request, slot) for request in requests))

    async def _measure(self, request: Mapping[str, Any], slot: Slot) -> Measured | str:
        params = {**request, "size": _MEASURED, "measure": True}
        key = json.dumps(params, sort_keys=True)
        found = self._looks.get(key)
        if found is None:
            try:
                header, _ = await self._in_line(lambda drawer: _answered(drawer, params), slot)
                found = _measured(header)
            except (UnreadableImageError, NotFoundError) as error:
                return error.message
            except HttpError as error:
                if error.status != 404:
                    raise
                return error.message
            self._looks[key] = found
        return found

    async def _in_line(
        self, work: Callable[[Child], T], slot: Slot, patience_s: float | None = None
    ) -> T:
        """Have a child do something, when a slot is free.

        Raises:
            HttpError: 503, it was not done in that time.
        """
        try:
            async with asyncio.timeout(patience_s), slot():
                line = min(self._workers, key=lambda one: one.waiting)
                line.take()
                begun = line.thread.submit(work, line.drawer)
                begun.add_done_callback(lambda _: line.answered())
                return await asyncio.wrap_future(begun)
        except TimeoutError:
            raise _busy() from None

    def _draw(self, drawer: Child, key: str, request: Mapping[str, Any]) -> bytes:
        _, body = _answered(drawer, request)
        if _media_type(body) is None:
            raise UnreadableImageError("the image cannot be drawn")
        self._kept.put(key, body)
        return body

    def stop(self) -> None:
        """End the children; requests that wait are given up."""
        for line in self._workers:
            line.thread.shutdown(wait=False, cancel_futures=True)
            line.drawer.stop()


def _answered(drawer: Child, request: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        line, _, body = drawer.ask(json.dumps(request).encode()).partition(b"\n")
        header = dict(json.loads(line))
    except (ChildEndedError, ValueError, TypeError) as error:
        _log.warning("no thumbnail was drawn: %s", error)
        raise UnreadableImageError(
            "the image cannot be drawn within the memory and the time that one may take"
        ) from None
    except SpecError as error:
        raise StorageError(f"no process can be started to draw: {error}") from error
    if "code" in header:
        raise _refused(header)
    return header, body


def _measured(header: Mapping[str, Any]) -> Measured:
    """A child that was taken over can give numbers and no more."""
    try:
        numbers = {name: float(header[name]) for name in ("brightness", "contrast", "sharpness")}
        bits = bytes.fromhex(header["hash"])
        if len(bits) != _HASH_BYTES or not all(math.isfinite(v) for v in numbers.values()):
            raise ValueError("numbers of an image")
    except (KeyError, TypeError, ValueError):
        raise UnreadableImageError("the image cannot be measured") from None
    return Measured(**numbers, hash=bits)


def _media_type(body: bytes) -> str | None:
    """By what a picture begins with: a child that was taken over can give no other."""
    return next((kind for start, kind in _TYPES.items() if body.startswith(start)), None)


def _no_image(message: str, hint: str = "") -> HttpError:
    return HttpError(404, "NO_IMAGE", message, hint=hint)


_REGISTERED = "Registered folders are those in CALIFT_DATA_ROOTS."


def _outside() -> HttpError:
    return _no_image(
        "no image of this sample is known: its data lies outside the folders that this service may "
        "read.",
        _REGISTERED,
    )


def _busy() -> HttpError:
    return HttpError(
        503, "BUSY", "the thumbnail was not drawn in time.", hint="Try again.",
        headers={"Retry-After": str(_AGAIN_S)},
    )  # fmt: skip


def _refused(header: Mapping[str, Any]) -> Exception:
    message, hint = str(header.get("message", "")), str(header.get("hint", ""))
    if header["code"] == UnreadableImageError.code:
        return UnreadableImageError(message, hint=hint)
    if header["code"] == "CALIFT_ERROR":
        _log.error("a thumbnail could not be drawn: %s", message)
        return UnreadableImageError("the image cannot be drawn", hint=hint)
    return _no_image(message, hint)


# ---- The children ------------------------------------------------------------------------------


class _ThumbnailWorker:
    """A child and the thread that asks it; `waiting` requests are given to it and not answered."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # The kernel ties a child to the thread that started it: this one lives as long as we do.
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="thumbnails")
        self.drawer = child(
            "calift_core.data.thumbnails",
            str(_MEMORY_BYTES),
            environment=environment,
            timeout_s=_TIMEOUT_S,
            start_s=_TIMEOUT_S,
            most_bytes=_MAX_BODY,
            quiet=True,
        )
        self.waiting = 0
        self._lock = threading.Lock()

    def take(self) -> None:
        with self._lock:
            self.waiting += 1

    def answered(self) -> None:
        """One request less, whoever still waits for its answer."""
        with self._lock:
            self.waiting -= 1
