"""What the API says of predictions files that somebody brings."""

from __future__ import annotations

from typing import Literal

from calift_core.schema.base import Frozen
from calift_core.schema.wire.results import Reliability, ReliabilityNumbers

#: Folder in an uploaded zip that holds the other model's file.
AGAINST = "against"


class JudgedDifference(Frozen):
    """This model minus the other one on the same samples, with its 95 % interval."""

    difference: float
    interval: tuple[float, float]


class JudgedData(ReliabilityNumbers):
    """One data set: its reliability diagram as numbers, and what they are compared to.

    `against` has accuracy, nll and squared_ece; it is empty where there is no other model.
    """

    name: str
    role: Literal["id", "shift"]
    accuracy_interval: tuple[float, float]
    against: dict[str, JudgedDifference]

    def diagram(self) -> Reliability:
        """The reliability diagram as the other routes give one."""
        return Reliability(
            evaluation_id="",
            run_id=self.name,
            run_name=self.name,
            method="",
            dataset=self.name,
            role=self.role,
            temperature=1.0,
            **{name: getattr(self, name) for name in ReliabilityNumbers.model_fields},
        )


class Judged(Frozen):
    """How far predictions can be trusted: three sentences and the numbers behind them.

    The first of `sets` is the model's own data, the others are shifts; `other` names the model that
    it was compared with and is empty where there is none.
    """

    sentences: tuple[str, str, str]
    sets: list[JudgedData]
    other: str
