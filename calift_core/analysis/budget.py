"""How many samples a difference needs."""

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core import calibration
from calift_core.calibration import SampleScores
from calift_core.calibration.compare import check_paired
from calift_core.calibration.planning import SquaredPlan
from calift_core.calibration.squared import SquaredError, Units
from calift_core.schema.wire.results import Budget, Source

# ---- Planning ----------------------------------------------------------------------------------


def budget_of(
    scores: SampleScores,
    source: Source,
    *,
    metric: str,
    difference: float,
    against: SampleScores | None = None,
    against_source: Source | None = None,
    clusters: npt.NDArray[Any] | None = None,
    level: float = 0.95,
    power: float = 0.8,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Budget:
    """How many samples show a difference of a metric.

    Against another model on the same samples the noise is that of the paired difference. Without
    one, both models are thought to be evaluated on samples of their own, each as noisy as this one.
    For `ece` the comparison itself is played through, see `SquaredPlan`.

    Args:
        metric: `accuracy`, `brier`, `confidence`, `nll`, or `ece`.
        difference: to be shown, in the metric's unit (for `ece` of L2 errors, a fraction); not 0.
        clusters: (N,) as in `calibration.paired_difference`.
        power: chance to show the difference when it is real.

    Raises:
        UnknownNameError: the metric does not exist.
        SpecError: the difference is 0, or level or power is out of range.
    """
    paired = against is not None
    error: float | None
    detectable: float | None
    observed: float | None
    if metric == "ece":
        plan, observed = _squared_plan(scores, against, clusters, seed)
        error = None
        needed = plan.needed(difference, level=level, power=power)
        detectable = plan.detectable(level=level, power=power)
    else:
        found = calibration.paired_difference(
            scores, against if against is not None else _certain(scores), metric=metric,
            level=level, clusters=clusters, n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
        error = found.standard_error * (1.0 if paired else 2.0**0.5)
        needed = calibration.samples_needed(
            replace(found, standard_error=error), difference=difference, level=level, power=power
        )
        observed = found.difference if paired else None
        detectable = (NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)) * error
    return Budget(
        source=source,
        against=against_source,
        metric=metric,
        paired=paired,
        difference=abs(difference),
        observed=observed,
        level=level,
        power=power,
        n=len(scores),
        standard_error=error,
        needed=needed,
        enough=needed <= len(scores),
        detectable=detectable,
    )


def _squared_plan(
    scores: SampleScores, against: SampleScores | None, clusters: npt.NDArray[Any] | None, seed: int
) -> tuple[SquaredPlan, float | None]:
    """The plan for two calibration errors, and the observed difference where there are two."""
    units = Units(clusters, len(scores))
    own = SquaredError(scores, units)
    if against is None:
        return SquaredPlan(own, own, paired=False, seed=seed), None
    check_paired(scores, against)
    other = SquaredError(against, units)
    worse, better = (own, other) if own.value >= other.value else (other, own)
    sizes = [max(0.0, each.value) ** 0.5 for each in (own, other)]
    return SquaredPlan(worse, better, seed=seed), sizes[0] - sizes[1]


def _certain(scores: SampleScores) -> SampleScores:
    """A model that is right and sure of it: every metric of it is a constant, without noise."""
    n = len(scores)
    return SampleScores(
        labels=scores.labels,
        predicted=scores.labels,
        confidences=np.ones(n),
        correct=np.ones(n, dtype=np.bool_),
        nll=np.zeros(n),
        brier=np.zeros(n),
        rank=np.zeros(n, dtype=np.int64),
    )
