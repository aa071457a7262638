"""Which predictions to keep: risk against coverage, and a threshold that keeps a promise.

A sample is kept where its confidence is at least a threshold; the rest is handed to somebody else.
The coverage is the share that is kept, the risk the error rate among it.

The threshold for "at most so many errors among what is kept" is searched by fixed-sequence testing
(Learn then Test, Angelopoulos et al. 2021, arXiv 2110.01052): thresholds that were fixed before any
data were seen are tested from strict to loose, each by the Clopper-Pearson bound at the full level,
and the search ends at the first that fails. The loosest threshold whose own bound holds, which is
what one is tempted to take, breaks the promise: among many tests some pass by luck.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from calift_core.calibration.beta import beta_cdf, beta_quantile
from calift_core.calibration.bins import Bools, Doubles, Ints
from calift_core.calibration.scores import Scores, checked
from calift_core.errors import SpecError

#: Evenly spaced in log-odds above ½, where confident models differ, and evenly below. None of it
#: depends on data, or the promise would not hold.
THRESHOLDS: Doubles = np.concatenate(
    [1 / (1 + np.exp(np.arange(-100, 0) * 0.12)), np.arange(25, -1, -1) / 50]
)

#: Errors among the first kept samples that do not end the search yet.
_SPARE = 2


def clopper_pearson(
    hits: Doubles | Ints | float, trials: Doubles | Ints | float, level: float = 0.95
) -> tuple[Doubles, Doubles]:
    """Return the Clopper-Pearson 1934 interval of a proportion, elementwise; (0, 1) of nothing.

    Args:
        level: least coverage; what is outside lies half on each side.
    """
    k, n = np.broadcast_arrays(np.asarray(hits, np.float64), np.asarray(trials, np.float64))
    tail = (1 - level) / 2
    low = np.where(k > 0, beta_quantile(np.maximum(k, 1.0), n - k + 1, tail), 0.0)
    return low, _upper(k, n, tail)


def _upper(errors: Doubles | np.float64, kept: Doubles | np.float64, tail: float) -> Doubles:
    """The largest error rate under which so few errors come with chance `tail` at least."""
    inside = errors < kept
    return np.where(
        inside, beta_quantile(errors + 1, np.where(inside, kept - errors, 1.0), 1 - tail), 1.0
    )


@dataclass(frozen=True)
class RetainedSet:
    """What a threshold keeps of some samples.

    Attributes:
        coverage: kept / n.
        coverage_interval: Clopper-Pearson 95 %.
        risk: errors / kept; None where nothing is kept.
        risk_interval: Clopper-Pearson 95 %; None where nothing is kept.
    """

    n: int
    kept: int
    errors: int
    coverage: float
    coverage_interval: tuple[float, float]
    risk: float | None
    risk_interval: tuple[float, float] | None


def keep(scores: Scores, threshold: float) -> RetainedSet:
    """Keep the samples whose confidence is at least a threshold.

    Raises:
        PredictionsError: confidences or hits break their contract.
    """
    top = checked(scores)
    inside = top.confidences >= threshold
    n, kept = len(inside), int(inside.sum())
    errors = int((inside & ~top.correct).sum())
    low, high = clopper_pearson(float(kept), float(n))
    ends = clopper_pearson(float(errors), float(kept))
    return RetainedSet(
        n=n,
        kept=kept,
        errors=errors,
        coverage=kept / n,
        coverage_interval=(float(low), float(high)),
        risk=errors / kept if kept else None,
        risk_interval=(float(ends[0]), float(ends[1])) if kept else None,
    )


@dataclass(frozen=True)
class RiskCurve:
    """Risk among the most confident, at K coverages.

    Attributes:
        thresholds: (K,) least confidence that is kept, falling.
        coverage: (K,) share that is kept, rising to 1.
        risk: (K,) error rate among the kept.
        low: (K,) lower end of its pointwise Clopper-Pearson 95 % interval.
        high: (K,) upper end.
    """

    thresholds: Doubles
    coverage: Doubles
    risk: Doubles
    low: Doubles
    high: Doubles


def risk_curve(scores: Scores, *, points: int = 50) -> RiskCurve:
    """Return the risk-coverage curve at about so many coverages; equal confidences stay together.

    Raises:
        SpecError: points < 1.
        PredictionsError: confidences or hits break their contract.
    """
    if points < 1:
        raise SpecError(f"points must be ≥ 1, got {points}")
    top = checked(scores)
    n = len(top.correct)
    ordered = np.sort(top.confidences)[::-1]
    wanted = np.unique(np.ceil(np.linspace(0, n, points + 1)[1:]).astype(np.int64))
    thresholds = np.unique(ordered[wanted - 1])[::-1]
    kept, errors = _counts(top.confidences, ~top.correct, thresholds)
    low, high = clopper_pearson(errors, kept)
    return RiskCurve(thresholds, kept / n, errors / kept, low, high)


def choose_threshold(scores: Scores, *, risk: float, level: float = 0.95) -> float | None:
    """Return a threshold among whose kept samples at most a share `risk` is wrong.

    In `level` of repeats of the samples it is one, for data like these. The search begins with the
    strictest threshold that keeps a twentieth of the samples, and as many as are needed for two
    errors among them not to end it; where there are fewer samples, as many as the promise can be
    shown with if none is wrong. That this depends on the confidences costs nothing where less
    confident samples are wrong no less often; everything else holds whatever they are.

    Args:
        scores: of N independent samples that nothing else was fitted on.
        risk: the largest share of errors among what is kept, in (0, 1).
        level: how often the promise holds, in (0, 1).

    Returns:
        The loosest threshold that was reached; None where not even the first can be promised.

    Raises:
        SpecError: risk or level is not in (0, 1).
        PredictionsError: confidences or hits break their contract.
    """
    for name, value in (("risk", risk), ("level", level)):
        if not 0 < value < 1:
            raise SpecError(f"{name} must lie in (0, 1), got {value}")
    top = checked(scores)
    kept, errors = _counts(top.confidences, ~top.correct, THRESHOLDS)
    enough = kept >= _first(len(top.correct), risk, level)
    if not enough.any():
        return None
    start = int(enough.argmax())
    passed = 0
    for few, of in zip(errors[start:].tolist(), kept[start:].tolist(), strict=True):
        if not _is_shown(few, of, risk, level):
            break
        passed += 1
    return float(THRESHOLDS[start + passed - 1]) if passed else None


def _is_shown(errors: float, kept: float, risk: float, level: float) -> bool:
    """Whether the upper Clopper-Pearson bound of an error rate is at most `risk`."""
    return errors < kept and beta_cdf(errors + 1, kept - errors, risk) >= level


def _first(n: int, risk: float, level: float) -> int:
    """How many samples the first threshold must keep, of n."""
    some = _needed(_SPARE, risk, level)
    return max(some, n // 20) if some <= n else _needed(0, risk, level)


@lru_cache
def _needed(errors: int, risk: float, level: float) -> int:
    low, high = errors, errors + 1
    while not _is_shown(errors, high, risk, level):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _is_shown(errors, middle, risk, level):
            high = middle
        else:
            low = middle
    return high


def _counts(confidences: Doubles, wrong: Bools, thresholds: Doubles) -> tuple[Doubles, Doubles]:
    """(K,) samples at or above each threshold, and the wrong ones among them."""
    order = np.argsort(confidences)
    at = np.searchsorted(confidences[order], thresholds, side="left")
    below = np.concatenate([[0], np.cumsum(wrong[order])])
    return (len(order) - at).astype(np.float64), (below[-1] - below[at]).astype(np.float64)
