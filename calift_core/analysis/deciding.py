"""A threshold that was chosen on one data set, and what it gives on others."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from calift_core.calibration import SampleScores
from calift_core.calibration.bins import Bools
from calift_core.calibration.decisions import choose_threshold, keep, risk_curve
from calift_core.calibration.diagrams import wilson_interval
from calift_core.calibration.scores import Scores

#: Above every confidence: keeps nothing.
_NOTHING = 2.0


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
        chosen_on: what the threshold was chosen on.
        test: other data that the promise is meant for.
        threshold: the chosen one.
        risk: the largest share of errors that was promised.
        level: how often the promise holds.
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
