"""Brings what an evaluation job finds out to the runs that it judges, set by set."""

import logging
from pathlib import Path

from backend.storage.artifacts import ArtifactStore, check_name
from backend.store.claims import Claim
from backend.store.evaluated import EvaluatedRuns
from calift_core.errors import StorageError
from calift_core.schema.records import EvaluationRecord
from worker.lease import FencedError

log = logging.getLogger(__name__)


class Publisher:
    """Stores a result's predictions, then names them under the run with everything they change.

    Attributes:
        gone: runs that were deleted meanwhile; their results are thrown away.
    """

    def __init__(
        self, store: EvaluatedRuns, artifacts: ArtifactStore, claim: Claim, folder: Path
    ) -> None:
        self._store, self._artifacts = store, artifacts
        self._claim, self._folder = claim, folder
        self.gone: set[str] = set()

    def publish(self, record: EvaluationRecord) -> None:
        """Put a result under its run; repeatable.

        Raises:
            FencedError: the job is somebody else's by now.
            StorageError: the runner named no file of this run, or it cannot be stored.
            ConflictError: other predictions got the data set's name meanwhile.
            SQLAlchemyError: the database does not answer.
        """
        run_id, judged = record.run, self._claim.spec["runs"]
        prefix = f"runs/{run_id}/"
        if run_id is None or run_id not in judged or not record.predictions.startswith(prefix):
            raise StorageError(
                f"the runner told a result of {run_id!r} in {record.predictions!r}, and the job "
                f"judges {', '.join(judged)}"
            )
        path = self._folder / record.predictions
        name = check_name(record.predictions.removeprefix(prefix))
        blob = self._artifacts.put_file(path, link=True)
        outcome = self._store.publish(
            self._claim.run_id,
            self._claim.attempt,
            run_id,
            record.model_copy(update={"predictions": name}),
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            put=self._put,
        )
        if outcome == "fenced":
            raise FencedError
        if outcome == "gone":
            log.warning("run %s is gone: its result on %s too", run_id, record.evaluation.dataset)
            self.gone.add(run_id)
        elif not self._artifacts.has(blob.sha256):
            self._artifacts.put_file(path, link=True)  # collected just before it was named

    def _put(self, data: bytes) -> tuple[str, int]:
        blob = self._artifacts.put_bytes(data)
        return blob.sha256, blob.size_bytes
