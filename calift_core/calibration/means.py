"""How far a mean over images is known, and the t interval of a sum of such means."""

import math
from collections.abc import Iterable

import numpy as np

from calift_core.calibration.bins import Doubles, Ints


def variance_of_mean(values: Doubles, clusters: Ints | None = None) -> tuple[float, float]:
    """Variance of a mean over images, and its degrees of freedom.

    Args:
        values: (N,) by image.
        clusters: (N,) which images vary together; None: none do.
    """
    n = len(values)
    if clusters is None:
        return float(values.var(ddof=1)) / n, n - 1.0
    _, index = np.unique(clusters, return_inverse=True)
    totals = np.bincount(index, weights=values - values.mean())
    g = len(totals)
    return float(np.square(totals).sum()) * g / max(g - 1, 1) / n**2, max(g - 1.0, 1.0)


def standard_error(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Standard error of a sum of independent estimates, and its degrees of freedom.

    Satterthwaite, "An approximate distribution of estimates of variance components", 1946.

    Args:
        parts: variance and degrees of freedom of each; infinite where the variance is known.
    """
    every = list(parts)
    total = sum(variance for variance, _ in every)
    spread = sum(variance * variance / df for variance, df in every)
    return math.sqrt(total), total * total / spread if spread > 0 else math.inf


def t_quantile(df: float, p: float) -> float:
    """Quantile of Student's t distribution, of the normal one for infinite degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(min(df, 1e9), p))
