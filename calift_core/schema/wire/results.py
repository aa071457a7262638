"""Results as the REST API gives them: evaluations, calibration, comparisons."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from calift_core.schema.base import Frozen
from calift_core.schema.report import EvaluationReport, FrontierPoint, Role, SpectrumReport
from calift_core.schema.wire.runs import RunSummary

#: Roles of predictions: those of evaluations, and the ID parts that calibrators are fitted on.
PredictedRole = Literal["id", "shift", "corruption", "calibration", "validation"]


class Evaluation(EvaluationReport):
    """A stored evaluation. `job_id` is the evaluation job that made it, where one did."""

    id: str
    run_id: str
    run_name: str
    method: str
    created_at: datetime
    job_id: str | None = None


class EvaluationPage(Frozen):
    """A page of evaluations; `total` as for runs."""

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


class ReliabilityNumbers(Frozen):
    """What a reliability diagram shows, with the error it goes with and that error's floor."""

    n: int
    n_bins: int
    scheme: Literal["equal_mass", "equal_width"]
    norm: Literal["l1", "l2", "max"]
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


class Reliability(ReliabilityNumbers):
    """A reliability diagram as numbers, with the error it goes with and that error's floor.

    `debiased` is null for the max norm, which has no debiased estimate. `calibrator` says what the
    confidences went through, null when nothing; `temperature` then is of the logits before it.
    `prompts` names the templates that the classifier was made of anew, null for the run's own.
    `in_sample`: the calibrator was fitted on these very samples. Its error then reads too
    low (about 0 after an isotonic or histogram fit), and neither floor nor interval holds.
    """

    evaluation_id: str
    run_id: str
    run_name: str
    method: str
    dataset: str
    role: PredictedRole
    temperature: float
    calibrator: FittedCalibrator | None = None
    in_sample: bool = False
    prompts: str | None = None


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
    interval are null. `n_bins` is at most the asked number, and leaves ten samples a bin. Of all
    samples, those of the slice and no others meet `condition`; it is empty where that is every one,
    or where it cannot be written.
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
    condition: str = ""
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


class ClassProbability(Frozen):
    """A class and the probability that the model gives it."""

    index: int
    name: str
    probability: float


class SampleAnswer(Frozen):
    """What a model says of one sample. `nll` is −log of the true class's probability, in nats."""

    predicted: int
    predicted_name: str
    confidence: float
    correct: bool
    nll: float


class NearPrompt(Frozen):
    """A prompt beside an image: the cosine of their embeddings."""

    text: str
    cosine: float


class Sample(SampleAnswer):
    """One sample of an evaluation.

    `rank` is the number of classes more probable than the true one. `top` holds the most probable
    classes, as many as were asked for. `against` is the other model's answer, null where it was not
    asked for or has not seen the sample. `prompts` are the run's prompts nearest to the image,
    where its features and the prompts' embeddings are stored. `similarity` is the cosine with what
    was searched for.
    """

    id: str
    label: int
    label_name: str
    rank: int
    cluster: str | None = None
    top: list[ClassProbability] = Field(default_factory=list)
    against: SampleAnswer | None = None
    prompts: list[NearPrompt] = Field(default_factory=list)
    similarity: float | None = None
    tags: list[str] = Field(default_factory=list)


class SamplePage(Frozen):
    """Samples one by one: `n_matching` of `n` meet what was asked, and these come next."""

    source: Source
    against: Source | None = None
    where: str
    sort: str
    descending: bool
    temperature: float
    n: int
    n_matching: int
    offset: int
    items: list[Sample]
    next_cursor: str | None = None


class PromptEffect(Frozen):
    """What a model says under other prompts, at the temperature of the evaluation.

    `name` is `own`, a named set of templates, or one template. `changed` is the share of samples
    whose predicted class is another one than under the run's own prompts.
    """

    name: str
    accuracy: float
    nll: float
    brier: float
    ece: float
    null_mean: float
    mean_confidence: float
    changed: float


class PromptEffects(Frozen):
    """What other prompts would have said of `n` samples, the run's own first.

    Empty where they cannot be told; `why` then says what is missing.
    """

    source: Source
    n: int
    temperature: float
    items: list[PromptEffect]
    why: str | None = None


class SharedTrait(Frozen):
    """A class, or a cluster of alike images, that chosen samples have more often than the rest.

    `column` is `label`, `predicted` or `cluster`, `key` the class's or the cluster's index;
    clusters are k-means of the stored image features of the whole data set, named by their classes.
    `share` is that among the chosen ones, `rest_share` among all others. `p` is of Fisher's exact
    test, one-sided, adjusted for all values of the column (Holm).
    """

    column: Literal["label", "predicted", "cluster"]
    key: int
    title: str
    n: int
    share: float
    rest_share: float
    p: float


class SampleTraits(Frozen):
    """What the `n_matching` chosen of `n` samples share; empty where it is none or all of them."""

    source: Source
    n: int
    n_matching: int
    items: list[SharedTrait]


class SeenSample(Frozen):
    """One model's answer to a sample on one data set: clean, or under a corruption."""

    source: Source
    sample: Sample


class SampleHistory(Frozen):
    """What a run says of one image wherever it met it: on ID data and under each corruption.

    Images of another data set are others, whatever their ids. `source` is the run's.
    """

    source: Source
    sample: str
    items: list[SeenSample]


class DoubtfulLabels(Frozen):
    """Samples whose label all of several runs contradict: each says the same other class, surely.

    `runs` judged the data, each with a confidence of at least `threshold` in that class. `n` such
    samples exist; `items` holds the first of them, the surest first, as this evaluation has them.
    """

    source: Source
    runs: list[Source]
    threshold: float
    n: int
    items: list[Sample]


class LabelCorrection(Frozen):
    """What a person says of an image: its class as it was and its right one, "" to leave it out."""

    sample: str = Field(max_length=1024)
    label: str = Field("", max_length=1024)
    suggested: str = Field("", max_length=1024)


class CorrectionsRequest(Frozen):
    """Corrections of images of one evaluation."""

    corrections: list[LabelCorrection] = Field(min_length=1, max_length=2000)


class CorrectedManifest(Frozen):
    """A manifest of the data that an evaluation was made on, with corrected labels.

    It belongs into `folder`, below which all its images are, and is then a suite:
    `manifest:FOLDER/corrected.csv`. `changed` labels are others and `dropped` images left out.
    """

    folder: str
    manifest: str
    changed: int
    dropped: int


class Look(Frozen):
    """How chosen images look beside the rest: a property's mean among each, and a test.

    `brightness` is the mean luminance and `contrast` its standard deviation, both of [0, 1];
    `sharpness` the standard deviation of its Laplacian. `p` is of a Mann-Whitney test, two-sided,
    adjusted for the three properties (Holm).
    """

    name: Literal["brightness", "contrast", "sharpness"]
    mean: float
    rest_mean: float
    p: float


class SampleLooks(Frozen):
    """How images of chosen samples look: `n` of them were measured and `n_rest` of the others.

    `near` holds pairs of chosen ones that are nearly the same picture. `n_missing` could not be
    had, for the `reason`.
    """

    source: Source
    n: int
    n_rest: int
    n_missing: int
    reason: str = ""
    items: list[Look]
    near: list[tuple[str, str]]


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
    its p-value, which comes from `n_resamples` draws. For `ece` it is decided on the debiased
    squared L2 error.
    """

    dataset: str
    role: Role
    metric: str
    n: int
    n_resamples: int
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
