"""Comparisons on the very same samples: of two models in pairs, and of many at once.

Accuracy, NLL, Brier score and confidence are means over samples and are compared by a bootstrap.
A calibration error is no mean: noise adds to an ECE, most where a model is calibrated, so that the
difference of two plug-in errors is too small by an amount that nobody knows. Its square is another
matter, because the noise in a mean square can be taken out exactly. The calibration of two models
is therefore decided on the debiased squared L2 error, `squared_ece`; the ECE is there to be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from calift_core.calibration.bins import (
    Bools,
    Doubles,
    Floats,
    Ints,
    assign_bins,
    bin_edges,
    check_labels,
    check_probs,
    sum_by,
)
from calift_core.calibration.scores import SampleScores, score_probs
from calift_core.calibration.uncertainty import check_resampling
from calift_core.errors import PredictionsError, UnknownNameError

Metric = Callable[[Floats, Ints], float]

_CELLS_AT_ONCE = 4_000_000
#: Differences below this are rounding, which must not turn two equal models into a difference.
_ROUNDING = 1e-12


class Units:
    """What is independent of each other: clusters of samples, or the samples themselves.

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


class _Statistic(Protocol):
    """A metric of one model on N samples."""

    @property
    def value(self) -> float:
        """On the samples as they are."""

    def noise(self, times: Doubles) -> Doubles:
        """Map how often each unit was drawn, (r, G), to values (r,) that vary as the metric does.

        Their mean is of no account.
        """


class _Mean:
    def __init__(self, values: Doubles, units: Units) -> None:
        self.value = float(values.mean())
        self._totals, self._sizes = units.totals(values), units.sizes

    def noise(self, times: Doubles) -> Doubles:
        return np.asarray((times @ self._totals) / (times @ self._sizes))


class _General:
    def __init__(self, metric: Metric, probs: Floats, labels: Ints, units: Units) -> None:
        self.value = float(metric(probs, labels))
        self._metric, self._probs, self._labels, self._units = metric, probs, labels, units

    def noise(self, times: Doubles) -> Doubles:
        at = np.arange(len(self._labels))
        rows = [np.repeat(at, drawn[self._units.of].astype(np.int64)) for drawn in times]
        return np.array([self._metric(self._probs[i], self._labels[i]) for i in rows])


class SquaredError:
    """The debiased squared L2 calibration error of one model, in bins that are cut once.

    Σ_k m_k²/w_k less what noise adds to it; m_k is the mean over *all* samples of confidence −
    correct in bin k (0 elsewhere) and w_k the bin's share. Unbiased, so negative about every other
    time where a model is calibrated.

    How far it is known is another matter where a bin holds hardly an error: what its samples show
    of their noise is then too little. The variance of correct is taken for no less than p̃(1 − p̃),
    p̃ = (k + ½)/(n + 1) for k right of n.

    Args:
        confidences: (N,) of the predicted class.
        correct: (N,) bool.
        units: that are independent of each other; None takes every sample for one.

    Attributes:
        means: (K,) m.
        shares: (K,) w.
        bins: (N,) bin of each sample.
        covariance: (K, K) of the means.
        value: the error; its unit is a fraction squared.
    """

    def __init__(self, confidences: Doubles, correct: Bools, units: Units | None = None) -> None:
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

    def noise(self, times: Doubles) -> Doubles:
        """Map how often each unit was drawn, (r, G), to what sampling adds to the value, (r,).

        Up to a constant.
        """
        n, size = len(self.bins), len(self.shares)
        if len(self.units) < n:
            by_unit = self._by_unit(self._noise)
            totals = times @ by_unit - by_unit.sum(axis=0)
        else:
            once = times - 1
            totals = np.stack(
                [np.bincount(self.bins, row * self._noise, minlength=size) for row in once]
            )
        errors = totals * (n / (times @ self.units.sizes))[:, None]  # (r, K) of the means
        slope = 2 * self._shrink * self.means / self.shares
        return np.asarray(errors @ slope + np.square(errors) @ (1 / self.shares))


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
        value: T.
        variance: of T.
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
            variance if variance > _ROUNDING * terms else 0.0,
        )  # fmt: skip


METRICS: dict[str, Callable[[SampleScores, Units], _Statistic]] = {
    "accuracy": lambda scores, units: _Mean(scores.correct.astype(np.float64), units),
    "brier": lambda scores, units: _Mean(scores.brier, units),
    "confidence": lambda scores, units: _Mean(scores.confidences, units),
    "nll": lambda scores, units: _Mean(scores.nll, units),
    "squared_ece": lambda scores, units: SquaredError(scores.confidences, scores.correct, units),
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
        standard_error: of the difference.
        a: metric of the first model.
        b: metric of the second model.
        n: samples.
        n_clusters: independent units; n when nothing is clustered.
        n_resamples: R; 0 where the interval comes from a formula.
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
    metric: str | Metric = "squared_ece",
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """Compare two models on the same samples, so that what is hard for both cancels.

    `accuracy`, `brier`, `confidence`, `nll` and functions: the interval of a basic bootstrap over
    samples, or over clusters of them, with the same draws for both models. `squared_ece`, the
    debiased squared L2 calibration error (15 equal-mass bins, cut once per model): the interval of
    `SquaredDifference`. There is no interval for the difference of two ECEs that could be trusted.

    Args:
        a: (N, C) probabilities of the first model.
        b: (N, C) probabilities of the second model on the same samples in the same order.
        labels: (N,) integers in [0, C).
        metric: a name in `METRICS`, or a function of (probs, labels), which is slower.
        n_resamples: R, where samples are drawn.
        level: nominal coverage.
        clusters: (N,) group of each sample, such as the source image of a corruption; whole groups
            are drawn. None draws single samples.
        seed: of the draws.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: probs, labels or clusters break their contract or differ in length.
    """
    _check_metric(metric)
    models = _checked({"a": a, "b": b}, labels, "Both models")
    units = Units(clusters, len(labels))
    labels = check_labels(labels, *models["a"].shape)
    return _paired(
        _of_probs(metric, models["a"], labels, units),
        _of_probs(metric, models["b"], labels, units),
        units,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def paired_difference_of_scores(
    a: SampleScores,
    b: SampleScores,
    *,
    metric: str = "squared_ece",
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
        n_resamples: R, where samples are drawn.
        level: nominal coverage.
        clusters: as in `paired_difference`.
        seed: of the draws.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: the labels of the two differ, or clusters do not fit them.
    """
    _check_metric(metric)
    check_paired(a, b)
    units = Units(clusters, len(a))
    return _paired(
        METRICS[metric](a, units),
        METRICS[metric](b, units),
        units,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def _check_metric(metric: str | Metric) -> None:
    if isinstance(metric, str) and metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)


def check_paired(a: SampleScores, b: SampleScores) -> None:
    """Raise PredictionsError unless the scores are of as many samples with the same labels."""
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


def _checked(models: Mapping[str, Floats], labels: Ints, who: str) -> dict[str, Floats]:
    checked = {name: check_probs(probs) for name, probs in models.items()}
    shapes = list(dict.fromkeys(probs.shape for probs in checked.values()))
    if len(shapes) > 1:
        raise PredictionsError(
            f"paired probs must have one shape, got {' and '.join(map(str, shapes))}",
            hint=f"{who} must be evaluated on the same samples and classes.",
        )
    for shape in shapes:
        check_labels(labels, *shape)
    return checked


def _of_probs(metric: str | Metric, probs: Floats, labels: Ints, units: Units) -> _Statistic:
    if isinstance(metric, str):
        return METRICS[metric](score_probs(probs, labels), units)
    return _General(metric, probs, labels, units)


def _paired(
    of_a: _Statistic, of_b: _Statistic, units: Units, *, n_resamples: int, level: float, seed: int
) -> PairedDifference:
    check_resampling(n_resamples, level)
    difference = of_a.value - of_b.value
    if isinstance(of_a, SquaredError) and isinstance(of_b, SquaredError):
        n_resamples = 0
        error = math.sqrt(SquaredDifference.of(of_a, of_b).variance)
        reach = float(ndtri((1 + level) / 2)) * error
        low, high = difference - reach, difference + reach
        far = abs(difference) > _ROUNDING
        p_value = 2 * float(ndtr(-abs(difference) / error)) if error > 0 else float(not far)
    else:
        drawn = np.concatenate(
            [of_a.noise(times) - of_b.noise(times) for times in units.draws(n_resamples, seed)]
        )
        drawn -= drawn.mean()
        tail = (1 - level) / 2
        below, above = np.quantile(drawn, [tail, 1 - tail], method="weibull")
        low, high, error = difference - above, difference - below, float(drawn.std())
        beyond = min(
            np.count_nonzero(drawn >= difference - _ROUNDING),
            np.count_nonzero(drawn <= difference + _ROUNDING),
        )
        p_value = min(1.0, 2 * (1 + beyond) / (1 + n_resamples))
    return PairedDifference(
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=p_value,
        standard_error=error,
        a=of_a.value,
        b=of_b.value,
        n=len(units.of),
        n_clusters=len(units),
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


# ---- Many models at once -----------------------------------------------------------------------


@dataclass(frozen=True)
class ConfidenceSet:
    """The models any of which may be the best one: a model confidence set.

    Attributes:
        members: names, best first. The set holds the best model in at least `level` of repeats.
        excluded: names of the others, best first.
        values: name → the metric on the samples as they are.
        p_values: name → the largest level of doubt (1 − level) at which it is still a member.
        n: samples.
        n_clusters: independent units; n when nothing is clustered.
        n_resamples: R.
        level: nominal coverage.
        seed: of the draws.
    """

    members: tuple[str, ...]
    excluded: tuple[str, ...]
    values: dict[str, float]
    p_values: dict[str, float]
    n: int
    n_clusters: int
    n_resamples: int
    level: float
    seed: int


def model_confidence_set(
    models: Mapping[str, Floats],
    labels: Ints,
    *,
    metric: str | Metric = "squared_ece",
    higher_is_better: bool | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> ConfidenceSet:
    """Return the models that the data cannot rule out as the best one (Hansen et al. 2011).

    While the largest studentised difference between two models of the set is more than it would be
    were all equally good, the model that is worst against another is left out. How large it would
    be comes from draws that all models share, so the number of models and what they have in common
    are allowed for. Of equally good models all stay, except once in 1 / (1 − level) repeats.

    Args:
        models: name → (N, C) probabilities on the same samples in the same order.
        labels: (N,) integers in [0, C).
        metric: as in `paired_difference`.
        higher_is_better: of the metric; None takes it from the metric's name, and a function then
            counts as an error, lower being better.
        n_resamples: R.
        level: chance that the best model is in the set.
        clusters: as in `paired_difference`.
        seed: of the draws.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: probs, labels or clusters break their contract or differ in length.
    """
    _check_metric(metric)
    checked = _checked(models, labels, "All models")
    units = Units(clusters, len(labels))
    labels = np.asarray(labels)
    return _confidence_set(
        {name: _of_probs(metric, probs, labels, units) for name, probs in checked.items()},
        units,
        higher_is_better=_higher_is_better(metric, higher_is_better),
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def model_confidence_set_of_scores(
    models: Mapping[str, SampleScores],
    *,
    metric: str = "squared_ece",
    higher_is_better: bool | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> ConfidenceSet:
    """Return the models that may be the best by their scores; see `model_confidence_set`.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: the labels of two models differ, or clusters do not fit them.
    """
    _check_metric(metric)
    scores = list(models.values())
    for other in scores[1:]:
        check_paired(scores[0], other)
    units = Units(clusters, len(scores[0]) if scores else 0)
    return _confidence_set(
        {name: METRICS[metric](found, units) for name, found in models.items()},
        units,
        higher_is_better=_higher_is_better(metric, higher_is_better),
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def _higher_is_better(metric: str | Metric, told: bool | None) -> bool:
    return isinstance(metric, str) and metric in HIGHER_IS_BETTER if told is None else told


def _confidence_set(
    models: Mapping[str, _Statistic],
    units: Units,
    *,
    higher_is_better: bool,
    n_resamples: int,
    level: float,
    seed: int,
) -> ConfidenceSet:
    check_resampling(n_resamples, level)
    names = list(models)
    values = {name: of.value for name, of in models.items()}
    noise = np.empty((n_resamples, len(names)))
    if len(names) > 1:
        start = 0
        for times in units.draws(n_resamples, seed):
            for at, of in enumerate(models.values()):
                noise[start : start + len(times), at] = of.noise(times)
            start += len(times)
    p_values = eliminate(
        np.array([values[name] for name in names]) * (-1 if higher_is_better else 1), noise
    )
    by_name = dict(zip(names, p_values.tolist(), strict=True))
    order = sorted(names, key=lambda name: -values[name] if higher_is_better else values[name])
    return ConfidenceSet(
        members=tuple(name for name in order if by_name[name] >= 1 - level),
        excluded=tuple(name for name in order if by_name[name] < 1 - level),
        values=values,
        p_values=by_name,
        n=len(units.of),
        n_clusters=len(units),
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def eliminate(losses: Doubles, noise: Doubles) -> Doubles:
    """Return the p-value (J,) of each model's membership in the model confidence set.

    Args:
        losses: (J,) lower is better.
        noise: (R, J) values of shared draws, which vary as the losses do; their mean and sign are
            of no account.
    """
    n_models = len(losses)
    p_values = np.ones(n_models)
    noise = noise - noise.mean(axis=0) if n_models > 1 else noise
    apart = losses[:, None] - losses  # (J, J)
    drawn = np.abs(noise[:, :, None] - noise[:, None, :])  # (R, J, J)
    error = np.sqrt(np.square(drawn).mean(axis=0))
    sure = error <= _ROUNDING
    np.divide(drawn, error, out=drawn, where=~sure)
    drawn[:, sure] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(np.abs(apart) > _ROUNDING, apart / np.where(sure, 0.0, error), 0.0)
    left, largest = np.arange(n_models), 0.0
    while len(left) > 1:
        inside = np.ix_(left, left)
        observed = far[inside]
        most = drawn[:, left[:, None], left].max(axis=(1, 2))
        beyond = np.count_nonzero(most >= observed.max())
        largest = max(largest, (1 + beyond) / (1 + len(noise)))
        worst = int(observed.max(axis=1).argmax())
        p_values[left[worst]] = largest
        left = np.delete(left, worst)
    return p_values
