"""What finished runs say of a picture that somebody brings along, or of a text.

The API loads no model and opens no image. Models live in one process
(`calift_core.shipping.trying`) that is begun by the first question and ends when nobody asks: its
start takes longer than the loading of a model, so runs share it. The picture is decoded in another,
which may take little memory (`calift_core.shipping.decoder`).
"""

import asyncio
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.children.model_process import child, environment, lay_out, model_files, require_torch
from backend.http.problems import HttpError
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from calift_core.child_process import Child, ChildEndedError
from calift_core.errors import SpecError, UnreadableImageError
from calift_core.schema.wire.answers import TextFeatures, TriedPicture
from calift_core.schema.wire.results import Source
from calift_core.shipping.questions import (
    ASK,
    EMBED,
    FORGET,
    OPEN,
    pack_images,
    question,
    unpack_pixels,
)

#: Models that are kept at once, the newest: as many as the page asks about a picture. With fewer,
#: each run asked would end the one that the next picture is asked of first.
_MODELS = 4
#: Of one picture; one that a phone takes has 12 to 50 million.
MAX_PIXELS = 50_000_000
_DECODER_BYTES = 1536 << 20
_DECODE_S, _ANSWER_S, _START_S = 20.0, 60.0, 180.0


@dataclass
class _Host:
    """A run whose model is asked: the folder with its files, and that of its calibrator.

    `opened_by` is the start of the models' process that has opened it, 0 where none has; `takes`
    says, as JSON, how its model takes a picture.
    """

    folder: Path
    kept: Path
    opened_by: int = 0
    takes: str = ""


class Trials:
    """Asks runs about pictures, one picture at a time, and keeps the newest models."""

    def __init__(self, settings: Settings, store: Stores, artifacts: ArtifactStore) -> None:
        self._root = settings.home / "cache" / "tried"
        self._settings, self._store, self._artifacts = settings, store, artifacts
        # The kernel ties a child to the thread that started it: this one lives as long as we do.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trying")
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._models = self._child("trying", "cpu", timeout_s=_ANSWER_S)
        self._decoders: OrderedDict[str, Child] = OrderedDict()

    async def ask(self, run_id: str, picture: bytes) -> TriedPicture:
        """What a run says of a picture.

        Raises:
            HttpError: 409, the run has no model that can be asked; 422, it is no picture that can
                be read; 503, no model can be loaded here.
            NotFoundError: no such run.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._ask, run_id, picture)

    async def text_features(self, run_id: str, text: str) -> TextFeatures:
        """A unit vector of a text, by a run's text tower.

        Raises:
            HttpError: as `ask`.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._embed, run_id, text)

    def _embed(self, run_id: str, text: str) -> TextFeatures:
        host = self._host(run_id)
        with self._refused(run_id):
            params = question(EMBED, host.folder, host.kept, text.encode())
            return TextFeatures.model_validate_json(self._models.ask(params))

    @contextmanager
    def _refused(self, run_id: str) -> Iterator[None]:
        try:
            yield
        except UnreadableImageError as error:
            raise HttpError(422, error.code, error.message, hint=error.hint) from error
        except ChildEndedError as error:
            self._drop(run_id)
            raise HttpError(503, "MODEL_AWAY", error.message, hint="Try again.") from error

    def _ask(self, run_id: str, picture: bytes) -> TriedPicture:
        run = self._store.runs.get(run_id)
        host = self._host(run_id)
        with self._refused(run_id):
            pixels = self._pixels(host, picture)
            params = question(ASK, host.folder, host.kept, pixels)
            tried = TriedPicture.model_validate_json(self._models.ask(params))
        known = {e.dataset: e.id for e in self._store.results.run_evaluations(run_id)}
        alike = [
            one.model_copy(update={"evaluation_id": known.get(one.dataset)})
            for one in tried.nearest
        ]
        source = Source(run_id=run.id, run_name=run.name, method=run.method)
        return tried.model_copy(update={"run": source, "nearest": alike})

    def _pixels(self, host: _Host, picture: bytes) -> bytes:
        if not picture:
            raise UnreadableImageError("the body must be a picture, it is empty")
        for _ in range(2):  # the second time by one that was just started
            try:
                answer = self._decoder(host.takes).ask(pack_images([picture]))
            except (ChildEndedError, SpecError):
                continue
            (pixels,) = unpack_pixels(answer)
            if isinstance(pixels, str):
                raise UnreadableImageError(pixels)
            return pixels
        raise UnreadableImageError(
            "the picture cannot be decoded within the memory and the time that one may take"
        )

    def _host(self, run_id: str) -> _Host:
        host = self._hosts.get(run_id)
        if host is not None and not host.folder.is_dir():
            self._drop(run_id)
            host = None
        if host is None:
            require_torch("ask a model by `calift predict`")
            while len(self._hosts) >= _MODELS:
                self._drop(next(iter(self._hosts)))
            files = model_files(self._store, run_id)
            folder = lay_out(self._artifacts, self._root, files)
            kept = self._root / "chosen" / files["report.json"]
            host = self._hosts[run_id] = _Host(folder, kept)
        self._hosts.move_to_end(run_id)
        try:
            os.utime(host.folder)  # it is no leftover
            self._models.start()
            if host.opened_by != self._models.starts:
                host.takes = json.dumps(self._opened(host)["preprocess"])
        except (OSError, HttpError, SpecError, ChildEndedError) as error:
            self._drop(run_id)
            if isinstance(error, HttpError):
                raise
            raise HttpError(
                503,
                "MODEL_AWAY",
                f"the model of run {run_id} cannot be loaded: {error}",
                hint="The log of the service says more.",
            ) from error
        return host

    def _opened(self, host: _Host) -> dict[str, Any]:
        """What the run's model takes, opened by the models' process."""
        params = question(OPEN, host.folder, host.kept)
        hello: dict[str, Any] = json.loads(self._models.ask(params, timeout_s=_START_S))
        if "error" in hello:
            problem = hello["error"]
            raise HttpError(409, "NO_MODEL", problem["message"], hint=problem["hint"])
        host.opened_by = self._models.starts
        return hello

    def _decoder(self, takes: str) -> Child:
        """The process that decodes for models which take pictures alike."""
        if takes not in self._decoders:
            while len(self._decoders) >= _MODELS:
                self._decoders.popitem(last=False)[1].stop()
            words = (takes, str(MAX_PIXELS), str(_DECODER_BYTES))
            self._decoders[takes] = self._child("decoder", *words, timeout_s=_DECODE_S)
        self._decoders.move_to_end(takes)
        return self._decoders[takes]

    def _child(self, module: str, *words: str, timeout_s: float) -> Child:
        return child(
            f"calift_core.shipping.{module}",
            *words,
            environment=environment(self._settings),
            timeout_s=timeout_s,
            start_s=_START_S,
        )

    def _drop(self, run_id: str) -> None:
        host = self._hosts.pop(run_id, None)
        if host is None:
            return
        if host.opened_by and host.opened_by == self._models.starts and self._models.alive:
            with suppress(ChildEndedError, SpecError):
                self._models.ask(question(FORGET, host.folder, host.kept))
        shutil.rmtree(host.folder, ignore_errors=True)

    def stop(self) -> None:
        """End the processes; pictures that wait are given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for process in (self._models, *list(self._decoders.values())):
            process.stop()
        for host in list(self._hosts.values()):
            shutil.rmtree(host.folder, ignore_errors=True)
