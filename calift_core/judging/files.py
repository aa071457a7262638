"""Files of predictions, judged: the first is the model's own data, the others are shifts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from calift_core.calibration import softmax
from calift_core.errors import CaliftError, PredictionsError
from calift_core.judging.judgement import Judgement, judge
from calift_core.predictions.foreign.load import load_predictions
from calift_core.predictions.foreign.source import MAX_BYTES
from calift_core.predictions.types import Predictions


@dataclass(frozen=True)
class PredictionsFile:
    """A file of predictions with labels, and what it is called in sentences."""

    name: str
    path: Path

    @property
    def stem(self) -> str:
        """The name without folder and ending."""
        return PurePath(self.name).stem

    def read(
        self, class_names: Sequence[str] | None = None, max_bytes: int = MAX_BYTES
    ) -> Predictions:
        """Its predictions of all classes.

        Raises:
            PredictionsError: it breaks its contract, or keeps the largest probabilities alone.
        """
        try:
            found = load_predictions(self.path, class_names=class_names, max_bytes=max_bytes)
        except CaliftError as error:
            message = error.message.replace(str(self.path), self.name)
            raise PredictionsError(message, hint=error.hint) from None
        if found.metadata.role == "far":
            raise PredictionsError(f"{self.name} must have labels, it is of a far set")
        if not isinstance(found, Predictions):
            raise PredictionsError(
                f"{self.name} must hold the probabilities of all classes, it holds the largest "
                "alone"
            )
        return found


def judge_files(
    files: Sequence[PredictionsFile],
    *,
    against: PredictionsFile | None = None,
    class_names: Sequence[str] | None = None,
) -> Judgement:
    """Judge the first file, with the others as shifts.

    Args:
        files: at least one.
        against: another model's predictions of the first file's samples.
        class_names: None: what each file says.

    Raises:
        PredictionsError: a file breaks its contract, or `against` has other samples.
    """
    first = files[0].read(class_names)
    shifts: dict[str, Any] = {}
    for file in files[1:]:
        shifted = file.read(class_names)
        name = file.stem if file.stem not in shifts else file.name
        shifts[name] = (softmax(shifted.logits), shifted.labels)
    rival = None
    if against is not None:
        other = against.read(class_names)
        same = np.array_equal(other.ids, first.ids) and np.array_equal(other.labels, first.labels)
        if not same:
            raise PredictionsError(
                f"{against.name} must have the samples of {files[0].name} in the same order: ids "
                "or labels differ"
            )
        rival = softmax(other.logits)
    return judge(
        softmax(first.logits),
        first.labels,
        shifts=shifts,
        against=rival,
        name=files[0].stem,
        other=against.stem if against is not None else "",
    )
