"""What chance alone would show, and how far a calibration error is known."""

from dataclasses import dataclass

import numpy as np

from calift_core.calibration.beta import beta_quantile
from calift_core.calibration.bins import (
    DEFAULT_BINNING,
    Binned,
    Binning,
    Doubles,
    Norm,
    assign_bins,
    bin_edges,
    error_of_gaps,
    gather,
    sum_by,
)
from calift_core.calibration.scores import Scores, checked
from calift_core.errors import SpecError

_DRAWS_AT_ONCE = 2_000_000
_GRID = 48
#: Variance of a number of right predictions from which a skewed normal stands in for it.
_NORMAL_FROM = 9.0


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
    label from the model's own probabilities means for the predicted class. The number in a bin is
    drawn at once where its variance lets a normal with the skewness put in stand for it (see
    `_draw_shares`), else sample by sample.
    """
    index = assign_bins(confidences, edges)
    size = len(edges) - 1
    variances = confidences * (1 - confidences)
    mean, variance = sum_by(index, confidences, size), sum_by(index, variances, size)
    skew = sum_by(index, variances * (1 - 2 * confidences), size)
    count = sum_by(index, np.ones(len(index)), size)
    sums = np.empty((n_resamples, size))
    smooth = variance >= _NORMAL_FROM
    z = rng.standard_normal((n_resamples, int(smooth.sum())))
    skewed = (
        z * np.sqrt(variance[smooth]) + (np.square(z) - 1) * (skew / 6)[smooth] / (variance[smooth])
    )
    sums[:, smooth] = np.clip(np.rint(mean[smooth] + skewed), 0, count[smooth])
    for k in np.flatnonzero(~smooth):
        own = confidences[index == k]
        rows = max(1, _DRAWS_AT_ONCE // max(1, len(own)))
        for start in range(0, n_resamples, rows):
            stop = min(start + rows, n_resamples)
            right = rng.random((stop - start, len(own))) < own
            sums[start:stop, k] = np.count_nonzero(right, axis=1)
    return sums


def null_floor(
    scores: Scores, binning: Binning = DEFAULT_BINNING, *, n_resamples: int = 200, seed: int = 0
) -> NullFloor:
    """Return what the calibration error would read if the model were perfectly calibrated.

    Labels are drawn anew from the model's own probabilities, bins stay: an observed error below
    `q95` cannot be told from zero (consistency resampling, Bröcker & Smith 2007).

    Args:
        scores: of N samples, of which only the confidences count.
        seed: of the draws; equal seeds give equal floors.

    Raises:
        SpecError: n_resamples < 1.
        PredictionsError: confidences break their contract.
    """
    check_resampling(n_resamples)
    values = checked(scores).confidences
    edges = bin_edges(values, binning)
    index = assign_bins(values, edges)
    count = np.bincount(index, minlength=len(edges) - 1)
    filled = count > 0
    total = np.bincount(index, weights=values, minlength=len(edges) - 1)
    sums = null_correct_sums(values, edges, n_resamples, np.random.default_rng(seed))
    gap = (total - sums)[:, filled] / count[filled]  # (R, K)
    errors = error_of_gaps(gap, count[filled] / len(values), binning.norm)
    return NullFloor(float(errors.mean()), float(np.quantile(errors, 0.95)), errors)


def interval(
    scores: Scores,
    binning: Binning = DEFAULT_BINNING,
    *,
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

    The largest gap (`max`) is bounded by intervals of each bin instead, without draws: a bin of few
    samples may hide a large gap, and then the high end says so.

    Args:
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        (low, high), fractions, 0 ≤ low ≤ high.

    Raises:
        SpecError: n_resamples < 1, or level is not in (0, 1).
        PredictionsError: confidences or hits break their contract.
    """
    check_resampling(n_resamples, level)
    top = checked(scores)
    full = gather(top.confidences, top.correct, binning).filled()
    return _invert(full, binning.norm, n_resamples, level, np.random.default_rng(seed))


def _invert(
    full: Binned, norm: Norm, n_resamples: int, level: float, rng: np.random.Generator
) -> tuple[float, float]:
    if norm == "max":
        return _largest_gap(full, level)
    observed = float(error_of_gaps(full.gap, full.weights, norm))
    tail = (1 - level) / 2
    # The more unequal the true gaps, the more of an observed error is noise from bins that are
    # fine: sharpened gaps bound the truth from below, evened ones from above.
    truth, errors = _family(full, _sharpened(full), observed, norm, n_resamples, rng)
    high = np.maximum.accumulate(_quantile(errors, 1 - tail))
    lower = float(np.interp(observed, high, truth)) if high[0] < observed else 0.0
    truth, errors = _family(full, _evened(full), observed, norm, n_resamples, rng)
    low = np.maximum.accumulate(_quantile(errors, tail))
    # An observed error below what a calibrated model usually shows is luck, not knowledge: the high
    # end is never less than the usual one (a power-constrained limit, Cowan et al. 2011).
    usual = float(np.median(errors[:, 0]))
    upper = float(np.interp(max(observed, usual), low, truth))
    # No error is less than the gap over all samples, which a few wrong ones among thousands show
    # more of than their bins do.
    return lower, max(lower, upper, _overall_gap(full, tail))


def _overall_gap(full: Binned, tail: float) -> float:
    """Return the largest |confidence − accuracy| of all samples that the data allow (Jeffreys)."""
    right, count = float(full.correct_sum.sum()), float(full.count.sum())
    mean = float(full.confidence_sum.sum()) / count
    ends = beta_quantile(right + 0.5, count - right + 0.5, [tail, 1 - tail])
    return float(np.abs(mean - ends).max())


def _largest_gap(full: Binned, level: float) -> tuple[float, float]:
    """Return (low, high) of the largest |gap| from Jeffreys intervals of each bin's accuracy.

    The high end needs no allowance for the number of bins: it fails only if the bin with the
    largest true gap fails. The low end does: it fails if any bin does.
    """
    tail = (1 - level) / 2
    wrong = full.count - full.correct_sum

    def accuracy(share: float) -> Doubles:
        return beta_quantile(full.correct_sum + 0.5, wrong + 0.5, share)

    mean, each = full.mean_confidence, tail / (2 * len(full.count))
    nearest = np.maximum(mean - accuracy(1 - each), accuracy(each) - mean)
    farthest = np.maximum(mean - accuracy(tail), accuracy(1 - tail) - mean)
    return max(0.0, float(nearest.max())), float(farthest.max())


def _quantile(errors: Doubles, share: float) -> Doubles:
    """(G,) quantile over draws (R, G) that a further draw stays below with chance `share`."""
    return np.asarray(np.quantile(errors, share, axis=0, method="weibull"))


def _spread(full: Binned) -> Doubles:
    """(K,) standard deviation of each bin's accuracy, were the model calibrated or as observed.

    The larger of the two: a model that is sure of everything says that its accuracy has next to no
    noise, which is wrong as soon as it errs more often than it says. The observed rate is taken
    half a sample off 0 and 1 (Jeffreys' prior): a bin without an error is not known exactly.
    """
    mean = full.mean_confidence
    rate = (full.correct_sum + 0.5) / (full.count + 1)
    return np.sqrt(np.maximum(mean * (1 - mean), rate * (1 - rate)) / full.count)


def _sharpened(full: Binned) -> Doubles:
    """(K,) gaps with 1.5 standard deviations of noise taken off each: few fine bins exceed it."""
    return np.sign(full.gap) * np.maximum(np.abs(full.gap) - 1.5 * _spread(full), 0.0)


def _evened(full: Binned) -> Doubles:
    """(K,) gaps drawn to equal multiples of their noise as far as noise explains that they differ.

    At equal multiples the noise adds least to an l1 error of a given size.
    """
    spread = _spread(full)
    square = np.square(full.gap / spread)
    mean = float(square @ full.weights)
    scatter = float(np.square(square - mean) @ full.weights)
    noise = float((2 + 4 * np.maximum(square - 1, 0.0)) @ full.weights)
    # Twice, because the scatter of a dozen bins is itself poorly known.
    share = 1.0 if scatter <= 2 * noise else 2 * noise / scatter
    size = np.sqrt(share * mean + (1 - share) * square)
    return np.where(full.gap < 0, -1.0, 1.0) * spread * size


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
    drawn = _draw_shares(full.count, rate, n_resamples, rng)  # (R, G, K)
    return truth, error_of_gaps(mean - drawn, weights, norm)


def _draw_shares(
    count: Doubles, rate: Doubles, n_resamples: int, rng: np.random.Generator
) -> Doubles:
    """Draw shares of right predictions (R, G, K) for rates (G, K) and counts (K,).

    Where a rate leaves enough variance, a binomial is its normal with the skewness put in (Cornish
    & Fisher 1938), one draw for all G rates: neighbouring truths then differ by what is true and
    not by luck. Others are drawn as binomials.
    """
    variance = count * rate * (1 - rate)  # (G, K)
    z = rng.standard_normal((n_resamples, 1, len(count)))
    skewed = z * np.sqrt(variance) + (1 - 2 * rate) * (np.square(z) - 1) / 6
    drawn: Doubles = rate + skewed / count
    row, column = np.nonzero(variance < _NORMAL_FROM)
    if row.size:
        trials = count[column].astype(np.int64)
        few = rng.binomial(trials, rate[row, column], size=(n_resamples, row.size))
        drawn[:, row, column] = few / trials
    return drawn
