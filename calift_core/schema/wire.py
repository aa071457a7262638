"""What the REST API takes and gives. The server, the typed client and the dashboard share these.

All under `/api/v1`, JSON, `Authorization: Bearer TOKEN`; every error is `application/problem+json`.

===========  ========================================  =======================================
method       path                                      takes → gives
===========  ========================================  =======================================
GET          /health                                   → Health (open): the process lives
GET          /readyz                                   → Ready (open); 503 says what is missing
GET          /stats                                    → Stats
POST         /runs                                     RunSubmit → 202 RunDetail, Location
POST         /runs/validate                            RunSubmit → Validation
GET          /runs                                     filters → RunPage
GET          /runs/{id}                                → RunDetail
PATCH        /runs/{id}                                RunPatch → RunDetail
DELETE       /runs/{id}                                → 204 (refused with 409 while it works)
POST         /runs/{id}/cancel                         → 202 RunDetail (repeatable)
POST         /runs/{id}/retry                          → 202 RunDetail (same run, queued again)
POST         /runs/{id}/clone                          RunClone → 202 RunDetail (a new run)
GET          /runs/{id}/metrics                        names, since_step, max_points → Metrics
GET          /runs/{id}/events                         SSE of RunEvent; Last-Event-ID resumes
GET          /runs/{id}/checkpoints                    → list[Artifact]
GET          /runs/{id}/artifacts                      → list[Artifact]
GET          /runs/{id}/artifacts/{name:path}          → the file
GET          /runs/{id}/logs                           offset, limit, tail → LogPage
GET          /runs/{id}/evaluations                    → list[Evaluation]
GET          /runs/{id}/spectra                        → list[Spectrum]
GET          /runs/{id}/report                         → Report
GET          /runs/{id}/frontier                       → Frontier (404: the run measured none)
GET          /evaluations                              run_id, dataset, role → EvaluationPage
GET          /evaluations/{id}                         → Evaluation
GET          /evaluations/{id}/reliability             n_bins, calibrator … → Reliability
GET          /evaluations/{id}/metrics                 n_bins, scheme, norm … → MeasureSet
GET          /evaluations/{id}/audit                   temperature → MeasureSet
GET          /evaluations/{id}/slices                  by, where, sort … → SlicePage
GET          /evaluations/{id}/calibrators             kind, fit_on, oracle → CalibratorEffect
GET          /evaluations/{id}/budget                  difference, metric → Budget
GET          /runs/{id}/slices                         where, role … → SlicePage
GET          /runs/{id}/calibrators/transfer           kind, dataset → TransferMatrix
GET          /evaluations/{id}/predictions             → the Parquet file
POST         /predictions                              Parquet; name, dataset … → 201 RunDetail
GET          /compare                                  run_id …, baseline → Comparison
GET          /methods                                  → list[MethodInfo]
GET          /models                                   → list[ModelInfo]
GET          /datasets                                 → list[DatasetInfo]
GET          /suites                                   phase → list[SuiteRuns], newest run first
GET          /workers                                  → list[WorkerInfo]
===========  ========================================  =======================================
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.report import (
    EceReport,
    EvaluationReport,
    FrontierPoint,
    Role,
    SpectrumReport,
    Summary,
)

if TYPE_CHECKING:
    from calift_core.calibration.bins import Binning

RunPhase = Literal[
    "QUEUED", "STARTING", "RUNNING", "CANCELLING", "SUCCEEDED", "FAILED", "CANCELLED", "LOST"
]
#: Roles of predictions: those of evaluations, and the ID parts that calibrators are fitted on.
PredictedRole = Literal["id", "shift", "corruption", "calibration", "validation"]
#: Data sets that a calibrator's transfer matrix takes at most.
TRANSFER_SETS = 12
TERMINAL_PHASES: frozenset[str] = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "LOST"})

SortKey = Literal[
    "created",
    "-created",
    "name",
    "-name",
    "id_accuracy",
    "-id_accuracy",
    "ood_accuracy",
    "-ood_accuracy",
    "id_ece",
    "-id_ece",
    "ood_ece",
    "-ood_ece",
    "sigma_min",
    "-sigma_min",
]


class Problem(Frozen):
    """RFC 9457 problem details. `errors` points into the request body by JSON pointer."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    request_id: str
    errors: list[dict[str, str]] = Field(default_factory=list)


class Health(Frozen):
    """Liveness."""

    status: Literal["ok"] = "ok"
    version: str


class Opened(Frozen):
    """A session, or a link that becomes one once. `token` is shown this time only."""

    token: str
    expires_at: datetime


class Visitor(Frozen):
    """Who asks.

    Attributes:
        name: whose token it is.
        scope: what it may do: `admin` covers `submit`, which covers `read`.
        expires_at: when the session ends; null for a token.
    """

    name: str
    scope: Literal["read", "submit", "admin"]
    expires_at: datetime | None = None


class Ready(Frozen):
    """What was looked at, and answered."""

    status: Literal["ready"] = "ready"
    checks: list[Literal["database", "schema", "broker", "artifacts"]]


class RunSubmit(Frozen):
    """A run to be queued. `spec` is a RunSpec; it is validated before anything is stored."""

    spec: dict[str, Any]
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
    changes: dict[str, Any] = Field(default_factory=dict)


class Progress(Frozen):
    """Where a working run is."""

    phase: str = ""
    detail: str = ""
    step: int = 0
    total_steps: int = 0
    samples_per_s: float | None = None
    eta_s: float | None = None
    updated_at: datetime | None = None


class RunSummary(Frozen):
    """One row of the run list. `reason` is for machines, `message` a sentence for people.

    `owner` is the name of the token that submitted it; null where that was not kept yet. The owner
    and admins may change a run.

    `attempt` counts starts. `losses` counts those whose process vanished, and only they are bounded
    by `max_attempts`; `drains` counts orderly stops of a worker, `setbacks` the times that a
    machine had no room for what the run made.
    """

    id: str
    name: str
    phase: RunPhase
    reason: str | None = None
    message: str | None = None
    method: str
    model: str
    suite: str
    seed: int
    tags: list[str]
    archived: bool = False
    priority: int = 0
    attempt: int = 0
    max_attempts: int = 3
    losses: int = 0
    drains: int = 0
    setbacks: int = 0
    owner: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    heartbeat_at: datetime | None = None
    progress: Progress | None = None
    summary: Summary | None = None

    @property
    def attempts(self) -> str:
        """`2 of 3`: the attempt among those that may be lost, and what else stopped the run."""
        words = f"{min(self.losses + 1, self.max_attempts)} of {self.max_attempts}"
        if self.drains:
            words += f", stopped with its worker {_times(self.drains)}"
        if self.setbacks:
            words += f", put back for lack of room {_times(self.setbacks)}"
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
    """A page of runs; `total` counts every match."""

    items: list[RunSummary]
    next_cursor: str | None = None
    total: int


class Estimate(Frozen):
    """What a run will cost, before it is run; null where it cannot be known here.

    `evaluation_images` are those that models are judged on: test, shifts and corruptions.
    `selection_images` are predicted as well: ID validation and calibration, for choosing settings
    and fitting calibrators. Both count an image once for each model that is judged. `parts` and
    `shifts` count it once, as does `corrupted_images`, which adds up names and severities.
    """

    train_images: int | None = None
    steps: int | None = None
    evaluation_images: int | None = None
    selection_images: int | None = None
    parts: dict[str, int] = Field(default_factory=dict)
    shifts: dict[str, int | None] = Field(default_factory=dict)
    corrupted_images: int = 0
    parameters: int | None = None
    seconds: float | None = None
    train_seconds_per_1000: float | None = None
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


class Evaluation(EvaluationReport):
    """A stored evaluation."""

    id: str
    run_id: str
    run_name: str
    method: str
    created_at: datetime


class EvaluationPage(Frozen):
    """A page of evaluations."""

    items: list[Evaluation]
    next_cursor: str | None = None
    total: int


class Spectrum(SpectrumReport):
    """A stored spectrum: at a training step, or of the finished model (`final`)."""

    run_id: str
    step: int
    final: bool


class Frontier(Frozen):
    """The models between the zero-shot one and a finished run: what WiSE-FT looks at.

    `alpha` is the one that the run kept; points are in ascending order of α.
    """

    run_id: str
    run_name: str
    input_run: str
    alpha: float
    points: list[FrontierPoint]


class AskedBinning(Frozen):
    """How a binned error is to be measured: what is None is as it was evaluated."""

    n_bins: int | None = None
    scheme: Literal["equal_mass", "equal_width"] | None = None
    norm: Literal["l1", "l2", "max"] = "l1"

    def over(self, evaluated: EceReport | None) -> Binning:
        """Lay it over what was evaluated; where nothing was, over 15 bins of equal mass.

        Raises:
            SpecError: n_bins < 1.
        """
        # numpy is not for those who only send the question.
        from calift_core.calibration.bins import DEFAULT_BINNING, Binning

        own = DEFAULT_BINNING if evaluated is None else evaluated
        return Binning(
            own.n_bins if self.n_bins is None else self.n_bins,
            own.scheme if self.scheme is None else self.scheme,
            self.norm,
        )


#: Everything as it was evaluated.
AS_EVALUATED = AskedBinning()


class ReliabilityBin(Frozen):
    """One bin that holds samples. Points sit at the bin's mean confidence."""

    lower: float
    upper: float
    count: int
    mean_confidence: float
    accuracy: float
    interval_low: float
    interval_high: float
    band_low: float
    band_high: float


class SmoothCurve(Frozen):
    """Accuracy as a kernel regression on confidence, at the smooth ECE's own bandwidth.

    `accuracy` is null where practically no sample is near; `density` integrates to one.
    """

    confidence: list[float]
    accuracy: list[float | None]
    density: list[float]
    bandwidth: float
    smooth_ece: float


class FittedOn(Frozen):
    """What a calibrator was fitted on; `evaluation_id` is null for the ID calibration split."""

    dataset: str
    split: str
    role: PredictedRole
    n: int
    evaluation_id: str | None = None


class FittedCalibrator(Frozen):
    """A fitted calibrator. An `oracle` saw data that no one has before the shift happens."""

    kind: str
    oracle: bool
    fitted_on: FittedOn
    parameters: dict[str, Any]


class Reliability(Frozen):
    """A reliability diagram as numbers, with the error it goes with and that error's floor.

    `debiased` is null for the max norm, which has no debiased estimate. `calibrator` says what the
    confidences went through, null when nothing; `temperature` then is of the logits before it.
    `in_sample`: the calibrator was fitted on these very samples. Its error then reads too
    low (about 0 after an isotonic or histogram fit), and neither floor nor interval holds.
    """

    evaluation_id: str
    run_id: str
    run_name: str
    method: str
    dataset: str
    role: PredictedRole
    n: int
    n_bins: int
    scheme: Literal["equal_mass", "equal_width"]
    norm: Literal["l1", "l2", "max"]
    temperature: float
    accuracy: float
    mean_confidence: float
    nll: float
    brier: float
    ece: float
    null_mean: float
    null_q95: float
    interval: tuple[float, float]
    debiased: float | None
    bins: list[ReliabilityBin]
    smooth: SmoothCurve | None = None
    calibrator: FittedCalibrator | None = None
    in_sample: bool = False


class Source(Frozen):
    """Which predictions numbers are of.

    The ids are null for a file outside a service, `dataset` and `role` for a whole run.
    """

    evaluation_id: str | None = None
    run_id: str | None = None
    run_name: str = ""
    method: str = ""
    dataset: str | None = None
    role: PredictedRole | None = None


class Measure(Frozen):
    """One number of a set of predictions, with what is needed to judge it.

    `unit` is `fraction`, `nats`, or `score` (Brier, in [0, 2]). `null_mean` and `null_q95` are what
    a perfectly calibrated model would show on these samples (labels drawn from its own
    confidences); null where that says nothing. `interval` is a 95 % one, null where none is known
    to cover. `n_bins` and `scheme` are null for a measure without bins.
    """

    name: str
    title: str
    unit: Literal["fraction", "nats", "score"]
    value: float | None
    null_mean: float | None = None
    null_q95: float | None = None
    interval: tuple[float, float] | None = None
    debiased: float | None = None
    n_bins: int | None = None
    scheme: Literal["equal_mass", "equal_width"] | None = None
    batch_size: int | None = None
    note: str = ""


class MeasureSet(Frozen):
    """Many measures of the same predictions."""

    source: Source
    n: int
    n_classes: int
    temperature: float
    n_resamples: int
    seed: int
    measures: list[Measure]


class Slice(Frozen):
    """Samples that share something. `gap` is confidence − accuracy: positive when over-confident.

    Below `min_n` samples (`too_small`) a calibration error would be noise: it and the gap's
    interval are null. `n_bins` is at most the asked number, and leaves ten samples a bin.
    """

    key: str
    title: str
    n: int
    share: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    mean_confidence: float
    gap: float
    gap_interval: tuple[float, float] | None
    nll: float
    too_small: bool
    n_bins: int | None
    ece: float | None
    null_mean: float | None
    null_q95: float | None
    interval: tuple[float, float] | None
    debiased: float | None
    evaluation_id: str | None = None
    role: PredictedRole | None = None


class SlicePage(Frozen):
    """A page of slices: `total` of them hold the `n_matching` of `n` samples that match `where`.

    One in twenty calibrated slices exceeds its `null_q95` by chance: of many slices some always do.
    """

    source: Source
    by: str
    where: str
    sort: str
    descending: bool
    min_n: int
    scheme: Literal["equal_mass", "equal_width"]
    norm: Literal["l1", "l2", "max"]
    temperature: float
    n: int
    n_matching: int
    total: int
    offset: int
    items: list[Slice]


class CalibratorEffect(Frozen):
    """One calibrator on one evaluation: the diagram before and after."""

    calibrator: FittedCalibrator
    before: Reliability
    after: Reliability


class TransferCell(Frozen):
    """A calibrator's numbers on one data set.

    `gain`, `nll_gain` and `brier_gain` are ECE, NLL and Brier score before it minus after it. The
    two proper scores judge a calibrator: an ECE can also fall because confidence says less.
    `in_sample`: it was fitted on these very samples, and the floor does not hold.
    """

    dataset: str
    role: PredictedRole
    evaluation_id: str | None = None
    n: int
    accuracy: float
    mean_confidence: float
    nll: float
    brier: float
    ece: float
    null_mean: float
    null_q95: float
    gain: float
    nll_gain: float
    brier_gain: float
    in_sample: bool = False


class TransferRow(Frozen):
    """One calibrator on every data set; the row without one is of the predictions as they are."""

    calibrator: FittedCalibrator | None
    cells: list[TransferCell]


class TransferMatrix(Frozen):
    """Fitted on A (rows), tested on B (columns, the cells' order).

    The row of the ID calibration split is the honest one; every other fit saw what it is judged
    by, or what nobody has in time, and is an `oracle`.
    """

    source: Source
    kind: str
    n_bins: int
    scheme: Literal["equal_mass", "equal_width"]
    norm: Literal["l1", "l2", "max"]
    rows: list[TransferRow]
    notes: list[str] = Field(default_factory=list)


class Budget(Frozen):
    """How many samples show a difference of a metric, by the rule that a comparison decides with.

    `detectable` is the difference that the stored `n` samples show with this power, null where none
    would be. `paired`: on the very same samples as `against`; else both models on samples of their
    own. For `ece`, differences are those of debiased L2 errors (root mean square gaps), and
    `standard_error` is null: their noise depends on the errors themselves.
    """

    source: Source
    against: Source | None
    metric: str
    paired: bool
    difference: float
    observed: float | None
    level: float
    power: float
    n: int
    standard_error: float | None
    needed: int
    enough: bool
    detectable: float | None


class ConfidenceSet(Frozen):
    """The runs any of which may be the best one (model confidence set, Hansen et al. 2011).

    `members` and `excluded` are run ids, best first. The set holds the best run with probability
    `level`, however many runs are compared; a run stays in it down to that level of doubt which is
    its p-value. For `ece` it is decided on the debiased squared L2 error.
    """

    dataset: str
    role: Role
    metric: str
    n: int
    level: float
    members: list[str]
    excluded: list[str]
    p_values: dict[str, float]


class SquaredErrors(Frozen):
    """Debiased squared L2 calibration errors (a fraction squared) and their paired difference."""

    baseline: float
    value: float
    difference: float
    interval: tuple[float, float]


class PairedDifference(Frozen):
    """Run minus baseline on the same samples, and whether that is more than noise.

    `interval` is a paired 95 % one. It is null for `ece`, for whose difference no interval is known
    to cover: there `squared` decides, null for every other metric.
    """

    dataset: str
    role: Role
    metric: str
    baseline: float
    value: float
    difference: float
    interval: tuple[float, float] | None
    squared: SquaredErrors | None = None
    distinguishable: bool
    n: int


class ComparedRun(Frozen):
    """One column of a comparison."""

    run: RunSummary
    evaluations: list[Evaluation]
    sigma_min: float | None = None
    differences: list[PairedDifference] = Field(default_factory=list)


class Comparison(Frozen):
    """Runs side by side. `parameters` holds only what differs: pointer → one value per run."""

    baseline: str
    runs: list[ComparedRun]
    parameters: dict[str, list[Any]]
    confidence_sets: list[ConfidenceSet] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)


class MethodInfo(Frozen):
    """A method with the JSON schema that a form is built from."""

    kind: str
    title: str
    summary: str
    source: str
    trains: bool
    offered: bool = Field(
        default=True, description="False: kept for an ablation, left out of forms and lists"
    )
    terms: list[str]
    defaults: dict[str, Any]
    spec_schema: dict[str, Any]


class ModelInfo(Frozen):
    """A model that can be named in a RunSpec."""

    name: str
    pretrained: str | None
    available: bool
    detail: str
    size_bytes: int | None = None
    sha256: str | None = None


class DatasetInfo(Frozen):
    """A suite that can be named in a RunSpec."""

    id: str
    title: str
    available: bool
    detail: str
    classes: list[str] = Field(default_factory=list)
    parts: dict[str, int] = Field(default_factory=dict)


class WorkerInfo(Frozen):
    """A worker that has reported in. `trouble` says why it takes no run; empty: it is well."""

    id: str
    host: str
    queues: list[str]
    device: str
    run_id: str | None = None
    trouble: str = ""
    started_at: datetime
    seen_at: datetime
    alive: bool


class SuiteRuns(Frozen):
    """A suite as runs name it, and the runs on it that were asked for."""

    suite: str
    runs: int
    newest_at: datetime


class Stats(Frozen):
    """The overview's numbers."""

    runs_by_phase: dict[str, int]
    queue_depth: int
    oldest_queued_s: float | None = None
    workers: list[WorkerInfo]
    broker_ok: bool
    free_bytes: int
