"""What finished runs say of a picture that somebody brings along.

The API loads no model and opens no image. A run's model lives in a process of its own
(`calift_core.shipping.trying`) that is begun when it is first asked and ends when nobody asks; the
picture is decoded in another, which may take little memory (`calift_core.shipping.decoder`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.artifacts import ArtifactStore
from backend.model_process import demand_torch, environment, lay_out, model_files
from backend.problems import HttpError
from backend.process import tied
from backend.settings import Settings
from backend.store.stores import Stores
from calift_core.errors import SpecError, UnreadableImageError
from calift_core.schema.wire.answers import TriedPicture
from calift_core.schema.wire.results import Source
from calift_core.shipping.children import Child, ChildEndedError

#: Models that are kept at once, the newest: as many as the page asks about a picture. With fewer,
#: each run asked would end the one that the next picture is asked of first.
_MODELS = 4
#: Of one picture; one that a phone takes has 12 to 50 million.
MAX_PIXELS = 50_000_000
_DECODER_BYTES = 1536 << 20
_DECODE_S, _ANSWER_S, _START_S = 20.0, 60.0, 180.0
#: Pictures that may wait; they are answered one after the other.
_MAX_WAITING = 16


@dataclass
class _Host:
    """A run's two processes, and the folder with its files."""

    folder: Path
    model: Child
    decoder: Child | None = None

    def end(self) -> None:
        self.model.stop()
        if self.decoder is not None:
            self.decoder.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Trials:
    """Asks runs about pictures, one picture at a time, and keeps the newest models."""

    def __init__(self, settings: Settings, store: Stores, artifacts: ArtifactStore) -> None:
        self._root = settings.home / "cache" / "tried"
        self._settings, self._store, self._artifacts = settings, store, artifacts
        # The kernel ties a child to the thread that started it: this one lives as long as we do.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trying")
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._waiting = 0

    async def ask(self, run_id: str, picture: bytes) -> TriedPicture:
        """What a run says of a picture.

        Raises:
            HttpError: 409, the run has no model that can be asked; 422, it is no picture that can
                be read; 503, no model can be loaded here, or too many pictures wait.
            NotFoundError: no such run.
        """
        if self._waiting >= _MAX_WAITING:
            raise HttpError(503, "BUSY", "too many pictures are waited for.", hint="Try again.")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._ask, run_id, picture)
        finally:
            self._waiting -= 1

    def _ask(self, run_id: str, picture: bytes) -> TriedPicture:
        run = self._store.runs.get(run_id)
        host = self._host(run_id)
        try:
            pixels = self._pixels(host, picture)
            said = TriedPicture.model_validate_json(host.model.ask(pixels))
        except UnreadableImageError as error:
            raise HttpError(422, error.code, error.message, hint=error.hint) from error
        except ChildEndedError as error:
            self._drop(run_id)
            raise HttpError(503, "MODEL_AWAY", error.message, hint="Try again.") from error
        known = {e.dataset: e.id for e in self._store.results.run_evaluations(run_id)}
        alike = [
            one.model_copy(update={"evaluation_id": known.get(one.dataset)}) for one in said.nearest
        ]
        source = Source(run_id=run.id, run_name=run.name, method=run.method)
        return said.model_copy(update={"run": source, "nearest": alike})

    def _pixels(self, host: _Host, picture: bytes) -> bytes:
        assert host.decoder is not None
        if not picture:
            raise UnreadableImageError("the body must be a picture, it is empty")
        for _ in range(2):  # the second time by one that was just started
            try:
                return host.decoder.ask(picture)
            except (ChildEndedError, SpecError):
                continue
        raise UnreadableImageError(
            "the picture cannot be decoded within the memory and the time that one may take"
        )

    def _host(self, run_id: str) -> _Host:
        """The processes of a run, ready."""
        host = self._hosts.get(run_id)
        if host is not None and not host.folder.is_dir():
            self._drop(run_id)
            host = None
        if host is None:
            demand_torch("ask a model by `calift predict`")
            while len(self._hosts) >= _MODELS:
                self._hosts.popitem(last=False)[1].end()
            files = model_files(self._store, run_id)
            folder = lay_out(self._artifacts, self._root, files)
            kept = self._root / "chosen" / files["report.json"]
            words = (str(folder), str(kept), "cpu")
            host = self._hosts[run_id] = _Host(
                folder, self._child("trying", words, "the model's process", _ANSWER_S)
            )
        self._hosts.move_to_end(run_id)
        try:
            os.utime(host.folder)  # it is no leftover
            host.model.start()
            hello = host.model.hello
            if "error" in hello:
                told: Any = hello["error"]
                raise HttpError(409, "NO_MODEL", told["message"], hint=told["hint"])
            if host.decoder is None:
                limits = (str(MAX_PIXELS), str(_DECODER_BYTES))
                described = json.dumps(hello["preprocess"])
                host.decoder = self._child(
                    "decoder", (described, *limits), "the decoder", _DECODE_S
                )
                host.decoder.start()
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

    def _child(self, module: str, words: tuple[str, ...], name: str, timeout_s: float) -> Child:
        argv = [sys.executable, "-m", f"calift_core.shipping.{module}", *words]
        return Child(
            tied(argv, oom_score_adj=500),
            name,
            timeout_s=timeout_s,
            start_s=_START_S,
            environment=environment(self._settings),
        )

    def _drop(self, run_id: str) -> None:
        host = self._hosts.pop(run_id, None)
        if host is not None:
            host.end()

    def stop(self) -> None:
        """End the processes; pictures that wait are given up."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for host in list(self._hosts.values()):
            host.end()
