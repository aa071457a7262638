"""What chance alone would show, and how far a calibration error is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calift_core.calibration.bins import (
    Binned,
    Bools,
    Doubles,
    Floats,
    Ints,
    Norm,
    Scheme,
    assign_bins,
    bin_edges,
    check_confidences,
    check_norm,
    check_probs,
    error_of_gaps,
    gather,
    top_label,
)
from calift_core.errors import SpecError

_DRAWS_AT_ONCE = 2_000_000
_GRID = 48


@dataclass(frozen=True)
class NullFloor:
    """The calibration error that a perfectly calibrated model would show on these samples.

    Attributes:
        mean: mean over resamples, a fraction.
        q95: 95 % quantile over resamples.
        values: (R,) the resampled errors.
    """

    mean: float
    q95: float
    values: Doubles


def check_resampling(n_resamples: int, level: float = 0.95) -> None:
    """Raise SpecError unless there is at least one resample and the level lies in (0, 1)."""
    if n_resamples < 1:
        raise SpecError(f"n_resamples must be ≥ 1, got {n_resamples}")
    if not 0 < level < 1:
        raise SpecError(f"level must lie in (0, 1), got {level}")


def null_correct_sums(
    confidences: Doubles, edges: Doubles, n_resamples: int, rng: np.random.Generator
) -> Doubles:
    """Draw the number of right predictions per bin, (R, K), were confidences the truth.

    Every sample is right with probability equal to its own confidence, which is what drawing its
    label from the model's own probabilities means for the predicted class.
    """
    ordered = np.sort(confidences)
    inner = np.searchsorted(ordered, edges[1:-1], side="right")
    bounds = np.concatenate([[0], inner, [len(ordered)]])
    filled = np.flatnonzero(np.diff(bounds) > 0)
    sums = np.zeros((n_resamples, len(bounds) - 1))
    narrow = ordered.astype(np.float32)
    rows = max(1, _DRAWS_AT_ONCE // len(ordered))
    for start in range(0, n_resamples, rows):
        stop = min(start + rows, n_resamples)
        right = rng.random((stop - start, len(ordered)), dtype=np.float32) < narrow
        for index in filled:
            sums[start:stop, index] = np.count_nonzero(
                right[:, bounds[index] : bounds[index + 1]], axis=1
            )
    return sums


def null_floor_from_confidence(
    confidences: Floats,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    seed: int = 0,
) -> NullFloor:
    """Return the floor for confidences (N,) in the predicted class; see `null_floor`."""
    check_norm(norm)
    check_resampling(n_resamples)
    values, _ = check_confidences(confidences, np.ones(np.shape(confidences), dtype=np.bool_))
    edges = bin_edges(values, n_bins, scheme)
    index = assign_bins(values, edges)
    count = np.bincount(index, minlength=len(edges) - 1)
    filled = count > 0
    total = np.bincount(index, weights=values, minlength=len(edges) - 1)
    sums = null_correct_sums(values, edges, n_resamples, np.random.default_rng(seed))
    gap = (total - sums)[:, filled] / count[filled]  # (R, K)
    errors = error_of_gaps(gap, count[filled] / len(values), norm)
    return NullFloor(float(errors.mean()), float(np.quantile(errors, 0.95)), errors)


def null_floor(
    probs: Floats,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    seed: int = 0,
) -> NullFloor:
    """Return what the calibration error would read if the model were perfectly calibrated.

    Labels are drawn anew from the model's own probabilities, bins stay: an observed error below
    `q95` cannot be told from zero (consistency resampling, Bröcker & Smith 2007).

    Args:
        probs: (N, C), rows sum to one. Labels play no part.
        n_bins: bins asked for.
        scheme: `equal_mass` or `equal_width`.
        norm: l1, l2 or max.
        n_resamples: R, times the labels are drawn.
        seed: of the draws; equal seeds give equal floors.

    Raises:
        SpecError: an argument is not valid.
        PredictionsError: probs break their contract.
    """
    return null_floor_from_confidence(
        check_probs(probs).max(axis=1),
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        n_resamples=n_resamples,
        seed=seed,
    )


def interval_from_confidence(
    confidences: Floats,
    correct: Bools,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return (low, high) for confidences (N,) against correct (N,); see `interval`."""
    check_norm(norm)
    check_resampling(n_resamples, level)
    full = gather(*check_confidences(confidences, correct), n_bins, scheme).filled()
    return _invert(full, norm, n_resamples, level, np.random.default_rng(seed))


def interval(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval that covers the true binned calibration error.

    Target: the error of the population in these very bins, the norm over bins of
    |E[confidence − correct | bin]| with the bins' shares as weights. What varies inside a bin is
    not part of it.

    The plug-in error is biased upwards, so a percentile bootstrap around it misses the truth (it
    adds the bias a second time). Here a test is inverted instead: a family of truths scales the
    observed gaps by t ≥ 0 (t = 0 is perfect calibration, t = 1 the observed gaps), right
    predictions are drawn from each truth, and those t stay whose draws make the observed error an
    ordinary one. The interval spans the errors of the truths that stay; it may lie wholly below the
    plug-in value, and its low end is 0 where perfect calibration cannot be ruled out. Its high end
    is never less than a calibrated model usually gets, however small the observed error.

    Args:
        probs: (N, C), rows sum to one.
        labels: (N,) integers in [0, C).
        n_bins: bins asked for.
        scheme: `equal_mass` or `equal_width`.
        norm: l1, l2 or max.
        n_resamples: R, draws per truth.
        level: nominal coverage.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        (low, high), fractions, 0 ≤ low ≤ high.

    Raises:
        SpecError: an argument is not valid.
        PredictionsError: probs or labels break their contract.
    """
    return interval_from_confidence(
        *top_label(probs, labels),
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )


def _invert(
    full: Binned, norm: Norm, n_resamples: int, level: float, rng: np.random.Generator
) -> tuple[float, float]:
    observed = float(error_of_gaps(full.gap, full.weights, norm))
    tail = (1 - level) / 2
    # The more unequal the true gaps, the more of an observed error is noise from bins that are
    # fine: sharpened gaps bound the truth from below, evened ones from above.
    truth, errors = _family(full, _sharpened(full), observed, norm, n_resamples, rng)
    high = np.maximum.accumulate(np.quantile(errors, 1 - tail, axis=0))
    lower = float(np.interp(observed, high, truth)) if high[0] < observed else 0.0
    truth, errors = _family(full, _evened(full), observed, norm, n_resamples, rng)
    low = np.maximum.accumulate(np.quantile(errors, tail, axis=0))
    # An observed error below what a calibrated model usually shows is luck, not knowledge: the high
    # end is never less than the usual one (a power-constrained limit, Cowan et al. 2011).
    usual = float(np.median(errors[:, 0]))
    upper = float(np.interp(max(observed, usual), low, truth))
    return lower, max(lower, upper)


def _spread(full: Binned) -> Doubles:
    """(K,) standard deviation of each bin's accuracy were the model calibrated."""
    mean = full.mean_confidence
    return np.sqrt(np.maximum(mean * (1 - mean), 1e-12) / full.count)


def _sharpened(full: Binned) -> Doubles:
    """(K,) gaps with 1.5 standard deviations of noise taken off each: few fine bins exceed it."""
    return np.sign(full.gap) * np.maximum(np.abs(full.gap) - 1.5 * _spread(full), 0.0)


def _evened(full: Binned) -> Doubles:
    """(K,) gaps whose squares are drawn to their mean as far as noise explains that they differ."""
    variance = np.square(_spread(full))
    square = np.square(full.gap)
    mean = float(square @ full.weights)
    scatter = float(np.square(square - mean) @ full.weights)
    excess = np.maximum(square - variance, 0.0)
    noise = float((2 * np.square(variance) + 4 * variance * excess) @ full.weights)
    # Twice, because the scatter of a dozen bins is itself poorly known.
    share = 1.0 if scatter <= 2 * noise else 2 * noise / scatter
    return np.where(full.gap < 0, -1.0, 1.0) * np.sqrt(share * mean + (1 - share) * square)


def _family(
    full: Binned,
    shape: Doubles,
    observed: float,
    norm: Norm,
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[Doubles, Doubles]:
    """Return the errors (G,) of truths with gaps t · shape, and errors (R, G) drawn from them."""
    weights, mean, spread = full.weights, full.mean_confidence, _spread(full)
    if not shape.any():
        shape = full.gap if full.gap.any() else spread
    unit = float(error_of_gaps(shape, weights, norm))
    # Far enough out that no truth beyond the grid could have given the observed error.
    reach = (observed + 5 * float(np.sqrt(np.square(spread) @ np.square(weights)))) / unit
    scale = np.linspace(0.0, reach, _GRID)
    rate = np.clip(mean - scale[:, None] * shape, 0.0, 1.0)  # (G, K)
    truth = error_of_gaps(mean - rate, weights, norm)  # (G,)
    counts = full.count.astype(np.int64)
    drawn = rng.binomial(counts, rate, size=(n_resamples, *rate.shape)) / counts  # (R, G, K)
    return truth, error_of_gaps(mean - drawn, weights, norm)
