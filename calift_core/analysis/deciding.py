"""A threshold that was chosen on one data set, and what it gives on others."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from calift_core.calibration import SampleScores
from calift_core.calibration.decisions import keep, risk_curve

#: Above every confidence: keeps nothing.
_NOTHING = 2.0


def kept_of(scores: SampleScores, threshold: float | None, risk: float) -> dict[str, Any]:
    """The numbers of a `KeptSet`, plain; without a threshold nothing is kept."""
    found = keep(scores, _NOTHING if threshold is None else threshold)
    curve = risk_curve(scores)
    columns = (curve.thresholds, curve.coverage, curve.risk, curve.low, curve.high)
    names = ("threshold", "coverage", "risk", "low", "high")
    return {
        **asdict(found),
        "holds": _holds(found.risk_interval, risk),
        "curve": [
            dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)
        ],
    }


def _holds(interval: tuple[float, float] | None, risk: float) -> bool | None:
    if interval is None or interval[0] <= risk < interval[1]:
        return None
    return interval[1] <= risk
