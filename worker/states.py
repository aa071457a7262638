"""Checkpoints on their way to the artifact store and back, so that any machine goes on from them.

A checkpoint is named in the database whole or not at all, with the curves up to it; the newest two
of a run stay. Storing them is insurance: where it fails, the run goes on, and its next attempt has
what lies on this machine.
"""

import logging
import os
import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from backend.storage.artifacts import ArtifactStore, Blob
from backend.store.files import Files
from calift_core.errors import CaliftError, NotFoundError
from calift_core.files import storage_error
from calift_core.jobs.curves import FILES
from calift_core.schema.wire.runs import Artifact

log = logging.getLogger(__name__)

_NAME = re.compile(r"states/(\d{8,})/([^/]+)")


class StateKeeper:
    """Store the checkpoints of an attempt in a thread of its own, the newest one first."""

    def __init__(
        self, files: Files, artifacts: ArtifactStore, run_id: str, attempt: int, folder: Path
    ) -> None:
        self._names, self._artifacts = files, artifacts
        self._run_id, self._attempt, self._folder = run_id, attempt, folder
        self._outgoing = folder / "outgoing"
        self._wanted = threading.Condition()
        self._next: int | None = None
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="states", daemon=True)
        self._thread.start()

    def offer(self, step: int) -> None:
        """A checkpoint is complete. One that is overtaken before its turn is left out."""
        source, held = self._source(step), self._held(step)
        try:
            held.mkdir(parents=True, exist_ok=True)
            # The runner removes its older checkpoints; links keep this one meanwhile.
            for path in source.iterdir():
                os.link(path, held / path.name)
        except OSError as error:
            log.debug("the checkpoint of step %d is not linked: %s", step, error)
            shutil.rmtree(held, ignore_errors=True)
        with self._wanted:
            skipped, self._next = self._next, step
            self._wanted.notify_all()
        if skipped is not None:
            shutil.rmtree(self._held(skipped), ignore_errors=True)

    def close(self, wait_s: float) -> None:
        """Stop; what was offered last is stored first, if that takes no longer than `wait_s`."""
        with self._wanted:
            self._wanted.wait_for(lambda: self._next is None and not self._busy, wait_s)
            self._next, self._closed = None, True
            self._wanted.notify_all()
        if wait_s:
            self._thread.join(timeout=1.0)
        shutil.rmtree(self._outgoing, ignore_errors=True)

    def _source(self, step: int) -> Path:
        return self._folder / "checkpoint" / "steps" / f"{step:08d}"

    def _held(self, step: int) -> Path:
        return self._outgoing / f"{step:08d}"

    def _work(self) -> None:
        while True:
            with self._wanted:
                self._busy = False
                self._wanted.notify_all()
                self._wanted.wait_for(lambda: self._next is not None or self._closed)
                if self._closed or self._next is None:
                    return
                step, self._next, self._busy = self._next, None, True
            try:
                self._keep(step)
            except (CaliftError, SQLAlchemyError, OSError) as error:
                log.warning(
                    "run %s: the checkpoint of step %d is on this machine alone: %s",
                    self._run_id,
                    step,
                    type(error).__name__ if isinstance(error, SQLAlchemyError) else error,
                )
            finally:
                shutil.rmtree(self._held(step), ignore_errors=True)

    def _keep(self, step: int) -> None:
        folder = self._held(step) if self._held(step).is_dir() else self._source(step)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        curves = [self._folder / name for name in FILES]
        if not all(path.is_file() for path in curves):
            # A runner makes them before its first checkpoint: the folder is being taken away. The
            # next attempt would go on from a checkpoint without the curves up to it.
            return
        files += curves
        blobs = {path.name: self._put(path) for path in files}
        gone = self._names.put_state(
            self._run_id,
            self._attempt,
            step,
            {name: (blob.sha256, blob.size_bytes) for name, blob in blobs.items()},
        )
        if gone is None:
            return  # somebody else's run by now
        for path in files:
            if not self._artifacts.has(blobs[path.name].sha256):
                self._put(path)  # collected just before it was named
        self._artifacts.collect(self._names, grace_s=0.0, digests=gone)

    def _put(self, path: Path) -> Blob:
        if path.name in FILES:  # it grows while it is read
            try:
                data = path.read_bytes()
            except OSError as error:
                raise storage_error(error, path, "read") from error
            return self._artifacts.put_bytes(data[: data.rfind(b"\n") + 1])
        return self._artifacts.put_file(path, link=True)


def newest_stored(stored: Sequence[Artifact]) -> tuple[int, int]:
    """Attempt and step of the checkpoint that was stored last; (0, -1) without any."""
    made = [(item.attempt, int(m[1])) for item in stored if (m := _NAME.fullmatch(item.name))]
    return max(made, default=(0, -1))


def restore_files(stored: Sequence[Artifact], artifacts: ArtifactStore, target: Path) -> bool:
    """Make stored checkpoints a folder that a runner resumes from. False: none can be read.

    Args:
        stored: the run's files of kind `state`.
        target: the folder; its files may be the stored ones, so read them only.
    """
    steps: dict[str, list[tuple[str, Artifact]]] = {}
    for item in stored:
        match = _NAME.fullmatch(item.name)
        if match:
            steps.setdefault(match[1], []).append((match[2], item))
    laid_out = False
    for step in sorted(steps):  # the newest one's curves replace those of the one before
        folder = target / "checkpoint" / "steps" / step
        try:
            for name, item in steps[step]:
                at = target / name if name in FILES else folder / name
                at.unlink(missing_ok=True)
                artifacts.place(item.sha256, at)
        except (NotFoundError, CaliftError, OSError) as error:
            log.warning("the stored checkpoint of step %d cannot be used: %s", int(step), error)
            shutil.rmtree(folder, ignore_errors=True)
            continue
        laid_out = True
    return laid_out
