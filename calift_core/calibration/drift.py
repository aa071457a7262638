"""Whether sets of vectors are alike: a test of two, and where a new one lies among known ones."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from calift_core.calibration.bins import Doubles, Floats
from calift_core.errors import PredictionsError, SpecError

#: Rows of each side that a distance is computed on at most: its memory is their product.
DRIFT_ROWS = 1_000
_AT_ONCE = 100


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
    reference: Floats, values: Floats, *, n_permutations: int = 1_999, seed: int = 0
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
    rng = np.random.default_rng(seed)
    x, y = _drawn_rows(x, rng), _drawn_rows(y, rng)
    n, m = len(x), len(y)
    both = np.concatenate([x, y])
    distances = _distances(both, both)
    total = float(distances.sum())

    def distance(first: Doubles) -> Doubles:
        """Of relabellings (B, N + M), 1 in the first set and 0 in the other: (B,) distances."""
        inner = first @ distances
        within_x = (inner * first).sum(axis=1)
        across = inner.sum(axis=1) - within_x
        within_y = total - within_x - 2 * across
        found: Doubles = 2 * across / (n * m) - within_x / n**2 - within_y / m**2
        return found

    own = np.zeros((1, n + m))
    own[0, :n] = 1.0
    found, as_large = float(distance(own)[0]), 0
    for start in range(0, n_permutations, _AT_ONCE):
        drawn = np.repeat(own, min(_AT_ONCE, n_permutations - start), axis=0)
        as_large += int((distance(rng.permuted(drawn, axis=1)) >= found - 1e-12).sum())
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


class KnownSets:
    """ID data and shifts whose labels are known, which other sets are held against.

    Args:
        reference: (N, K) of ID data, called `ID` in answers.
        shifts: name → (N, K), one or more.
        seed: of the rows that are drawn.
    """

    def __init__(self, reference: Floats, shifts: Mapping[str, Floats], *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        known = {"ID": reference, **shifts}
        self._rows = {name: _drawn_rows(rows, self._rng) for name, rows in known.items()}
        self._within = {name: _mean_within(rows) for name, rows in self._rows.items()}
        among = {
            (a, b): 2 * float(_distances(self._rows[a], self._rows[b]).mean())
            - self._within[a]
            - self._within[b]
            for a, b in combinations(self._rows, 2)
        }
        near = [min(v for pair, v in among.items() if name in pair) for name in shifts]
        self._largest = max(among["ID", name] for name in shifts)
        self._usual = float(np.median(near))

    def familiarity(self, values: Floats) -> Familiarity:
        """How near a set of vectors (M, K) lies to these."""
        new = _drawn_rows(values, deepcopy(self._rng))
        apart = _distances(new, new).sum(axis=1) / max(1, len(new) - 1)
        found, error = {}, {}
        for name, rows in self._rows.items():
            across = _distances(new, rows).mean(axis=1)
            found[name] = float((2 * across - apart).mean()) - self._within[name]
            error[name] = 2 * float((across - apart).std()) / len(new) ** 0.5
        nearest = min(found, key=found.__getitem__)
        return Familiarity(
            distance=found["ID"],
            error=error["ID"],
            largest=self._largest,
            nearest=nearest,
            nearest_distance=found[nearest],
            nearest_error=error[nearest],
            usual=self._usual,
        )


def _distances(x: Doubles, y: Doubles) -> Doubles:
    """(N, M) Euclidean distances of (N, K) and (M, K)."""
    from scipy.spatial.distance import cdist  # a runner that compares no sets starts without it

    found: Doubles = cdist(x, y)
    return found


def _mean_within(rows: Doubles) -> float:
    return float(_distances(rows, rows).sum()) / max(1, len(rows) * (len(rows) - 1))


def _drawn_rows(rows: Floats, rng: np.random.Generator) -> Doubles:
    every: Doubles = np.asarray(rows, np.float64)
    if len(every) <= DRIFT_ROWS:
        return every
    return every[rng.choice(len(every), DRIFT_ROWS, replace=False)]
