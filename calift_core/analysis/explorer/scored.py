"""Scores of stored predictions, at a temperature or through a calibrator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calift_core.analysis.calibrators import calibrated_scores, fit_calibrator, read_to_fit
from calift_core.analysis.choosing import Choice
from calift_core.analysis.condition import Samples
from calift_core.analysis.deciding import answer_scores
from calift_core.analysis.gallery import Baseline
from calift_core.analysis.library import Library, PredictionsFile, Subject, Tags
from calift_core.calibration import Calibrator, SampleScores, score_samples
from calift_core.calibration.registry import known
from calift_core.errors import NotFoundError, SpecError
from calift_core.predictions.prompts import PromptHeads, read_prompts
from calift_core.predictions.read import read_scores
from calift_core.predictions.rows import read_features
from calift_core.predictions.shared import shared_samples
from calift_core.schema.wire.queries import SampleFilter
from calift_core.schema.wire.results import FittedCalibrator

#: What scores of a file depend on besides its bytes: a temperature, or a calibrator's own key.
Scored = float | tuple[str, ...]
Fit = tuple[tuple[str, ...], Calibrator, FittedCalibrator]


class ScoredPredictions:
    """What every question begins with."""

    def __init__(self, library: Library) -> None:
        self._library, self._memory = library, library.memory

    def scored(self, file: PredictionsFile, temperature: float) -> SampleScores:
        """Seven numbers a sample at a temperature."""
        plain: SampleScores | None = self._memory.get("scores", (file.digest, 1.0))
        return self._memory.remember(
            "scores",
            (file.digest, temperature),
            lambda: read_scores(file.path, temperature, known=plain, decoded=file.decoded),
        )

    def _heads(self, subject: Subject) -> tuple[str, PromptHeads]:
        digest, path = self._library.prompts(subject)
        return digest, self._memory.remember(
            "fits", ("prompts", digest), lambda: read_prompts(path)
        )

    def _features(self, file: PredictionsFile) -> npt.NDArray[np.float16]:
        """Image features (N, D) of a file, which several questions read."""

        def read() -> npt.NDArray[np.float16]:
            found = read_features(file.path)
            if found is None:
                raise no_features(file)
            return found

        return self._memory.remember("files", ("features", file.digest), read)

    def prompted(
        self, subject: Subject, file: PredictionsFile, prompts: str, temperature: float
    ) -> SampleScores:
        """Seven numbers a sample under other prompts.

        Raises:
            NotFoundError: the run kept no other prompts, or not the features of these images.
            UnknownNameError: it kept no prompts of that name.
            SpecError: a class of the data set stands for several of the model's.
        """
        digest, heads = self._heads(subject)

        def make() -> SampleScores:
            logits = heads.logits(prompts, self._features(file), file.metadata.class_names)
            return score_samples(logits, file.labels, temperature)

        key = (file.digest, ("prompts", digest, prompts, f"{temperature!r}"))
        return self._memory.remember("scores", key, make, long=True)

    def answered(
        self, subject: Subject, file: PredictionsFile, choice: Choice | None
    ) -> SampleScores:
        """Seven numbers a sample as the subject's model answers, see `answer_scores`.

        Raises:
            SpecError: the model has a calibrator, and the file keeps the largest logits alone.
        """
        calibrator = None if choice is None else choice.fitted()
        if choice is None or calibrator is None:
            return self.scored(file, subject.temperature)
        need_logits(file)
        initial = self._initial_of(subject, file, calibrator)
        return self._memory.remember(
            "scores",
            (file.digest, ("answers", choice.digest)),
            lambda: answer_scores(file.path, calibrator, initial=initial),
            long=True,
        )

    def _tags(self, file: PredictionsFile, where: str | None) -> Tags | None:
        """Those that a condition reads. They change: what is remembered has them in its key."""
        return self._library.tags(file) if "tag" in (where or "") else None

    def _samples(
        self,
        file: PredictionsFile,
        temperature: float,
        tags: Tags | None = None,
        area: str | None = None,
    ) -> Samples:
        return Samples(
            scores=self.scored(file, temperature),
            ids=file.ids,
            class_names=file.metadata.class_names,
            clusters=file.clusters,
            tags=tags,
            points=None if area is None else self._library.points(file),
        )

    def _opened(
        self, subject: Subject, temperature: float | None, query: SampleFilter | None = None
    ) -> tuple[PredictionsFile, Samples, float]:
        file = subject.open()
        degrees = subject.degrees(temperature)
        if query is None:
            return file, self._samples(file, degrees), degrees
        tags = self._tags(file, query.where)
        return file, self._samples(file, degrees, tags, query.area), degrees

    def _baseline(self, file: PredictionsFile, against: Subject | None) -> Baseline | None:
        if against is None:
            return None
        other = against.open()
        return Baseline.of(
            len(file), self.scored(other, against.temperature), *shared_samples(file, other)
        )

    def _calibrator(self, subject: Subject, kind: str, fit_on: Sequence[str], oracle: bool) -> Fit:
        reads_initial = known(kind).reads_initial
        fit_set = self._library.fit_set(subject, kind, fit_on, oracle=oracle)
        for file in fit_set.files:
            need_logits(file)
        key = (kind, fit_set.evaluation_id or "", *(file.digest for file in fit_set.files))
        initial_predictions = (
            self._library.initial_predictions(subject, fit_set.files[0]) if reads_initial else None
        )
        if initial_predictions is not None:
            need_logits(initial_predictions)
            key = (*key, f"beside {initial_predictions.digest}")

        def fit() -> tuple[Calibrator, FittedCalibrator]:
            return fit_calibrator(
                kind,
                [read_to_fit(f.path, n_files=len(fit_set.files)) for f in fit_set.files],
                oracle=oracle,
                evaluation_id=fit_set.evaluation_id,
                initial=None
                if initial_predictions is None
                else read_to_fit(initial_predictions.path),
            )

        return (key, *self._memory.remember("fits", (*key, oracle), fit, long=True))

    def _calibrated(
        self, subject: Subject, file: PredictionsFile, key: tuple[str, ...], calibrator: Calibrator
    ) -> SampleScores:
        initial = self._initial_of(subject, file, calibrator)
        return self._memory.remember(
            "scores",
            (file.digest, key),
            lambda: calibrated_scores(file.path, [calibrator], initial=initial)[0],
            long=True,
        )

    def _initial_of(
        self, subject: Subject, file: PredictionsFile, calibrator: Calibrator
    ) -> Path | None:
        return (
            self._library.initial_predictions(subject, file).path
            if calibrator.reads_initial
            else None
        )


def no_features(file: PredictionsFile) -> NotFoundError:
    """Predictions without the image features that other prompts need."""
    return NotFoundError(
        f"the image features of {file.metadata.dataset} are not stored.",
        hint="They are kept of ID data and shifts, as long as they take no more room than the "
        "logits; corruptions have none.",
    )


def need_logits(file: PredictionsFile) -> None:
    """Refuse predictions that keep only the largest logits.

    Raises:
        SpecError: not all logits are stored.
    """
    if file.metadata.storage != "full":
        raise SpecError(
            f"a calibrator must have all logits of {file.metadata.dataset}, whose stored "
            f"predictions keep the {file.metadata.k} largest of each sample.",
            hint="Import or evaluate it again with all logits.",
        )
