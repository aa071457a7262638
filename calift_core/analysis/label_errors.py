"""Likely label errors by confident learning [Northcutt et al. 2021, JAIR 70, section 3].

A class's threshold is the mean probability that its own samples give to it. A sample counts as of
the class whose probability reaches that class's threshold (the most probable of them, where several
do). Where that is another class than its label, and the model's most probable class is no longer
the label either, the label is likely wrong. The probabilities must be out of sample: of images that
the model was not trained on.

Agrees with `cleanlab.filter.find_label_issues(filter_by="confident_learning")`, against which it is
tested, but for classes without a sample, which that refuses.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calift_core import calibration
from calift_core.calibration.bins import Floats, Ints
from calift_core.errors import DataError, PredictionsError
from calift_core.predictions.read import read_predictions

#: As in cleanlab: a mean of equal probabilities must not round above them.
_SLACK = 1e-6


@dataclass(frozen=True)
class LabelErrorCandidate:
    """A sample whose label is likely wrong."""

    dataset: str
    sample: str
    label: str
    suggested: str
    own_probability: float
    probability: float


def label_error_candidates(
    probs: Floats, labels: Ints
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Samples whose label is likely wrong, those with the least probable label first.

    Args:
        probs: (N, C), out of sample.
        labels: (N,) integers in [0, C).

    Returns:
        Positions (M,), and the suggested class (M,) of each.
    """
    n, n_classes = probs.shape
    rows = np.arange(n)
    own = probs[rows, labels].astype(np.float64)
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, weights=own, minlength=n_classes)
    # A class that no label has reaches no threshold: nothing is said to be of it.
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    confident = probs >= thresholds - _SLACK
    counted = np.where(confident, probs, -np.inf).argmax(axis=1)
    wrong = confident.any(axis=1) & (counted != labels) & (probs.argmax(axis=1) != labels)
    found = np.flatnonzero(wrong)
    order = found[np.argsort(own[found], kind="stable")]
    return order, counted[order]


def label_error_candidates_in(path: Path) -> list[LabelErrorCandidate]:
    """Those of a predictions file, at the temperature that it was evaluated at.

    Raises:
        PredictionsError: it is damaged.
        DataError: it keeps only the largest logits.
    """
    try:
        predictions = read_predictions(path)
    except PredictionsError as error:
        raise DataError(f"{path.name}: {error.message}") from None
    about, labels = predictions.metadata, predictions.labels
    probs = calibration.softmax(predictions.logits, about.temperature)
    names = about.class_names
    return [
        LabelErrorCandidate(
            dataset=about.dataset,
            sample=str(predictions.ids[at]),
            label=names[int(labels[at])],
            suggested=names[int(to)],
            own_probability=float(probs[at, labels[at]]),
            probability=float(probs[at, to]),
        )
        for at, to in zip(*label_error_candidates(probs, labels), strict=True)
    ]
