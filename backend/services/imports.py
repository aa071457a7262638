"""Predictions that somebody uploads: checked in a process of their own, then stored as a run.

The API never decodes an upload itself. A child with limits on its memory and time reads it, checks
everything and writes the samples anew; only what the child wrote is stored and read later.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from backend.children.model_process import child
from backend.http.problems import HttpError
from backend.services.submission import body_hash
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.imports import ImportedPredictions
from backend.store.stores import Stores
from backend.store.submitting import JobRequest
from calift_core.analysis.imported import imported_report, imported_spec, run_name
from calift_core.analysis.upload_check import Checked, checked
from calift_core.child_process import ChildEndedError, ChildTimeoutError, ask_once
from calift_core.errors import DiskFullError, PredictionsError, SpecError
from calift_core.files import storage_error
from calift_core.predictions.types import predictions_name
from calift_core.schema.imported import ImportedSpec, ImportedSuite
from calift_core.schema.wire.judging import Judged

_WRITE_BYTES = 4 << 20
#: Address space and time of the process that checks an upload.
CHECK_MEMORY_BYTES, CHECK_TIMEOUT_S = 4 << 30, 300.0
#: A folder this old was left by a process that was killed.
_LEFTOVER_S = 6 * 3600.0
#: What the child sees of our environment: nothing that could be a secret.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "SYSTEMROOT")


@dataclass(frozen=True)
class Upload:
    """A received body, on disk in a folder of its own, and what the request says about it.

    Attributes:
        folder: holds the body as `upload`.
        name: of the run to make; None: from the data set.
        dataset: None: what the file says.
        role: None: what the file says.
        run_id: the imported run to add to; None makes a new one.
    """

    folder: Path
    sha256: str
    name: str | None = None
    dataset: str | None = None
    role: str | None = None
    run_id: str | None = None


class Imports:
    """Takes predictions in, one check at a time."""

    def __init__(self, settings: Settings, store: Stores, artifacts: ArtifactStore) -> None:
        self._settings, self._store, self._artifacts = settings, store, artifacts
        self._turn = threading.Lock()

    @asynccontextmanager
    async def receive(self, body: AsyncIterator[bytes], what: str) -> AsyncIterator[Upload]:
        """Write a request's body, which must be `what`, to a folder that lasts as the block does.

        Raises:
            DiskFullError: the body would leave less than the floor on the device.
            StorageError: it cannot be written.
            HttpError: 400, the client went away before the end; 422, there is no body.
        """
        folder = await run_in_threadpool(self._new_folder)
        try:
            digest, waiting = hashlib.sha256(), bytearray()
            try:
                async for piece in body:
                    waiting += piece
                    if len(waiting) >= _WRITE_BYTES:
                        digest.update(waiting)
                        await run_in_threadpool(self._append, folder / "upload", bytes(waiting))
                        waiting.clear()
            except ClientDisconnect:
                raise HttpError(400, "BAD_REQUEST", "the upload ended too early.") from None
            digest.update(waiting)
            await run_in_threadpool(self._append, folder / "upload", bytes(waiting))
            if not (folder / "upload").stat().st_size:
                raise HttpError(422, "INVALID_REQUEST", f"the body must be {what}, got none.")
            yield Upload(folder, digest.hexdigest())
        finally:
            await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)

    def _new_folder(self) -> Path:
        root = self._settings.uploads_dir
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in root.iterdir():
                if time.time() - left.stat(follow_symlinks=False).st_mtime > _LEFTOVER_S:
                    shutil.rmtree(left, ignore_errors=True)
            return Path(tempfile.mkdtemp(dir=root))
        except OSError as error:
            raise storage_error(error, root, "write") from error

    def _append(self, path: Path, data: bytes) -> None:
        if self._artifacts.free_bytes() - len(data) < self._settings.free_space_floor_bytes:
            raise DiskFullError(
                "the upload would leave less than "
                f"{self._settings.free_space_floor_bytes} bytes free.",
                hint="Delete runs, free some space, or lower CALIFT_FREE_SPACE_FLOOR_BYTES.",
            )
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise storage_error(error, path, "write") from error

    def take(
        self,
        upload: Upload,
        **request: Unpack[JobRequest],
    ) -> str:
        """Check an upload and make it a run, or a data set of one. Returns the run's id.

        Raises:
            HttpError: 422, the file breaks its contract or its check took too long.
            IdempotencyError: the key came with another request before.
            NotFoundError: there is no run to add to.
            ConflictError: that run takes no such data.
            SpecError: the name is not allowed.
        """
        meant = {k: v for k, v in asdict(upload).items() if k != "folder"}
        request["body_hash"] = body_hash("import", meant)
        # What can be told without the file is told first.
        if upload.run_id is not None:
            self._store.imports.check(upload.run_id)
        elif upload.name is not None:
            ImportedSpec.checked(name=upload.name, suite=ImportedSuite(id="any"))
        if upload.run_id is None:
            earlier = self._store.runs.earlier_request(request)
            if earlier is not None:
                return earlier
        with self._turn:
            try:
                found = self._check(upload)
            except PredictionsError as error:
                # A stored file that is bad is our fault, an uploaded one is not.
                raise HttpError(422, error.code, error.message, hint=error.hint) from error
        spec: ImportedSpec | None = None
        if upload.run_id is None:
            name = upload.name or run_name(f"imported {found.metadata.dataset}")
            spec = imported_spec(name, found.metadata)
        blob = self._artifacts.put_file(found.stored)
        predictions = ImportedPredictions(
            dataset=found.metadata.dataset,
            name=predictions_name(found.metadata.dataset),
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            evaluation=found.evaluation,
        )
        if spec is None:
            assert upload.run_id is not None
            self._store.imports.extend(upload.run_id, predictions, report=imported_report)
            run_id = upload.run_id
        else:
            run_id = self._store.imports.add_run(
                spec,
                predictions,
                report=imported_report,
                **request,
            )
        if not self._artifacts.has(blob.sha256):
            # Collected between the two; now that a row names it, it stays.
            self._artifacts.put_file(found.stored)
        return run_id

    def judge(self, upload: Upload) -> Judged:
        """What the predictions files in an uploaded zip say of a model; nothing is stored.

        Raises:
            HttpError: 422, a file breaks its contract or the judgement took too long.
        """
        try:
            return Judged.model_validate(
                _decoded("calift_core.judging.upload", {"folder": str(upload.folder)})
            )
        except PredictionsError as error:
            raise HttpError(422, error.code, error.message, hint=error.hint) from error

    def _check(self, upload: Upload) -> Checked:
        folder = upload.folder
        params = {"folder": str(folder), "dataset": upload.dataset, "role": upload.role}
        return checked(folder, _decoded("calift_core.analysis.upload_check", params))


def _decoded(module: str, params: Mapping[str, str | None]) -> Any:
    """What a process of a module says of a file that somebody brings.

    Raises:
        PredictionsError: it is refused, or its process ended.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # One thread and the system's allocator: others reserve address space that is never used.
    environment |= dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    ) | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    checker = child(
        module,
        str(CHECK_MEMORY_BYTES),
        environment=environment,
        timeout_s=CHECK_TIMEOUT_S,
        start_s=CHECK_TIMEOUT_S,
        refusal=PredictionsError,
        quiet=True,
    )
    try:
        return json.loads(ask_once(checker, json.dumps(params).encode()))
    except ChildTimeoutError:
        raise PredictionsError(
            f"the upload must be checked within {CHECK_TIMEOUT_S:g} s, it took longer",
            hint="Import it in parts.",
        ) from None
    except (ChildEndedError, SpecError):
        raise PredictionsError(
            "the upload must be a predictions file that can be decoded, got one that ended the "
            "decoder"
        ) from None
