"""A judged data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from calift_core.calibration.compare import PairedDifference


@dataclass(frozen=True)
class JudgedSet:
    """One data set.

    Attributes:
        name: of the set.
        role: `id` for the first, `shift` for the others.
        numbers: of the reliability diagram: n, accuracy, mean_confidence, nll, brier, ece, its
            floor (null_mean, null_q95) and 95 % interval, debiased, bins. Fractions and nats.
        accuracy_interval: 95 % [Wilson 1927].
        against: differences to the other model by metric, this one minus the other; empty where
            there is none.
    """

    name: str
    role: Literal["id", "shift"]
    numbers: dict[str, Any]
    accuracy_interval: tuple[float, float]
    against: dict[str, PairedDifference] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Mean confidence minus accuracy: above 0 where over-confident."""
        return float(self.numbers["mean_confidence"] - self.numbers["accuracy"])

    @property
    def is_miscalibrated(self) -> bool:
        """Whether 19 of 20 perfectly calibrated models of this size would show a smaller error."""
        return bool(self.numbers["ece"] > self.numbers["null_q95"])
