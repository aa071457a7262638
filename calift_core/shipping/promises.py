"""What an exported model promises on data like its ID data, and what became of it elsewhere.

Thresholds and prediction sets are fitted on a part of the ID data that the calibrator was not
fitted on (`analysis.deciding.threshold_part`): the ID validation part. (If `auto` chose the
calibrator there, among eight, the promise is that much weaker.) Every
promise stands beside what it gave on the ID test part and on every shift, so that nobody believes a
guarantee where it does not hold.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from calift_core.analysis.choosing import INITIAL_NAME
from calift_core.analysis.deciding import threshold_part
from calift_core.calibration import Calibrator, SampleScores, score_probs
from calift_core.calibration.conformal import Conformal, coverage_of, fit_conformal
from calift_core.calibration.decisions import choose_threshold, keep
from calift_core.errors import SpecError
from calift_core.predictions.read import read_predictions
from calift_core.schema.report import Report
from calift_core.shipping.choosing import part_of, stored_probs
from calift_core.shipping.exported_scores import scores_of, stored_tests
from calift_core.words import percent

#: Shares of errors among what is kept, and coverages of sets, that are promised.
RISKS = (0.01, 0.02, 0.05, 0.1)
COVERAGES = (0.9, 0.95)
LEVEL = 0.95


def at_rate(name: str, rate: float, thresholds: Mapping[float, float | None]) -> float | None:
    """The threshold that was chosen for a rate.

    Args:
        name: of the option that gives the rate.

    Raises:
        SpecError: none was chosen for this rate.
    """
    for known, threshold in thresholds.items():
        if abs(known - rate) < 1e-9:
            return threshold
    choices = ", ".join(f"{known:g}" for known in thresholds)
    raise SpecError(f"{name} must be one of {choices}, got {rate:g}")


class ThresholdTest(BaseModel, frozen=True):
    """What a threshold gave on a set: shares, and the errors' Clopper-Pearson interval."""

    dataset: str
    role: str
    n: int
    coverage: float
    errors: float | None
    interval: tuple[float, float] | None


class Threshold(BaseModel, frozen=True):
    """The least confidence for at most `risk` errors among what is kept; None where none can be.

    On data like the ID data it holds in `level` of repeats.
    """

    risk: float
    level: float
    threshold: float | None
    tests: list[ThresholdTest]


class SetsTest(BaseModel, frozen=True):
    """What prediction sets gave on a set."""

    dataset: str
    role: str
    n: int
    coverage: float
    mean_size: float


class Sets(BaseModel, frozen=True):
    """Prediction sets of classes whose probability is at least 1 − q; q None: every class."""

    coverage: float
    q: float | None
    tests: list[SetsTest]


class Promises(BaseModel, frozen=True):
    """All of them, and the n images of the ID part that they were fitted on."""

    dataset: str
    n: int
    thresholds: list[Threshold]
    sets: list[Sets]

    def threshold(self, risk: float) -> float | None:
        """The least confidence for at most so many errors among what is kept; None: not promised.

        Raises:
            SpecError: this share was not asked for.
        """
        return at_rate("errors", risk, {one.risk: one.threshold for one in self.thresholds})

    def why_not(self, risk: float) -> str:
        """Why a share of errors is not promised; nothing where it is.

        Raises:
            SpecError: this share was not asked for.
        """
        if self.threshold(risk) is not None:
            return ""
        return (
            f"At most {percent(risk, 0)} errors are not promised: {self.n:,} images of "
            f"{self.dataset} do "
            "not show it at any confidence. Ask for a larger share, or export a run with more "
            "validation images."
        )

    def inside(self, probs: NDArray[np.float64], coverage: float) -> NDArray[np.bool_]:
        """(N, C) the classes of each image's set.

        Raises:
            SpecError: sets of this coverage were not asked for.
        """
        for one in self.sets:
            if abs(one.coverage - coverage) < 1e-9:
                q = np.array([np.inf if one.q is None else one.q])
                return Conformal("plain", coverage, q, self.n).sets(probs)
        known = ", ".join(f"{one.coverage:g}" for one in self.sets)
        raise SpecError(f"coverage must be one of {known}, got {coverage:g}")


def promising_part(run: Path, report: Report, calibrator: Calibrator | None) -> Path | None:
    """Predictions of the part that a finished run's promises are fitted on; None: it has none.

    Raises:
        PredictionsError: the report names a file that is not there.
    """
    part = threshold_part(
        fitted=calibrator is not None, has_validation=bool(part_of(run, report, "validation"))
    )
    return None if part is None else next(iter(part_of(run, report, part)), None)


def chosen_thresholds(part: SampleScores) -> dict[float, float | None]:
    """Risk → the least confidence that is kept, None where these images cannot show it at any."""
    return {risk: choose_threshold(part, risk=risk, level=LEVEL) for risk in RISKS}


def promises_of(run: Path, report: Report, calibrator: Calibrator | None) -> Promises | None:
    """The promises of a finished run with a calibrator; None without a part to fit them on.

    Raises:
        PredictionsError: a predictions file is missing or damaged.
    """
    path = promising_part(run, report, calibrator)
    if path is None:
        return None
    own = read_predictions(path)
    initial = run / INITIAL_NAME
    probs = stored_probs(own, calibrator, initial)
    chosen = chosen_thresholds(scores_of(path, initial, calibrator))
    fitted = {c: fit_conformal(probs, own.labels, coverage=c) for c in COVERAGES}
    kept: dict[float, list[ThresholdTest]] = {risk: [] for risk in RISKS}
    covered: dict[float, list[SetsTest]] = {coverage: [] for coverage in COVERAGES}
    for evaluation, predictions in stored_tests(run, report, roles=("id", "shift")):
        theirs, labels = stored_probs(predictions, calibrator, initial), predictions.labels
        found = score_probs(theirs, labels)
        about = {"dataset": evaluation.dataset, "role": evaluation.role, "n": len(labels)}
        for risk, threshold in chosen.items():
            if threshold is not None:
                k = keep(found, threshold)
                kept[risk].append(
                    ThresholdTest(
                        **about, coverage=k.coverage, errors=k.risk, interval=k.risk_interval
                    )
                )
        for coverage, conformal in fitted.items():
            c = coverage_of(conformal, theirs, labels)
            covered[coverage].append(SetsTest(**about, coverage=c.coverage, mean_size=c.mean_size))
    return Promises(
        dataset=own.metadata.dataset,
        n=len(own),
        thresholds=[
            Threshold(risk=risk, level=LEVEL, threshold=chosen[risk], tests=kept[risk])
            for risk in RISKS
        ],
        sets=[
            Sets(
                coverage=coverage,
                q=float(fitted[coverage].q[0]) if np.isfinite(fitted[coverage].q[0]) else None,
                tests=covered[coverage],
            )
            for coverage in COVERAGES
        ],
    )
