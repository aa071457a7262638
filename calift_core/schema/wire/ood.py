"""How well scores tell the images of a run's ID test part from others."""

from typing import Literal

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.report import Role
from calift_core.schema.wire.results import Source

OodScoreName = Literal["max_softmax", "energy", "mcm", "knn", "relative_mahalanobis"]


class OodMeasure(Frozen):
    """A measure with its 95 % interval, and its paired difference to that of `max_softmax`.

    Differences are null for `max_softmax` itself.
    """

    value: float
    interval: tuple[float, float]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


class OodHistogram(Frozen):
    """Shares of the images by score, in bins between K + 1 `edges`."""

    edges: list[float]
    id: list[float]
    ood: list[float]


class OodScore(Frozen):
    """A score, larger for images like the ID data, and how well it tells a set from these.

    AUROC counts ties half, AUPR takes OOD images for the positives, FPR95 is the share of the set
    that is accepted where 95 % of the ID test images are: from `threshold` on. `below` and `above`
    are images of the set that lie next to the threshold, the nearest first.
    """

    score: OodScoreName
    auroc: OodMeasure
    aupr: OodMeasure
    fpr95: OodMeasure
    threshold: float
    below: list[str]
    above: list[str]
    histogram: OodHistogram


class OodSet(Frozen):
    """A set of images that is held against the ID test images.

    `far`: of none of the classes, as the suite's `ood` or a folder has them, in no evaluation.
    """

    dataset: str
    role: Role | Literal["far"]
    evaluation_id: str | None
    n: int
    scores: list[OodScore]


class OodDetection(Frozen):
    """How well a run's scores tell its ID test images from other sets.

    `max_softmax` is of probabilities after the `calibrator` that the run's model is used with.
    Scores of features hold an image against `n_training` images of the training part; null where
    the run kept none. `notes` say which scores or sets are missing, and why.
    """

    run: Source
    dataset: str
    n: int
    calibrator: str
    n_training: int | None
    sets: list[OodSet]
    notes: list[str] = Field(default_factory=list)
