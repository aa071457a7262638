"""A run's model as a zip of the folder that `calift export` writes, for whoever has no shell here.

A process of its own makes it (`calift_core.shipping.packing`), one at a time; the newest are kept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from backend.artifacts import ArtifactStore
from backend.model_process import demand_torch, environment, lay_out, model_files
from backend.problems import HttpError
from backend.process import tied
from backend.settings import Settings
from backend.store.stores import Stores
from calift_core.files import sha256_file

#: Zips that are kept, and what making one may take.
_KEPT, _TIMEOUT_S = 4, 600.0


class Exports:
    """Makes and keeps zips of exported models."""

    def __init__(self, settings: Settings, store: Stores, artifacts: ArtifactStore) -> None:
        self._root = settings.home / "cache" / "exported"
        self._settings, self._store, self._artifacts = settings, store, artifacts
        self._lock = threading.Lock()

    def zipped(self, run_id: str, calibrator: str) -> tuple[Path, str]:
        """The zip of a run's model with a calibrator, and its SHA-256.

        Raises:
            HttpError: 409, the run has no model, or not the data to fit the calibrator on; 503, no
                model can be loaded here, or the process took too long.
            NotFoundError: no such run.
        """
        files = model_files(self._store, run_id)
        path = self._root / f"{files['report.json'][:32]}-{calibrator}.zip"
        with self._lock:
            if not path.is_file():
                self._make(files, path, calibrator)
            path.touch()
            for old in sorted(self._root.glob("*.zip"), key=_age)[:-_KEPT]:
                old.unlink(missing_ok=True)
            return path, sha256_file(path)

    def _make(self, files: Mapping[str, str], path: Path, calibrator: str) -> None:
        demand_torch("`calift export` it where torch is")
        folder = lay_out(self._artifacts, self._root, files)
        try:
            self._run(folder, path, calibrator)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folder: Path, path: Path, calibrator: str) -> None:
        argv = [sys.executable, "-m", "calift_core.shipping.packing"]
        try:
            done = subprocess.run(
                tied([*argv, str(folder), str(path), calibrator], oom_score_adj=500),
                env=environment(self._settings),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise HttpError(
                503, "EXPORT_FAILED", f"the export took more than {_TIMEOUT_S:g} s."
            ) from None
        try:
            told = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise HttpError(
                503,
                "EXPORT_FAILED",
                f"the process that exports ended with status {done.returncode} and said nothing.",
                hint="It may have met a limit of memory.",
            ) from None
        if told:
            raise HttpError(409, "NO_MODEL", told["message"], hint=told["hint"])


def _age(path: Path) -> float:
    return path.stat().st_mtime
