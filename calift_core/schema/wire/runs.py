"""Runs as the REST API takes and gives them."""

from collections.abc import Sequence
from datetime import datetime
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Literal, Self

from pydantic import Field

from calift_core.schema.base import Frozen, JsonObject
from calift_core.schema.report import Summary

RunPhase = Literal[
    "QUEUED", "STARTING", "RUNNING", "CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED"
]
TERMINAL_PHASES: frozenset[str] = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})

#: Lists count their matches so far; a count of all would take longer than the page.
COUNTED = 10_000


def counted(total: int) -> str:
    """A list's `total` for people: `7,500`, `more than 10,000`."""
    return f"more than {COUNTED:,}" if total > COUNTED else f"{total:,}"


SortKey = Literal[
    "created", "-created", "name", "-name", "method", "-method", "model", "-model", "suite",
    "-suite", "phase", "-phase", "seed", "-seed", "id_accuracy", "-id_accuracy", "ood_accuracy",
    "-ood_accuracy", "id_ece", "-id_ece", "ood_ece", "-ood_ece", "sigma_min", "-sigma_min",
]  # fmt: skip


class RunSubmit(Frozen):
    """A run to be queued. `spec` is a RunSpec; it is validated before anything is stored."""

    spec: JsonObject
    priority: int = Field(default=0, ge=-10, le=10)
    max_attempts: int = Field(default=3, ge=1, le=20)


class RunPatch(Frozen):
    """What people may change later; null leaves a field as it is."""

    name: str | None = Field(default=None, min_length=1, max_length=120)
    notes: str | None = Field(default=None, max_length=10_000)
    tags: list[str] | None = Field(default=None, max_length=20)
    archived: bool | None = None


class RunClone(Frozen):
    """Changes to the copied spec, merged key by key (RFC 7396 merge patch)."""

    name: str | None = Field(default=None, min_length=1, max_length=120)
    changes: JsonObject = Field(default_factory=dict)


class RunContinue(Frozen):
    """How much longer a finished run's model is to be trained."""

    epochs: int = Field(default=2, ge=1, le=10_000)
    name: str | None = Field(default=None, min_length=1, max_length=120)


class Progress(Frozen):
    """Where a working run is: in its phase, and over all phases as far as that can be foretold."""

    phase: str = ""
    detail: str = ""
    step: int = 0
    total_steps: int = 0
    samples_per_s: float | None = None
    eta_s: float | None = Field(default=None, description="Seconds that are left of the phase")
    run_fraction: float | None = Field(default=None, description="From 0 to 1, over all phases")
    run_eta_s: float | None = Field(default=None, description="Seconds that were left of the run")
    updated_at: datetime | None = None

    def eta_at(self, now: datetime) -> float | None:
        """Seconds that are left of the run."""
        if self.run_eta_s is None or self.updated_at is None:
            return self.run_eta_s
        passed = max(0.0, (now - self.updated_at).total_seconds())
        return max(0.0, self.run_eta_s - passed)


class JobSummary(Frozen):
    """What runs and evaluation jobs share. `reason` is for machines, `message` for people.

    `owner` is the name of the token that submitted it. The owner and admins may change it.

    `attempt` counts starts. `lost_attempts` counts those whose process vanished, and only they are
    bounded by `max_attempts`; `drain_requeues` counts orderly stops of a worker, `storage_requeues`
    the times that a machine had no room for what the job made.
    """

    id: str
    name: str
    phase: RunPhase
    reason: str | None = None
    message: str | None = None
    priority: int = 0
    attempt: int = 0
    max_attempts: int = 3
    lost_attempts: int = 0
    drain_requeues: int = 0
    storage_requeues: int = 0
    owner: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    heartbeat_at: datetime | None = None
    progress: Progress | None = None
    fraction_done: float | None = Field(
        default=None,
        description="From 0 to 1, over start, training, evaluation and saving: 0 while it waits, 1 "
        "when it has succeeded, null where it is not known",
    )
    eta_seconds: float | None = Field(
        default=None,
        description="Seconds until it ends, over all phases, of one that works; null: not known",
    )


class RunSummary(JobSummary):
    """One row of the run list.

    `revision` rises with whatever happens to the run, such as a result that an evaluation job adds
    to a finished one: what was received at the same revision is up to date.
    """

    method: str
    model: str
    suite: str
    seed: int
    color_index: int = Field(
        default=0, description="Place among the runs of its suite; what its colour is made from"
    )
    tags: list[str]
    archived: bool = False
    revision: int = 0
    sweep_id: str | None = Field(default=None, description="The sweep that it is a run of")
    sweep_role: Literal["selection", "evaluation"] | None = Field(
        default=None, description="Whether it chooses a rate of its sweep or is judged"
    )
    sweep_key: str | None = Field(
        default=None,
        description="Its configuration's place, role, rate and seed: `3.judged.0.001.2`",
    )
    summary: Summary | None = None

    @property
    def attempts(self) -> str:
        """`2 of 3`: the attempt among those that may be lost, and what else stopped the run."""
        words = f"{min(self.lost_attempts + 1, self.max_attempts)} of {self.max_attempts}"
        if self.drain_requeues:
            words += f", stopped with its worker {_times(self.drain_requeues)}"
        if self.storage_requeues:
            words += f", put back for lack of room {_times(self.storage_requeues)}"
        return words


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


class RunDetail(RunSummary):
    """A run with its spec.

    `hint` says what to do about a failure, `waiting` why a queued run has not started.
    """

    spec: dict[str, Any]
    spec_sha256: str
    notes: str = ""
    hint: str = ""
    worker: str | None = None
    waiting: str = ""
    cloned_from: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    resolved: dict[str, Any] = Field(default_factory=dict)


class RunPage(Frozen):
    """A page of runs; `total` counts every match up to 10,000, and 10,001 stands for more."""

    items: list[RunSummary]
    next_cursor: str | None = None
    total: int


class Spread(Frozen):
    """The mean over `n` runs that differ in their seed alone.

    `sd` divides by n − 1; `se`, the standard error of the mean, is sd / √n. Null of one run.
    """

    mean: float
    sd: float | None = None
    se: float | None = None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """That of one or more values."""
        n = len(values)
        sd = stdev(values) if n > 1 else None
        return cls(mean=fmean(values), sd=sd, se=None if sd is None else sd / sqrt(n), n=n)


class RunGroup(Frozen):
    """Runs that differ in their seed alone: of one configuration of a sweep, or of none.

    `run_ids` are newest first, `numbers` those of its finished runs by the names of a summary.
    """

    name: str
    sweep_id: str | None = None
    sweep_name: str = ""
    method: str
    model: str
    suite: str
    run_ids: list[str]
    numbers: dict[str, Spread] = Field(default_factory=dict)


class Estimate(Frozen):
    """What a run will cost, before it is run; null where it cannot be known here.

    `evaluation_images` are those that models are judged on: test, shifts, corruptions, far sets.
    `selection_images` are predicted as well: ID validation and calibration, for choosing settings
    and fitting calibrators. Both count an image once for each model that is judged, far sets once.
    `parts`, `shifts` and `ood` count it once, as does `corrupted_images`, which adds up names and
    severities.
    """

    train_images: int | None = None
    steps: int | None = None
    evaluation_images: int | None = None
    selection_images: int | None = None
    parts: dict[str, int] = Field(default_factory=dict)
    shifts: dict[str, int | None] = Field(default_factory=dict)
    ood: dict[str, int | None] = Field(default_factory=dict)
    corrupted_images: int = 0
    parameters: int | None = None
    seconds: float | None = Field(default=None, description="The whole run, from being taken up")
    phases: dict[str, float] = Field(
        default_factory=dict, description="Seconds of its parts, which add up to `seconds`"
    )
    train_seconds_per_1000: float | None = None
    disk_bytes: int | None = Field(
        default=None, description="What it leaves on disk, as finished runs of its model did"
    )
    basis: str = ""


class Validation(Frozen):
    """The answer to a dry run.

    `missing` says what is not on this machine; `blocking` holds those sentences of it that no
    worker can mend by itself, such as a folder that is not there. `warnings` are of what is valid
    and hardly meant.
    """

    valid: bool
    errors: list[dict[str, str]] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    blocking: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    estimate: Estimate = Field(default_factory=Estimate)


class MetricSeries(Frozen):
    """One named curve. `steps` and `values` have the same length."""

    name: str
    steps: list[int]
    values: list[float]


class Metrics(Frozen):
    """Curves of a run; `last_step` is what to pass as `since_step` next."""

    series: list[MetricSeries]
    last_step: int


class RunEvent(Frozen):
    """One event of a run; `id` grows and never repeats within a run."""

    id: int
    kind: str
    at: datetime
    attempt: int
    data: dict[str, Any]


class Artifact(Frozen):
    """A stored file of a run; a `state` is what an unfinished one goes on from."""

    name: str
    kind: Literal["report", "predictions", "checkpoint", "metrics", "log", "state", "other"]
    size_bytes: int
    sha256: str
    attempt: int
    created_at: datetime


class LogPage(Frozen):
    """A piece of a run's log from the byte `offset` on. Pass `next_offset` to read on.

    `size_bytes` is what there is by now; `complete` says that the run has ended and that was all.
    """

    text: str
    offset: int = 0
    next_offset: int
    size_bytes: int = 0
    complete: bool
