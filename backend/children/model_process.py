"""What a process that loads a run's model is given: the run's files, and nothing that is secret.

The API itself has no torch and loads no model.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.children.process import die_with_parent
from backend.http.problems import HttpError
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from calift_core.child_process import Child, ChildEndedError, ChildTimeoutError, ask_once
from calift_core.errors import NotFoundError, SpecError, StorageError
from calift_core.files import storage_error

#: A folder this old was left by a process that was killed.
_LEFTOVER_S = 24 * 3600.0
#: Memory of the process that looks through data.
_LOOKING_BYTES = 3 << 30
#: What the processes see of our environment: nothing that could be a secret.
_PASSED_ON = re.compile(
    r"PATH|HOME|LANG|TMPDIR|PYTHONPATH|LD_LIBRARY_PATH|(?:LC|XDG|OMP|GOMP|KMP|MKL)_\w+|HF_HOME"
)


def require_torch(instead: str) -> None:
    """Raise where no model can be loaded.

    Args:
        instead: what a person can do elsewhere, as in "or …".

    Raises:
        HttpError: 503, torch is not installed beside the API.
    """
    if importlib.util.find_spec("torch") is None:
        raise HttpError(
            503,
            "NO_TORCH",
            "no model can be loaded where this service's API runs: torch is not there.",
            hint=f"Install torch beside the API, let CALIFT_MODELS_URL name a "
            f"`python -m backend models` that has it, or {instead}.",
        )


def environment(settings: Settings) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return passed | {"CALIFT_HOME": str(settings.home), "HF_HUB_OFFLINE": "1"}


def child(
    module: str, *words: str, environment: Mapping[str, str], timeout_s: float, **options: Any
) -> Child:
    """A process of a module, tied to the thread that asks it; the kernel takes it first."""
    return Child(
        die_with_parent([sys.executable, "-m", module, *words], oom_score_adj=500),
        f"the process of {module}",
        timeout_s=timeout_s,
        environment=environment,
        **options,
    )


def look_through(params: Mapping[str, Any], *, settings: Settings, timeout_s: float) -> Any:
    """What a process of `calift_core.data.looking` says of somebody's data.

    Raises:
        SpecError: the data cannot be used.
        ChildTimeoutError: it took longer; it is killed.
    """
    looker = child(
        "calift_core.data.looking",
        str(_LOOKING_BYTES),
        environment=environment(settings),
        timeout_s=timeout_s,
        start_s=timeout_s,
        refusal=SpecError,
    )
    try:
        return json.loads(ask_once(looker, json.dumps(params).encode()))
    except ChildTimeoutError:
        raise
    except ChildEndedError as error:
        raise SpecError("the process ended") from error


def model_files(store: Stores, run_id: str) -> dict[str, str]:
    """Name → SHA-256 of a run's report, model and predictions.

    Raises:
        HttpError: 409, the run has no finished model.
        NotFoundError: no such run.
    """
    needed = {
        one.name: one.sha256
        for one in store.files.of_run(run_id)
        if one.kind in ("checkpoint", "predictions") or one.name == "report.json"
    }
    missing = {"report.json", "checkpoint/model.json"} - set(needed)
    if missing:
        raise HttpError(
            409,
            "NO_MODEL",
            f"run {run_id} has no finished model: it has no {min(missing)}.",
            hint="Imported predictions have none, and others get theirs when they succeed.",
        )
    return needed


def lay_out(artifacts: ArtifactStore, root: Path, files: Mapping[str, str]) -> Path:
    """A new folder with the files of a run.

    Args:
        root: where the folder is made; others of a day ago are removed.
        files: of `model_files`.

    Raises:
        NotFoundError: a file is gone.
        StorageError: a file is damaged or cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in root.glob("tmp*"):
            if time.time() - left.stat(follow_symlinks=False).st_mtime > _LEFTOVER_S:
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root))
    except OSError as error:
        raise storage_error(error, root, "write") from error
    try:
        for name, sha256 in files.items():
            artifacts.place(sha256, folder / name)
    except (NotFoundError, StorageError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
