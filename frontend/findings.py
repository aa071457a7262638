"""What stored results say at a glance: the lowest accuracy, the largest over-confidence."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calift_core.calibration.diagrams import wilson_interval
from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.results import Evaluation


class Finding(NamedTuple):
    """A number of an evaluation that stands out, and its 95 % interval; fractions."""

    evaluation: Evaluation
    value: float
    low: float
    high: float


def accuracy_ends(evaluation: EvaluationReport) -> tuple[float, float]:
    """The Wilson 95 % interval of an accuracy."""
    n = np.array([float(evaluation.n)])
    low, high = wilson_interval(np.round(n * evaluation.accuracy), n)
    return float(low[0]), float(high[0])


def worst_cell(evaluations: Sequence[Evaluation]) -> Finding | None:
    """Where accuracy is lowest, with its Wilson interval; None without evaluations."""
    if not evaluations:
        return None
    found = min(evaluations, key=lambda e: e.accuracy)
    return Finding(found, found.accuracy, *accuracy_ends(found))


def most_over_confident(evaluations: Sequence[Evaluation]) -> Finding | None:
    """Where mean confidence exceeds accuracy the most; None where it exceeds it nowhere for sure.

    The interval takes the mean confidence for known and the accuracy's Wilson interval for what is
    not. The worst of many cells looks worse than it is, so one that could be 0 is no finding.
    """
    if not evaluations:
        return None
    found = max(evaluations, key=lambda e: e.mean_confidence - e.accuracy)
    low, high = accuracy_ends(found)
    ends = found.mean_confidence - high, found.mean_confidence - low
    gap = found.mean_confidence - found.accuracy
    return Finding(found, gap, *ends) if ends[0] > 0 else None
