"""Checked inputs, the softmax, how errors are binned, and the one function that makes bin edges.

Alphabet: N samples, C classes, K bins that came out, R resamples. Probabilities, confidences,
edges and errors are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from calift_core.errors import PredictionsError, SpecError, UnknownNameError

Scheme = Literal["equal_mass", "equal_width"]
Norm = Literal["l1", "l2", "max"]
Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

ROW_SUM_TOLERANCE = 1e-3
#: Smallest normal float32: keeps the NLL finite where a probability rounds to zero.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Turn logits into probabilities, in float32 or better.

    Args:
        logits: (N, C), natural-log scale, finite; half precision is widened first.
        temperature: positive divisor of the logits; 1 leaves them as they are.

    Returns:
        (N, C) rows that sum to one; float64 for float64 logits, float32 otherwise.

    Raises:
        SpecError: the temperature is not a positive finite number.
        PredictionsError: logits are not a finite (N, C) array.
    """
    check_temperature(temperature)
    wide = check_logits(logits)
    shifted = wide - wide.max(axis=1, keepdims=True)  # (N, C)
    if temperature != 1.0:
        shifted /= temperature
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return cast(Floats, shifted)


def check_temperature(temperature: float) -> None:
    """Raise SpecError unless `temperature` is a positive finite number."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise SpecError(f"temperature must be positive and finite, got {temperature!r}")


def check_logits(logits: Floats) -> Floats:
    """Return logits (N, C) as float32 or float64, or raise PredictionsError."""
    array = np.asarray(logits)
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise PredictionsError(
            f"logits must be floats of shape (N, C), got {array.dtype} of shape {array.shape}"
        )
    wide = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    if not np.isfinite(wide).all():
        raise PredictionsError("logits must be finite, got NaN or infinity")
    return wide


def check_labels(labels: Ints, n: int, n_classes: int) -> npt.NDArray[np.int64]:
    """Return labels (N,) as int64 in [0, n_classes), or raise PredictionsError."""
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise PredictionsError(
            f"labels must be integers of shape (N,), got {array.dtype} of shape {array.shape}"
        )
    if len(array) != n:
        raise PredictionsError(f"labels must be as many as the samples ({n}), got {len(array)}")
    if n and (array.min() < 0 or array.max() >= n_classes):
        raise PredictionsError(
            f"labels must lie in [0, {n_classes - 1}], got {array.min()} to {array.max()}"
        )
    return array.astype(np.int64, copy=False)


def two_columns(probs: Any) -> Floats:
    """Probabilities (N, C); one column p becomes 1 − p and p.

    Raises:
        PredictionsError: a single column lies outside [0, 1].
    """
    if hasattr(probs, "detach"):
        probs = probs.detach().cpu()
    found = np.asarray(probs, dtype=np.float64)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        return found
    if not ((found >= 0) & (found <= 1)).all():
        raise PredictionsError(
            "probabilities of one column must lie in [0, 1], got values from "
            f"{found.min():.3g} to {found.max():.3g}"
        )
    return np.stack([1 - found, found], axis=1)


def logits_of(probs: Floats) -> npt.NDArray[np.float32]:
    """Logits log p (N, C), floored at `SMALLEST_PROBABILITY`, so that their softmax is probs."""
    return np.asarray(np.log(np.maximum(probs, SMALLEST_PROBABILITY)), dtype=np.float32)


def check_probs(probs: Floats) -> Floats:
    """Return probabilities (N, C), or raise PredictionsError.

    Every row must be finite, not negative and sum to one within 1e-3: logits given by mistake do
    not pass, and nothing is ever converted silently.
    """
    array = np.asarray(probs)
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
        raise PredictionsError(
            f"probs must be floats of shape (N, C), got {array.dtype} of shape {array.shape}"
        )
    wide = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    # NaN and infinities survive the sum; as a matrix product it is the fastest.
    with np.errstate(invalid="ignore", over="ignore"):
        sums = wide @ np.ones(wide.shape[1], dtype=wide.dtype)
    if not np.isfinite(sums).all():
        raise PredictionsError("probs must be finite, got NaN or infinity")
    low = float(array.min())
    if low < 0:
        raise PredictionsError(
            f"probs must not be negative, got {low:g}.", hint="Are these logits? See softmax()."
        )
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    if abs(worst - 1) > ROW_SUM_TOLERANCE:
        raise PredictionsError(
            f"each row of probs must sum to 1 ± {ROW_SUM_TOLERANCE:g}, got {worst:g}.",
            hint="Are these logits? See softmax().",
        )
    return array


def check_confidences(confidences: Floats, correct: npt.NDArray[Any]) -> tuple[Doubles, Bools]:
    """Return confidences (N,) as float64 in [0, 1] and correct (N,) as bool, or raise.

    Raises:
        PredictionsError: lengths differ, nothing is there, or a value is out of range.
    """
    values = np.asarray(confidences)
    hits = np.asarray(correct)
    if values.ndim != 1 or len(values) == 0 or not np.issubdtype(values.dtype, np.floating):
        raise PredictionsError(
            "confidences must be floats of shape (N,) with N ≥ 1, got "
            f"{values.dtype} of shape {values.shape}"
        )
    if hits.shape != values.shape or hits.dtype != np.bool_:
        raise PredictionsError(
            f"correct must be bool of shape {values.shape}, got {hits.dtype} of shape {hits.shape}"
        )
    low, high = float(values.min()), float(values.max())
    # Written so that NaN fails; a row of float32 may round to a hair above one.
    if not (low >= 0 and high <= 1 + ROW_SUM_TOLERANCE):
        raise PredictionsError(f"confidences must lie in [0, 1], got {low:g} to {high:g}")
    return np.minimum(values.astype(np.float64), 1.0), hits


def rank_of_label(values: Floats, labels: Ints) -> npt.NDArray[np.int64]:
    """Return how many classes come before each label, (N,); 0 is first.

    Args:
        values: (N, C) logits or probabilities; of tied classes the smaller index comes first, as in
            `argmax`.
        labels: (N,) integers in [0, C).
    """
    own = values[np.arange(len(values)), labels][:, None]  # (N, 1)
    rank: npt.NDArray[np.int64] = np.count_nonzero(values > own, axis=1).astype(np.int64)
    tied = np.flatnonzero(np.count_nonzero(values == own, axis=1) > 1)
    if tied.size:
        before = np.arange(values.shape[1]) < labels[tied, None]
        rank[tied] += np.count_nonzero((values[tied] == own[tied]) & before, axis=1)
    return rank


@dataclass(frozen=True)
class Binning:
    """How a binned calibration error is measured.

    Attributes:
        n_bins: bins asked for, at least 1; `equal_mass` gives fewer when ties or few samples make
            it so.
        scheme: `equal_mass` cuts at sample quantiles, `equal_width` cuts [0, 1] into equal parts.
        norm: of the gaps: `l1` their mean, `l2` their root mean square, `max` the largest.

    Raises:
        SpecError: n_bins < 1.
        UnknownNameError: an unknown scheme or norm.
    """

    n_bins: int = 15
    scheme: Scheme = "equal_mass"
    norm: Norm = "l1"

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.n_bins < 1:
            raise SpecError(f"n_bins must be ≥ 1, got {self.n_bins}")
        if self.scheme not in get_args(Scheme):
            raise UnknownNameError("binning scheme", self.scheme, get_args(Scheme))
        if self.norm not in get_args(Norm):
            raise UnknownNameError("norm", self.norm, get_args(Norm))


DEFAULT_BINNING = Binning()


def bin_edges(confidences: Floats, binning: Binning = DEFAULT_BINNING) -> Doubles:
    """Make the edges that the metrics and the diagrams share.

    Bins are right-inclusive, `(lower, upper]`; the first also takes 0, the last ends at 1.
    `equal_width` cuts [0, 1] into `n_bins` equal parts. `equal_mass` cuts at sample quantiles: each
    inner edge is the largest confidence of its bin, so tied confidences are never parted and bins
    merge where ties would force a cut through them.

    Args:
        confidences: (N,) fractions.
        binning: how many bins, and how they are cut; its norm plays no part.

    Returns:
        (K + 1,) strictly increasing edges from 0 to 1, K ≤ n_bins.

    Raises:
        PredictionsError: no confidences.
    """
    values = np.asarray(confidences, dtype=np.float64)
    if values.size == 0:
        raise PredictionsError("confidences must hold at least one sample, got none")
    return edges_of_sorted(np.sort(values) if binning.scheme == "equal_mass" else values, binning)


def edges_of_sorted(ordered: Floats, binning: Binning) -> Doubles:
    """Return the edges (K + 1,) of ascending values (N,), N ≥ 1; see `bin_edges`."""
    n_bins = binning.n_bins
    if binning.scheme == "equal_width":
        return np.arange(n_bins + 1) / n_bins
    cuts = -(-np.arange(1, n_bins) * len(ordered) // n_bins) - 1  # last index of each bin
    inner = np.unique(ordered[cuts[cuts >= 0]].astype(np.float64))
    # An edge at the maximum would leave the last bin empty, one at 0 would have no width.
    inner = inner[(inner < ordered[-1]) & (inner > 0)]
    return np.concatenate([[0.0], inner, [1.0]])


def assign_bins(confidences: Floats, edges: Floats) -> npt.NDArray[np.int64]:
    """Return the index (N,) in [0, K) of the right-inclusive bin of each confidence.

    Args:
        confidences: (N,) fractions.
        edges: (K + 1,) increasing, from `bin_edges`.
    """
    return np.searchsorted(edges[1:-1], confidences, side="left")


@dataclass(frozen=True)
class Binned:
    """Top-label predictions gathered into bins; K bins, empty ones included.

    Attributes:
        edges: (K + 1,) bin edges.
        count: (K,) samples.
        confidence_sum: (K,) sum of confidences.
        correct_sum: (K,) number of right predictions.
    """

    edges: Doubles
    count: Doubles
    confidence_sum: Doubles
    correct_sum: Doubles

    def filled(self) -> Binned:
        """Drop the empty bins; their edges are lost, so use it for numbers only."""
        keep = self.count > 0
        return Binned(
            self.edges[np.concatenate([[True], keep])],
            self.count[keep],
            self.confidence_sum[keep],
            self.correct_sum[keep],
        )

    @property
    def weights(self) -> Doubles:
        """(K,) share of the samples."""
        return self.count / float(self.count.sum())

    @property
    def mean_confidence(self) -> Doubles:
        """(K,) mean confidence; NaN where a bin is empty."""
        return _divide(self.confidence_sum, self.count)

    @property
    def accuracy(self) -> Doubles:
        """(K,) share of right predictions; NaN where a bin is empty."""
        return _divide(self.correct_sum, self.count)

    @property
    def gap(self) -> Doubles:
        """(K,) mean confidence minus accuracy: positive where over-confident."""
        return _divide(self.confidence_sum - self.correct_sum, self.count)


def _divide(numerator: Doubles, denominator: Doubles) -> Doubles:
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def gather(confidences: Doubles, correct: Bools, binning: Binning) -> Binned:
    """Bin checked confidences (N,) and correct (N,); see `bin_edges`."""
    edges = bin_edges(confidences, binning)
    index = assign_bins(confidences, edges)
    size = len(edges) - 1
    return Binned(
        edges,
        sum_by(index, np.ones(len(index)), size),
        sum_by(index, confidences, size),
        sum_by(index, correct, size),
    )


def sum_by(index: Ints, values: npt.NDArray[Any], size: int) -> Doubles:
    """Sum values (N,) that share an index (N,) in [0, size); (size,) totals."""
    return np.bincount(index, weights=values, minlength=size).astype(np.float64, copy=False)


def error_of_gaps(gap: Doubles, weights: Doubles, norm: Norm) -> Doubles:
    """Fold gaps (..., K) of filled bins into a calibration error (...).

    l1 is Σ w|gap|, l2 is √(Σ w gap²), max is the largest |gap|.
    """
    if norm == "l1":
        error = np.abs(gap) @ weights
    elif norm == "l2":
        error = np.sqrt(np.square(gap) @ weights)
    else:
        error = np.abs(gap).max(axis=-1)
    return error
