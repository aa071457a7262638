"""Corrected labels: the manifest of what an evaluation was made on, as a person says it is."""

from collections import ChainMap

from backend.http.problems import HttpError
from backend.services.submission import Submission, path_of
from backend.store.stores import Stores
from calift_core.data.relabel import Correction, corrected
from calift_core.errors import DataError, SpecError
from calift_core.schema.wire.results import CorrectedManifest, CorrectionsRequest, Evaluation


class Corrections:
    """Makes corrected manifests, of data that this service may read."""

    def __init__(self, store: Stores, submission: Submission) -> None:
        self._store, self._submission = store, submission

    def make(self, evaluation: Evaluation, request: CorrectionsRequest) -> CorrectedManifest:
        """The manifest of an evaluation's data with corrected labels.

        Raises:
            HttpError: 404, no files of it are known here; 422, the corrections are of other data,
                or two are of one sample.
        """
        source = self._source(evaluation)
        if source is None:
            raise HttpError(
                404,
                "NO_IMAGE",
                f"labels of {evaluation.dataset!r} cannot be corrected: it must be image files "
                "that its run names and this service may read.",
                hint="`calift data doubtful` and `calift data relabel` do it where the files are.",
            )
        names = [one.sample for one in request.corrections]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise HttpError(422, "INVALID_REQUEST", f"{twice!r} is corrected twice.")
        labels = [Correction(one.sample, one.label, one.suggested) for one in request.corrections]
        try:
            found = corrected(source, labels)
        except (DataError, SpecError) as error:
            raise HttpError(422, error.code, error.message, hint=error.hint) from error
        return CorrectedManifest(
            folder=str(found.folder),
            manifest=found.text,
            changed=found.changed,
            dropped=found.dropped,
        )

    def _source(self, evaluation: Evaluation) -> str | None:
        """What names the data, if it is files that may be read; a corruption has no files."""
        if evaluation.role == "corruption" or evaluation.method == "imported":
            return None
        suites = self._store.suites_of(evaluation)
        source = suites[-1].get("id")
        if evaluation.role == "shift":
            shifts = ChainMap(*(suite.get("shifts") or {} for suite in suites))
            source = shifts.get(evaluation.dataset, source)
        path = None if source is None else path_of(str(source))
        if path is None or list(self._submission.path_refusals("", path)):
            return None
        return str(source)
