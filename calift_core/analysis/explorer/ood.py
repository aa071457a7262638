"""How unlike its ID data a run's scores say that other images are."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from calift_core.analysis.choosing import NONE
from calift_core.analysis.chunks import logit_chunks
from calift_core.analysis.explorer.scored import ScoredPredictions, need_logits
from calift_core.analysis.library import PredictionsFile, Subject
from calift_core.analysis.ood import OodImages, compared, image_scores
from calift_core.calibration.bins import Doubles
from calift_core.calibration.ood import SCORES
from calift_core.errors import NotFoundError, SpecError, StorageError, UnknownNameError
from calift_core.predictions.rows import read_features
from calift_core.schema.wire.ood import OodDetection
from calift_core.schema.wire.queries import OodQuery


def _as_far(own: Subject, file: PredictionsFile) -> Subject:
    """A far set, evaluated as the ID test images were."""
    changes = {"evaluation_id": None, "dataset": file.metadata.dataset, "role": None}
    return replace(
        own,
        target=str(file.path),
        source=own.source.model_copy(update=changes),
        n=len(file),
        open=lambda: file,
    )


class OodAnswers(ScoredPredictions):
    """Out-of-distribution detection."""

    def ood(
        self, run: str, query: OodQuery | None = None, far: Mapping[str, OodImages] | None = None
    ) -> OodDetection:
        """How well each score tells the ID test images from each shift, and from far sets.

        Args:
            far: sets beside those of the suite, by name, as the run's model with its calibrator
                answers them.

        Raises:
            NotFoundError: the run was not tested on ID data.
            UnknownNameError: a data set that the run was not tested on.
            SpecError: not all logits of the ID test images are stored.
            PredictionsError: predictions cannot be read.
        """
        tested = {s.source.dataset or s.target: s for s in self._library.tested(run)}
        roles: dict[str, str] = {name: s.source.role or "id" for name, s in tested.items()}
        own_name = next((n for n, role in roles.items() if role == "id"), None)
        if own_name is None:
            raise NotFoundError(
                f"{run!r} was not tested on ID data, which other images are held against.",
                hint="Runs are when they end; imported ones take a file of role id.",
            )
        for stored in self._library.far(run):
            name = stored.metadata.dataset
            tested[name], roles[name] = _as_far(tested[own_name], stored), "far"
        wanted = (query or OodQuery()).dataset
        for name in wanted:
            if name not in tested:
                raise UnknownNameError("data set of this run", name, tested)
        own = tested[own_name]
        file = own.open()
        need_logits(file)
        choice = self._library.choice(own)
        if choice is not None and choice.calibrator is None:
            choice = None
        why = "the run kept no features of training images (train.keep_features)"
        try:
            kept = self._library.training_images(run)
        except (NotFoundError, StorageError) as error:  # the other scores need them not
            kept, why = None, error.message.rstrip(".")
        digest, training = ("", None) if kept is None else kept
        answers = (own.temperature if choice is None else choice.digest, digest)

        def images(name: str) -> OodImages:
            opened = tested[name].open()
            logits = (chunk.logits for chunk in logit_chunks(opened.path))
            confidences = self.answered(tested[name], opened, choice).confidences
            return OodImages(
                opened.ids, confidences, logits, read_features(opened.path), opened.clusters
            )

        def scores(of: OodImages) -> dict[str, Doubles]:
            return image_scores(of, file.metadata.logit_scale, training)

        @cache
        def inside() -> tuple[OodImages, dict[str, Doubles]]:
            found = images(own_name)
            return found, scores(found)

        def rows_of(other: OodImages) -> list[dict[str, Any]]:
            return compared(*inside(), other, scores(other))

        def stored_rows(name: str) -> list[dict[str, Any]]:
            return rows_of(images(name))

        sets: list[dict[str, Any]] = []
        notes: list[str] = []
        for name, subject in tested.items():
            included = name in wanted if wanted else roles[name] in ("shift", "far")
            if name == own_name or not included:
                continue
            key = ("ood", file.digest, subject.open().digest, *answers)
            try:
                need_logits(subject.open())
                rows = self._memory.remember("answers", key, partial(stored_rows, name), long=True)
            except (SpecError, NotFoundError) as error:  # a calibrator may read the initial model's
                notes.append(f"{name}: {error.message}")
                continue
            sets.append({"dataset": name, "role": roles[name],
                         "evaluation_id": subject.source.evaluation_id, "n": subject.n,
                         "scores": rows})  # fmt: skip
        for name, other in (far or {}).items():
            sets.append({"dataset": name, "role": "far", "evaluation_id": None,
                         "n": len(other.ids), "scores": rows_of(other)})  # fmt: skip
        lacking = [one["dataset"] for one in sets if len(one["scores"]) < len(SCORES)]
        if training is None:
            notes.append(f"kNN and relative Mahalanobis are missing: {why}.")
        elif lacking:
            notes.append(
                f"kNN and relative Mahalanobis are missing on {', '.join(lacking)}: image features "
                "of these or of the ID test images are not stored."
            )
        return OodDetection.model_validate(
            {
                "run": self._library.run(run),
                "dataset": file.metadata.dataset,
                "n": len(file),
                "calibrator": NONE if choice is None else choice.kind,
                "n_training": None if training is None else len(training.ids),
                "sets": sets,
                "notes": notes,
            }
        )
