"""The debiased squared L2 calibration error, of one model and of two in pairs.

A calibration error is no mean: noise adds to an ECE, most where a model is calibrated, so that the
difference of two plug-in errors is too small by an amount that nobody knows. Its square is another
matter, because the noise in a mean square can be taken out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import Doubles, assign_bins, bin_edges, sum_by
from calift_core.calibration.scores import Scores
from calift_core.errors import PredictionsError

_CELLS_AT_ONCE = 4_000_000
#: Differences below this are rounding, which must not turn two equal models into a difference.
ROUNDING = 1e-12


def rms_difference(
    value: float, baseline: float, interval: tuple[float, float]
) -> tuple[float, float, float]:
    """The difference of two L2 calibration errors, and its ends, from that of their squares.

    a − b = (a² − b²) / (a + b), the sum taken for known, and for no less than what the interval of
    the squares can tell from 0. It leaves 0 out exactly where theirs does; in simulations of 400 to
    7,500 samples it covered the true difference in 90 to 100 %.

    Args:
        value: debiased squared error of the one, which may be negative.
        baseline: of the other.
        interval: of `value` − `baseline`.
    """
    low, high = interval
    apart = math.sqrt(max(value, 0.0)) + math.sqrt(max(baseline, 0.0))
    scale = max(apart, math.sqrt((high - low) / 2), ROUNDING)
    return (value - baseline) / scale, low / scale, high / scale


class Units:
    """The units that are drawn independently: clusters of samples, or the samples themselves.

    Attributes:
        of: (N,) unit of each sample.
        sizes: (G,) samples in each.
    """

    def __init__(self, clusters: npt.NDArray[Any] | None, n: int) -> None:
        if clusters is None:
            self.of, self.sizes = np.arange(n), np.ones(n)
            return
        groups = np.asarray(clusters)
        if groups.shape != (n,):
            raise PredictionsError(f"clusters must have shape ({n},), got {groups.shape}")
        index = np.unique(groups, return_inverse=True)[1]
        self.of, self.sizes = index.astype(np.int64), np.bincount(index).astype(np.float64)

    def __len__(self) -> int:
        return len(self.sizes)

    def totals(self, values: Doubles) -> Doubles:
        """Sum values (N,) over each unit; (G,)."""
        return sum_by(self.of, values, len(self))

    def draws(self, n_resamples: int, seed: int) -> Iterator[Doubles]:
        """Draw units with replacement: how often each came, (r, G) at a time, R rows in all."""
        rng, size = np.random.default_rng(seed), len(self)
        rows = max(1, _CELLS_AT_ONCE // size)
        for start in range(0, n_resamples, rows):
            yield np.stack(
                [
                    np.bincount(rng.integers(size, size=size), minlength=size)
                    for _ in range(start, min(start + rows, n_resamples))
                ]
            ).astype(np.float64)


class SquaredError:
    """The debiased squared L2 calibration error of one model, in bins that are cut once.

    Σ_k m_k²/w_k less what noise adds to it; m_k is the mean over *all* samples of confidence −
    correct in bin k (0 elsewhere) and w_k the bin's share. Unbiased, so negative about every other
    time where a model is calibrated.

    How far it is known is another matter where a bin holds hardly an error: what its samples show
    of their noise is then too little. The variance of correct is taken for no less than p̃(1 − p̃),
    p̃ = (k + ½)/(n + 1) for k right of n.

    Args:
        units: that are independent of each other; None takes every sample for one.

    Attributes:
        means: (K,) m.
        shares: (K,) w.
        bins: (N,) bin of each sample.
        covariance: (K, K) of the means.
        value: the error; its unit is a fraction squared.
    """

    def __init__(self, scores: Scores, units: Units | None = None) -> None:
        confidences, correct = scores.confidences, scores.correct
        n = len(confidences)
        self.units = units = units or Units(None, n)
        edges = bin_edges(confidences)
        self.bins, size = assign_bins(confidences, edges), len(edges) - 1
        residual = confidences - correct
        count = sum_by(self.bins, np.ones(n), size)
        total = sum_by(self.bins, residual, size)
        self.means, self.shares = total / n, count / n
        # Units that reach into a bin. One alone says nothing of a variance, and may be all noise.
        reach = np.bincount(np.unique(units.of * size + self.bins) % size, minlength=size)
        alone = reach == 1
        scale = np.sqrt(np.where(alone, 1.0, reach / np.maximum(reach - 1, 1)))
        own = np.where(alone, 0.0, total / count)[self.bins]
        shown = (residual - own) * scale[self.bins] / n
        noise = self._squares(shown, self, shown)
        self._added = float((noise.diagonal() / self.shares).sum())
        self.value = float((np.square(self.means) / self.shares).sum()) - self._added
        self._shrink = self._shrinkage(noise)
        # By how much the variance of a sample is less than its bin's accuracy allows for.
        rate = (sum_by(self.bins, correct, size) / count * reach + 0.5) / (reach + 1)
        lacking = rate * (1 - rate) - sum_by(self.bins, np.square(n * shown), size) / count
        # `shown` sums to 0 in a bin, so what is added to all of it alike adds to its variance.
        self._noise = shown + np.sqrt(np.maximum(lacking, 0.0))[self.bins] / n
        self.covariance = self.covariance_with(self)

    def covariance_with(self, other: SquaredError) -> Doubles:
        """Return the covariance (K, L) of the means of two models on the same samples."""
        return self._squares(self._noise, other, other._noise)

    def _squares(self, mine: Doubles, other: SquaredError, theirs: Doubles) -> Doubles:
        """Sum products of two columns (N,) over units, by bin of both models; (K, L)."""
        shape = (len(self.shares), len(other.shares))
        if len(self.units) == len(self.bins):
            cell = self.bins * shape[1] + other.bins
            return sum_by(cell, mine * theirs, shape[0] * shape[1]).reshape(shape)
        return np.asarray(self._by_unit(mine).T @ other._by_unit(theirs))

    def _by_unit(self, values: Doubles) -> Doubles:
        size = len(self.shares)
        cell = self.units.of * size + self.bins
        return sum_by(cell, values, len(self.units) * size).reshape(-1, size)

    def _shrinkage(self, covariance: Doubles) -> float:
        """By what factor to shrink the means that noise is taken around.

        What varies with the truth, 4 mᵀMΣMm, then has the size that it has without the noise in m.
        """
        slope = self.means / self.shares
        size = float(slope @ covariance @ slope)
        scaled = covariance / self.shares
        noise = float((scaled * scaled.T).sum())
        return math.sqrt(max(0.0, 1 - noise / size)) if size > 0 else 1.0

    @cached_property
    def columns(self) -> Doubles:
        """(G, K + 1): the noise of each unit in each bin, and the unit's samples."""
        return np.column_stack([self._by_unit(self._noise), self.units.sizes])

    def noise_of(self, sums: Doubles) -> Doubles:
        """Map the sums (r, K + 1) of `columns` over drawn units to what sampling adds to the value.

        (r,), up to a constant.
        """
        drawn, size = sums[:, :-1], sums[:, -1:]
        errors = (drawn - self.columns[:, :-1].sum(axis=0)) * (len(self.bins) / size)  # of m
        slope = 2 * self._shrink * self.means / self.shares
        return np.asarray(errors @ slope + np.square(errors) @ (1 / self.shares))

    def noise(self, times: Doubles) -> Doubles:
        """As `noise_of`, of how often each unit was drawn, (r, G)."""
        return self.noise_of(times @ self.columns)


@dataclass(frozen=True)
class SquaredDifference:
    """The difference of two models' squared errors as a quadratic form of their bins' means.

    With the stacked means m, their covariance Σ and M = diag(1/w_a, −1/w_b): T = mᵀMm − tr(MΣ) and
    Var T = max(4 mᵀMΣMm − 2 tr((MΣ)²), 2 tr((MΣ)²)), in the spirit of Sun et al. 2024
    (arXiv 2408.08998). A model's T against itself is 0 and so is its variance. In T, Σ is what the
    samples show; in its variance no less than `SquaredError` allows for.

    Attributes:
        means: (K + L,) m.
        form: (K + L,) diagonal of M.
        covariance: (K + L, K + L) Σ.
    """

    means: Doubles
    form: Doubles
    covariance: Doubles
    value: float
    variance: float

    @classmethod
    def of(cls, a: SquaredError, b: SquaredError, *, paired: bool = True) -> SquaredDifference:
        """Compare two models on the same samples, or, not paired, on as many of its own each."""
        means = np.concatenate([a.means, b.means])
        form = np.concatenate([1 / a.shares, -1 / b.shares])
        across = a.covariance_with(b) if paired else np.zeros((len(a.means), len(b.means)))
        covariance = np.block([[a.covariance, across], [across.T, b.covariance]])
        slope = form * means
        scaled = form[:, None] * covariance
        square = float((scaled * scaled.T).sum())  # tr((MΣ)²)
        linear = float(slope @ covariance @ slope)
        variance = max(4 * linear - 2 * square, 2 * square)
        # What is left of two equal models is rounding.
        terms = float(np.square(slope) @ covariance.diagonal()) + float(np.square(scaled).sum())
        return cls(
            means, form, covariance, a.value - b.value,
            variance if variance > ROUNDING * terms else 0.0,
        )  # fmt: skip
