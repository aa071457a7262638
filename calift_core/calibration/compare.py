"""Comparisons in pairs: two models on the very same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, ndtri

from calift_core.calibration.bins import (
    Bools,
    Doubles,
    Floats,
    Ints,
    assign_bins,
    bin_edges,
    check_labels,
    check_probs,
)
from calift_core.calibration.scores import SampleScores, score_probs
from calift_core.calibration.uncertainty import check_resampling
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Metric = Callable[[Floats, Ints], float]

_CELLS_AT_ONCE = 4_000_000
#: Standard errors by which the evenness of gaps is taken beyond its estimate.
_EVEN_MARGIN = 0.4


class _Statistic(Protocol):
    """What a metric needs for a bootstrap over N samples."""

    def parts(self, drawn: Doubles) -> Doubles:
        """Map how often each sample was drawn, (R, N), to parts (R, K) of the metric."""

    def fold(self, parts: Doubles) -> Doubles:
        """Fold parts (..., K) into values (...) of the metric."""

    def truths(self, parts: Doubles, spread: Doubles) -> Doubles:
        """Return parts (3, K) that the population may have, under three assumptions.

        Args:
            parts: (K,) observed.
            spread: (K,) standard deviation of each over draws.
        """


class _Single:
    """A metric of one part, whose noise is the same whatever the truth."""

    def fold(self, parts: Doubles) -> Doubles:
        return parts[..., 0]

    def truths(self, parts: Doubles, spread: Doubles) -> Doubles:
        return np.stack([parts] * 3)


@dataclass(frozen=True)
class _Mean(_Single):
    values: Doubles  # (N,)

    def parts(self, drawn: Doubles) -> Doubles:
        mean: Doubles = (drawn @ self.values) / drawn.sum(axis=1)
        return mean[:, None]


@dataclass(frozen=True)
class _General(_Single):
    metric: Metric
    probs: Floats
    labels: Ints

    def parts(self, drawn: Doubles) -> Doubles:
        at = np.arange(len(self.labels))
        rows = [np.repeat(at, times.astype(np.int64)) for times in drawn]
        return np.array([[self.metric(self.probs[i], self.labels[i])] for i in rows])


class EceParts:
    """ECE in bins cut once: Σ_k |mean over all samples of the residuals in bin k|.

    Args:
        confidences: (N,) of the predicted class.
        correct: (N,) bool.
    """

    def __init__(self, confidences: Doubles, correct: Bools) -> None:
        n = len(confidences)
        edges = bin_edges(confidences)
        self.member = np.zeros((n, len(edges) - 1))  # (N, K): residual in its own bin
        index = assign_bins(confidences, edges)
        self.member[np.arange(n), index] = confidences - correct
        variance = confidences * (1 - confidences)
        total = np.bincount(index, weights=variance, minlength=len(edges) - 1)
        # A bin without a single error has no spread over draws, but it is not known exactly.
        self.least_spread = np.sqrt(total) / n

    def parts(self, drawn: Doubles) -> Doubles:
        """Map how often each sample was drawn, (R, N), to gaps times shares of bins (R, K)."""
        mean: Doubles = (drawn @ self.member) / drawn.sum(axis=1, keepdims=True)
        return mean

    def fold(self, parts: Doubles) -> Doubles:
        """Fold parts (..., K) into errors (...)."""
        return np.asarray(np.abs(parts).sum(axis=-1))

    def truths(self, parts: Doubles, spread: Doubles) -> Doubles:
        """Return true gaps (3, K): none, few and large ones, and even ones.

        The observed Σ (gap / spread)² less its noise is what few and even gaps share. Noise adds
        most to an error that is made of fine bins, and little to one that all bins have a part in.
        """
        spread = np.maximum(spread, self.least_spread)
        square = np.divide(np.square(parts), np.square(spread), out=np.zeros_like(parts),
                           where=spread > 0)  # fmt: skip
        noisy = max(1, int(np.count_nonzero(spread)))
        size = max(0.0, float(square.sum()) / noisy - 1)
        few = np.maximum(square - 1, 0.0)
        if few.any():
            few *= size * noisy / float(few.sum())
        margin = _EVEN_MARGIN * math.sqrt((2 + 4 * size) / noisy)
        # How far noise explains that the squares differ decides between even and few.
        noise = float((2 + 4 * np.maximum(square - 1, 0.0)).sum())
        scatter = float(np.square(square - 1 - size).sum())
        share = min(1.0, noise / max(scatter, 1e-12))
        even = share * (size + margin) + (1 - share) * few
        none = np.zeros_like(few) if square.sum() <= chdtri(noisy, 0.01) else few
        gaps: Doubles = np.sign(parts) * np.sqrt(np.stack([none, few, even])) * spread
        return gaps


METRICS: dict[str, Callable[[SampleScores], _Statistic]] = {
    "accuracy": lambda scores: _Mean(scores.correct.astype(np.float64)),
    "brier": lambda scores: _Mean(scores.brier),
    "confidence": lambda scores: _Mean(scores.confidences),
    "ece": lambda scores: EceParts(scores.confidences, scores.correct),
    "nll": lambda scores: _Mean(scores.nll),
}
HIGHER_IS_BETTER = frozenset({"accuracy"})


@dataclass(frozen=True)
class PairedDifference:
    """Metric of `a` minus metric of `b` on the same samples.

    Attributes:
        difference: on the samples as they are.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, of "no difference".
        standard_error: over resamples.
        a: metric of the first model.
        b: metric of the second model.
        n: samples.
        n_clusters: independent units that were drawn; n when nothing is clustered.
        n_resamples: R.
        level: nominal coverage of the interval.
        seed: of the draws.
    """

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float
    a: float
    b: float
    n: int
    n_clusters: int
    n_resamples: int
    level: float
    seed: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields as plain numbers for JSON."""
        return asdict(self)


def paired_difference(
    a: Floats,
    b: Floats,
    labels: Ints,
    *,
    metric: str | Metric = "ece",
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models by a paired bootstrap over samples, or over clusters of samples.

    Both models keep the same draw, so what is hard for both cancels. The interval is that of a
    basic bootstrap. For `ece` (15 equal-mass bins cut once per model, l1) it is freed of what noise
    adds to each model's error: most to a calibrated one, little to one that is far off, so that the
    plain difference of the two is too small. How much depends on how the true gaps are spread over
    the bins; it is taken for no gaps, few large ones and even ones, and the interval spans all
    that the data allow. It need not be centred on the plain difference.

    Args:
        a: (N, C) probabilities of the first model.
        b: (N, C) probabilities of the second model on the same samples in the same order.
        labels: (N,) integers in [0, C).
        metric: a name in `METRICS`, or a function of (probs, labels), which is slower.
        n_resamples: R.
        level: nominal coverage.
        clusters: (N,) group of each sample, such as the source image of a corruption; whole groups
            are drawn. None draws single samples.
        seed: of the draws.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: probs, labels or clusters break their contract or differ in length.
    """
    _check_metric(metric)
    a, b = check_probs(a), check_probs(b)
    if a.shape != b.shape:
        raise PredictionsError(
            f"paired probs must have one shape, got {a.shape} and {b.shape}",
            hint="Both models must be evaluated on the same samples and classes.",
        )
    labels = check_labels(labels, *a.shape)
    return _paired(
        _of_probs(metric, a, labels),
        _of_probs(metric, b, labels),
        len(labels),
        n_resamples=n_resamples,
        level=level,
        clusters=clusters,
        seed=seed,
    )


def paired_difference_of_scores(
    a: SampleScores,
    b: SampleScores,
    *,
    metric: str = "ece",
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models by their scores of the same N samples in the same order.

    The same numbers as `paired_difference`, without the probabilities.

    Args:
        a: scores of the first model.
        b: scores of the second model.
        metric: a name in `METRICS`.
        n_resamples: R.
        level: nominal coverage.
        clusters: as in `paired_difference`.
        seed: of the draws.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: the labels of the two differ, or clusters do not fit them.
    """
    _check_metric(metric)
    _check_paired(a, b)
    return _paired(
        METRICS[metric](a),
        METRICS[metric](b),
        len(a),
        n_resamples=n_resamples,
        level=level,
        clusters=clusters,
        seed=seed,
    )


def _check_metric(metric: str | Metric) -> None:
    if isinstance(metric, str) and metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)


def _check_paired(a: SampleScores, b: SampleScores) -> None:
    if len(a) != len(b):
        raise PredictionsError(
            f"paired scores must have one length, got {len(a)} and {len(b)}",
            hint="Both models must be evaluated on the same samples.",
        )
    differing = np.flatnonzero(a.labels != b.labels)
    if differing.size:
        at = differing[0]
        raise PredictionsError(
            f"paired scores must have the same labels, got {a.labels[at]} and {b.labels[at]} "
            f"for sample {at}",
            hint="Both models must be evaluated on the same samples in the same order.",
        )


def _of_probs(metric: str | Metric, probs: Floats, labels: Ints) -> _Statistic:
    if isinstance(metric, str):
        return METRICS[metric](score_probs(probs, labels))
    return _General(metric, probs, labels)


def _paired(
    of_a: _Statistic,
    of_b: _Statistic,
    n: int,
    *,
    n_resamples: int,
    level: float,
    clusters: npt.NDArray[Any] | None,
    seed: int,
) -> PairedDifference:
    check_resampling(n_resamples, level)
    unit, n_units = _units(clusters, n)
    once = np.ones((1, n))
    parts_a, parts_b = of_a.parts(once), of_b.parts(once)
    rng = np.random.default_rng(seed)
    drawn_a = np.empty((n_resamples, parts_a.shape[1]))
    drawn_b = np.empty((n_resamples, parts_b.shape[1]))
    rows = max(1, _CELLS_AT_ONCE // n)
    for start in range(0, n_resamples, rows):
        stop = min(start + rows, n_resamples)
        times = np.stack(
            [
                np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)[unit]
                for _ in range(start, stop)
            ]
        ).astype(np.float64)
        drawn_a[start:stop], drawn_b[start:stop] = of_a.parts(times), of_b.parts(times)
    value_a, value_b = float(of_a.fold(parts_a)[0]), float(of_b.fold(parts_b)[0])
    difference = value_a - value_b
    noise_a = noise_of(of_a, parts_a[0], drawn_a)
    noise_b = noise_of(of_b, parts_b[0], drawn_b)
    span = spanned(
        difference,
        lambda i, j: noise_a.added[i] - noise_b.added[j],
        apart=noise_a.apart_from(noise_b),
        level=level,
    )
    return PairedDifference(
        difference=difference,
        low=span.low,
        high=span.high,
        p_value=min(1.0, 2 * (1 + span.beyond) / (1 + n_resamples)),
        standard_error=span.standard_error,
        a=value_a,
        b=value_b,
        n=n,
        n_clusters=n_units,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


@dataclass(frozen=True)
class Noise:
    """What sampling adds to a metric, under each of three assumptions about the population.

    Attributes:
        added: (3, R) metric of a draw less the metric of the assumed truth.
        parts: (K,) observed parts of the metric.
        spread: (K,) standard deviation of each over draws.
    """

    added: Doubles
    parts: Doubles
    spread: Doubles

    def apart_from(self, other: Noise) -> float:
        """Return how far apart two models' parts are in units of their spread, at most 1."""
        if self.parts.shape != other.parts.shape:
            return 1.0
        spread = (self.spread + other.spread) / 2
        gap = self.parts - other.parts
        ratio = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
        return min(1.0, math.sqrt(float(np.square(ratio).mean())))


def noise_of(statistic: _Statistic, parts: Doubles, drawn: Doubles) -> Noise:
    """Return the noise around what the population may be, not around the samples.

    A calibration error near zero has other noise, and more bias, than the one that was observed.

    Args:
        statistic: of N samples.
        parts: (K,) of the samples as they are.
        drawn: (R, K) of the draws.
    """
    noise = drawn - drawn.mean(axis=0)
    spread = noise.std(axis=0)
    truths = statistic.truths(parts, spread)
    added = np.stack([statistic.fold(t + noise) - statistic.fold(t) for t in truths])
    return Noise(added, parts, spread)


@dataclass(frozen=True)
class Span:
    """An interval that spans those of every pair of assumptions that the data allow.

    Attributes:
        low: lower end.
        high: upper end.
        beyond: draws on the far side of no difference, out of R.
        standard_error: over draws.
    """

    low: float
    high: float
    beyond: float
    standard_error: float


def spanned(
    difference: float, noise: Callable[[int, int], Doubles], *, apart: float, level: float
) -> Span:
    """Return the interval of a difference whose noise depends on what is assumed of both models.

    Args:
        difference: observed.
        noise: (R,) of the difference, by the assumption about the first and about the second model.
        apart: how much the two may differ in kind, in [0, 1]: models of nearly the same gaps have
            the same kind of truth.
        level: nominal coverage.
    """
    tail = (1 - level) / 2
    found = np.empty((4, 3, 3))  # low, high, draws beyond and standard error by the assumptions
    for i in range(3):
        for j in range(3):
            drawn = noise(i, j)
            below, above = np.quantile(drawn, [tail, 1 - tail], method="weibull")
            # Rounding must not turn two equal models into a difference.
            beyond = min(
                np.count_nonzero(drawn >= difference - 1e-12),
                np.count_nonzero(drawn <= difference + 1e-12),
            )
            found[:, i, j] = difference - above, difference - below, beyond, drawn.std()
    lows, highs, beyonds, errors = found
    return Span(
        low=float((1 - apart) * lows.diagonal().min() + apart * lows.min()),
        high=float((1 - apart) * highs.diagonal().max() + apart * highs.max()),
        beyond=float((1 - apart) * beyonds.diagonal().max() + apart * beyonds.max()),
        standard_error=float(errors.diagonal().max()),
    )


def _units(clusters: npt.NDArray[Any] | None, n: int) -> tuple[npt.NDArray[np.int64], int]:
    if clusters is None:
        return np.arange(n), n
    groups = np.asarray(clusters)
    if groups.shape != (n,):
        raise PredictionsError(f"clusters must have shape ({n},), got {groups.shape}")
    distinct, index = np.unique(groups, return_inverse=True)
    return index.astype(np.int64), len(distinct)


def group_indistinguishable(
    models: Mapping[str, Floats],
    labels: Ints,
    *,
    metric: str | Metric = "ece",
    higher_is_better: bool | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Group models, best first, so that no group claims a difference that the data do not show.

    The best model opens a group; the next ones, in order, join while the paired interval between
    them and the group's first model holds 0; the first that does not opens the next group. Each
    pair is judged at `level`, without a correction for the number of models.

    Args:
        models: name → (N, C) probabilities on the same samples in the same order.
        labels: (N,) integers in [0, C).
        metric: as in `paired_difference`.
        higher_is_better: of the metric; None takes it from the metric's name, and a function then
            counts as an error, lower being better.
        n_resamples: R.
        level: nominal coverage of each pair.
        clusters: as in `paired_difference`.
        seed: of the draws.

    Returns:
        Groups of names, best group first, best model first in each.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: probs, labels or clusters break their contract or differ in length.
    """
    _check_metric(metric)
    checked = {name: check_probs(probs) for name, probs in models.items()}
    shapes = {probs.shape for probs in checked.values()}
    if len(shapes) > 1:
        raise PredictionsError(
            f"paired probs must have one shape, got {' and '.join(map(str, sorted(shapes)))}",
            hint="All models must be evaluated on the same samples and classes.",
        )
    for shape in shapes:
        labels = check_labels(labels, *shape)
    return _grouped(
        {name: _of_probs(metric, probs, labels) for name, probs in checked.items()},
        len(labels),
        higher_is_better=_higher_is_better(metric)
        if higher_is_better is None
        else higher_is_better,
        n_resamples=n_resamples,
        level=level,
        clusters=clusters,
        seed=seed,
    )


def group_indistinguishable_of_scores(
    models: Mapping[str, SampleScores],
    *,
    metric: str = "ece",
    higher_is_better: bool | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Group models by their scores of the same samples; see `group_indistinguishable`.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: the labels of two models differ, or clusters do not fit them.
    """
    _check_metric(metric)
    if not models:
        return []
    first = next(iter(models.values()))
    for scores in models.values():
        _check_paired(first, scores)
    return _grouped(
        {name: METRICS[metric](scores) for name, scores in models.items()},
        len(first),
        higher_is_better=_higher_is_better(metric)
        if higher_is_better is None
        else higher_is_better,
        n_resamples=n_resamples,
        level=level,
        clusters=clusters,
        seed=seed,
    )


def _higher_is_better(metric: str | Metric) -> bool:
    return isinstance(metric, str) and metric in HIGHER_IS_BETTER


def _grouped(
    models: Mapping[str, _Statistic],
    n: int,
    *,
    higher_is_better: bool,
    n_resamples: int,
    level: float,
    clusters: npt.NDArray[Any] | None,
    seed: int,
) -> list[list[str]]:
    once = np.ones((1, n))
    value = {name: float(of.fold(of.parts(once))[0]) for name, of in models.items()}
    groups: list[list[str]] = []
    for name in sorted(models, key=lambda name: -value[name] if higher_is_better else value[name]):
        if groups:
            found = _paired(
                models[name],
                models[groups[-1][0]],
                n,
                n_resamples=n_resamples,
                level=level,
                clusters=clusters,
                seed=seed,
            )
            if not found.distinguishable:
                groups[-1].append(name)
                continue
        groups.append([name])
    return groups


def samples_needed(
    found: PairedDifference,
    *,
    difference: float | None = None,
    level: float = 0.95,
    power: float = 0.8,
) -> int:
    """Return how many samples would show a difference, from the noise of a first comparison.

    n · ((z_level + z_power) · standard_error / difference)², because the standard error falls with
    the root of n; for clustered samples the clusters must grow in step.

    Args:
        found: a paired comparison on n samples.
        difference: the one to show, in the metric's unit; None takes the observed one.
        level: of the two-sided test.
        power: chance to show it when it is real.

    Raises:
        SpecError: level or power is not in (0, 1), or the difference is 0, which no sample shows.
    """
    check_resampling(1, level)
    if not 0 < power < 1:
        raise SpecError(f"power must lie in (0, 1), got {power}")
    wanted = abs(found.difference if difference is None else difference)
    if not wanted > 0:
        raise SpecError(f"difference must not be 0, got {wanted}")
    z = float(ndtri((1 + level) / 2) + ndtri(power))
    return max(1, math.ceil(found.n * (z * found.standard_error / wanted) ** 2))
