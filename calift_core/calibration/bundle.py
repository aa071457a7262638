"""The bundle of measures that an evaluation stores."""

from dataclasses import asdict, replace

from calift_core.calibration import measures
from calift_core.calibration.bins import DEFAULT_BINNING, Binning, Floats, Ints
from calift_core.calibration.scores import SampleScores, Scores, checked, score_probs
from calift_core.calibration.smooth import smooth_ece
from calift_core.calibration.uncertainty import interval, null_floor


def ece_report(
    scores: Scores, binning: Binning = DEFAULT_BINNING, *, n_resamples: int = 200, seed: int = 0
) -> dict[str, object]:
    """Return one calibration error with everything needed to read it.

    Args:
        scores: of N samples; from probabilities `score_probs(probs, labels)`.

    Returns:
        Plain Python numbers, errors as fractions, under value, n_bins, scheme, norm, null_mean,
        null_q95, interval [low, high], debiased (None for the max norm), n_resamples, seed.

    Raises:
        SpecError: n_resamples < 1.
        PredictionsError: confidences or hits break their contract.
    """
    top = checked(scores)
    floor = null_floor(top, binning, n_resamples=n_resamples, seed=seed)
    low, high = interval(top, binning, n_resamples=n_resamples, seed=seed)
    debiased = binning.norm != "max"
    return {
        "value": measures.ece(top, binning),
        **asdict(binning),
        "null_mean": floor.mean,
        "null_q95": floor.q95,
        "interval": [low, high],
        "debiased": measures.debiased_calibration_error(top, binning) if debiased else None,
        "n_resamples": n_resamples,
        "seed": seed,
    }


def evaluate_all(
    probs: Floats,
    labels: Ints,
    binning: Binning = DEFAULT_BINNING,
    *,
    seed: int = 0,
    n_resamples: int = 200,
) -> dict[str, object]:
    """Return every measure of one set of predictions as plain Python numbers, fractions all.

    Args:
        probs: (N, C), rows sum to one, in stored order (`ece_batch_averaged` depends on it).
        labels: (N,) integers in [0, C).
        binning: its bins are those of every binned measure but the paper-compatible one, which has
            10; its scheme is that of `ece`, `mce`, `classwise_ece` and the over-/under-confidence
            split; its norm plays no part, for each measure has its own.

    Returns:
        n, accuracy, nll (nats), brier, ece and ece_equal_width (see `ece_report`),
        ece_batch_averaged, mce, smooth_ece, classwise_ece, ks_error, aurc, mean_confidence,
        mean_per_class_accuracy, macro_f1, top5_accuracy (None when C ≤ 5), overconfidence,
        underconfidence.

    Raises:
        SpecError: n_resamples < 1.
        PredictionsError: probs or labels break their contract.
    """
    return evaluate_scores(
        score_probs(probs, labels), probs.shape[1], binning, seed=seed, n_resamples=n_resamples
    ) | {"classwise_ece": measures.classwise_ece(probs, labels, replace(binning, norm="l1"))}


def evaluate_scores(
    scores: SampleScores,
    n_classes: int,
    binning: Binning = DEFAULT_BINNING,
    *,
    seed: int = 0,
    n_resamples: int = 200,
) -> dict[str, object]:
    """Return what `evaluate_all` does from the scores of the samples, all but `classwise_ece`.

    Raises:
        SpecError: n_resamples < 1.
    """
    top, plain = checked(scores), replace(binning, norm="l1")
    equal_width = replace(plain, scheme="equal_width")
    over, under = measures.over_under_confidence(top, plain)
    return {
        "n": len(scores),
        "accuracy": measures.accuracy(scores),
        "nll": measures.nll(scores),
        "brier": measures.brier(scores),
        "ece": ece_report(top, plain, n_resamples=n_resamples, seed=seed),
        "ece_equal_width": ece_report(top, equal_width, n_resamples=n_resamples, seed=seed),
        "ece_batch_averaged": measures.ece_batch_averaged(top),
        "mce": measures.ece(top, replace(binning, norm="max")),
        "smooth_ece": smooth_ece(top),
        "ks_error": measures.ks_error(top),
        "aurc": measures.aurc(top),
        "mean_confidence": float(scores.confidences.mean()),
        "mean_per_class_accuracy": measures.mean_per_class_accuracy(scores),
        "macro_f1": measures.macro_f1(scores),
        "top5_accuracy": measures.top_k_accuracy(scores, k=5) if n_classes > 5 else None,
        "overconfidence": over,
        "underconfidence": under,
    }
