"""Reliability diagrams as the API gives them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from calift_core import calibration
from calift_core.analysis.draws import DEFAULT_DRAWS, Draws
from calift_core.calibration import Binning, SampleScores

if TYPE_CHECKING:
    from calift_core.schema.wire.results import SmoothCurve

#: Fields of a `ReliabilityBin`, which only filled bins have.
_BIN_COLUMNS = (
    "lower", "upper", "count", "mean_confidence", "accuracy", "interval_low", "interval_high",
    "band_low", "band_high",
)  # fmt: skip


# ---- The reliability diagram -------------------------------------------------------------------


def reliability_numbers(
    scores: SampleScores,
    binning: Binning,
    draws: Draws = DEFAULT_DRAWS,
    *,
    smooth: SmoothCurve | None = None,
) -> dict[str, Any]:
    """Return the fields of a `Reliability` that come from the samples.

    Args:
        binning: of the error and of the diagram alike.
        smooth: from `smooth_curve`, which no binning changes; None leaves it out.
    """
    curve = calibration.reliability_curve(scores, binning, **asdict(draws))
    columns = {name: getattr(curve, name)[curve.count > 0].tolist() for name in _BIN_COLUMNS}
    return {
        "n": curve.n,
        **asdict(binning),
        "accuracy": calibration.accuracy(scores),
        "mean_confidence": float(scores.confidences.mean()),
        "nll": calibration.nll(scores),
        "brier": calibration.brier(scores),
        "ece": curve.ece,
        "null_mean": curve.null_mean,
        "null_q95": curve.null_q95,
        "interval": calibration.interval(scores, binning, **asdict(draws)),
        "debiased": (
            None
            if binning.norm == "max"
            else calibration.debiased_calibration_error(scores, binning)
        ),
        "bins": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ],
        "smooth": smooth,
    }


def smooth_curve(scores: SampleScores, n_points: int = 101) -> SmoothCurve:
    """Return the kernel diagram that belongs to the smooth calibration error."""
    from calift_core.schema.wire.results import SmoothCurve

    found = calibration.smooth_reliability_curve(scores, n_points=n_points)
    return SmoothCurve(
        confidence=found.confidence.tolist(),
        accuracy=[None if np.isnan(a) else a for a in found.accuracy.tolist()],
        density=found.density.tolist(),
        bandwidth=found.bandwidth,
        smooth_ece=found.smooth_ece,
    )
