"""The finished runs that a job is made from, laid out as their runners left them."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from backend.storage.artifacts import ArtifactStore
from backend.store.files import Files
from calift_core.errors import ModelUnavailableError, NotFoundError
from worker.lease import LeaseKeeper


class Inputs:
    """Lays out finished runs, each in a folder of its own.

    Args:
        lease: bounds how long a silent database is asked.
    """

    def __init__(
        self, files: Files, artifacts: ArtifactStore, lease: LeaseKeeper, target: Path
    ) -> None:
        self._files, self._artifacts = files, artifacts
        self._lease, self._target = lease, target

    def all_of(self, run_ids: Sequence[str]) -> dict[str, Path]:
        """Run id → folder with report and model. The spec keeps the ids; the runner is told these.

        Raises:
            ModelUnavailableError: one of them is gone.
            FencedError: the lease is over.
        """
        found: dict[str, Path] = {}
        for index, run_id in enumerate(run_ids):
            try:
                found[run_id] = self._link_inputs(index, run_id, ("checkpoint",))
            except NotFoundError as error:
                raise ModelUnavailableError(
                    f"the finished run {run_id} that this one is made from is gone: "
                    f"{error.message}",
                    hint="It was deleted after this run was submitted, or it stored no model.",
                ) from error
        return found

    def available_of(self, run_ids: Sequence[str]) -> dict[str, Path]:
        """Run id → folder with report, model and predictions, of the runs that are there still.

        Raises:
            FencedError: the lease is over.
        """
        found: dict[str, Path] = {}
        for index, run_id in enumerate(run_ids):
            try:
                found[run_id] = self._link_inputs(index, run_id, ("checkpoint", "predictions"))
            except NotFoundError:
                continue
        return found

    def _link_inputs(self, index: int, run_id: str, kinds: Collection[str]) -> Path:
        folder = self._target / str(index)
        stored = self._lease.call_with_retries(partial(self._files.of_run, run_id))
        needed = {
            item.name: item.sha256
            for item in stored
            if item.kind in kinds or item.name == "report.json"
        }
        missing = {"report.json", "checkpoint/model.json"} - set(needed)
        if missing:
            raise NotFoundError(f"run {run_id} has no file {min(missing)!r}.")
        for name, sha256 in needed.items():
            self._artifacts.place(sha256, folder / name)
        return folder
