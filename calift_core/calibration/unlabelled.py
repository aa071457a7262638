"""What accuracy can be expected on images without labels, and whether they have drifted.

All of it needs labelled ID data and calibrated probabilities. None of it is a measurement: each way
of estimating fails on some shift, so `judge` says how far each was off on shifts with labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from calift_core.calibration.bins import Bools, Doubles, Floats
from calift_core.errors import PredictionsError, SpecError

AVERAGE = "average_confidence"
DIFFERENCE = "difference_of_confidences"
THRESHOLD = "thresholded_confidence"
ESTIMATORS = (AVERAGE, DIFFERENCE, THRESHOLD)

#: Rows of each side that a distance is computed on at most: its memory is their product.
DRIFT_ROWS = 1_000


@dataclass(frozen=True)
class Labelled:
    """Confidences (N,) of the predicted classes on ID data, and whether they were right (N,)."""

    confidences: Doubles
    correct: Bools

    def __post_init__(self) -> None:
        if len(self.confidences) != len(self.correct) or not len(self.correct):
            raise PredictionsError(
                "confidences and correct must be (N,) of the same N ≥ 1, got "
                f"{np.shape(self.confidences)} and {np.shape(self.correct)}"
            )


@dataclass(frozen=True)
class AccuracyEstimate:
    """An expected accuracy, a fraction, with a 95 % interval of what sampling leaves open."""

    estimator: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class EstimatorError:
    """How far an estimator was off on shifts with labels, in fractions."""

    estimator: str
    errors: Mapping[str, float]

    @property
    def mean_error(self) -> float:
        """Mean of the absolute errors; infinite where there was no shift to evaluate it on."""
        return float(np.mean(np.abs(list(self.errors.values())))) if self.errors else float("inf")


def expected_accuracy(labelled: Labelled, confidences: Floats) -> dict[str, float]:
    """Expected accuracies of a set without labels, by estimator.

    - `average_confidence`: the mean confidence; right where the model stays calibrated.
    - `difference_of_confidences`: ID accuracy less the fall of the mean confidence (Guillory et al.
      2021).
    - `thresholded_confidence`: the share above the confidence that as many ID images lie above as
      are right (ATC, Garg et al. 2022). Images that tie with it count in part, as ID images do.

    Args:
        labelled: ID data that the calibrator was not fitted on.
        confidences: (M,) calibrated, of the set.

    Raises:
        PredictionsError: there is no image, or a confidence is not in [0, 1].
    """
    target = _checked(confidences)
    return {
        AVERAGE: float(target.mean()),
        DIFFERENCE: _difference(labelled, target),
        THRESHOLD: _thresholded(labelled, target),
    }


def _checked(confidences: Floats) -> Doubles:
    target = np.asarray(confidences, dtype=np.float64)
    if target.ndim != 1 or not len(target):
        raise PredictionsError(f"confidences must be (M,) with M ≥ 1, got {target.shape}")
    if not ((target >= 0) & (target <= 1)).all():
        raise PredictionsError("confidences must lie in [0, 1]")
    return target


def _difference(labelled: Labelled, target: Doubles) -> float:
    fall = labelled.confidences.mean() - target.mean()
    return float(np.clip(labelled.correct.mean() - fall, 0, 1))


def _thresholded(labelled: Labelled, target: Doubles) -> float:
    own, n = labelled.confidences, len(labelled.confidences)
    right = int(np.count_nonzero(labelled.correct))
    if right == 0:
        return 0.0
    # The right-th largest ID confidence. As large a part of what ties with it counts as is needed
    # for as many to lie above as are right.
    at = np.partition(own, n - right)[n - right]
    part = (right - np.count_nonzero(own > at)) / np.count_nonzero(own == at)
    return float(np.mean(target > at) + part * np.mean(target == at))


def estimate_accuracy(
    labelled: Labelled, confidences: Floats, *, n_resamples: int = 500, seed: int = 0
) -> list[AccuracyEstimate]:
    """`expected_accuracy` with percentile intervals over draws of both sets of images.

    Raises:
        PredictionsError: as there.
        SpecError: n_resamples < 1.
    """
    if n_resamples < 1:
        raise SpecError(f"n_resamples must be ≥ 1, got {n_resamples}")
    target, rng = _checked(confidences), np.random.default_rng(seed)
    drawn = []
    for _ in range(n_resamples):
        own = rng.integers(len(labelled.correct), size=len(labelled.correct))
        again = Labelled(labelled.confidences[own], labelled.correct[own])
        drawn.append(expected_accuracy(again, rng.choice(target, size=len(target))))
    values = expected_accuracy(labelled, target)
    ends = {
        name: np.quantile([draw[name] for draw in drawn], [0.025, 0.975]) for name in ESTIMATORS
    }
    return [
        AccuracyEstimate(name, values[name], float(ends[name][0]), float(ends[name][1]))
        for name in ESTIMATORS
    ]


def validate_estimators(labelled: Labelled, shifts: Mapping[str, Labelled]) -> list[EstimatorError]:
    """How far every estimator is off on shifts whose labels are known."""
    found = {
        name: (expected_accuracy(labelled, shift.confidences), float(shift.correct.mean()))
        for name, shift in shifts.items()
    }
    return [
        EstimatorError(one, {name: values[one] - truth for name, (values, truth) in found.items()})
        for one in ESTIMATORS
    ]


def recommended(validated: list[EstimatorError]) -> str:
    """The estimator with the smallest mean error; the average confidence unless one is better."""
    by_name = {one.estimator: one.mean_error for one in validated}
    best = min(ESTIMATORS, key=lambda name: by_name.get(name, float("inf")))
    return best if by_name.get(best, np.inf) < by_name.get(AVERAGE, np.inf) else AVERAGE


@dataclass(frozen=True)
class Drift:
    """Whether two sets are alike.

    Attributes:
        distance: the squared energy distance, in units of the values; 0 where the sets are of one
            distribution, but for noise.
        p_value: share of relabellings with a distance as large; never 0.
    """

    distance: float
    p_value: float
    n_reference: int
    n: int


def energy_drift(
    reference: Floats, values: Floats, *, n_permutations: int = 499, seed: int = 0
) -> Drift:
    """The energy distance between two sets of vectors, with a permutation test.

    `2 E|X − Y| − E|X − X'| − E|Y − Y'|` (Székely & Rizzo 2013) over at most `DRIFT_ROWS` drawn rows
    of each. It is 0 for two equal distributions alone.

    Args:
        reference: (N, K).
        values: (M, K).

    Raises:
        PredictionsError: K differs, or a side has fewer than 2 rows.
        SpecError: n_permutations < 1.
    """
    if n_permutations < 1:
        raise SpecError(f"n_permutations must be ≥ 1, got {n_permutations}")
    x, y = np.asarray(reference, np.float64), np.asarray(values, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise PredictionsError(
            "reference and values must be (N, K) and (M, K) with 2 rows or more, got "
            f"{x.shape} and {y.shape}"
        )
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(seed)
    x, y = _drawn_rows(x, rng), _drawn_rows(y, rng)
    n, m = len(x), len(y)
    both = np.concatenate([x, y])
    distances = cdist(both, both)
    total = distances.sum()

    def distance(first: Doubles) -> float:
        """With s = 1 in the first set: the three means from one product."""
        inner = first @ distances
        within_x = float(inner @ first)
        across = float(inner.sum()) - within_x
        within_y = float(total) - within_x - 2 * across
        return 2 * across / (n * m) - within_x / n**2 - within_y / m**2

    own = np.zeros(n + m)
    own[:n] = 1.0
    found = distance(own)
    as_large = sum(distance(rng.permutation(own)) >= found - 1e-12 for _ in range(n_permutations))
    return Drift(found, (1 + as_large) / (1 + n_permutations), n, m)


@dataclass(frozen=True)
class Familiarity:
    """How near a set lies to what is known: the ID data and the labelled shifts.

    Squared energy distances without bias, which may be a little below 0.

    Attributes:
        error: its standard error, for the set's own sampling.
        largest: the largest of a labelled shift to the ID data.
        usual: the median of the labelled shifts' distances to their own nearest known set.
    """

    distance: float
    error: float
    largest: float
    nearest: str
    nearest_distance: float
    nearest_error: float
    usual: float

    @property
    def further(self) -> bool:
        """Whether it is further from ID data than every known shift, beyond two standard errors."""
        return self.distance - 2 * self.error > self.largest

    @property
    def unlike(self) -> bool:
        """Whether it is further from its nearest than is usual among known shifts, likewise."""
        return self.nearest_distance - 2 * self.nearest_error > self.usual


def familiarity(
    reference: Floats, shifts: Mapping[str, Floats], values: Floats, *, seed: int = 0
) -> Familiarity | None:
    """Compare a set of vectors with ID data and with shifts whose labels are known.

    Args:
        reference: (N, K) of ID data, called `ID` in the answer.
        shifts: name → (N, K).
        values: (M, K).

    Returns:
        None where there is no shift.
    """
    from scipy.spatial.distance import cdist

    if not shifts:
        return None
    rng = np.random.default_rng(seed)
    known = {"ID": _drawn_rows(reference, rng)}
    known |= {name: _drawn_rows(rows, rng) for name, rows in shifts.items()}
    new = _drawn_rows(values, rng)

    def within(rows: Doubles) -> float:
        return float(cdist(rows, rows).sum()) / max(1, len(rows) * (len(rows) - 1))

    own = {name: within(rows) for name, rows in known.items()}
    among = {
        (a, b): 2 * float(cdist(known[a], known[b]).mean()) - own[a] - own[b]
        for a, b in combinations(known, 2)
    }
    apart = cdist(new, new).sum(axis=1) / max(1, len(new) - 1)
    found, error = {}, {}
    for name, rows in known.items():
        across = cdist(new, rows).mean(axis=1)
        found[name] = float((2 * across - apart).mean()) - own[name]
        error[name] = 2 * float((across - apart).std()) / len(new) ** 0.5
    near = [min(v for pair, v in among.items() if name in pair) for name in shifts]
    nearest = min(found, key=found.__getitem__)
    return Familiarity(
        distance=found["ID"],
        error=error["ID"],
        largest=max(among["ID", name] for name in shifts),
        nearest=nearest,
        nearest_distance=found[nearest],
        nearest_error=error[nearest],
        usual=float(np.median(near)),
    )


def _drawn_rows(rows: Floats, rng: np.random.Generator) -> Doubles:
    every: Doubles = np.asarray(rows, np.float64)
    if len(every) <= DRIFT_ROWS:
        return every
    return every[rng.choice(len(every), DRIFT_ROWS, replace=False)]
