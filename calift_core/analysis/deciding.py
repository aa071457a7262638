"""A threshold that was found on one part of a run's ID data, and what it gives elsewhere.

There is one for a run, its calibrator and a promise. It is of the probabilities that the model
answers with, after its calibrator, and is found on a part that the calibrator was not fitted on.
"""

from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from calift_core.analysis.calibrators import chunks_with_initial
from calift_core.analysis.choosing import calibrated
from calift_core.analysis.chunks import PathLike
from calift_core.calibration import Calibrator, SampleScores, score_probs
from calift_core.calibration.bins import Bools
from calift_core.calibration.decisions import choose_threshold, keep, risk_curve
from calift_core.calibration.diagrams import wilson_interval
from calift_core.calibration.scores import Scores
from calift_core.predictions.read import read_metadata, read_scores

#: Above every confidence: keeps nothing.
_NOTHING = 2.0


def threshold_part(
    *, fitted: bool, has_validation: bool
) -> Literal["validation", "calibration"] | None:
    """The part of a run's ID data that its thresholds are found on.

    The validation part, which no calibrator is fitted on. Without it the calibration part, where
    the model answers with its own probabilities; with a calibrator fitted there, none.
    """
    if has_validation:
        return "validation"
    return None if fitted else "calibration"


def answer_scores(
    path: PathLike,
    calibrator: Calibrator | None,
    *,
    initial: PathLike | None = None,
) -> SampleScores:
    """Scores of a predictions file as the model answers: by the likeliest calibrated class.

    Args:
        calibrator: that logits go through; None: the model's own probabilities.
        initial: the initial model's predictions of the same samples, for calibrators that read
            them.

    Raises:
        PredictionsError: a file breaks its contract, or does not hold all logits and there is a
            calibrator, or the two are of other samples.
    """
    if calibrator is None and read_metadata(path).storage != "full":
        return read_scores(path)
    return SampleScores.concatenate(
        [
            score_probs(calibrated(chunk.logits, calibrator, first), chunk.labels)
            for chunk, first in chunks_with_initial(path, initial)
        ]
    )


def kept_of(scores: SampleScores, threshold: float | None, risk: float) -> dict[str, Any]:
    """The numbers of a `KeptSet`, plain; without a threshold nothing is kept."""
    found = keep(scores, _NOTHING if threshold is None else threshold)
    curve = risk_curve(scores)
    columns = (curve.thresholds, curve.coverage, curve.risk, curve.low, curve.high)
    names = ("threshold", "coverage", "risk", "low", "high")
    return {
        **asdict(found),
        "holds": _holds(found.risk_interval, risk),
        "curve": [
            dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)
        ],
    }


def _holds(interval: tuple[float, float] | None, risk: float) -> bool | None:
    if interval is None or interval[0] <= risk < interval[1]:
        return None
    return interval[1] <= risk


def promise_test(
    chosen_on: Scores, test: Scores, *, threshold: float, risk: float, level: float
) -> dict[str, Any]:
    """The numbers of a `PromiseTest`, plain, but for the name of the data set.

    Args:
        test: other data that the promise is meant for.
        risk: the largest share of errors that was promised.
    """
    found = keep(test, threshold)
    before, here = float(chosen_on.correct.mean()), float(test.correct.mean())
    low, high = _newcombe(chosen_on.correct, test.correct)
    return {
        "n": found.n,
        "holds": _holds(found.risk_interval, risk),
        "risk": found.risk,
        "risk_interval": found.risk_interval,
        "chosen_on_accuracy": before,
        "accuracy": here,
        "difference": before - here,
        "interval": (low, high),
        "distinguishable": low > 0 or high < 0,
        "threshold": choose_threshold(test, risk=risk, level=level),
    }


def _newcombe(a: Bools, b: Bools) -> tuple[float, float]:
    """95 % interval of the difference of two independent proportions (Newcombe 1998, method 10)."""
    (p, p_low, p_high), (q, q_low, q_high) = (
        (float(x.mean()), *map(float, wilson_interval(np.array(x.sum()), np.array(len(x)))))
        for x in (a, b)
    )
    return (
        p - q - float(np.hypot(p - p_low, q_high - q)),
        p - q + float(np.hypot(p_high - p, q - q_low)),
    )
