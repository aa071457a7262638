"""What figures are drawn of in tests: made by hand, or by the code that the API uses."""

from typing import Any

import plotly.graph_objects as go

from calift_core.analysis import calibrators, draws, reliability
from calift_core.analysis.condition import Samples
from calift_core.calibration import Binning, score_samples
from calift_core.schema.report import FrontierPoint, Summary
from calift_core.schema.wire.results import (
    CalibratorEffect,
    Frontier,
    Reliability,
    ReliabilityBin,
    Spectrum,
)
from frontend.tables import Run
from tests.frontend import seed


def make_bin(lower: float, upper: float, confidence: float, accuracy: float) -> ReliabilityBin:
    return ReliabilityBin(
        lower=lower, upper=upper, count=10, mean_confidence=confidence, accuracy=accuracy,
        interval_low=max(0.0, accuracy - 0.1), interval_high=min(1.0, accuracy + 0.1),
        band_low=max(0.0, confidence - 0.05), band_high=min(1.0, confidence + 0.05),
    )  # fmt: skip


def make_reliability(bins: list[ReliabilityBin], **changes: Any) -> Reliability:
    values = {
        "evaluation_id": "e1", "run_id": "r1", "run_name": "a run", "method": "carot",
        "dataset": "sketch", "role": "shift", "n": sum(b.count for b in bins), "n_bins": 15,
        "scheme": "equal_mass", "norm": "l1", "temperature": 1.0, "accuracy": 0.7,
        "mean_confidence": 0.8, "nll": 0.9, "brier": 0.4, "ece": 0.031, "null_mean": 0.012,
        "null_q95": 0.02, "interval": (0.02, 0.04), "debiased": 0.025, "bins": bins,
    }  # fmt: skip
    return Reliability.model_validate(values | changes)


BINS = [make_bin(0.2, 0.4, 0.35, 0.2), make_bin(0.6, 0.7, 0.65, 0.69), make_bin(0.9, 1, 0.97, 0.8)]


def named(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def spectrum_of(values: list[float], **changes: Any) -> Spectrum:
    base = {
        "run_id": "a", "step": 10, "final": True, "singular_values": values,
        "sigma_min": values[-1], "condition_number": None, "effective_rank": 2.0, "n": 100,
        "n_features": len(values), "n_constant_features": 0,
    }  # fmt: skip
    return Spectrum.model_validate(base | changes)


def path_of(run_id: str, rows: list[tuple[float, float, float]], kept: float) -> Frontier:
    """A path of (α, ID accuracy, OOD accuracy); the ECEs fall with α."""
    points = [
        FrontierPoint(
            alpha=alpha, id_accuracy=own, ood_accuracy=out, id_ece=0.1, id_ece_floor=0.01,
            id_nll=1.0, ood_ece=0.2 - alpha / 10, ood_ece_floor=0.02, ood_nll=2.0, datasets=[],
        )
        for alpha, own, out in rows
    ]  # fmt: skip
    return Frontier(run_id=run_id, run_name="wise", input_run="tuned", alpha=kept, points=points)


ROWS = [(0.0, 0.6, 0.6), (0.5, 0.8, 0.7), (1.0, 0.9, 0.5)]


TUNED = Summary(id_accuracy=0.85, ood_accuracy=0.45, id_ece=0.1, ood_ece=0.3, ood_ece_floor=0.02)


RUNS = (Run("a1", "first"), Run("b2", "second"))


BINNING, DRAWS = Binning(), draws.Draws(n_resamples=20)


def samples_of(name: str, dataset: str = "sketch", harm: float = 0.2) -> Samples:
    made = seed.predictions(seed.KINDS[name], dataset, "shift", n=600, harm=harm, seed=1)
    return Samples(
        scores=score_samples(made.logits, made.labels), ids=made.ids,
        class_names=made.metadata.class_names,
    )  # fmt: skip


def effect_of(*, oracle: bool) -> CalibratorEffect:
    made = seed.predictions(
        seed.KINDS["fine-tuning"], "cal", "shift" if oracle else "calibration", n=600, harm=0.0,
        seed=2,
    )  # fmt: skip
    calibrator, fitted = calibrators.fit_calibrator("temperature", [made], oracle=oracle)
    test = seed.predictions(seed.KINDS["fine-tuning"], "sketch", "shift", n=600, harm=0.2, seed=1)
    diagrams = []
    for temperature in (1.0, calibrator.temperature):
        scores = score_samples(test.logits, test.labels, temperature)
        diagrams.append(
            Reliability(
                evaluation_id="e1", run_id="a1", run_name="first", method="finetune",
                dataset="sketch", role="shift", temperature=1.0,
                **reliability.reliability_numbers(
                    scores, BINNING, DRAWS, smooth=reliability.smooth_curve(scores)
                ),
            )
        )  # fmt: skip
    return CalibratorEffect(calibrator=fitted, before=diagrams[0], after=diagrams[1])
