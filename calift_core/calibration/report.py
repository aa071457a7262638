"""The bundle of measures that an evaluation stores."""

from __future__ import annotations

import numpy as np

from calift_core.calibration import measures
from calift_core.calibration.bins import Bools, Doubles, Floats, Ints, Norm, Scheme, top_label
from calift_core.calibration.scores import SampleScores, score_probs
from calift_core.calibration.uncertainty import (
    interval_from_confidence,
    null_floor_from_confidence,
)


def ece_report_from_confidence(
    confidences: Doubles,
    correct: Bools,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    seed: int = 0,
) -> dict[str, object]:
    """Return one calibration error with everything needed to read it; see `ece_report`."""
    options = {"n_bins": n_bins, "scheme": scheme, "norm": norm}
    value = measures.ece_from_confidence(
        confidences, correct, n_bins=n_bins, scheme=scheme, norm=norm
    )
    floor = null_floor_from_confidence(
        confidences, n_bins=n_bins, scheme=scheme, norm=norm, n_resamples=n_resamples, seed=seed
    )
    low, high = interval_from_confidence(
        confidences,
        correct,
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        n_resamples=n_resamples,
        seed=seed,
    )
    debiased = (
        None
        if norm == "max"
        else measures.debiased_calibration_error_from_confidence(
            confidences, correct, n_bins=n_bins, scheme=scheme, norm=norm
        )
    )
    return {
        "value": value,
        **options,
        "null_mean": floor.mean,
        "null_q95": floor.q95,
        "interval": [low, high],
        "debiased": debiased,
        "n_resamples": n_resamples,
        "seed": seed,
    }


def ece_report(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    seed: int = 0,
) -> dict[str, object]:
    """Return one calibration error with everything needed to read it.

    Keys: value, n_bins, scheme, norm, null_mean, null_q95, interval [low, high], debiased (None for
    the max norm), n_resamples, seed. Fractions, plain Python numbers.
    """
    return ece_report_from_confidence(
        *top_label(probs, labels),
        n_bins=n_bins,
        scheme=scheme,
        norm=norm,
        n_resamples=n_resamples,
        seed=seed,
    )


def evaluate_all(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    seed: int = 0,
    n_resamples: int = 200,
) -> dict[str, object]:
    """Return every measure of one set of predictions as plain Python numbers, fractions all.

    Args:
        probs: (N, C), rows sum to one, in stored order (`ece_batch_averaged` depends on it).
        labels: (N,) integers in [0, C).
        n_bins: bins of every binned measure but the paper-compatible one, which has 10.
        scheme: of `ece`, `mce`, `classwise_ece` and the over-/under-confidence split.
        seed: of the floors and intervals.
        n_resamples: behind each floor and interval.

    Returns:
        n, accuracy, nll (nats), brier, ece and ece_equal_width (see `ece_report`),
        ece_batch_averaged, mce, smooth_ece, classwise_ece, ks_error, aurc, mean_confidence,
        mean_per_class_accuracy, top5_accuracy (None when C ≤ 5), overconfidence, underconfidence.

    Raises:
        SpecError: an argument is not valid.
        PredictionsError: probs or labels break their contract.
    """
    return evaluate_scores(
        score_probs(probs, labels),
        probs.shape[1],
        n_bins=n_bins,
        scheme=scheme,
        seed=seed,
        n_resamples=n_resamples,
    ) | {"classwise_ece": measures.classwise_ece(probs, labels, n_bins=n_bins, scheme=scheme)}


def evaluate_scores(
    scores: SampleScores,
    n_classes: int,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    seed: int = 0,
    n_resamples: int = 200,
) -> dict[str, object]:
    """Return what `evaluate_all` does from the scores of the samples, all but `classwise_ece`.

    Raises:
        SpecError: an argument is not valid.
    """
    confidences, correct = scores.confidences, scores.correct
    over, under = measures.over_under_confidence_from_confidence(
        confidences, correct, n_bins=n_bins, scheme=scheme
    )

    def report(chosen: Scheme) -> dict[str, object]:
        return ece_report_from_confidence(
            confidences, correct, n_bins=n_bins, scheme=chosen, n_resamples=n_resamples, seed=seed
        )

    counts = np.bincount(scores.labels)
    hits = np.bincount(scores.labels, weights=correct)
    return {
        "n": len(scores),
        "accuracy": float(correct.mean()),
        "nll": float(scores.nll.mean()),
        "brier": float(scores.brier.mean()),
        "ece": report(scheme),
        "ece_equal_width": report("equal_width"),
        "ece_batch_averaged": measures.ece_batch_averaged_from_confidence(confidences, correct),
        "mce": measures.ece_from_confidence(
            confidences, correct, n_bins=n_bins, scheme=scheme, norm="max"
        ),
        "smooth_ece": measures.smooth_ece_from_confidence(confidences, correct),
        "ks_error": measures.ks_error_from_confidence(confidences, correct),
        "aurc": measures.aurc_from_confidence(confidences, correct),
        "mean_confidence": float(confidences.mean()),
        "mean_per_class_accuracy": float((hits[counts > 0] / counts[counts > 0]).mean()),
        "top5_accuracy": float((scores.rank < 5).mean()) if n_classes > 5 else None,
        "overconfidence": over,
        "underconfidence": under,
    }
