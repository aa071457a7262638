"""Near-copies by a model's own image features, where a perceptual hash is blind. Torch-free.

A crop or a turn moves every cell that a hash looks at, and a model's features as much as the model
was not taught to pass over them. What counts as a copy is derived from the data. Two images of
different classes are no copies of each other: the threshold is the cosine that at most one in
100,000 such pairs passes. A pair above it is a near-copy if each is the other's nearest, and nearer
by far than the next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
#: Of pairs of different classes, at most this share may pass the threshold.
FALSE_ALARMS = 1e-5
#: A copy's distance, 1 − cosine, is at most this share of the next nearest image's.
RATIO = 0.5
#: Where there are more pairs than these, so many are drawn with a fixed seed.
MOST_PAIRS = 4_000_000
_ROWS = 512


@dataclass(frozen=True)
class Alike:
    """Pairs of two sets whose features say that they are one picture.

    Attributes:
        pairs: (position in the one, position in the other, cosine).
        n_different: pairs of different classes that it was derived from; with less than 100,000 it
            is the largest cosine among them.
    """

    pairs: tuple[tuple[int, int, float], ...]
    threshold: float
    n_different: int


def alike(
    one: Features,
    other: Features,
    one_labels: NDArray[Any],
    other_labels: NDArray[Any],
    *,
    ratio: float = RATIO,
) -> Alike:
    """Images of one set that the other has nearly too.

    Args:
        one: (N, D), L2-normalised.
        other: (M, D), of the same model.
        one_labels: (N,) classes.
        other_labels: (M,) classes.
        ratio: of distances, see `RATIO`.
    """
    threshold, n = threshold_of(one, other, one_labels, other_labels)
    if not n or not len(one) or not len(other):
        return Alike((), threshold, n)
    there, next_there = _nearest(one, other)
    here, next_here = _nearest(other, one)
    pairs = []
    for a, b in enumerate(there):
        if here[b] != a:
            continue
        cosine = float(one[a] @ other[b])
        rival = max(next_there[a], next_here[b])
        if cosine > threshold and 1 - cosine <= ratio * (1 - rival):
            pairs.append((a, int(b), cosine))
    return Alike(tuple(pairs), threshold, n)


def threshold_of(
    one: Features,
    other: Features,
    one_labels: NDArray[Any],
    other_labels: NDArray[Any],
    false_alarms: float = FALSE_ALARMS,
) -> tuple[float, int]:
    """The cosine that at most so many pairs of different classes pass, and how many were looked at.

    Where there is no pair of different classes it is 1, which none passes.
    """
    n = len(one) * len(other)
    if n <= MOST_PAIRS:
        a, b = np.divmod(np.arange(n), max(len(other), 1))
    else:
        rng = np.random.default_rng(0)
        a, b = (rng.integers(len(side), size=MOST_PAIRS) for side in (one, other))
    differ = one_labels[a] != other_labels[b]
    a, b = a[differ], b[differ]
    if not len(a):
        return 1.0, 0
    cosines = np.concatenate(
        [
            np.einsum("nd,nd->n", one[a[at : at + 65536]], other[b[at : at + 65536]])
            for at in range(0, len(a), 65536)
        ]
    )
    passing = int(false_alarms * len(cosines))
    return float(np.partition(cosines, -1 - passing)[-1 - passing]), len(cosines)


def _nearest(one: Features, other: Features) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each of `one` the nearest in `other`, and the cosine of the second nearest (-1: none)."""
    at = np.empty(len(one), np.int64)
    second = np.full(len(one), -1, np.float32)
    for start in range(0, len(one), _ROWS):
        cosines = one[start : start + _ROWS] @ other.T
        rows = np.arange(len(cosines))
        best = cosines.argmax(axis=1)
        at[start : start + _ROWS] = best
        if cosines.shape[1] > 1:
            cosines[rows, best] = -2
            second[start : start + _ROWS] = cosines.max(axis=1)
    return at, second
