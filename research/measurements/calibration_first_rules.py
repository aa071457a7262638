"""The rules that calift compared and bounded calibration errors by at first, for comparison only.

`calibration_simulation.py` sets them beside what replaced them. The difference of two ECEs was
freed of a bias that was guessed under three assumptions about the gaps; models were put in groups,
best first, by comparing each with its group's first; the number of samples for a difference came
from the spread of that difference; the noise of a bin was what its confidence said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri

from calift_core import calibration as cal
from calift_core.calibration import uncertainty
from calift_core.calibration.bins import Binned
from calift_core.calibration.compare import PairedDifference

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Standard errors by which the evenness of gaps was taken beyond its estimate.
_EVEN_MARGIN = 0.4


@dataclass(frozen=True)
class Difference:
    """A difference of two ECEs and its interval."""

    difference: float
    low: float
    high: float
    standard_error: float
    n: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class _Ece:
    """ECE in bins cut once, its draws, and what noise adds to it under three assumptions."""

    def __init__(self, confidences: Doubles, correct: Bools, times: Doubles) -> None:
        n = len(confidences)
        edges = cal.bin_edges(confidences)
        member = np.zeros((n, len(edges) - 1))
        index = cal.assign_bins(confidences, edges)
        member[np.arange(n), index] = confidences - correct
        self.parts = member.mean(axis=0)
        self.value = float(np.abs(self.parts).sum())
        drawn = times @ member / times.sum(axis=1, keepdims=True)
        noise = drawn - drawn.mean(axis=0)
        self.spread = noise.std(axis=0)
        variance = confidences * (1 - confidences)
        total = np.bincount(index, weights=variance, minlength=len(edges) - 1)
        truths = self._truths(np.maximum(self.spread, np.sqrt(total) / n))
        self.added = np.stack([np.abs(t + noise).sum(axis=1) - np.abs(t).sum() for t in truths])

    def _truths(self, spread: Doubles) -> Doubles:
        square = np.divide(self.parts**2, spread**2, out=np.zeros_like(spread), where=spread > 0)
        noisy = max(1, int(np.count_nonzero(spread)))
        size = max(0.0, float(square.sum()) / noisy - 1)
        few = np.maximum(square - 1, 0.0)
        if few.any():
            few *= size * noisy / float(few.sum())
        margin = _EVEN_MARGIN * math.sqrt((2 + 4 * size) / noisy)
        noise = float((2 + 4 * np.maximum(square - 1, 0.0)).sum())
        scatter = float(np.square(square - 1 - size).sum())
        share = min(1.0, noise / max(scatter, 1e-12))
        even = share * (size + margin) + (1 - share) * few
        none = np.zeros_like(few) if square.sum() <= chdtri(noisy, 0.01) else few
        truths: Doubles = np.sign(self.parts) * np.sqrt(np.stack([none, few, even])) * spread
        return truths

    def apart_from(self, other: _Ece) -> float:
        if self.parts.shape != other.parts.shape:
            return 1.0
        spread = (self.spread + other.spread) / 2
        gap = self.parts - other.parts
        ratio = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
        return min(1.0, math.sqrt(float(np.square(ratio).mean())))


def ece_difference(
    a: cal.SampleScores, b: cal.SampleScores, *, n_resamples: int = 1000, seed: int = 0
) -> Difference:
    """ECE of a minus ECE of b, by a basic bootstrap freed of a guessed bias; 95 %."""
    n, rng = len(a), np.random.default_rng(seed)
    times = np.stack(
        [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_resamples)]
    ).astype(np.float64)
    of_a, of_b = (_Ece(each.confidences, each.correct, times) for each in (a, b))
    difference, apart = of_a.value - of_b.value, of_a.apart_from(of_b)
    lows, highs, errors = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            drawn = of_a.added[i] - of_b.added[j]
            below, above = np.quantile(drawn, [0.025, 0.975], method="weibull")
            lows[i, j], highs[i, j] = difference - above, difference - below
            errors[i, j] = drawn.std()
    return Difference(
        difference,
        float((1 - apart) * lows.diagonal().min() + apart * lows.min()),
        float((1 - apart) * highs.diagonal().max() + apart * highs.max()),
        float(errors.diagonal().max()),
        n,
    )


def groups(
    models: Mapping[str, cal.SampleScores], *, metric: str, n_resamples: int = 1000, seed: int = 0
) -> list[list[str]]:
    """Groups, best first: a model joins while its interval to the group's first holds 0."""
    value = {
        name: cal.ece(s)
        if metric == "ece"
        else float(getattr(s, "correct" if metric == "accuracy" else metric).mean())
        for name, s in models.items()
    }
    found: list[list[str]] = []
    for name in sorted(models, key=lambda m: -value[m] if metric == "accuracy" else value[m]):
        if found:
            first = models[found[-1][0]]
            pair: Difference | PairedDifference
            if metric == "ece":
                pair = ece_difference(models[name], first, n_resamples=n_resamples, seed=seed)
            else:
                pair = cal.paired_difference(
                    models[name], first, metric=metric, n_resamples=n_resamples, seed=seed
                )
            if not pair.distinguishable:
                found[-1].append(name)
                continue
        found.append([name])
    return found


def samples_needed(found: Difference, difference: float, *, power: float = 0.8) -> int:
    """How many samples show a difference of ECEs, as if its noise fell with the root of n."""
    z = float(ndtri(0.975) + ndtri(power))
    return max(1, math.ceil(found.n * (z * found.standard_error / difference) ** 2))


@contextmanager
def first_interval() -> Iterator[None]:
    """`calibration.interval` with the noise that the confidences alone say."""

    def spread(full: Binned) -> Doubles:
        mean = full.mean_confidence
        return np.asarray(np.sqrt(np.maximum(mean * (1 - mean), 1e-12) / full.count))

    with (
        mock.patch.object(uncertainty, "_spread", spread),
        mock.patch.object(uncertainty, "_overall_gap", return_value=0.0),
    ):
        yield
