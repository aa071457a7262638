"""Comparisons on the very same samples: of two models in pairs, and of many at once.

Accuracy, NLL, Brier score and confidence are means over samples and are compared by a bootstrap.
A calibration error is no mean: noise adds to an ECE, most where a model is calibrated, so that the
difference of two plug-in errors is too small by an amount that nobody knows. Its square is another
matter, because the noise in a mean square can be taken out exactly. The calibration of two models
is therefore decided on the debiased squared L2 error, `squared_ece`; the ECE is there to be shown.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import Doubles
from calift_core.calibration.confidence_sets import ModelConfidenceSet, confidence_set_of
from calift_core.calibration.scores import SampleScores
from calift_core.calibration.squared import ROUNDING, SquaredDifference, SquaredError, Units
from calift_core.calibration.uncertainty import check_resampling
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Metric = Callable[[SampleScores], float]


class _Statistic(Protocol):
    """A metric of one model on N samples."""

    @property
    def value(self) -> float:
        """On the samples as they are."""

    @property
    def columns(self) -> Doubles:
        """(G, c): what is summed over the units of a draw."""

    def noise_of(self, sums: Doubles) -> Doubles:
        """Map the sums (r, c) of r draws to values (r,) that vary as the metric does.

        Their mean is of no account.
        """


class _Mean:
    def __init__(self, values: Doubles, units: Units) -> None:
        self.value = float(values.mean())
        self.columns = np.column_stack([units.totals(values), units.sizes])

    def noise_of(self, sums: Doubles) -> Doubles:
        return np.asarray(sums[:, 0] / sums[:, 1])


class _General:
    def __init__(self, metric: Metric, scores: SampleScores, units: Units) -> None:
        self.value = float(metric(scores))
        self._metric, self._scores, self._units = metric, scores, units

    def noise(self, times: Doubles) -> Doubles:
        at = np.arange(len(self._scores))
        rows = [np.repeat(at, drawn[self._units.of].astype(np.int64)) for drawn in times]
        return np.array([self._metric(self._scores.take(i)) for i in rows])


METRICS: dict[str, Callable[[SampleScores, Units], _Statistic]] = {
    "accuracy": lambda scores, units: _Mean(scores.correct.astype(np.float64), units),
    "brier": lambda scores, units: _Mean(scores.brier, units),
    "confidence": lambda scores, units: _Mean(scores.confidences, units),
    "nll": lambda scores, units: _Mean(scores.nll, units),
    "squared_ece": lambda scores, units: SquaredError(scores, units),
}
HIGHER_IS_BETTER = frozenset({"accuracy"})


@dataclass(frozen=True)
class PairedDifference:
    """Metric of `a` minus metric of `b` on the same samples.

    Attributes:
        p_value: two-sided, of "no difference".
        a: metric of the first model.
        b: metric of the second model.
        n_clusters: independent units; n when nothing is clustered.
        n_resamples: R; 0 where the interval comes from a formula.
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


def paired_difference(
    a: SampleScores,
    b: SampleScores,
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
        a: scores of the first model, N samples.
        b: scores of the second model on the same samples in the same order.
        metric: a name in `METRICS`, or a function of scores, which is slower.
        clusters: (N,) group of each sample, such as the source image of a corruption; whole groups
            are drawn. None draws single samples.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: the two differ in length or in their labels, or clusters do not fit them.
    """
    check_paired(a, b)
    both = Together(
        {"a": a, "b": b},
        metrics=[metric],
        n_resamples=n_resamples,
        level=level,
        clusters=clusters,
        seed=seed,
    )
    return both.difference("a", "b", metric)


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


def _statistic(metric: str | Metric, scores: SampleScores, units: Units) -> _Statistic | _General:
    if isinstance(metric, str):
        return METRICS[metric](scores, units)
    return _General(metric, scores, units)


# ---- Many models at once -----------------------------------------------------------------------


def model_confidence_set(
    models: Mapping[str, SampleScores],
    *,
    metric: str | Metric = "squared_ece",
    higher_is_better: bool | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    clusters: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> ModelConfidenceSet:
    """Return the models that the data cannot rule out as the best one (Hansen et al. 2011).

    While the largest studentised difference between two models of the set is more than it would be
    were all equally good, the model that is worst against another is left out. How large it would
    be comes from draws that all models share, so the number of models and what they have in common
    are allowed for. Of equally good models all stay, except once in 1 / (1 − level) repeats.

    Args:
        models: name → scores of the same N samples in the same order.
        metric: as in `paired_difference`.
        higher_is_better: of the metric; None takes it from the metric's name, and a function then
            counts as an error, lower being better.
        level: chance that the best model is in the set.
        clusters: as in `paired_difference`.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: two models differ in length or in their labels, or clusters do not fit
            them.
    """
    together = Together(
        models, metrics=[metric], n_resamples=n_resamples, level=level, clusters=clusters, seed=seed
    )
    return together.confidence_set(metric, higher_is_better=higher_is_better)


def _higher_is_better(metric: str | Metric, stated: bool | None) -> bool:
    return isinstance(metric, str) and metric in HIGHER_IS_BETTER if stated is None else stated


class _Sums:
    """The sums of many statistics over the units of draws, in one product of matrices."""

    def __init__(self, statistics: Sequence[_Statistic | _General]) -> None:
        self._statistics = statistics
        columns = [np.empty((0, 0)) if isinstance(s, _General) else s.columns for s in statistics]
        self._ends = np.cumsum([c.shape[1] for c in columns])[:-1]
        summed = [c for c in columns if c.size]
        self._columns = np.concatenate(summed, axis=1) if summed else None

    def noise(self, times: Doubles) -> list[Doubles]:
        """Map how often each unit was drawn, (r, G), to the noise (r,) of each statistic."""
        sums = np.empty((len(times), 0)) if self._columns is None else times @ self._columns
        return [
            one.noise(times) if isinstance(one, _General) else one.noise_of(own)
            for one, own in zip(self._statistics, np.split(sums, self._ends, axis=1), strict=True)
        ]


class Together:
    """Models on the same samples; all that is asked of them comes from one set of draws.

    Draws take most of the time of a comparison, so asking here for many pairs and metrics is much
    cheaper than one by one, and gives the same numbers.

    Args:
        models: name → scores of the same N samples in the same order.
        metrics: names in `METRICS`, or functions of scores, which are slower.
        clusters: as in `paired_difference`.

    Raises:
        SpecError: an argument is not valid; UnknownNameError for a metric's name.
        PredictionsError: two models differ in length or in their labels, or clusters do not fit
            them.
    """

    def __init__(
        self,
        models: Mapping[str, SampleScores],
        *,
        metrics: Sequence[str | Metric] = tuple(METRICS),
        n_resamples: int = 1000,
        level: float = 0.95,
        clusters: npt.NDArray[Any] | None = None,
        seed: int = 0,
    ) -> None:
        for metric in metrics:
            _check_metric(metric)
        check_resampling(n_resamples, level)
        scores = list(models.values())
        for other in scores[1:]:
            check_paired(scores[0], other)
        self.names = list(models)
        self._units = units = Units(clusters, len(scores[0]) if scores else 0)
        self._n_resamples, self._level, self._seed = n_resamples, level, seed
        self._of = {
            metric: [_statistic(metric, found, units) for found in scores] for metric in metrics
        }
        self._drawn: dict[str | Metric, Doubles] = {}

    def noise(self, metric: str | Metric) -> Doubles:
        """Values (R, J) of each model on the shared draws; their mean is of no account."""
        if not self._drawn:
            shape = self._n_resamples, len(self.names)
            self._drawn = {metric: np.zeros(shape) for metric in self._of}
            start = 0
            alone = len(self.names) < 2
            sums = _Sums([one for of in self._of.values() for one in of])
            for times in () if alone else self._units.draws(self._n_resamples, self._seed):
                noise = np.stack(sums.noise(times), axis=1).reshape(len(times), len(self._of), -1)
                for at, key in enumerate(self._of):
                    self._drawn[key][start : start + len(times)] = noise[:, at]
                start += len(times)
        return self._drawn[metric]

    @property
    def n(self) -> int:
        """Samples."""
        return len(self._units.of)

    @property
    def n_clusters(self) -> int:
        """Independent units."""
        return len(self._units)

    def values(self, metric: str | Metric) -> Doubles:
        """Values (J,) of each model on the samples as they are."""
        return np.array([one.value for one in self._of[metric]])

    def difference(self, a: str, b: str, metric: str | Metric) -> PairedDifference:
        """Metric of `a` minus metric of `b`; see `paired_difference`."""
        at, other = self.names.index(a), self.names.index(b)
        of_a, of_b = self._of[metric][at], self._of[metric][other]
        difference, level, n_resamples = of_a.value - of_b.value, self._level, self._n_resamples
        if isinstance(of_a, SquaredError) and isinstance(of_b, SquaredError):
            n_resamples = 0
            error = math.sqrt(SquaredDifference.of(of_a, of_b).variance)
            reach = NormalDist().inv_cdf((1 + level) / 2) * error
            low, high = difference - reach, difference + reach
            far = abs(difference) > ROUNDING
            p_value = (
                math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else float(not far)
            )
        else:
            noise = self.noise(metric)
            drawn = noise[:, at] - noise[:, other]
            drawn -= drawn.mean()
            tail = (1 - level) / 2
            below, above = np.quantile(drawn, [tail, 1 - tail], method="weibull")
            low, high, error = difference - above, difference - below, float(drawn.std())
            beyond = min(
                np.count_nonzero(drawn >= difference - ROUNDING),
                np.count_nonzero(drawn <= difference + ROUNDING),
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
            n=self.n,
            n_clusters=self.n_clusters,
            n_resamples=n_resamples,
            level=level,
            seed=self._seed,
        )

    def confidence_set(
        self, metric: str | Metric, *, higher_is_better: bool | None = None
    ) -> ModelConfidenceSet:
        """Which models may be the best; see `model_confidence_set`."""
        return confidence_set_of(
            self.names,
            self.values(metric),
            self.noise(metric),
            higher_is_better=_higher_is_better(metric, higher_is_better),
            n=self.n,
            n_clusters=self.n_clusters,
            level=self._level,
            seed=self._seed,
        )


class Noisy(Protocol):
    """What `confidence_set_over` needs of J models on one data set, such as `Together`."""

    @property
    def names(self) -> Sequence[str]:
        """The models."""

    @property
    def n(self) -> int:
        """Samples."""

    @property
    def n_clusters(self) -> int:
        """Independent units."""

    def values(self, metric: str) -> Doubles:
        """Values (J,) on the samples as they are."""

    def noise(self, metric: str) -> Doubles:
        """Values (R, J) on shared draws."""


def confidence_set_over(sets: Sequence[Noisy], metric: str) -> ModelConfidenceSet:
    """Which models may be the best by the mean of a metric over several sets of samples.

    Every set counts the same, whatever its size. Sets of the same units must have been drawn with
    one seed, and others with others. As many draws are used as the set with the fewest has.

    Args:
        sets: the same models in the same order on each.
        metric: a name in `METRICS` that all were made with.

    Raises:
        SpecError: there is no set, or the sets are not of the same models.
    """
    if not sets or any(list(one.names) != list(sets[0].names) for one in sets):
        raise SpecError("confidence sets over several data sets must be of the same models on each")
    drawn = [one.noise(metric) for one in sets]
    fewest = min(map(len, drawn))
    return confidence_set_of(
        sets[0].names,
        np.mean([one.values(metric) for one in sets], axis=0),
        np.mean([noise[:fewest] for noise in drawn], axis=0),
        higher_is_better=_higher_is_better(metric, None),
        n=sum(one.n for one in sets),
        n_clusters=sum(one.n_clusters for one in sets),
        level=0.95,
        seed=0,
    )
