"""What accuracy can be expected on images without labels, by six estimators.

All of it needs labelled ID data and calibrated probabilities. None of it is a measurement: each
estimator fails on some shift. Where three or more shifts have labels, an estimator is also
*regressed* on them: a line through the known sets, estimate against accuracy, both in log-odds,
turns its estimate into one without its usual bias (accuracy under shift is close to linear in such
estimates, Miller et al. 2021, Baek et al. 2022). `validate_estimators` says how far each was off on
every known shift; a regressed one never saw the shift that it is tested on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calift_core.calibration.bins import (
    Doubles,
    Floats,
    Ints,
    check_labels,
    check_logits,
    check_probs,
    softmax,
)
from calift_core.calibration.calibrators import fit_temperature
from calift_core.errors import PredictionsError, SpecError

AVERAGE = "average_confidence"
DIFFERENCE = "difference_of_confidences"
THRESHOLD = "thresholded_confidence"
TRANSPORT = "optimal_transport"
AGREEMENT = "initial_agreement"
FUSED = "fused_reference"
ESTIMATORS = (AVERAGE, DIFFERENCE, THRESHOLD, TRANSPORT)
#: Those that read the initial model's logits too.
WITH_INITIAL = (AGREEMENT, FUSED)
#: Behind the name of an estimator that was regressed on the known shifts.
REGRESSED = "_regressed"
#: Known shifts that a line is fitted to at least.
FEWEST_SHIFTS = 3
#: Images that are transported at most: time grows with their cube.
TRANSPORTED = 600
#: Accuracies and estimates are kept this far from 0 and 1 before their log-odds are taken.
_EDGE = 0.005


@dataclass(frozen=True)
class Unlabelled:
    """What a model says of M images.

    Attributes:
        probs: (M, C) calibrated probabilities.
        initial: (M, C) logits of the model that it was fine-tuned from, where they are known.
    """

    probs: Floats
    initial: Floats | None = None

    def __post_init__(self) -> None:
        check_probs(self.probs)
        if self.initial is not None and check_logits(self.initial).shape != self.probs.shape:
            raise PredictionsError(
                f"logits of the initial model must be {self.probs.shape}, got {self.initial.shape}"
            )

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def confidences(self) -> Doubles:
        """(M,) probabilities of the predicted classes."""
        found: Doubles = self.probs.max(axis=1).astype(np.float64)
        return found


@dataclass(frozen=True)
class Labelled(Unlabelled):
    """ID data that the calibrator was not fitted on, or a shift: with its labels (M,)."""

    labels: Ints = ()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.labels, *self.probs.shape)

    @property
    def correct(self) -> Doubles:
        """(M,) 1 where the predicted class is the label, else 0."""
        found: Doubles = (self.probs.argmax(axis=1) == np.asarray(self.labels)).astype(np.float64)
        return found

    @property
    def accuracy(self) -> float:
        """Share of the images that are right."""
        return float(self.correct.mean())


@dataclass(frozen=True)
class _Scores:
    """What the estimators need of each image: (M,) arrays.

    `costs` are of at most `TRANSPORTED` images. `evidence` (M, 2) and `fused` (M,) need the initial
    model.
    """

    confidences: Doubles
    costs: Doubles
    evidence: Doubles | None
    fused: Doubles | None

    def drawn(self, rng: np.random.Generator) -> tuple[_Scores, np.ndarray]:
        """As many images again, drawn with replacement, and which of the set they are."""
        at = rng.integers(len(self.confidences), size=len(self.confidences))
        return _Scores(
            self.confidences[at],
            rng.choice(self.costs, size=len(self.costs)),
            None if self.evidence is None else self.evidence[at],
            None if self.fused is None else self.fused[at],
        ), at


@dataclass(frozen=True)
class AccuracyEstimate:
    """An expected accuracy, a fraction, with a 95 % interval of what sampling leaves open."""

    estimator: str
    value: float
    low: float
    high: float


class AccuracyEstimators:
    """Estimators of accuracy without labels, ready for any number of sets.

    - `average_confidence`: the mean confidence; right where the model stays calibrated.
    - `difference_of_confidences`: ID accuracy less the fall of the mean confidence (Guillory et al.
      2021).
    - `thresholded_confidence`: the share above the confidence that as many ID images lie above as
      are right (ATC, Garg et al. 2022). Images that tie with it count in part, as ID images do.
    - `optimal_transport`: probabilities are moved to labels in the classes' ID shares at the least
      cost; the share that costs less than a threshold, by which ID accuracy comes out right (COTT,
      Lu et al. 2023).
    - `initial_agreement`: the probability that a prediction is right, given its own confidence and
      the initial model's probability of the same class: a logistic regression on ID data.
    - `fused_reference`: what the mean of both models' probabilities, weighted by their confidences,
      gives the predicted class; the initial model's temperature brings it next to the other (FRAP,
      Li et al. 2026).

    Args:
        own: labelled ID data that the calibrator was not fitted on. The last two need its initial
            logits, and those of the sets.
    """

    def __init__(self, own: Labelled) -> None:
        n_classes = own.probs.shape[1]
        self._shares = np.bincount(own.labels, minlength=n_classes) / len(own)
        self._temperatures: tuple[float, float] | None = None
        if own.initial is not None:
            calibrating = fit_temperature(own.initial, own.labels)
            self._temperatures = calibrating, fit_nearest(own.initial, own.probs)
        self._own, self._correct = self._scores(own), own.correct

    @property
    def names(self) -> tuple[str, ...]:
        """Those that can be asked."""
        return ESTIMATORS + (WITH_INITIAL if self._temperatures else ())

    def expected(self, target: Unlabelled) -> dict[str, float]:
        """Estimator → the accuracy to expect, a fraction.

        Raises:
            PredictionsError: C differs, or the initial model's logits are missing.
        """
        return self._values(self._own, self._correct, self._checked(target))

    def estimate(
        self, target: Unlabelled, *, n_resamples: int = 200, seed: int = 0
    ) -> list[AccuracyEstimate]:
        """`expected`, with percentile intervals over draws of both sets of images.

        Raises:
            PredictionsError: as there.
            SpecError: n_resamples < 1.
        """
        if n_resamples < 1:
            raise SpecError(f"n_resamples must be ≥ 1, got {n_resamples}")
        scores, rng = self._checked(target), np.random.default_rng(seed)
        values = self._values(self._own, self._correct, scores)
        drawn = []
        for _ in range(n_resamples):
            own, at = self._own.drawn(rng)
            drawn.append(self._values(own, self._correct[at], scores.drawn(rng)[0]))
        ends = {n: np.quantile([draw[n] for draw in drawn], [0.025, 0.975]) for n in values}
        return [
            AccuracyEstimate(name, value, float(ends[name][0]), float(ends[name][1]))
            for name, value in values.items()
        ]

    def known(self, name: str, labelled: Labelled) -> KnownSet:
        """What the estimators say of a set with labels, beside its accuracy."""
        return KnownSet(name, labelled.accuracy, self.expected(labelled))

    def _checked(self, target: Unlabelled) -> _Scores:
        if target.probs.shape[1] != len(self._shares):
            raise PredictionsError(
                f"probabilities must be of {len(self._shares)} classes, got {target.probs.shape}"
            )
        if self._temperatures is not None and target.initial is None:
            raise PredictionsError("the initial model's logits are known of the ID data alone")
        return self._scores(target)

    def _scores(self, target: Unlabelled) -> _Scores:
        evidence = fused = None
        if self._temperatures is not None and target.initial is not None:
            calibrating, nearest = self._temperatures
            at, predicted = np.arange(len(target)), target.probs.argmax(axis=1)
            own = target.confidences
            first = softmax(target.initial, calibrating)[at, predicted].astype(np.float64)
            evidence = np.stack([np.log(own / (1 - own + 1e-6)), np.log(first + 1e-4)], axis=1)
            reference = softmax(target.initial, nearest)
            theirs = reference.max(axis=1).astype(np.float64)
            share = theirs / (theirs + own)
            fused = share * reference[at, predicted] + (1 - share) * own
        return _Scores(target.confidences, _costs(target.probs, self._shares), evidence, fused)

    @staticmethod
    def _values(own: _Scores, correct: Doubles, target: _Scores) -> dict[str, float]:
        accuracy, confidence = float(correct.mean()), float(target.confidences.mean())
        fall = float(own.confidences.mean()) - confidence
        found = {
            AVERAGE: confidence,
            DIFFERENCE: min(max(accuracy - fall, 0.0), 1.0),
            THRESHOLD: _share_above(own.confidences, target.confidences, accuracy),
            TRANSPORT: _share_above(-own.costs, -target.costs, accuracy),
        }
        if own.evidence is not None and target.evidence is not None and target.fused is not None:
            weights = _logistic(own.evidence, correct)
            odds = _with_ones(target.evidence) @ weights
            found[AGREEMENT] = float(_fraction(odds).mean())
            found[FUSED] = float(target.fused.mean())
        return found


def _share_above(own: Doubles, target: Doubles, accuracy: float) -> float:
    """The share of the target above the value that the share `accuracy` of ID images lies above.

    Images that tie with the value count in part, as ID images do.
    """
    n = len(own)
    above = min(round(accuracy * n), n)
    if above == 0:
        return 0.0
    at = np.partition(own, n - above)[n - above]
    part = (above - np.count_nonzero(own > at)) / np.count_nonzero(own == at)
    return float(np.mean(target > at) + part * np.mean(target == at))


def _costs(probs: Floats, shares: Doubles) -> Doubles:
    """Of at most `TRANSPORTED` images: 1 − the probability of the label that each is moved to."""
    from scipy.optimize import linear_sum_assignment

    rows: Floats = probs
    if len(rows) > TRANSPORTED:
        drawn = np.random.default_rng(0).choice(len(rows), TRANSPORTED, replace=False)
        rows = rows[np.sort(drawn)]
    # As many places a class as its share of ID labels asks for, the largest remainders first.
    quota = shares * len(rows)
    places = np.floor(quota).astype(int)
    rest = np.argsort(places - quota, kind="stable")[: len(rows) - places.sum()]
    places[rest] += 1
    costs = 1 - rows[:, np.repeat(np.arange(len(shares)), places)].astype(np.float64)
    at, place = linear_sum_assignment(costs)
    found: Doubles = costs[at, place]
    return found


def fit_nearest(logits: Floats, probs: Floats) -> float:
    """The temperature in [0.05, 20] where softmax(logits / T) is nearest to probabilities (N, C).

    The least KL divergence from `probs`, by golden sections of log T.
    """
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    own = float((probs * wide).sum(axis=1).mean())

    def cross_entropy(log_t: float) -> float:
        scale = np.exp(-log_t)
        return float(np.log(np.exp(wide * scale).sum(axis=1)).mean()) - own * float(scale)

    low, high, ratio = np.log(0.05), np.log(20.0), (5**0.5 - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if cross_entropy(a) < cross_entropy(b) else (a, high)
    return float(np.exp((low + high) / 2))


def _with_ones(rows: Doubles) -> Doubles:
    return np.concatenate([np.ones((len(rows), 1)), rows], axis=1)


def _logistic(rows: Doubles, right: Doubles) -> Doubles:
    """(1 + K,) weights of a logistic regression by Newton steps; ridge 0.001 on the slopes."""
    x = _with_ones(rows)
    weights, ridge = np.zeros(x.shape[1]), 1e-3 * np.eye(x.shape[1])
    ridge[0, 0] = 1e-9
    for _ in range(25):
        p = _fraction(x @ weights)
        slope = x.T @ (p - right) / len(x) + ridge @ weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(x) + ridge
        step = np.linalg.solve(curvature, slope)
        weights = weights - step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return weights


# ------------------------------------------------------------------ against sets that have labels


@dataclass(frozen=True)
class KnownSet:
    """A set with labels: its accuracy, and what each estimator says of it. Fractions."""

    name: str
    accuracy: float
    estimates: Mapping[str, float]


@dataclass(frozen=True)
class EstimatorError:
    """How far an estimator was off on shifts with labels: estimate − accuracy, in fractions."""

    estimator: str
    errors: Mapping[str, float]

    @property
    def mean_error(self) -> float:
        """Mean of the absolute errors; infinite where there was no shift to evaluate it on."""
        return float(np.mean(np.abs(list(self.errors.values())))) if self.errors else float("inf")

    @property
    def bias(self) -> float:
        """Mean of the errors; nan where there was no shift."""
        return float(np.mean(list(self.errors.values()))) if self.errors else float("nan")


def validate_estimators(own: KnownSet, shifts: Sequence[KnownSet]) -> list[EstimatorError]:
    """How far every estimator is off on shifts whose labels are known.

    Args:
        own: the ID data.
        shifts: from three on, regressed estimators are there too; each shift's error is that of a
            line through the ID data and the *other* shifts.
    """
    names = list(own.estimates)
    found = [
        EstimatorError(name, {s.name: s.estimates[name] - s.accuracy for s in shifts})
        for name in names
    ]
    if len(shifts) < FEWEST_SHIFTS:
        return found
    for name in names:
        errors = {}
        for at, shift in enumerate(shifts):
            others = [own, *shifts[:at], *shifts[at + 1 :]]
            errors[shift.name] = regressed(others, name, shift.estimates[name]) - shift.accuracy
        found.append(EstimatorError(name + REGRESSED, errors))
    return found


def regressed(known: Sequence[KnownSet], estimator: str, value: float) -> float:
    """An estimate, corrected by the line through known sets. A fraction.

    Args:
        known: ID data and shifts, two or more.
        estimator: whose line.
        value: what it says.
    """
    x = _log_odds(np.array([each.estimates[estimator] for each in known]))
    y = _log_odds(np.array([each.accuracy for each in known]))
    spread = x - x.mean()
    squares = float(spread @ spread)
    slope = float(spread @ y) / squares if squares > 1e-12 else 1.0
    return float(_fraction(y.mean() + slope * (_log_odds(np.array(value)) - x.mean())))


def estimate_regressed(
    known: Sequence[KnownSet], error: EstimatorError, value: float
) -> AccuracyEstimate:
    """`regressed`, with an interval that its errors on the known shifts support.

    It is the value ± t₀.₉₇₅ with n − 2 degrees of freedom × the root mean square of the n errors.

    Args:
        known: as there.
        error: of the regressed estimator.
        value: what the estimator says, before the regression.
    """
    from scipy.stats import t

    name = error.estimator.removesuffix(REGRESSED)
    found, errors = regressed(known, name, value), np.array(list(error.errors.values()))
    reach = float(t.ppf(0.975, len(errors) - 2) * np.sqrt(np.mean(errors**2)))
    return AccuracyEstimate(
        error.estimator, found, max(found - reach, 0.0), min(found + reach, 1.0)
    )


def recommended(validated: Sequence[EstimatorError]) -> str:
    """The estimator with the smallest mean error on known shifts.

    The difference of confidences where no other is better: it is right on ID data.
    """
    by_name = {one.estimator: one.mean_error for one in validated}
    best = min(by_name, key=by_name.__getitem__, default=DIFFERENCE)
    return best if by_name.get(best, np.inf) < by_name.get(DIFFERENCE, np.inf) else DIFFERENCE


def _log_odds(fraction: Doubles) -> Doubles:
    inside = np.clip(fraction, _EDGE, 1 - _EDGE)
    odds: Doubles = np.log(inside / (1 - inside))
    return odds


def _fraction(log_odds: Doubles | float) -> Doubles:
    found: Doubles = 1 / (1 + np.exp(-np.asarray(log_odds)))
    return found
