"""Sweeps as the REST API takes and gives them."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.sweep import SweepSpec
from calift_core.schema.wire.runs import Spread

#: `PAUSED` queues nothing more until it is resumed; `CANCELLING` waits for runs that still work.
SweepPhase = Literal["RUNNING", "PAUSED", "CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED"]
SWEEP_ENDS: frozenset[str] = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
SweepRole = Literal["selection", "evaluation"]
#: What a verdict is decided on; `squared` is the debiased squared L2 calibration error.
VerdictMetric = Literal["accuracy", "squared", "nll"]


class SweepEstimate(Frozen):
    """What a sweep will cost; null where it cannot be known before a run like its own finished.

    `runs_at_least` are certain; the others are rates above the ladders, tried while the highest is
    the best. `hours` and `disk_bytes` are of `runs_at_most`; hours are of one worker.
    """

    arms: int
    runs_at_least: int
    runs_at_most: int
    hours: float | None = None
    disk_bytes: int | None = None
    basis: str = ""


class SweepValidation(Frozen):
    """The answer to a dry run; as `Validation`. `labels` are the contenders."""

    valid: bool
    errors: list[dict[str, str]] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    blocking: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    labels: list[str] = Field(default_factory=list)
    estimate: SweepEstimate | None = None
    spec: SweepSpec | None = Field(default=None, description="As it was understood")


class SweepResume(Frozen):
    """What may be raised when a paused sweep goes on; null leaves it."""

    max_hours: float | None = Field(default=None, gt=0, le=1e6)


class SweepRate(Frozen):
    """A rate of an arm's ladder, and the accuracy on ID validation that it gave."""

    lr: float
    state: Literal["waits", "runs", "done", "diverged", "failed"]
    val_accuracy: float | None = None
    run_id: str | None = None


class SweepArm(Frozen):
    """A contender: its ladder, the rate that was chosen, and how far its evaluation runs are.

    `rate_of` names the arm whose rate it takes. `trouble` says why it will have no evaluation
    runs, or which of its runs failed.
    """

    label: str
    method: str
    lr: float | None = None
    at_edge: Literal["", "lower", "upper"] = ""
    rate_of: str = ""
    rates: list[SweepRate] = Field(default_factory=list)
    n_seeds: int
    n_evaluated: int = 0
    run_ids: list[str] = Field(
        default_factory=list, description="Finished evaluation runs at its own rate, seed by seed"
    )
    trouble: str = ""


class SweepCost(Frozen):
    """Runs and hours; hours are of one worker, null where they are not known yet."""

    runs_done: int
    runs_working: int
    runs_queued: int
    runs_failed: int = Field(description="Failed or diverged")
    runs_cancelled: int
    runs_to_come: int = Field(description="Certain to follow, and not queued yet")
    runs_planned: int = Field(description="Queued so far, or certain to follow")
    hours_spent: float
    hours_to_come: float | None = None


class SweepSummary(Frozen):
    """One row of the list of sweeps. `message` says why it is as it is."""

    id: str
    name: str
    phase: SweepPhase
    reason: str | None = None
    message: str | None = None
    preset: str | None = None
    methods: list[str]
    priority: int = 0
    owner: str | None = None
    created_at: datetime
    finished_at: datetime | None = None
    runs_done: int = 0
    runs_at_most: int = 0


class SweepPage(Frozen):
    """A page of sweeps; `total` counts every one."""

    items: list[SweepSummary]
    next_cursor: str | None = None
    total: int


class SweepDetail(SweepSummary):
    """A sweep with its spec, its contenders and its cost."""

    spec: SweepSpec
    arms: list[SweepArm]
    cost: SweepCost


# ---- The verdict ------------------------------------------------------------------------------


class VerdictRow(Frozen):
    """A contender's numbers. OOD values are means over shifts, else over corruptions.

    `ood_squared` is the debiased squared L2 calibration error, a fraction squared; it may be
    negative, which means: not above the noise. ECEs stand beside what a calibrated model would
    read.
    """

    label: str
    method: str
    lr: float | None = None
    at_edge: Literal["", "lower", "upper"] = ""
    seeds: list[int]
    run_ids: list[str]
    id_accuracy: Spread
    ood_accuracy: Spread
    ood_nll: Spread
    ood_squared: Spread
    ood_ece: Spread
    ood_ece_floor: float
    id_ece: Spread
    id_ece_floor: float


class VerdictDifference(Frozen):
    """A row minus another one, paired on seeds and images."""

    label: str
    against: str
    difference: float
    interval: tuple[float, float]
    distinguishable: bool


class VerdictSet(Frozen):
    """The rows any of which may be the best: a model confidence set, the best of them first."""

    metric: VerdictMetric
    best: str
    members: list[str]
    excluded: list[str]
    p_values: dict[str, float]
    differences: list[VerdictDifference]


class EqualRow(Frozen):
    """A contender where its ladder reaches the common ID accuracy: between two of its rates.

    It lies `share` of the way from the lower rate to the higher one.
    """

    label: str
    lr_low: float
    lr_high: float
    share: float
    ood_accuracy: float
    ood_nll: float
    ood_squared: float
    ood_ece: float
    ood_ece_floor: float


class LeftOut(Frozen):
    """A contender that a comparison is without, and why."""

    label: str
    why: str


class EqualAccuracy(Frozen):
    """The contenders at one ID accuracy, each along its ladder of rates.

    `covers` says what the intervals are over.
    """

    id_accuracy: float | None
    covers: Literal["seeds and images", "images"]
    rows: list[EqualRow]
    left_out: list[LeftOut]
    sets: list[VerdictSet]


class SweepVerdict(Frozen):
    """What a sweep says so far; `complete` once nothing of it is open.

    Attributes:
        sentence: the answer for people.
        judged_on: what `ood_` values are of; `id` where there is no shifted data.
    """

    sweep_id: str
    name: str
    complete: bool
    sentence: str
    evaluated_on: Literal["shifts", "corruptions", "id"]
    datasets: list[str]
    n_images: int
    n_resamples: int
    level: float
    rows: list[VerdictRow]
    sets: list[VerdictSet]
    equal: EqualAccuracy | None = None
    left_out: list[LeftOut] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
