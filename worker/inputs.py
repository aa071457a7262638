"""The finished runs that a run is made from, laid out as their runners left them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from backend.artifacts import ArtifactStore
from backend.store.files import Files
from calift_core.errors import ModelUnavailableError, NotFoundError
from worker.lease import LeaseKeeper


def lay_out_inputs(
    run_ids: Sequence[str],
    files: Files,
    artifacts: ArtifactStore,
    lease: LeaseKeeper,
    target: Path,
) -> dict[str, Path]:
    """Lay out finished runs, each in a folder of its own; returns run id → folder.

    The spec keeps the ids; the runner is told the folders.

    Args:
        run_ids: the runs that the method names.
        files: know their names.
        artifacts: hold their contents.
        lease: bounds how long a silent database is asked.
        target: the folder of these folders.

    Raises:
        ModelUnavailableError: one of them is gone.
        FencedError: the lease is over.
    """
    found: dict[str, Path] = {}
    for index, run_id in enumerate(run_ids):
        folder = target / str(index)
        try:
            stored = lease.insist(partial(files.of_run, run_id))
            needed = {
                item.name: item.sha256
                for item in stored
                if item.kind == "checkpoint" or item.name == "report.json"
            }
            missing = {"report.json", "checkpoint/model.json"} - set(needed)
            if missing:
                raise NotFoundError(f"run {run_id} has no file {min(missing)!r}.")
            for name, sha256 in needed.items():
                artifacts.place(sha256, folder / name)
        except NotFoundError as error:
            raise ModelUnavailableError(
                f"the finished run {run_id} that this one is made from is gone: {error.message}",
                hint="It was deleted after this run was submitted, or it stored no model.",
            ) from error
        found[run_id] = folder
    return found
