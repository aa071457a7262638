"""Whole-set measures of accuracy, of proper scores and of calibration.

Each measure of top-label calibration has two forms: `name(probs, labels)` and
`name_from_confidence(confidences, correct)`. None depends on the order of the samples, except
`ece_batch_averaged`, which exists to reproduce published numbers.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
from scipy.fft import dct, idct

from calift_core.calibration.bins import (
    Binned,
    Bools,
    Doubles,
    Floats,
    Ints,
    Norm,
    Scheme,
    check_bins,
    check_confidences,
    check_labels,
    check_norm,
    check_probs,
    edges_of_sorted,
    error_of_gaps,
    gather,
    rank_of_label,
    sum_by,
    top_label,
)
from calift_core.calibration.scores import brier_of_rows, nll_of_rows
from calift_core.errors import SpecError

SMOOTH_GRID = 4096


def accuracy(probs: Floats, labels: Ints) -> float:
    """Return the share of samples whose most probable class is the label."""
    return float(top_label(probs, labels)[1].mean())


def top_k_accuracy(probs: Floats, labels: Ints, *, k: int = 5) -> float:
    """Return the share of samples whose label is among the k most probable classes.

    Of tied classes the one with the smaller index ranks first, as in `argmax`.

    Raises:
        SpecError: k is not in [1, C].
    """
    probs = check_probs(probs)
    labels = check_labels(labels, *probs.shape)
    if not 1 <= k <= probs.shape[1]:
        raise SpecError(f"k must lie in [1, {probs.shape[1]}], got {k}")
    return float((rank_of_label(probs, labels) < k).mean())


def mean_per_class_accuracy(probs: Floats, labels: Ints) -> float:
    """Return the unweighted mean, over the classes that occur, of the accuracy in each class."""
    _, correct = top_label(probs, labels)
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=correct)
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def nll(probs: Floats, labels: Ints) -> float:
    """Return the mean negative log-likelihood in nats.

    A probability below 1.18e-38, the smallest normal float32, counts as that, so the value is
    finite and does not depend on the precision of `probs`.
    """
    probs = check_probs(probs)
    return float(nll_of_rows(probs, check_labels(labels, *probs.shape)).mean())


def brier(probs: Floats, labels: Ints) -> float:
    """Return the multi-class Brier score, mean of Σ_c (p_c − 1[y = c])², in [0, 2]."""
    probs = check_probs(probs)
    return float(brier_of_rows(probs, check_labels(labels, *probs.shape)).mean())


def brier_decomposition(
    probs: Floats, labels: Ints, *, n_bins: int = 15, scheme: Scheme = "equal_mass"
) -> dict[str, float]:
    """Split the multi-class Brier score into calibration and refinement, class by class.

    For each class the probabilities are binned; per bin of weight w, mean probability p̄ and class
    share ō: calibration = Σ w(p̄ − ō)², resolution = Σ w(ō − base)², uncertainty = base(1 − base),
    and `within_bin` = Σ w(var(p) − 2 cov(p, y)) is what the binning hides (Stephenson 2008). All
    are summed over classes; refinement = uncertainty − resolution + within_bin.

    Returns:
        `brier`, `calibration`, `refinement`, `resolution`, `uncertainty`, `within_bin`, with
        brier = calibration + refinement exactly (up to rounding).
    """
    check_bins(n_bins, scheme)
    probs = check_probs(probs)
    labels = check_labels(labels, *probs.shape)
    n = len(probs)
    calibration = resolution = uncertainty = 0.0
    for binned in _per_class(probs, labels, n_bins, scheme):
        full = binned.filled()
        base = float(full.correct_sum.sum() / n)
        calibration += float(np.square(full.gap) @ full.weights)
        resolution += float(np.square(full.accuracy - base) @ full.weights)
        uncertainty += base * (1 - base)
    score = brier(probs, labels)
    refinement = score - calibration
    return {
        "brier": score,
        "calibration": calibration,
        "refinement": refinement,
        "resolution": resolution,
        "uncertainty": uncertainty,
        "within_bin": refinement - uncertainty + resolution,
    }


def ece_from_confidence(
    confidences: Floats,
    correct: Bools,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Return the binned calibration error of confidences (N,) against correct (N,) bool.

    See `ece`.
    """
    check_norm(norm)
    full = gather(*check_confidences(confidences, correct), n_bins, scheme).filled()
    return float(error_of_gaps(full.gap, full.weights, norm))


def ece(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Return the expected calibration error of the predicted class over the whole set.

    Naeini 2015 and Guo 2017 for l1 on equal-width bins, Nixon 2019 for equal-mass bins. The plug-in
    value is biased upwards by sampling noise: show it with `null_floor` and `interval`.

    Args:
        probs: (N, C), rows sum to one.
        labels: (N,) integers in [0, C).
        n_bins: bins asked for.
        scheme: `equal_mass` or `equal_width`; see `bin_edges`.
        norm: l1 (mean gap), l2 (root mean square gap) or max (largest gap).

    Returns:
        A fraction in [0, 1].

    Raises:
        SpecError: n_bins, scheme or norm is not valid.
        PredictionsError: probs or labels break their contract.
    """
    return ece_from_confidence(*top_label(probs, labels), n_bins=n_bins, scheme=scheme, norm=norm)


def mce_from_confidence(
    confidences: Floats,
    correct: Bools,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    min_count: int = 1,
) -> float:
    """Return the largest gap of confidences (N,) against correct (N,) bool; see `mce`."""
    if min_count < 1:
        raise SpecError(f"min_count must be ≥ 1, got {min_count}")
    binned = gather(*check_confidences(confidences, correct), n_bins, scheme)
    gap = np.abs(binned.gap[binned.count >= min_count])
    return float(gap.max()) if gap.size else float("nan")


def mce(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    min_count: int = 1,
) -> float:
    """Return the largest gap between confidence and accuracy among bins of enough samples.

    On equal-width bins this is mostly noise from nearly empty bins: prefer `equal_mass`, or raise
    `min_count`.

    Args:
        probs: (N, C), rows sum to one.
        labels: (N,) integers in [0, C).
        n_bins: bins asked for.
        scheme: `equal_mass` or `equal_width`.
        min_count: bins with fewer samples are left out.

    Returns:
        A fraction; NaN when no bin has `min_count` samples.
    """
    return mce_from_confidence(
        *top_label(probs, labels), n_bins=n_bins, scheme=scheme, min_count=min_count
    )


def ece_batch_averaged_from_confidence(
    confidences: Floats, correct: Bools, *, batch_size: int = 512, n_bins: int = 10
) -> float:
    """Return the paper-compatible ECE of confidences (N,) in stored order against correct (N,).

    See `ece_batch_averaged`.
    """
    if batch_size < 1:
        raise SpecError(f"batch_size must be ≥ 1, got {batch_size}")
    check_bins(n_bins, "equal_width")
    values, hits = check_confidences(confidences, correct)
    cell, n_cells = batch_cells(values, batch_size=batch_size, n_bins=n_bins)
    return float(np.abs(sum_by(cell, values - hits, n_cells)).sum() / len(values))


def batch_cells(
    confidences: Doubles, *, batch_size: int, n_bins: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the bin of its batch that each of confidences (N,) falls in, (N,), and their number.

    Bins as in the published code: `[lower, upper)`, and confidence 1 in one of its own.
    """
    edges = np.arange(n_bins + 1) / n_bins
    batch = np.arange(len(confidences)) // batch_size
    within = np.searchsorted(edges, confidences, side="right") - 1  # (N,) in [0, n_bins]
    return batch * (n_bins + 1) + within, (int(batch[-1]) + 1) * (n_bins + 1)


def ece_batch_averaged(
    probs: Floats, labels: Ints, *, batch_size: int = 512, n_bins: int = 10
) -> float:
    """Return the paper-compatible ECE: per batch in stored order, then their mean by size.

    As in the published evaluation code: l1, equal-width bins `[lower, upper)` with confidence 1 in
    a bin of its own, and batches weighted by their samples. It measures batch noise more than
    calibration (3 % for a perfect model at 512 samples a batch) and is there for comparison with
    published numbers only: never rank on it.

    Raises:
        SpecError: batch_size or n_bins is less than 1.
        PredictionsError: probs or labels break their contract.
    """
    return ece_batch_averaged_from_confidence(
        *top_label(probs, labels), batch_size=batch_size, n_bins=n_bins
    )


def classwise_ece(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Return the mean over classes of the calibration error of p_c against 1[y = c].

    Static calibration error with `equal_width`, its adaptive form with `equal_mass` (Nixon 2019).
    For l2 the mean is taken of the squares, for max the largest class counts.
    """
    check_bins(n_bins, scheme)
    check_norm(norm)
    probs = check_probs(probs)
    labels = check_labels(labels, *probs.shape)
    values = np.empty(probs.shape[1])
    for index, binned in enumerate(_per_class(probs, labels, n_bins, scheme)):
        full = binned.filled()
        values[index] = error_of_gaps(full.gap, full.weights, norm)
    if norm == "l2":
        return float(np.sqrt(np.square(values).mean()))
    return float(values.mean() if norm == "l1" else values.max())


def _per_class(
    probs: Floats, labels: npt.NDArray[np.int64], n_bins: int, scheme: Scheme
) -> list[Binned]:
    """Bin p_c against 1[y = c] for every class; one sort per class carries all the work."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(probs.shape[1] + 1))
    binned = []
    for index in range(probs.shape[1]):
        ordered = np.sort(np.minimum(probs[:, index], 1))
        if scheme == "equal_width":
            edges = np.arange(n_bins + 1) / n_bins
        else:
            edges = edges_of_sorted(ordered, n_bins)
        # Searching in the precision of the probabilities keeps edges equal to samples equal.
        ends = np.searchsorted(ordered.astype(np.float64), edges[1:-1], side="right")
        bounds = np.concatenate([[0], ends, [len(ordered)]])
        totals = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
        own = probs[order[starts[index] : starts[index + 1]], index].astype(np.float64)
        hits = np.bincount(np.searchsorted(edges[1:-1], own, side="left"), minlength=len(edges) - 1)
        binned.append(
            Binned(
                edges,
                np.diff(bounds).astype(np.float64),
                np.diff(totals[bounds]),
                hits.astype(np.float64),
            )
        )
    return binned


def debiased_squared_error_from_confidence(
    confidences: Floats, correct: Bools, *, n_bins: int = 15, scheme: Scheme = "equal_mass"
) -> float:
    """Return an unbiased estimate of the squared binned l2 calibration error; may be negative.

    Σ w [(p̄ − ō)² − ō(1 − ō)/(n_k − 1)], Bröcker 2012, Kumar 2019. A bin of one sample has no
    variance estimate and is left uncorrected. Negative values say "below the noise": keep them,
    or the mean over repeats is biased again.
    """
    full = gather(*check_confidences(confidences, correct), n_bins, scheme).filled()
    return float((np.square(full.gap) - _noise(full)) @ full.weights)


def debiased_calibration_error_from_confidence(
    confidences: Floats,
    correct: Bools,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Return a calibration error with the sampling noise taken out; see below."""
    check_norm(norm)
    full = gather(*check_confidences(confidences, correct), n_bins, scheme).filled()
    if norm == "max":
        raise SpecError("norm must be l1 or l2 for a debiased error, got 'max'")
    squared = float((np.square(full.gap) - _noise(full)) @ full.weights)
    root = float(np.sign(squared) * np.sqrt(abs(squared)))
    plug_in = float(error_of_gaps(full.gap, full.weights, "l2"))
    if norm == "l2" or plug_in == 0:
        return root
    return root * float(error_of_gaps(full.gap, full.weights, "l1")) / plug_in


def debiased_calibration_error(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Return a calibration error with the sampling noise taken out; negative below the noise.

    l2: the signed root of Kumar 2019's unbiased squared error
    (`debiased_squared_error_from_confidence`). l1: no unbiased estimator of |gap| exists, so the
    plug-in ECE is scaled by the ratio of the debiased to the plug-in l2 error. Far from calibration
    it meets the plug-in ECE. Of a perfect model more than half of the values are negative, and so
    is their mean, because a root is taken: average squares, not these.

    Raises:
        SpecError: norm is `max`, which has no debiased form, or another argument is not valid.
        PredictionsError: probs or labels break their contract.
    """
    return debiased_calibration_error_from_confidence(
        *top_label(probs, labels), n_bins=n_bins, scheme=scheme, norm=norm
    )


def _noise(full: Binned) -> Doubles:
    """(K,) estimated variance of each bin's accuracy."""
    rate = full.accuracy
    out = np.zeros_like(rate)
    np.divide(rate * (1 - rate), full.count - 1, out=out, where=full.count > 1)
    return out


def over_under_confidence_from_confidence(
    confidences: Floats, correct: Bools, *, n_bins: int = 15, scheme: Scheme = "equal_mass"
) -> tuple[float, float]:
    """Split the l1 ECE into its over-confident and its under-confident part; they sum to it."""
    full = gather(*check_confidences(confidences, correct), n_bins, scheme).filled()
    over = float(np.maximum(full.gap, 0) @ full.weights)
    under = float(np.maximum(-full.gap, 0) @ full.weights)
    return over, under


def over_under_confidence(
    probs: Floats, labels: Ints, *, n_bins: int = 15, scheme: Scheme = "equal_mass"
) -> tuple[float, float]:
    """Return (over, under): the l1 ECE of bins above and of bins below their accuracy."""
    return over_under_confidence_from_confidence(
        *top_label(probs, labels), n_bins=n_bins, scheme=scheme
    )


class LowerBound:
    """A lower bound of the l1 calibration error, for many outcomes on the same confidences.

    E|E[r | c]|, r = confidence − correct, is the largest E[r · s(c)] over functions s of the
    confidence c in [−1, 1] (the variational form, Berta, Braun, Holzmüller et al. 2026, arXiv
    2602.24230). Here s(c) is the sign of c − ĝ(c), ĝ an isotonic regression of correct on c from
    the other folds: no sample has a say in how it is judged, so that over repeats the mean is the
    error or less, 0 for a perfect model, where an ECE is the error or more.

    Args:
        confidences: (N,) fractions.
        n_folds: parts that ĝ is fitted without, by rank of the confidence in turn.
    """

    def __init__(self, confidences: Doubles, n_folds: int = 5) -> None:
        self._confidences = confidences
        fold = np.empty(len(confidences), dtype=np.int64)
        fold[np.argsort(confidences, kind="stable")] = np.arange(len(confidences)) % n_folds
        self._folds = []
        for k in range(min(n_folds, len(confidences))):
            own, others = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            if not len(others):
                continue  # a single sample has nobody to be judged by
            levels, index, counts = np.unique(
                confidences[others], return_inverse=True, return_counts=True
            )
            self._folds.append((own, others, levels, index, counts))

    def __call__(self, correct: Bools) -> float:
        """Return the bound for correct (N,) bool; may be negative."""
        from scipy.optimize import isotonic_regression

        total = 0.0
        for own, others, levels, index, counts in self._folds:
            rate = sum_by(index, correct[others], len(levels)) / counts
            fitted = np.asarray(isotonic_regression(rate, weights=counts).x)
            said = self._confidences[own]
            side = np.sign(said - np.interp(said, levels, fitted))
            total += float(side @ (said - correct[own]))
        return total / len(self._confidences)


def ece_lower_bound_from_confidence(confidences: Floats, correct: Bools) -> float:
    """Return a lower bound of the error of confidences (N,) against correct (N,); see below."""
    values, hits = check_confidences(confidences, correct)
    return LowerBound(values)(hits)


def ece_lower_bound(probs: Floats, labels: Ints) -> float:
    """Return a variational lower bound of the l1 calibration error; see `LowerBound`.

    No bins, and no bias upwards: the mean over repeats is the error or less. Negative values say
    that no fault was found.
    """
    return ece_lower_bound_from_confidence(*top_label(probs, labels))


def ks_error_from_confidence(confidences: Floats, correct: Bools) -> float:
    """Return max over t of |mean((confidence − correct) · 1[confidence ≤ t])|; see `ks_error`."""
    values, hits = check_confidences(confidences, correct)
    _, totals = _tie_totals(values, hits)
    return float(np.abs(np.cumsum(totals)).max() / len(values))


def ks_error(probs: Floats, labels: Ints) -> float:
    """Return the binning-free Kolmogorov–Smirnov calibration error of Gupta 2021, a fraction.

    The largest distance between the cumulative confidence and the cumulative accuracy, samples
    sorted by confidence; ties count as one step.
    """
    return ks_error_from_confidence(*top_label(probs, labels))


def _tie_totals(values: Doubles, hits: Bools) -> tuple[Doubles, Doubles]:
    """Return the distinct confidences, ascending, and Σ(confidence − correct) at each."""
    distinct, inverse = np.unique(values, return_inverse=True)
    return distinct, sum_by(inverse, values - hits, len(distinct))


def smooth_ece_from_confidence(confidences: Floats, correct: Bools) -> float:
    """Return the smooth calibration error of confidences (N,) against correct (N,); see below."""
    spectrum = _residual_spectrum(*check_confidences(confidences, correct))

    def excess(bandwidth: float) -> float:
        return _smoothed(spectrum, bandwidth) - bandwidth

    # It falls with the bandwidth; rounding decides nothing at the ends.
    if excess(0.0) <= 1e-12:
        return 0.0
    if excess(1.0) >= -1e-12:
        return 1.0
    from scipy.optimize import brentq  # half a second that most imports do without

    return float(brentq(excess, 0.0, 1.0, xtol=1e-10))


def smooth_ece_at_from_confidence(
    confidences: Floats, correct: Bools, *, bandwidth: float
) -> float:
    """Return the residuals of confidences (N,) smoothed at a given bandwidth, integrated in size.

    The inner step of `smooth_ece`: ∫ |1/N Σ (confidence − correct) · K(t, confidence)| dt over
    [0, 1], K the reflected Gaussian of that standard deviation.

    Raises:
        SpecError: bandwidth is not in (0, 1].
    """
    if not 0 < bandwidth <= 1:
        raise SpecError(f"bandwidth must lie in (0, 1], got {bandwidth}")
    return _smoothed(_residual_spectrum(*check_confidences(confidences, correct)), bandwidth)


def smooth_ece(probs: Floats, labels: Ints) -> float:
    """Return the smooth calibration error, SmoothECE of Błasiok & Nakkiran 2023, a fraction.

    The residuals confidence − correct are smoothed with a Gaussian kernel that is reflected at 0
    and 1, and the absolute value is integrated over [0, 1]. The bandwidth σ is the one at which the
    result equals σ; it exists and is unique because the integral falls as σ grows. Residuals are
    shared out on a grid of 4,096 cells, and the reflected kernel is a product in cosine space. The
    value has a floor of its own: about 1.9 % at 2,000 samples for a perfect model.
    """
    return smooth_ece_from_confidence(*top_label(probs, labels))


def _residual_spectrum(values: Doubles, hits: Bools) -> Doubles:
    """Return the cosine modes (4096,) of the mean residual confidence − correct."""
    return cast(Doubles, dct(_on_grid(values, values - hits) / len(values), norm="ortho"))


def _smoothed(spectrum: Doubles, bandwidth: float) -> float:
    return float(np.abs(idct(spectrum * _damping(bandwidth), norm="ortho")).sum())


def _on_grid(values: Doubles, weights: Doubles) -> Doubles:
    """Share weights out to the two nearest cell centres, which leaves their mean place exact."""
    place = values * SMOOTH_GRID - 0.5
    left = np.floor(place)
    share = place - left
    cell = left.astype(np.int64)
    last = SMOOTH_GRID - 1
    return sum_by(np.maximum(cell, 0), weights * (1 - share), SMOOTH_GRID) + sum_by(
        np.minimum(cell + 1, last), weights * share, SMOOTH_GRID
    )


def _damping(bandwidth: float) -> Doubles:
    """Return what the reflected Gaussian does to each cosine mode: the heat kernel of [0, 1]."""
    damping = np.exp(-0.5 * np.square(np.pi * bandwidth * np.arange(SMOOTH_GRID)))
    return cast(Doubles, damping)


def smooth_density(values: Doubles, weights: Doubles, bandwidth: float) -> Doubles:
    """Smooth weights at values with the reflected Gaussian; (4096,) densities over [0, 1]."""
    spectrum = dct(_on_grid(values, weights), norm="ortho")
    return cast(Doubles, idct(spectrum * _damping(bandwidth), norm="ortho") * SMOOTH_GRID)


def _risk_curve(values: Doubles, hits: Bools) -> Doubles:
    """(N,) error rate among the k most confident samples, k = 1..N; ties share their mean."""
    _, inverse, counts = np.unique(-values, return_inverse=True, return_counts=True)
    error = sum_by(inverse, ~hits, len(counts)) / counts
    spread = np.repeat(error, counts)
    return np.cumsum(spread) / np.arange(1, len(values) + 1)


def aurc_from_confidence(confidences: Floats, correct: Bools) -> float:
    """Return the area under the risk–coverage curve of confidences (N,); see `aurc`."""
    return float(_risk_curve(*check_confidences(confidences, correct)).mean())


def aurc(probs: Floats, labels: Ints) -> float:
    """Return the area under the risk–coverage curve (Geifman & El-Yaniv 2017); lower is better.

    The mean, over k = 1..N, of the error rate among the k most confident samples. Tied samples
    share their mean error, so the order in which they are stored does not matter.
    """
    return aurc_from_confidence(*top_label(probs, labels))


def risk_at_coverage_from_confidence(
    confidences: Floats, correct: Bools, *, coverage: float
) -> float:
    """Return the error rate among the most confident of confidences (N,); see below."""
    if not 0 < coverage <= 1:
        raise SpecError(f"coverage must lie in (0, 1], got {coverage}")
    curve = _risk_curve(*check_confidences(confidences, correct))
    kept = max(1, int(np.ceil(round(coverage * len(curve), 9))))
    return float(curve[kept - 1])


def risk_at_coverage(probs: Floats, labels: Ints, *, coverage: float) -> float:
    """Return the error rate among the most confident share `coverage` of the samples.

    Raises:
        SpecError: coverage is not in (0, 1].
    """
    return risk_at_coverage_from_confidence(*top_label(probs, labels), coverage=coverage)
