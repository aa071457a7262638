"""Whole-set measures of accuracy, of proper scores and of calibration.

Each takes scores of N samples: `SampleScores`, or `TopLabel` where it needs confidences and hits
alone. The class-wise measures need all probabilities and take `probs` (N, C) and `labels` (N,).
Those that bin take a `Binning`. None depends on the order of the samples, except
`ece_batch_averaged`, which exists to reproduce published numbers.

Raise, all of them: PredictionsError where confidences, hits or probabilities break their contract.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from calift_core.calibration.bins import (
    DEFAULT_BINNING,
    Binned,
    Binning,
    Bools,
    Doubles,
    Floats,
    Ints,
    check_labels,
    check_probs,
    edges_of_sorted,
    error_of_gaps,
    gather,
    sum_by,
)
from calift_core.calibration.scores import SampleScores, Scores, checked
from calift_core.errors import SpecError

#: As in the published evaluation code.
_PAPER_BINS = Binning(10, "equal_width")


def accuracy(scores: Scores) -> float:
    """Return the share of samples whose predicted class is the label."""
    return float(scores.correct.mean())


def top_k_accuracy(scores: SampleScores, *, k: int = 5) -> float:
    """Return the share of samples whose label is among the k most probable classes.

    Of tied classes the one with the smaller index ranks first, as in `argmax`.

    Raises:
        SpecError: k < 1.
    """
    if k < 1:
        raise SpecError(f"k must be ≥ 1, got {k}")
    return float((scores.rank < k).mean())


def mean_per_class_accuracy(scores: SampleScores) -> float:
    """Return the unweighted mean, over the classes that occur, of the accuracy in each class."""
    counts = np.bincount(scores.labels)
    hits = np.bincount(scores.labels, weights=scores.correct)
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def macro_f1(scores: SampleScores) -> float:
    """Return the unweighted mean, over the classes that occur, of each class's F1.

    F1 is 2·TP / (images of the class + images called so): the harmonic mean of precision and
    recall, and 0 for a class that nothing was rightly called. A class that no label has does not
    count, though predictions of it lower the others' recall [WILDS, Koh et al. 2021, for iWildCam].
    """
    n_classes = int(max(scores.labels.max(), scores.predicted.max())) + 1
    counts = np.bincount(scores.labels, minlength=n_classes)
    called = np.bincount(scores.predicted, minlength=n_classes)
    hits = np.bincount(scores.labels, weights=scores.correct, minlength=n_classes)
    occurs = counts > 0
    return float((2 * hits[occurs] / (counts + called)[occurs]).mean())


def nll(scores: SampleScores) -> float:
    """Return the mean negative log-likelihood in nats.

    A probability below 1.18e-38, the smallest normal float32, counts as that, so the value is
    finite and does not depend on the precision of the probabilities.
    """
    return float(scores.nll.mean())


def brier(scores: SampleScores) -> float:
    """Return the multi-class Brier score, mean of Σ_c (p_c − 1[y = c])², in [0, 2]."""
    return float(scores.brier.mean())


def ece(scores: Scores, binning: Binning = DEFAULT_BINNING) -> float:
    """Return the expected calibration error of the predicted class over the whole set.

    Naeini 2015 and Guo 2017 for l1 on equal-width bins, Nixon 2019 for equal-mass bins. The plug-in
    value is biased upwards by sampling noise: show it with `null_floor` and `interval`.

    Args:
        scores: of N samples; from probabilities `score_probs(probs, labels)`.
        binning: bins and norm: l1 (mean gap), l2 (root mean square gap) or max (largest gap).

    Returns:
        A fraction in [0, 1].
    """
    full = _filled(scores, binning)
    return float(error_of_gaps(full.gap, full.weights, binning.norm))


def _filled(scores: Scores, binning: Binning) -> Binned:
    top = checked(scores)
    return gather(top.confidences, top.correct, binning).filled()


def mce(scores: Scores, binning: Binning = DEFAULT_BINNING, *, min_count: int = 1) -> float:
    """Return the largest gap between confidence and accuracy among bins of enough samples.

    On equal-width bins this is mostly noise from nearly empty bins: prefer `equal_mass`, or raise
    `min_count`.

    Returns:
        A fraction; NaN when no bin has `min_count` samples.

    Raises:
        SpecError: min_count < 1.
    """
    if min_count < 1:
        raise SpecError(f"min_count must be ≥ 1, got {min_count}")
    full = _filled(scores, binning)
    gap = np.abs(full.gap[full.count >= min_count])
    return float(gap.max()) if gap.size else float("nan")


def ece_batch_averaged(scores: Scores, *, batch_size: int = 512, n_bins: int = 10) -> float:
    """Return the paper-compatible ECE: per batch in stored order, then their mean by size.

    As in the published evaluation code: l1, equal-width bins `[lower, upper)` with confidence 1 in
    a bin of its own, and batches weighted by their samples. It measures batch noise more than
    calibration (3 % for a perfect model at 512 samples a batch) and is there for comparison with
    published numbers only: never rank on it.

    Raises:
        SpecError: batch_size or n_bins is less than 1.
    """
    if batch_size < 1:
        raise SpecError(f"batch_size must be ≥ 1, got {batch_size}")
    top = checked(scores)
    binning = replace(_PAPER_BINS, n_bins=n_bins)
    cell, n_cells = batch_cells(top.confidences, batch_size=batch_size, n_bins=binning.n_bins)
    residual = top.confidences - top.correct
    return float(np.abs(sum_by(cell, residual, n_cells)).sum() / len(residual))


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


def classwise_ece(probs: Floats, labels: Ints, binning: Binning = DEFAULT_BINNING) -> float:
    """Return the mean over classes of the calibration error of p_c against 1[y = c], a fraction.

    Static calibration error with `equal_width`, its adaptive form with `equal_mass` (Nixon 2019).
    For l2 the mean is taken of the squares, for max the largest class counts.

    Args:
        probs: (N, C), rows sum to one.
        labels: (N,) integers in [0, C).
        binning: of each class's probabilities.
    """
    probs = check_probs(probs)
    labels = check_labels(labels, *probs.shape)
    values = np.empty(probs.shape[1])
    for index, binned in enumerate(_per_class(probs, labels, binning)):
        full = binned.filled()
        values[index] = error_of_gaps(full.gap, full.weights, binning.norm)
    return float(over_classes(values, binning))


def over_classes(errors: Doubles, binning: Binning) -> Doubles:
    """Fold errors (C, ...) of classes into that of all (...), as the norm says."""
    if binning.norm == "l2":
        return np.asarray(np.sqrt(np.square(errors).mean(axis=0)))
    return np.asarray(errors.mean(axis=0) if binning.norm == "l1" else errors.max(axis=0))


def _per_class(probs: Floats, labels: npt.NDArray[np.int64], binning: Binning) -> list[Binned]:
    """Bin p_c against 1[y = c] for every class; one sort per class carries all the work."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(probs.shape[1] + 1))
    binned = []
    for index in range(probs.shape[1]):
        ordered = np.sort(np.minimum(probs[:, index], 1))
        edges = edges_of_sorted(ordered, binning)
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


def debiased_squared_error(scores: Scores, binning: Binning = DEFAULT_BINNING) -> float:
    """Return an unbiased estimate of the squared binned l2 calibration error; may be negative.

    Σ w [(p̄ − ō)² − ō(1 − ō)/(n_k − 1)], Bröcker 2012, Kumar 2019. A bin of one sample has no
    variance estimate and is left uncorrected. Negative values say "below the noise": keep them,
    or the mean over repeats is biased again. The binning's norm plays no part.
    """
    full = _filled(scores, binning)
    return float((np.square(full.gap) - _noise(full)) @ full.weights)


def debiased_calibration_error(scores: Scores, binning: Binning = DEFAULT_BINNING) -> float:
    """Return a calibration error with the sampling noise taken out; negative below the noise.

    l2: the signed root of Kumar 2019's unbiased squared error (`debiased_squared_error`). l1: no
    unbiased estimator of |gap| exists, so the plug-in ECE is scaled by the ratio of the debiased to
    the plug-in l2 error. Far from calibration it meets the plug-in ECE. Of a perfect model more
    than half of the values are negative, and so is their mean, because a root is taken: average
    squares, not these.

    Raises:
        SpecError: the norm is `max`, which has no debiased form.
    """
    if binning.norm == "max":
        raise SpecError("norm must be l1 or l2 for a debiased error, got 'max'")
    full = _filled(scores, binning)
    squared = float((np.square(full.gap) - _noise(full)) @ full.weights)
    root = float(np.sign(squared) * np.sqrt(abs(squared)))
    plug_in = float(error_of_gaps(full.gap, full.weights, "l2"))
    if binning.norm == "l2" or plug_in == 0:
        return root
    return root * float(error_of_gaps(full.gap, full.weights, "l1")) / plug_in


def _noise(full: Binned) -> Doubles:
    """(K,) estimated variance of each bin's accuracy."""
    rate = full.accuracy
    out = np.zeros_like(rate)
    np.divide(rate * (1 - rate), full.count - 1, out=out, where=full.count > 1)
    return out


def over_under_confidence(
    scores: Scores, binning: Binning = DEFAULT_BINNING
) -> tuple[float, float]:
    """Return (over, under): the l1 ECE of bins above and of bins below their accuracy.

    They sum to it; the binning's norm plays no part.
    """
    full = _filled(scores, binning)
    over = float(np.maximum(full.gap, 0) @ full.weights)
    under = float(np.maximum(-full.gap, 0) @ full.weights)
    return over, under


class LowerBound:
    """A lower bound of the l1 calibration error, for many outcomes on the same confidences.

    E|E[r | c]|, r = confidence − correct, is the largest E[r · s(c)] over functions s of the
    confidence c in [−1, 1] (the variational form, Berta, Braun, Holzmüller et al. 2026, arXiv
    2602.24230). Here s(c) is the sign of c − ĝ(c), ĝ an isotonic regression of correct on c from
    the other folds: no sample has a say in its own estimate, so that over repeats the mean is the
    error or less, 0 for a perfect model, where an ECE is the error or more.

    Args:
        confidences: (N,) fractions.
    """

    def __init__(self, confidences: Doubles) -> None:
        self._confidences = confidences
        n_folds = 5
        fold = np.empty(len(confidences), dtype=np.int64)
        fold[np.argsort(confidences, kind="stable")] = np.arange(len(confidences)) % n_folds
        self._folds = []
        for k in range(min(n_folds, len(confidences))):
            own, others = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            if not len(others):
                continue  # a single sample has nobody to be evaluated by
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
            own_confidences = self._confidences[own]
            side = np.sign(own_confidences - np.interp(own_confidences, levels, fitted))
            total += float(side @ (own_confidences - correct[own]))
        return total / len(self._confidences)


def ece_lower_bound(scores: Scores) -> float:
    """Return a variational lower bound of the l1 calibration error; see `LowerBound`.

    No bins, and no bias upwards: the mean over repeats is the error or less. Negative values say
    that no fault was found.
    """
    top = checked(scores)
    return LowerBound(top.confidences)(top.correct)


def ks_error(scores: Scores) -> float:
    """Return the binning-free Kolmogorov–Smirnov calibration error of Gupta 2021, a fraction.

    max over t of |mean((confidence − correct) · 1[confidence ≤ t])|: the largest distance between
    the cumulative confidence and the cumulative accuracy, samples sorted by confidence; ties count
    as one step.
    """
    top = checked(scores)
    _, inverse = np.unique(top.confidences, return_inverse=True)
    totals = sum_by(inverse, top.confidences - top.correct, int(inverse.max()) + 1)
    return float(np.abs(np.cumsum(totals)).max() / len(inverse))


def aurc(scores: Scores) -> float:
    """Return the area under the risk–coverage curve (Geifman & El-Yaniv 2017); lower is better.

    The mean, over k = 1..N, of the error rate among the k most confident samples. Tied samples
    share their mean error, so the order in which they are stored does not matter.
    """
    return float(_risk_curve(scores).mean())


def risk_at_coverage(scores: Scores, *, coverage: float) -> float:
    """Return the error rate among the most confident share `coverage` of the samples.

    Raises:
        SpecError: coverage is not in (0, 1].
    """
    if not 0 < coverage <= 1:
        raise SpecError(f"coverage must lie in (0, 1], got {coverage}")
    curve = _risk_curve(scores)
    kept = max(1, int(np.ceil(round(coverage * len(curve), 9))))
    return float(curve[kept - 1])


def _risk_curve(scores: Scores) -> Doubles:
    """(N,) error rate among the k most confident samples, k = 1..N; ties share their mean."""
    top = checked(scores)
    _, inverse, counts = np.unique(-top.confidences, return_inverse=True, return_counts=True)
    error = sum_by(inverse, ~top.correct, len(counts)) / counts
    spread = np.repeat(error, counts)
    return np.cumsum(spread) / np.arange(1, len(top.correct) + 1)
