"""Quantiles of beta distributions, without SciPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import Doubles

_EPSILON, _TINY = 1e-15, 1e-300


def beta_quantile(a: npt.ArrayLike, b: npt.ArrayLike, share: npt.ArrayLike) -> Doubles:
    """Return x with P(X ≤ x) = share for X ~ Beta(a, b), elementwise.

    Newton steps that fall back to bisection, to 1e-12 of x or of 1 − x.

    Args:
        a: positive.
        b: positive.
        share: in [0, 1].
    """
    parts = np.broadcast_arrays(*(np.asarray(part, np.float64) for part in (a, b, share)))
    cells = zip(*(part.ravel().tolist() for part in parts), strict=True)
    return np.array([_quantile(*cell) for cell in cells]).reshape(parts[0].shape)


def beta_cdf(a: float, b: float, x: float) -> float:
    """Return P(X ≤ x) for X ~ Beta(a, b): the regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(_log_density(a, b, x) + math.log(x) + math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _log_density(a: float, b: float, x: float) -> float:
    norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return norm + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, 100_000):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 + factor * d, 1 + factor / c
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1) < _EPSILON:
            break
    return value


def _quantile(a: float, b: float, share: float) -> float:
    if not 0 < share < 1:
        return share
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(200):
        excess = beta_cdf(a, b, x) - share
        low, high = (low, x) if excess > 0 else (x, high)
        slope = math.exp(min(_log_density(a, b, x), 700.0))
        following = x - excess / slope if slope > 0 else low
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= 1e-12 * min(following, 1 - following):
            return following
        x = following
    return x
