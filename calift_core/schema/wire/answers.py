"""Answers made of stored results: who leads, what was forgotten, which predictions to keep."""

from typing import Literal

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.report import Role
from calift_core.schema.wire.queries import Outcome
from calift_core.schema.wire.results import Source

#: How a confidence moved: up or down by more than asked for, or neither.
Surer = Literal["surer", "alike", "less_sure"]


class Standing(Frozen):
    """A run on a board. `leads`: it may be the best one; `p_value` as in `ConfidenceSet`.

    `decided` is what the order and the lead are decided on: for `ece` the mean debiased squared L2
    error, else `value` itself. `floor` is what `value` would be were the run calibrated, for `ece`.
    `reach`, by run: the difference of `decided` to that run lies within plus or minus this in 95 %
    of repeats, for all pairs of the board at once.
    """

    run_id: str
    value: float
    decided: float
    floor: float | None = None
    leads: bool
    p_value: float
    reach: dict[str, float] = Field(default_factory=dict)


class Board(Frozen):
    """Runs by a metric, best first: its mean over the data sets of a role that all were tested on.

    The runs that lead hold the best one with probability `level` (model confidence set), as
    `n_resamples` draws say. Over one data set it is that set's `ConfidenceSet`.
    """

    role: Role
    metric: str
    datasets: list[str]
    n: int
    n_resamples: int
    level: float
    standings: list[Standing]


class Leaders(Frozen):
    """Who may be the best, on ID data, over the shifts and over the corruptions."""

    runs: list[str]
    boards: list[Board]
    warnings: list[str] = Field(default_factory=list)


class LedgerCell(Frozen):
    """Samples of one outcome whose confidence moved one way, and its means before and after."""

    outcome: Outcome
    moved: Surer
    n: int
    confidence_before: float | None
    confidence_after: float | None


class LedgerSet(Frozen):
    """What a run has gained and lost against another on the samples of a data set that both saw.

    `gained + lost + both + neither = n`. `difference` is that of the accuracies, (gained − lost)/n,
    with its paired 95 % interval. `forgotten` is the share that was lost of what the other run had
    right, with its Wilson 95 % interval; null where that was nothing. Confidences are those of each
    run's own prediction; they moved where they differ by more than `step`.
    """

    dataset: str
    role: Role
    evaluation_id: str | None
    against_id: str | None
    n: int
    gained: int
    lost: int
    both: int
    neither: int
    difference: float
    interval: tuple[float, float]
    distinguishable: bool
    forgotten: float | None
    forgotten_interval: tuple[float, float] | None
    cells: list[LedgerCell]


class Ledger(Frozen):
    """What a run has gained and lost against another, data set by data set."""

    run: Source
    against: Source
    step: float
    sets: list[LedgerSet]
    warnings: list[str] = Field(default_factory=list)


class RiskPoint(Frozen):
    """Error rate among the samples whose confidence is at least `threshold`, with its 95 % ends."""

    threshold: float
    coverage: float
    risk: float
    low: float
    high: float


class KeptSet(Frozen):
    """What the threshold keeps of a data set, and how often that is wrong.

    Intervals are Clopper-Pearson 95 %. `holds`: whether the risk is at most the promised one; null
    where the interval leaves it open. On ID data the promise is meant; on a shift nothing was
    promised. `curve` is of all thresholds.
    """

    dataset: str
    role: Role
    evaluation_id: str | None
    n: int
    kept: int
    errors: int
    coverage: float
    coverage_interval: tuple[float, float]
    risk: float | None
    risk_interval: tuple[float, float] | None
    holds: bool | None
    curve: list[RiskPoint]


class PromiseTest(Frozen):
    """A promise held against the ID test set, which it was not made from.

    `holds` is that set's. Accuracies are of the part that the threshold was chosen on and of the
    test set, `difference` is the former less the latter with its 95 % interval (Newcombe 1998,
    images taken for independent). `distinguishable`: the interval leaves 0 out, so the two parts
    are not exchangeable and the promise says nothing of the test set. `threshold` is the one that
    the same rule chooses on the test set itself; null where none can be promised there.
    """

    dataset: str
    n: int
    holds: bool | None
    risk: float | None
    risk_interval: tuple[float, float] | None
    chosen_on_accuracy: float
    accuracy: float
    difference: float
    interval: tuple[float, float]
    distinguishable: bool
    threshold: float | None


class Decision(Frozen):
    """A threshold on a run's confidence, and what it gives on each data set.

    Among what it keeps at most a share `risk` is wrong, in `level` of repeats of the ID part that
    it was chosen on; null where nothing can be promised. `chosen_on` is that part: ID validation,
    which no calibrator is fitted on, else ID calibration where the `calibrator` is `none`.
    Confidences are after it, as those of an exported model and of a tried picture are.
    `test` holds the promise against the ID test set; null without one, or without a promise.
    `warnings` name data sets that keep the largest logits alone, to which a calibrator cannot be
    applied.
    """

    run: Source
    risk: float
    level: float
    calibrator: str
    threshold: float | None
    chosen_on: KeptSet
    test: PromiseTest | None = None
    sets: list[KeptSet]
    warnings: list[str] = []


class RunPoint(Frozen):
    """A finished run as a point of the bound monitor; errors are fractions.

    `covariance_term` is D/σ_min and `rhs` ε_ID + D/σ_min, the two terms of the bound that ID data
    show (docs/theory.md); null where σ_min is 0 by rank. `variant` is the method with the options
    that were set: runs of one variant differ by less than that and are no independent evidence.
    """

    run_id: str
    name: str
    method: str
    variant: str
    model: str
    seed: int
    color_index: int = Field(
        default=0, description="Place among the runs of its suite; what its colour is made from"
    )
    n_features: int
    sigma_min: float | None
    effective_rank: float
    covariance_term: float | None
    rhs: float | None
    id_ece: float
    id_error: float
    ood_error: float
    ood_ece: float
    ood_ece_floor: float | None


class Correlation(Frozen):
    """Spearman's rank correlation of a number of the runs with an error under shift.

    An association over `n` runs of `n_groups` variants, ranked inside models; it says nothing of a
    cause. The 95 % interval and the p-value draw whole variants.
    """

    term: str
    error: str
    rho: float
    low: float
    high: float
    p_value: float
    n: int
    n_groups: int


class BoundMonitor(Frozen):
    """Finished runs on one suite, their terms of the bound, and how these rank with the errors."""

    suite: str
    runs: list[RunPoint]
    correlations: list[Correlation]
    notes: list[str]


class Guess(Frozen):
    """A class and its probability."""

    label: str
    probability: float


class KeptAt(Frozen):
    """Whether an answer is kept where at most a share `risk` of what is kept may be wrong.

    Both null where the ID validation images cannot show so small a share at any confidence.
    """

    risk: float
    threshold: float | None
    kept: bool | None


class NoneOfTheseAt(Frozen):
    """Whether a picture is said to be unlike the ID data, as a share of the ID data is by mistake.

    Both null where there are too few ID validation images for so small a share.
    """

    false_alarms: float
    threshold: float | None
    none_of_these: bool | None


AlikeRole = Role | Literal["train"]


class AlikePicture(Frozen):
    """An image of a run, and the cosine of its features with those of the picture.

    A training image belongs to no evaluation.
    """

    dataset: str
    role: AlikeRole
    sample_id: str
    label: str
    cosine: float
    evaluation_id: str | None = None


class TrainingPictures(Frozen):
    """The training images that are nearest to a picture, among `n` of the `of` of `dataset`.

    Those of the run's suite; a run without training, such as `zero_shot`, has learned from none.
    """

    dataset: str
    n: int
    of: int
    nearest: list[AlikePicture]


class TextFeatures(Frozen):
    """What a run's text tower makes of a text: a unit vector in the space of its image features."""

    values: list[float]


class TriedPicture(Frozen):
    """What a run says of one picture.

    `top` holds the likeliest of `n_classes` classes, after the `calibrator` that was fitted on the
    ID calibration part `fitted_on` and chosen as `calift calibrate` does; `none` where the run's
    own probabilities were better, or, with a `note`, where nothing could be fitted. `kept` is
    promised for data like `promised_on` alone. `unlike` says whether it is none of the classes, by
    rate of false alarms; empty where the run has no ID part for that. `trained` are training images
    by the run's own features; null where the run kept none. `nearest` are evaluated images of the
    sets that were `searched`, none of them a training image. `seen` is the picture as the
    model saw it, a PNG in base64.
    """

    run: Source = Source()
    calibrator: str
    fitted_on: str | None
    note: str
    n_classes: int
    top: list[Guess]
    promised_on: str | None
    kept: list[KeptAt]
    unlike: list[NoneOfTheseAt] = []
    trained: TrainingPictures | None = None
    searched: list[str]
    nearest: list[AlikePicture]
    seen: str
