"""Calibration measures that can be trusted, from stored predictions alone (no torch).

`score_probs(probs, labels)` and `score_samples(logits, labels)` make scores of N samples; measures
take scores and say how they bin with a `Binning`::

    ece(score_probs(probs, labels), Binning(15, "equal_mass", "l1"))

Nothing guesses whether an array holds probabilities or logits. What a function returns, such as
`diagrams.ReliabilityCurve`, and what only tests and simulations ask for lie in the modules.
"""

from calift_core.calibration.bins import Binning, Norm, Scheme, assign_bins, bin_edges, softmax
from calift_core.calibration.bundle import ece_report, evaluate_all, evaluate_scores
from calift_core.calibration.calibrators import Calibrator
from calift_core.calibration.compare import model_confidence_set, paired_difference
from calift_core.calibration.diagrams import reliability_curve, smooth_reliability_curve
from calift_core.calibration.measures import (
    accuracy,
    aurc,
    brier,
    classwise_ece,
    debiased_calibration_error,
    ece,
    ece_batch_averaged,
    ks_error,
    macro_f1,
    mce,
    mean_per_class_accuracy,
    nll,
    risk_at_coverage,
)
from calift_core.calibration.planning import samples_needed
from calift_core.calibration.registry import CALIBRATORS, INITIAL_MODEL_CALIBRATORS
from calift_core.calibration.scores import SampleScores, TopLabel, score_probs, score_samples
from calift_core.calibration.smooth import smooth_ece
from calift_core.calibration.uncertainty import interval, null_floor

__all__ = [
    "Binning",
    "INITIAL_MODEL_CALIBRATORS",
    "CALIBRATORS",
    "Calibrator",
    "Norm",
    "SampleScores",
    "Scheme",
    "TopLabel",
    "accuracy",
    "assign_bins",
    "aurc",
    "bin_edges",
    "brier",
    "classwise_ece",
    "debiased_calibration_error",
    "ece",
    "ece_batch_averaged",
    "ece_report",
    "evaluate_all",
    "evaluate_scores",
    "interval",
    "ks_error",
    "mce",
    "macro_f1",
    "mean_per_class_accuracy",
    "model_confidence_set",
    "nll",
    "null_floor",
    "paired_difference",
    "reliability_curve",
    "risk_at_coverage",
    "samples_needed",
    "score_probs",
    "score_samples",
    "smooth_ece",
    "smooth_reliability_curve",
    "softmax",
]
