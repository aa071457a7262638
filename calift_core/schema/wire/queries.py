"""What each operation on stored results takes, declared once.

The route reads it from the address, the client and the command validate by it, and the explorer
answers it. Whatever is None is as the predictions were evaluated, or leaves nothing out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from calift_core.errors import SpecError
from calift_core.schema.base import Frozen
from calift_core.schema.report import Role
from calift_core.schema.spec import problems_of
from calift_core.schema.wire.runs import RunPhase, SortKey

if TYPE_CHECKING:
    from calift_core.calibration.bins import Binning

#: Values that one filter takes at most; SQL has limits of its own, and answers worse.
MAX_CHOICES = 200
MAX_CONDITION = 500
#: Longest cursor that is looked at; the longest name makes one of half of that.
MAX_CURSOR = 1000
#: Data sets that a calibrator's transfer matrix takes at most.
TRANSFER_SETS = 12

By = Literal["all", "class", "predicted", "confusion", "confidence", "cluster"]
SliceOrder = Literal["key", "n", "accuracy", "gap", "ece"]
SampleOrder = Literal["stored", "confidence", "gap", "nll", "change", "similarity"]
#: A sample's answer against the baseline's: right now and wrong before, wrong now and right before,
#: right or wrong in both.
Outcome = Literal["gained", "lost", "both", "neither"]
CalibratorKind = Literal[
    "temperature", "vector", "ets", "svs", "sms", "histogram", "isotonic", "tsp", "disagreement",
    "cautious", "sals", "ensemble",
]  # fmt: skip


def _storable(text: str) -> str:
    """Refuse what a database has no text for: NUL, and half of a surrogate pair."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("must hold no NUL and no surrogate")
    return text


StorableText = Annotated[str, AfterValidator(_storable)]
Names = Annotated[tuple[str, ...], Field(max_length=MAX_CHOICES)]
AnyOf = Annotated[
    tuple[StorableText, ...], Field(max_length=MAX_CHOICES, description="Any of these")
]
Roles = Annotated[tuple[Role, ...], Field(max_length=MAX_CHOICES, description="Any of these")]
#: An evaluation's id; of files on this machine, a path.
Target = Annotated[str, Field(max_length=4096)]
RunIds = Annotated[tuple[str, ...], Field(min_length=2, max_length=10, description="The runs")]
Cursor = Annotated[
    str | None, Field(max_length=MAX_CURSOR, description="`next_cursor` of the page before")
]
Limit = Annotated[int, Field(ge=1, le=200, description="Items on a page")]
Offset = Annotated[int, Field(ge=0, le=10_000_000, description="Slices before the page")]
Temperature = Annotated[
    float | None, Field(ge=0.01, le=100, description="Divides the logits; none: as evaluated")
]
Area = Annotated[
    str | None,
    Field(
        max_length=1500,
        pattern=r"^-?\d(\.\d+)?,-?\d(\.\d+)?( -?\d(\.\d+)?,-?\d(\.\d+)?){2,79}$",
        description="A polygon on the map of features, which must have been made",
        examples=["0.1,0.2 0.5,0.2 0.3,0.6"],
    ),
]
Condition = Annotated[
    str | None,
    Field(
        max_length=MAX_CONDITION,
        description="A condition on confidence, correct, label, predicted, rank, nll, brier, id, "
        "cluster and tag",
        examples=[
            "confidence >= 0.9 and not correct",
            'label in ("shirt", "coat") or predicted == 3',
        ],
    ),
]
MinSamples = Annotated[
    int, Field(ge=10, le=100_000, description="Fewest samples that a slice's ECE is given for")
]
Kind = Annotated[CalibratorKind, Field(description="What is fitted")]
FitOn = Annotated[
    Target | None,
    Field(
        description="An evaluation of the same run, with `oracle=true`; none: the run's ID "
        "calibration split"
    ),
]
Oracle = Annotated[
    bool, Field(description="Allow data other than the ID calibration split, and call it an oracle")
]
Top = Annotated[int, Field(ge=0, le=10, description="Most probable classes of each")]
#: Longest text that images are searched by; a text tower reads at most 77 tokens or so.
MAX_TEXT = 300


class Query(Frozen):
    """Parameters of one operation."""

    @classmethod
    def of(cls, query: Query | None = None, params: Mapping[str, Any] | None = None) -> Self:
        """A query that is at hand, with its parameters by name, or one made of these alone.

        Raises:
            SpecError: a parameter does not exist or is not allowed.
        """
        given = {} if query is None else query.model_dump(exclude_unset=True)
        try:
            return cls.model_validate({**given, **(params or {})})
        except ValidationError as error:
            faults = [
                f"{p['pointer'].removeprefix('#/')}: {p['message']}" for p in problems_of(error)
            ]
            raise SpecError("; ".join(faults)) from error


class BinningQuery(Query):
    """How a binned error is to be measured."""

    n_bins: int | None = Field(
        default=None, ge=1, le=1000, description="Bins of a binned error; none: as evaluated"
    )
    scheme: Literal["equal_mass", "equal_width"] | None = Field(
        default=None, description="How bins are cut; none: as evaluated"
    )
    norm: Literal["l1", "l2", "max"] = Field(
        default="l1", description="Mean gap, root mean square, largest"
    )

    def over(self, evaluated: Binning) -> Binning:
        """This binning with what is None filled in as evaluated."""
        return replace(
            evaluated,
            n_bins=evaluated.n_bins if self.n_bins is None else self.n_bins,
            scheme=evaluated.scheme if self.scheme is None else self.scheme,
            norm=self.norm,
        )


class AuditQuery(Query):
    """The same predictions under the estimators in use."""

    temperature: Temperature = None


class PromptsQuery(BinningQuery):
    """What other prompts would have said."""

    temperature: Temperature = None


class MetricsQuery(PromptsQuery):
    """Every measure of one evaluation."""

    classwise: bool = Field(
        default=True, description="With the class-wise error, which takes all logits"
    )


class ReliabilityQuery(PromptsQuery):
    """A reliability diagram, at a temperature, through a calibrator or under other prompts."""

    calibrator: CalibratorKind | None = Field(
        default=None, description="Show what a fitted calibrator makes of the predictions"
    )
    fit_on: FitOn = None
    oracle: Oracle = False
    prompts: str | None = Field(
        default=None,
        max_length=1024,
        description="What other prompts would have said, see `/prompts`",
    )


class _SlicePage(PromptsQuery):
    where: Condition = None
    min_n: MinSamples = 30
    offset: Offset = 0
    limit: Limit = 50


class SlicesQuery(_SlicePage):
    """Slices of one evaluation."""

    area: Area = None
    by: By = Field(default="class", description="What makes a slice")
    sort: SliceOrder = Field(default="key", description="`key` is the order of classes or bins")
    descending: bool = Field(default=False, description="Largest first")


class RunSlicesQuery(_SlicePage):
    """The data sets of a run as slices."""

    role: Roles = ()


class CalibratorQuery(BinningQuery):
    """A calibrator, and the diagram before and after it."""

    kind: Kind = "temperature"
    fit_on: FitOn = None
    oracle: Oracle = False


class TransferQuery(BinningQuery):
    """A calibrator fitted on A and tested on B."""

    kind: Kind = "temperature"
    dataset: tuple[str, ...] = Field(
        default=(), max_length=TRANSFER_SETS, description="Any of these; none: ID data and shifts"
    )


class BudgetQuery(Query):
    """How many samples a difference takes."""

    difference: float = Field(
        gt=0, le=100, description="To be shown, in the metric's unit: 0.01 is one point"
    )
    metric: Literal["accuracy", "ece", "nll", "brier", "confidence"] = Field(
        default="ece", description="What differs"
    )
    against: Target | None = Field(
        default=None,
        description="Another model's evaluation on the same samples; none: samples of its own",
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="Of the two-sided test")
    power: float = Field(
        default=0.8, gt=0.1, lt=1, description="How often a real difference is to be found"
    )


class SampleFilter(PromptsQuery):
    """Which samples of an evaluation are meant."""

    where: Condition = None
    lower: float | None = Field(
        default=None, ge=0, le=1, description="The confidence lies above it"
    )
    upper: float | None = Field(
        default=None, ge=0, le=1, description="The confidence is at most this"
    )
    bin: int | None = Field(
        default=None, ge=0, lt=1000, description="A bin of the diagram of all samples, from 0"
    )
    outcome: Outcome | None = Field(
        default=None, description="Right or wrong, here and in `against`"
    )
    area: Area = None
    against: Target | None = Field(
        default=None, description="Another model's evaluation on the same samples"
    )


class SamplesQuery(SampleFilter):
    """Samples one by one."""

    sort: SampleOrder = Field(
        default="stored",
        description="`gap` is confidence − correctness, `change` the gain in the true class's "
        "log-likelihood over `against`; a search sorts by `similarity`, largest first, unless told",
    )
    descending: bool = Field(default=False, description="Largest first")
    text: StorableText | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TEXT,
        description="Cosine similarity of each image with this, by the run's own towers",
    )
    like: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="The same with the image of this id; one of both alone",
    )
    around: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="The page begins one before the image of this id, if there is one",
    )
    top: Top = 5
    cursor: Cursor = None
    limit: Limit = 50

    def order(self) -> tuple[SampleOrder, bool]:
        """What the samples are sorted by, and whether the largest come first."""
        if (self.text or self.like) and "sort" not in self.model_fields_set:
            return "similarity", True
        return self.sort, self.descending

    @model_validator(mode="after")
    def _one_search(self) -> Self:
        if self.text is not None and self.like is not None:
            raise ValueError("text and like must not both be there: a search is by one of them")
        return self


class TextQuery(Query):
    """A text, embedded by a run's text tower as it is typed."""

    text: StorableText = Field(min_length=1, max_length=MAX_TEXT, examples=["red letters on white"])


class LooksQuery(SampleFilter):
    """How the images of samples look against the rest."""

    most: int = Field(
        default=60, ge=2, le=100, description="Images measured of the chosen and of the others"
    )


class MapQuery(Query):
    """A map of image features, with what the model says of each image."""

    temperature: Temperature = None


class DoubtfulQuery(Query):
    """Likely label errors."""

    threshold: float = Field(
        default=0.8, ge=0, le=1, description="Least confidence of each run in the other class"
    )
    top: Top = 5
    limit: Limit = 50


class SampleAnswersQuery(Query):
    """What a run says of one image wherever it met it."""

    run_id: str | None = Field(
        default=None, max_length=64, description="Whose answers; default: the evaluation's run"
    )
    top: Top = 5


class RunFilter(Query):
    """Which runs are meant: `tag` and the words of `q` must all be there."""

    phase: tuple[RunPhase, ...] = Field(
        default=(), max_length=MAX_CHOICES, description="Any of these"
    )
    method: AnyOf = ()
    model: AnyOf = Field(default=(), description="`name/weights`, any of these")
    suite: AnyOf = Field(default=(), description="Of the ID data; any of these")
    tag: tuple[StorableText, ...] = Field(default=(), max_length=20, description="All of these")
    q: StorableText = Field(default="", max_length=200, description="Words in name, notes or id")
    archived: bool | Literal["any"] = Field(
        default=False, description="Whether archived ones are meant"
    )


class RunsQuery(RunFilter):
    """Runs, filtered and sorted. Missing numbers sort last."""

    sort: SortKey = "-created"
    cursor: Cursor = None
    limit: Limit = 50


class EvaluationsQuery(Query):
    """Evaluations of all runs."""

    run_id: Names = Field(default=(), description="Any of these")
    dataset: Names = Field(default=(), description="Any of these")
    role: Roles = ()
    cursor: Cursor = None
    limit: Limit = 50


class LeadersQuery(Query):
    """Which runs may be the best."""

    run_id: RunIds


class CompareQuery(LeadersQuery):
    """Runs side by side."""

    baseline: Target | None = Field(default=None, description="One of the runs; none: the first")
    dataset: Names = Field(
        default=(), description="Differences and confidence sets on these alone; none: on all"
    )
    paired: bool = Field(
        default=True, description="With differences and confidence sets, which take time"
    )


class LedgerQuery(Query):
    """What a run has gained and lost against another."""

    against: Target = Field(description="Another run, such as its zero-shot model")
    dataset: Names = Field(default=(), description="None: all that both were tested on")
    step: float = Field(
        default=0.1, ge=0, le=1, description="A confidence that moved by no more has not moved"
    )


class DecisionQuery(Query):
    """A threshold on the confidence with a promise."""

    risk: float = Field(
        default=0.05, gt=0, lt=1, description="Largest share of errors among what is kept"
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="How often the promise holds")
    dataset: Names = Field(default=(), description="None: all that it was tested on")


class OodQuery(Query):
    """How well a run's scores tell ID test images from others."""

    dataset: Names = Field(default=(), description="None: every shift that it was tested on")


class BoundQuery(Query):
    """The newest finished runs on a suite with the bound's terms."""

    suite: str = Field(min_length=1, max_length=500, description="As `/suites` names it")


class SuiteQuery(Query):
    """Data that a run could name."""

    suite: str = Field(
        min_length=1, max_length=4096, description="As a RunSpec names it: `folder:PATH`"
    )
    group_by: str | None = Field(
        default=None,
        min_length=2,
        max_length=200,
        description="As `suite.group_by`: what splits must not tear apart, `patient{}_*`",
    )


class AuditLogQuery(Query):
    """Who did what to which object."""

    actor: str | None = Field(default=None, max_length=120, description="Whose actions")
    action: str | None = Field(default=None, max_length=64, description="Such as `cancel_run`")
    target: str | None = Field(default=None, max_length=300, description="An object's id")
    before: int | None = Field(
        default=None, ge=0, le=2**63 - 1, description="Older than this entry"
    )
    limit: Limit = 50


#: What an exported model can be given; the last four read the initial model's logits as well.
Shippable = Literal[
    "auto", "none", "temperature", "ets", "svs", "vector", "sms", "histogram", "isotonic", "tsp",
    "disagreement", "cautious", "sals", "ensemble",
]  # fmt: skip


class ModelQuery(Query):
    """How a run's model is exported."""

    calibrator: Shippable = Field(default="auto", description="Fitted on the run's ID data")
    initial: Target | None = Field(
        default=None,
        description="For disagreement, cautious, sals and ensemble: one of `initial-runs`, whose "
        "model travels along",
    )
    onnx: bool = Field(
        default=False, description="With a graph from pixels to probabilities, `model.onnx`"
    )


class CurvesQuery(Query):
    """The curves of a run."""

    names: Names = Field(default=(), description="These curves; none: all")
    since_step: int = Field(default=-1, ge=-1, le=2**53, description="Only later steps")
    max_points: int | None = Field(
        default=None, ge=1, le=100_000, description="Points per curve, extremes kept"
    )
