"""Intervals of the third study: t intervals over seeds and images together, Holm, equivalence.

The quantity is the paired difference of two recipes' mean over sets (the shifts). Its variance is
that over seeds (of the difference's mean over images, S runs) plus that over images (of its mean
over seeds, set by set); the share of both that is their interaction is counted in each, which errs
on the wide side. The degrees of freedom are Satterthwaite's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from calift_core.calibration.means import standard_error, variance_of_mean

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A difference, and how far it is known.

    Attributes:
        value: the difference.
        se: its standard error.
        df: degrees of freedom of the standard error.
        per_run: (S,) the difference seed by seed.
    """

    value: float
    se: float
    df: float
    per_run: Doubles

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided."""
        half = float(student.ppf((1 + level) / 2, self.df)) * self.se
        return self.value - half, self.value + half

    def upper(self, level: float = 0.95) -> float:
        """One-sided bound."""
        return self.value + float(student.ppf(level, self.df)) * self.se

    def p_zero(self) -> float:
        """Two-sided p of no difference."""
        return _two_sided(self.value, self.se, self.df)

    def p_apart(self, margin: float) -> float:
        """The larger one-sided p of a difference of at least the margin, either way (TOST)."""
        if self.se == 0:
            return float(abs(self.value) >= margin)
        low = student.sf((self.value + margin) / self.se, self.df)
        return float(max(low, student.cdf((self.value - margin) / self.se, self.df)))


def _two_sided(value: float, se: float, df: float) -> float:
    if se == 0:
        return float(value == 0)
    return float(2 * student.sf(abs(value) / se, df))


def estimate(
    runs: Doubles, images: Sequence[Doubles], groups: Sequence[NDArray[np.int64]] | None = None
) -> Estimate:
    """A paired difference from its parts.

    Args:
        runs: (S, K) difference of means, by seed and set.
        images: K arrays (n_k,), the difference by image, mean over seeds.
        groups: K arrays (n_k,) which images belong together and vary together; None: none do.
    """
    n_sets = runs.shape[1]
    parts = []
    for k, own in enumerate(images):
        variance, df = variance_of_mean(own, None if groups is None else groups[k])
        parts.append((variance / n_sets**2, df))
    return combined(runs.mean(axis=1), parts)


def combined(per_run: Doubles, parts: Sequence[tuple[float, float]]) -> Estimate:
    """The mean of seeds' values, with other parts of its variance.

    Args:
        per_run: (S,) by seed.
        parts: variance and degrees of freedom of each.
    """
    every = list(parts)
    n_seeds = len(per_run)
    if n_seeds > 1:
        every.append((float(per_run.var(ddof=1)) / n_seeds, n_seeds - 1.0))
    se, df = standard_error(every)
    return Estimate(float(per_run.mean()), se, df, per_run)


def jackknifed(runs: Doubles, replicates: Doubles) -> Estimate:
    """A paired difference of what is no mean over images, such as a calibration error.

    Args:
        runs: (S, K) difference by seed and set.
        replicates: (G, K) the difference, mean over seeds, without the images of each of G groups.
    """
    g, n_sets = len(replicates), runs.shape[1]
    apart = replicates - replicates.mean(axis=0)
    variance = float(np.square(apart).sum()) * (g - 1) / g / n_sets**2
    return combined(runs.mean(axis=1), [(variance, g - 1.0)])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p by name (Holm 1979): reject where it is at most the level."""
    adjusted: dict[str, float] = {}
    worst = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = worst
    return adjusted


def verdict(
    ood: Estimate,
    id_nll: Estimate,
    squared: Estimate | None,
    *,
    p_zero: float,
    p_apart: float,
    level: float = 0.05,
    id_margin: float = 0.02,
    squared_margin: float = 20e-4,
) -> str:
    """What a comparison says: `better`, `worse`, `equivalent` or `unresolved`.

    Args:
        ood: difference of OOD NLL.
        id_nll: difference of ID NLL.
        squared: difference of the debiased squared L2 error under shift; None: no gate.
        p_zero: of `ood`, after Holm.
        p_apart: of `ood`, after Holm.
        level: of the family.
        id_margin: of the one-sided 95 % bound of `id_nll`.
        squared_margin: likewise of `squared`.
    """
    gates = id_nll.upper() < id_margin and (squared is None or squared.upper() < squared_margin)
    if p_zero <= level and ood.value < 0 and gates:
        return "better"
    if p_zero <= level and ood.value > 0:
        return "worse"
    if p_apart <= level:
        return "equivalent"
    return "unresolved"
