"""What is found on images without labels, and a sentence on each part of it."""

from datetime import datetime
from typing import Literal

from calift_core.schema.base import Frozen
from calift_core.words import percent

#: Images have drifted where equal sets would differ as much less often than this.
DRIFTED = 0.01


class Expected(Frozen):
    """An expected accuracy. Fractions.

    `low` to `high` is what sampling leaves open; of an estimator that was regressed on the known
    shifts, what its errors there support. `mean_error` is its mean absolute error on those shifts,
    `errors` its signed error on each (estimate − accuracy); None and empty where there is none.
    """

    estimator: str
    value: float
    low: float
    high: float
    mean_error: float | None
    errors: dict[str, float]


class Drifted(Frozen):
    """The energy distance of the logits to those of the reference, and its permutation p-value."""

    distance: float
    p_value: float
    n_reference: int
    n: int


class Familiar(Frozen):
    """Distances of the logits to those of known sets; see `calift_core.calibration.drift`."""

    distance: float
    error: float
    largest: float
    nearest: str
    nearest_distance: float
    nearest_error: float
    usual: float


class Share(Frozen):
    """How often a class is predicted, there and here. Fractions."""

    label: str
    reference: float
    here: float


class Unusual(Frozen):
    """An image that lies far from what the model is sure about: `energy` is −log Σ exp(logits)."""

    path: str
    label: str
    confidence: float
    energy: float


class NoneOfTheseShare(Frozen):
    """How many images are none of the model's classes at a rate of false alarms. Fractions."""

    share: float
    false_alarms: float


class Watched(Frozen):
    """What is found on images without labels.

    Attributes:
        reference: the labelled ID data that they are compared with, and how many.
        recommended: the estimator that was closest on the labelled shifts, where the images have
            drifted; the difference of confidences where they have not, or there is no shift.
        drift: of the logits.
        unknown: why the accuracy is not known, in a sentence; None where the answer may be used.
        familiar: how near the images lie to ID data and labelled shifts; None without shifts.
        none_of_these: None where the model has no threshold for it.
        shares: of predicted classes, the largest change first.
        unusual: images, the most unusual first.
    """

    n: int
    reference: str
    n_reference: int
    expected: list[Expected]
    recommended: str
    drift: Drifted
    unknown: str | None
    familiar: Familiar | None
    none_of_these: NoneOfTheseShare | None
    shares: list[Share]
    unusual: list[Unusual]
    unreadable: dict[str, str]

    @property
    def answer(self) -> Expected:
        """The recommended expectation."""
        return next(one for one in self.expected if one.estimator == self.recommended)

    @property
    def sentence(self) -> str:
        """What is known of the accuracy, or that nothing is, and why."""
        best, images = self.answer, f"{self.n:,} images"
        if self.unknown is not None:
            return f"How many of {images} are right is unknown: {self.unknown}"
        if self.drift.p_value >= DRIFTED:
            return (
                f"About {percent(best.value, 0)} of {images} are likely to be right "
                f"({percent(best.low)} to "
                f"{percent(best.high)} by sampling): they cannot be told from those of "
                f"{self.reference}."
            )
        worst = max(map(abs, best.errors.values()))
        return (
            f"About {percent(best.value, 0)} of {images} are likely to be right "
            f"({percent(best.low, 0)} to "
            f"{percent(best.high, 0)}). They have drifted, no further than shifts that the run "
            f"was tested "
            f"on, where this estimate was off by {100 * (best.mean_error or 0.0):.1f} points on "
            f"average and {100 * worst:.1f} at most."
        )

    @property
    def evidence(self) -> str:
        """The drift test, and the share of images that are none of the classes."""
        drift, unlike = self.drift, self.none_of_these
        phrase = "differ from" if drift.p_value < DRIFTED else "cannot be told from"
        drifted = (
            f"Logits {phrase} those of {self.n_reference:,} images of {self.reference} (energy "
            f"distance {drift.distance:.3g}, permutation p = {drift.p_value:.3g})."
        )
        if unlike is None:
            return drifted
        return (
            f"{drifted} None of these classes: {percent(unlike.share)} of the images; of ID images "
            f"it would be {percent(unlike.false_alarms, 0)}."
        )


class FollowedBatch(Frozen):
    """What was found on one batch. Fractions.

    Attributes:
        at: when it was compared, UTC.
        images: their files, where each is to be compared once.
        value, low, high: the expected accuracy; None where it is unknown.
        unknown: why it is.
        p_value: of the drift test.
        alarms: why somebody should look, a phrase each.
    """

    at: datetime
    n: int
    images: list[str] = []
    value: float | None
    low: float | None
    high: float | None
    unknown: str | None
    distance: float
    p_value: float
    alarms: list[str]

    @property
    def line(self) -> str:
        """One line for a terminal."""
        known = (
            "accuracy unknown"
            if self.value is None
            else f"about {percent(self.value, 0)} right ({percent(self.low, 0)} to "
            f"{percent(self.high, 0)})"
        )
        alarm = f"  ALARM: {' and '.join(self.alarms)}" if self.alarms else ""
        return (
            f"{self.at:%Y-%m-%d %H:%M:%S}  {self.n:,} images  {known}  "
            f"drift p = {self.p_value:.3f}{alarm}"
        )


class UnlabelledRecord(Frozen):
    """A finished run is asked about images without labels.

    Attributes:
        source: where they are.
        batches: the same images a batch at a time, the oldest files first.
        alarms: why somebody should look at them, a phrase each.
    """

    kind: Literal["unlabelled"] = "unlabelled"
    run: str
    source: str
    found: Watched
    batches: list[FollowedBatch]
    alarms: list[str]

    @property
    def sentence(self) -> str:
        """Whether there is an alarm and why, and how many are likely to be right."""
        drift = f"the drift's p is {self.found.drift.p_value:.3g}"
        verdict = f"ALARM: {' and '.join(self.alarms)}" if self.alarms else f"No alarm: {drift}"
        return f"{verdict}. {self.found.sentence} {self.found.evidence}"
