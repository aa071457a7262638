"""A run's model as a zip of the folder that `calift export` writes, for whoever has no shell here.

A process of its own makes it (`calift_core.shipping.packing`), one at a time; the newest are kept.
"""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from backend.children.model_process import child, environment, lay_out, model_files, require_torch
from backend.http.problems import HttpError
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from calift_core.calibration.registry import require_initial
from calift_core.child_process import ChildEndedError, ChildTimeoutError, ask_once
from calift_core.errors import ModelError, SpecError
from calift_core.files import sha256_file
from calift_core.schema.wire.queries import ModelQuery

#: Zips that are kept, and what making one may take.
_KEPT, _TIMEOUT_S = 4, 600.0


class Exports:
    """Makes and keeps zips of exported models."""

    def __init__(self, settings: Settings, store: Stores, artifacts: ArtifactStore) -> None:
        self._root = settings.home / "cache" / "exported"
        self._settings, self._store, self._artifacts = settings, store, artifacts
        self._lock = threading.Lock()

    def zipped(self, run_id: str, query: ModelQuery) -> tuple[Path, str]:
        """The zip of a run's model with a calibrator, and its SHA-256.

        Raises:
            HttpError: 409, the run has no model, not the data to fit the calibrator on, or did not
                start from the initial run's model; 503, no model can be loaded here, or the
                process took too long.
            NotFoundError: no such run.
            SpecError: the calibrator reads the initial model and none is named, or it does not and
                one is.
        """
        initial = query.initial
        require_initial(query.calibrator, named=initial is not None)
        runs = {run_id: model_files(self._store, run_id)}
        name = f"{runs[run_id]['report.json'][:32]}-{query.calibrator}" + "-onnx" * query.onnx
        if initial is not None:
            runs[initial] = self._initial_files(run_id, initial)
            name += f"-{runs[initial]['report.json'][:32]}"
        path = self._root / f"{name}.zip"
        with self._lock:
            if not path.is_file():
                self._make(runs, path, query)
            path.touch()
            for old in sorted(self._root.glob("*.zip"), key=_age)[:-_KEPT]:
                old.unlink(missing_ok=True)
            return path, sha256_file(path)

    def _initial_files(self, run_id: str, initial: str) -> dict[str, str]:
        files = model_files(self._store, initial)
        if initial not in self._store.results.initial_runs(run_id):
            raise HttpError(
                409,
                "OTHER_START",
                f"run {initial} does not hold the model that run {run_id} started from.",
                hint="Those that do are finished zero-shot runs of its suite with the weights that "
                "it started from: GET /runs/{run_id}/initial-runs lists them.",
            )
        return files

    def _make(self, runs: Mapping[str, Mapping[str, str]], path: Path, query: ModelQuery) -> None:
        """Make the zip of the first of some runs; the second holds its initial model."""
        require_torch("`calift export` it where torch is")
        folders: dict[str, Path] = {}
        try:
            for run_id, files in runs.items():
                folders[run_id] = lay_out(self._artifacts, self._root, files)
            self._run(folders, path, query)
        finally:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folders: Mapping[str, Path], path: Path, query: ModelQuery) -> None:
        run, *initial = map(str, folders.values())
        params = {
            "run": run, "target": str(path), "calibrator": query.calibrator,
            "initial": initial[0] if initial else None, "onnx": query.onnx,
        }  # fmt: skip
        packer = child(
            "calift_core.shipping.packing",
            environment=environment(self._settings),
            timeout_s=_TIMEOUT_S,
            refusal=ModelError,
        )
        try:
            ask_once(packer, json.dumps(params).encode())
        except ChildTimeoutError:
            raise HttpError(
                503, "EXPORT_FAILED", f"the export took more than {_TIMEOUT_S:g} s."
            ) from None
        except (ChildEndedError, SpecError) as error:
            raise HttpError(
                503, "EXPORT_FAILED", error.message, hint="It may have met a limit of memory."
            ) from None
        except ModelError as error:
            message, hint = error.message, error.hint
            for run_id, folder in folders.items():  # a folder that is gone says nothing to anybody
                message = message.replace(repr(str(folder)), f"run {run_id}")
                hint = hint.replace(str(folder), run_id)
            raise HttpError(409, "NO_MODEL", message, hint=hint) from None


def _age(path: Path) -> float:
    return path.stat().st_mtime
