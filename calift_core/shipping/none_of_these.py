"""From which score on a model says "none of these": its images are unlike the ID data.

A threshold is chosen on the ID validation part so that new ID images fall below it at a stated rate
of false alarms. That holds for any score, and ID data alone cannot say which finds most of what is
unlike them: classes left out one at a time, a stand-in, prefer the energy, which for the zero-shot
run of letters is near chance on every shift (docs/calibration.md). So the score is fixed: the
softmax of logits over the logit scale, which is MCM (Ming et al. 2022) for cosines; for other heads
it is the softmax at a high temperature, as in ODIN (Liang et al. 2018), which orders by the largest
logit less the mean.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from calift_core.calibration.bins import Bools, Doubles, Floats
from calift_core.calibration.decisions import clopper_pearson
from calift_core.calibration.ood import ALARM_RATES, alarm_threshold, mcm
from calift_core.predictions.read import read_metadata, read_predictions
from calift_core.predictions.types import Predictions, predictions_name
from calift_core.schema.report import Report
from calift_core.shipping.choosing import part_of
from calift_core.shipping.exported_scores import stored_tests
from calift_core.shipping.promises import at_rate
from calift_core.words import percent


class AlarmTest(BaseModel, frozen=True):
    """Share of a set that is said to be none of these, with its Clopper-Pearson 95 % interval.

    Of the role `id` it is the rate of false alarms.
    """

    dataset: str
    role: str
    n: int
    alarms: float
    interval: tuple[float, float]


class AlarmThreshold(BaseModel, frozen=True):
    """The score below which an image is none of these; None where there are too few images."""

    false_alarms: float
    threshold: float | None
    tests: list[AlarmTest]


class NoneOfThese(BaseModel, frozen=True):
    """Thresholds by rate of false alarms, chosen on the n images of an ID part."""

    score: Literal["mcm"] = "mcm"
    logit_scale: float
    dataset: str
    n: int
    thresholds: list[AlarmThreshold]

    def scores(self, logits: Floats) -> Doubles:
        """(N,) larger for images like the ID data; of logits (N, C) before the calibrator."""
        return mcm(logits, self.logit_scale)

    def threshold(self, false_alarms: float) -> float | None:
        """The threshold for a rate of false alarms; None: there are too few images for it.

        Raises:
            SpecError: none was chosen for this rate.
        """
        chosen = {one.false_alarms: one.threshold for one in self.thresholds}
        return at_rate("false_alarms", false_alarms, chosen)

    def why_not(self, false_alarms: float) -> str:
        """Why there is no threshold for a rate; nothing where there is one.

        Raises:
            SpecError: none was chosen for this rate.
        """
        if self.threshold(false_alarms) is not None:
            return ""
        return (
            f"{percent(false_alarms, 0)} false alarms cannot be kept to: that needs "
            f"{int(np.ceil(1 / false_alarms)) - 1:,} ID images, {self.dataset} has {self.n:,}."
        )

    def alarms(self, logits: Floats, false_alarms: float) -> Bools | None:
        """(N,) which images are none of these; None where the rate cannot be kept to."""
        threshold = self.threshold(false_alarms)
        return None if threshold is None else self.scores(logits) < threshold


def none_of_these(run: Path, report: Report, *, tested: bool = False) -> NoneOfThese | None:
    """A finished run's thresholds; None without an ID validation or calibration part.

    Logits before the calibrator are scored, so that a part it was fitted on will do.

    Args:
        tested: with what they gave on the ID test part, each shift and each far set.

    Raises:
        PredictionsError: a predictions file is missing or damaged.
    """
    parts = [*part_of(run, report, "validation"), *part_of(run, report, "calibration")]
    path = next((p for p in parts if read_metadata(p).storage == "full"), None)
    if path is None:
        return None
    own = read_predictions(path)
    scale = own.metadata.logit_scale
    scores = mcm(own.logits, scale)
    chosen = {rate: alarm_threshold(scores, rate) for rate in ALARM_RATES}
    tests: dict[float, list[AlarmTest]] = {rate: [] for rate in ALARM_RATES}
    for found in _tested(run, report) if tested else ():
        theirs = mcm(found.logits, scale)
        for rate, threshold in chosen.items():
            if threshold is not None:
                hits, n = int((theirs < threshold).sum()), len(theirs)
                low, high = clopper_pearson(hits, n)
                tests[rate].append(
                    AlarmTest(
                        dataset=found.metadata.dataset,
                        role=found.metadata.role,
                        n=n,
                        alarms=hits / n,
                        interval=(float(low), float(high)),
                    )
                )
    return NoneOfThese(
        logit_scale=scale,
        dataset=own.metadata.dataset,
        n=len(own),
        thresholds=[
            AlarmThreshold(false_alarms=rate, threshold=chosen[rate], tests=tests[rate])
            for rate in ALARM_RATES
        ],
    )


def _tested(run: Path, report: Report) -> Iterator[Predictions]:
    """What a run predicted of its ID test part, shifts and far sets, where all logits are kept."""
    for _, found in stored_tests(run, report, roles=("id", "shift")):
        yield found
    for name in report.data.get("ood", ()):
        path = run / predictions_name(name)
        if read_metadata(path).storage == "full":
            yield read_predictions(path)
