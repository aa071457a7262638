"""Comparisons in pairs: two models on the very same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm as normal

from calift_core.calibration import measures
from calift_core.calibration.bins import (
    Doubles,
    Floats,
    Ints,
    assign_bins,
    bin_edges,
    check_labels,
    check_probs,
    top_label,
)
from calift_core.calibration.uncertainty import check_resampling
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Metric = Callable[[Floats, Ints], float]
# Maps how often each sample was drawn, (R, N), to R values of a metric.
_Resampled = Callable[[Doubles], Doubles]

_CELLS_AT_ONCE = 4_000_000


def _mean_of(values: Doubles) -> _Resampled:
    return lambda drawn: (drawn @ values) / drawn.sum(axis=1)


def _accuracy(probs: Floats, labels: Ints) -> _Resampled:
    return _mean_of(top_label(probs, labels)[1].astype(np.float64))


def _nll(probs: Floats, labels: Ints) -> _Resampled:
    own = probs[np.arange(len(probs)), labels].astype(np.float64)
    return _mean_of(-np.log(np.maximum(own, measures.SMALLEST_PROBABILITY)))


def _brier(probs: Floats, labels: Ints) -> _Resampled:
    own = probs[np.arange(len(probs)), labels].astype(np.float64)
    squares = np.einsum("nc,nc->n", probs, probs, dtype=np.float64)
    return _mean_of(squares - 2 * own + 1)


def _ece(probs: Floats, labels: Ints) -> _Resampled:
    confidences, correct = top_label(probs, labels)
    edges = bin_edges(confidences)
    member = np.zeros((len(confidences), len(edges) - 1))  # (N, K): residual in its own bin
    member[np.arange(len(confidences)), assign_bins(confidences, edges)] = confidences - correct
    return lambda drawn: np.abs(drawn @ member).sum(axis=1) / drawn.sum(axis=1)


METRICS: dict[str, Callable[[Floats, Ints], _Resampled]] = {
    "accuracy": _accuracy,
    "brier": _brier,
    "ece": _ece,
    "nll": _nll,
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

    Both models keep the same draw, so what is hard for both cancels. The draws are re-centred on
    the observed difference before the interval is read off (basic bootstrap): resampling inflates
    a calibration error, by nearly the same amount for both. Bins of `ece` (15, equal-mass, l1) are
    cut once per model.

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
    check_resampling(n_resamples, level)
    a, b = check_probs(a), check_probs(b)
    if a.shape != b.shape:
        raise PredictionsError(
            f"paired probs must have one shape, got {a.shape} and {b.shape}",
            hint="Both models must be evaluated on the same samples and classes.",
        )
    labels = check_labels(labels, *a.shape)
    unit, n_units = _units(clusters, len(labels))
    if isinstance(metric, str):
        if metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS)
        of_a, of_b = METRICS[metric](a, labels), METRICS[metric](b, labels)
    else:
        of_a, of_b = _general(metric, a, labels), _general(metric, b, labels)
    once = np.ones((1, len(labels)))
    value_a, value_b = float(of_a(once)[0]), float(of_b(once)[0])
    rng = np.random.default_rng(seed)
    drawn = np.empty(n_resamples)
    rows = max(1, _CELLS_AT_ONCE // len(labels))
    for start in range(0, n_resamples, rows):
        stop = min(start + rows, n_resamples)
        times = np.stack(
            [
                np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)[unit]
                for _ in range(start, stop)
            ]
        ).astype(np.float64)
        drawn[start:stop] = of_a(times) - of_b(times)
    difference = value_a - value_b
    noise = drawn - drawn.mean()
    tail = (1 - level) / 2
    below, above = np.quantile(noise, [tail, 1 - tail])
    # Rounding must not turn two equal models into a difference.
    beyond = np.count_nonzero(np.abs(noise) >= abs(difference) - 1e-12)
    return PairedDifference(
        difference=difference,
        low=float(difference - above),
        high=float(difference - below),
        p_value=(1 + int(beyond)) / (1 + n_resamples),
        standard_error=float(noise.std()),
        a=value_a,
        b=value_b,
        n=len(labels),
        n_clusters=n_units,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def _units(clusters: npt.NDArray[Any] | None, n: int) -> tuple[npt.NDArray[np.int64], int]:
    if clusters is None:
        return np.arange(n), n
    groups = np.asarray(clusters)
    if groups.shape != (n,):
        raise PredictionsError(f"clusters must have shape ({n},), got {groups.shape}")
    distinct, index = np.unique(groups, return_inverse=True)
    return index.astype(np.int64), len(distinct)


def _general(metric: Metric, probs: Floats, labels: Ints) -> _Resampled:
    def values(drawn: Doubles) -> Doubles:
        rows = [np.repeat(np.arange(len(labels)), times.astype(np.int64)) for times in drawn]
        return np.array([metric(probs[index], labels[index]) for index in rows])

    return values


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
    """
    if higher_is_better is None:
        higher_is_better = isinstance(metric, str) and metric in HIGHER_IS_BETTER
    if not models:
        return []
    first = next(iter(models))
    value = {first: 0.0}
    for name in models:
        if name != first:
            value[name] = paired_difference(
                models[name], models[first], labels, metric=metric, n_resamples=1
            ).difference
    ranked = sorted(models, key=lambda name: -value[name] if higher_is_better else value[name])
    groups: list[list[str]] = []
    for name in ranked:
        if groups:
            found = paired_difference(
                models[name],
                models[groups[-1][0]],
                labels,
                metric=metric,
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
    z = float(normal.ppf((1 + level) / 2) + normal.ppf(power))
    return max(1, math.ceil(found.n * (z * found.standard_error / wanted) ** 2))
