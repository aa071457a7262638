"""SweepSpec: many runs of one question, as one file.

::

    name: photos
    base: {model: {name: ViT-B-16, pretrained: openai}, suite: {id: folder:/data/photos}}
    methods: [zero_shot, flyp, carot, {kind: carot, lambda_sd: 0}]
    seeds: [0, 1, 2]
    values: {train.batch_size: [256, 512]}
    rate: {ladder: [3.0e-6, 1.0e-5, 3.0e-5]}
    max_runs: 60
    max_hours: 48

A method and one combination of the values is an *arm* of the sweep. What runs follow from a
SweepSpec is decided by `calift_core.sweeps`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from calift_core.errors import SpecError
from calift_core.schema.base import Frozen
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.spec import plain_name

#: A sweep of more runs is several questions.
MOST_RUNS = 1000
Preset = Literal["compare-methods", "ablate-carot", "three-seeds"]
PRESETS: dict[Preset, str] = {
    "compare-methods": "Compare all methods",
    "ablate-carot": "Ablate CaRot",
    "three-seeds": "Three seeds of this run",
}
#: What "compare all methods" compares, in the order of its table.
COMPARED = (
    "zero_shot",
    "linear_probe",
    "finetune",
    "lp_ft",
    "lipsum_ft",
    "car_ft",
    "wise_ft",
    "model_stock",
    "flyp",
    "carot",
    "tracer",
)
#: CaRot without one of its terms or both; all take the rate of CaRot itself.
ABLATED: dict[str, dict[str, Any]] = {
    "CaRot": {},
    "without L_OC": {"lambda_oc": 0.0},
    "without L_SD": {"lambda_sd": 0.0},
    "without both": {"lambda_oc": 0.0, "lambda_sd": 0.0},
}


class Range(Frozen):
    """Where random values of a field are drawn from, the ends included."""

    low: float = Field(ge=-1e15, le=1e15)
    high: float = Field(ge=-1e15, le=1e15)
    log: bool = Field(default=False, description="Evenly in the logarithm")
    integer: bool = Field(default=False, description="Whole numbers alone")

    @model_validator(mode="after")
    def _is_one(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, got {self.low:g}")
        if self.integer and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"no whole number lies between {self.low:g} and {self.high:g}")
        return self


class SweepMethod(Frozen):
    """A method of a sweep.

    `rate_of` names another one whose learning rate it takes: for rows that ask about a part of a
    method, so that the rate does not answer for it.
    """

    label: str = Field(min_length=1, max_length=60)
    method: dict[str, Any]
    rate_of: str = ""
    train: dict[str, Any] = Field(default_factory=dict, description="Further training options")

    @property
    def kind(self) -> str:
        """The method's kind."""
        return str(self.method.get("kind", ""))


def _as_method(given: Any) -> Any:
    """`carot` and `{kind: carot, lambda_sd: 0}` in full."""
    if isinstance(given, str):
        return {"label": given, "method": {"kind": given}}
    if isinstance(given, Mapping) and "kind" in given and "method" not in given:
        options = [f"{name}={_short(value)}" for name, value in given.items() if name != "kind"]
        return {"label": " ".join([str(given["kind"]), *options])[:60], "method": dict(given)}
    return given


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class RateSearch(Frozen):
    """How each method's learning rate is chosen: by accuracy on the ID *validation* split alone.

    The ladder is run with a seed of its own; the best rate wins, of equal ones the lower. While the
    highest rate is the best, another one above it is tried, `extend` times at most. A run that
    diverges counts as fallen.
    """

    ladder: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        default=None,
        max_length=20,
        description="Ascending rates; none: about the method's default, and for calift-tiny those "
        "of the results study",
    )
    extend: int = Field(default=2, ge=0, le=10, description="Further rates above the ladder")
    seed: int = Field(default=100, ge=0, lt=2**32, description="Used for nothing else")
    every_seed: bool = Field(
        default=False,
        description="Judge every seed at every rate of the ladder, so that the comparison at equal "
        "ID accuracy has intervals over seeds too; else it is of the one seed that chose the rate",
    )

    @field_validator("ladder")
    @classmethod
    def _ascends(cls, ladder: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if ladder is not None and (not ladder or list(ladder) != sorted(set(ladder))):
            raise ValueError(f"a ladder is one or more ascending rates, got {list(ladder)}")
        return ladder


class Search(Frozen):
    """Every combination of the values, or so many drawn at random."""

    kind: Literal["grid", "random"] = "grid"
    n: int = Field(default=10, ge=1, le=MOST_RUNS, description="Combinations drawn; random only")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the draws; random only")


class SweepSpec(Frozen):
    """Methods × values × seeds, how rates are chosen, and what it may cost."""

    name: str = Field(min_length=1, max_length=60, title="Name")
    preset: Preset | None = Field(default=None, description="Fills in what is left out here")
    base: dict[str, Any] = Field(
        default_factory=dict, description="A RunSpec; its name, seed and method may be left out"
    )
    methods: tuple[Annotated[SweepMethod, BeforeValidator(_as_method)], ...] = Field(
        default=(), max_length=50, description="None: the method of `base`"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        default=(0, 1, 2), min_length=1, max_length=50, title="Seeds"
    )
    values: dict[str, tuple[Any, ...] | Range] = Field(
        default_factory=dict,
        max_length=10,
        description="Dotted field of the RunSpec → its values, or a range to draw from",
    )
    search: Search = Field(default_factory=Search)
    rate: RateSearch | None = Field(
        default_factory=RateSearch, description="null: rates are as `base` and the methods say"
    )
    max_runs: int = Field(default=200, ge=1, le=MOST_RUNS)
    max_hours: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Hours of runs, spent and estimated together, at which the sweep pauses",
    )
    priority: int = Field(default=0, ge=-10, le=10)
    max_attempts: int = Field(default=3, ge=1, le=20)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset")
        return _filled(dict(given)) if preset in PRESETS else given

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return plain_name(name)

    @field_validator("base")
    @classmethod
    def _is_json(cls, base: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(base, allow_nan=False)
        except ValueError as error:
            raise ValueError("the numbers of a RunSpec are finite") from error
        return base

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ, got {list(seeds)}")
        return seeds

    @field_validator("values")
    @classmethod
    def _are_fields(
        cls, values: dict[str, tuple[Any, ...] | Range]
    ) -> dict[str, tuple[Any, ...] | Range]:
        for field, choices in values.items():
            top = field.split(".")[0]
            if field in ("train.seed", "method.kind"):
                listed = "seeds" if field == "train.seed" else "methods"
                raise ValueError(f"{field} is what `{listed}` lists")
            if "." not in field or top not in ("model", "method", "suite", "train", "evaluation"):
                raise ValueError(
                    "a field is written with dots and belongs to model, method, suite, train or "
                    f"evaluation, such as train.lr, got {field!r}"
                )
            if isinstance(choices, tuple) and not choices:
                raise ValueError(f"{field} must have at least one value, got none")
        return values

    @model_validator(mode="after")
    def _makes_sense(self) -> SweepSpec:
        labels = [m.label for m in self.methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"labels of methods must differ, got {', '.join(twice)} twice")
        for method in self.methods:
            if method.kind not in METHOD_SPECS:
                raise ValueError(f"{method.label}: a method has a kind, got {method.kind!r}")
            if method.rate_of and method.rate_of not in labels:
                raise ValueError(
                    f"{method.label} takes the rate of {method.rate_of!r}, which is not among the "
                    f"methods: {', '.join(labels)}"
                )
            if method.rate_of and next(
                m.rate_of for m in self.methods if m.label == method.rate_of
            ) not in ("", method.rate_of):
                raise ValueError(
                    f"{method.label} takes the rate of {method.rate_of}, which takes another's"
                )
        ranges = [field for field, v in self.values.items() if isinstance(v, Range)]
        if ranges and self.search.kind == "grid":
            raise ValueError(
                f"a grid takes lists, and {', '.join(ranges)} is a range; search: {{kind: random}}"
            )
        sizes = [len(v) for v in self.values.values() if not isinstance(v, Range)]
        if self.search.kind == "grid" and math.prod(sizes) > MOST_RUNS:
            raise ValueError(
                f"the values have {math.prod(sizes):,} combinations, and a sweep has at most "
                f"{MOST_RUNS:,} runs; search: {{kind: random}} draws some of them"
            )
        if self.search.kind == "random" and not self.values:
            raise ValueError("a random search draws from `values`, which are empty")
        if self.rate is not None and self.rate.seed in self.seeds:
            raise ValueError(
                f"the seed {self.rate.seed} chooses rates and is used for nothing else; leave it "
                "out of `seeds`, or name another in `rate.seed`"
            )
        return self


def _filled(given: dict[str, Any]) -> dict[str, Any]:
    """A preset's fields, under those that are given."""
    preset: Preset = given["preset"]
    base = given.get("base")
    base = base if isinstance(base, Mapping) else {}
    made: dict[str, Any]
    if preset == "compare-methods":
        made = {"name": "compare methods", "methods": list(COMPARED)}
    elif preset == "ablate-carot":
        own = base.get("method") if isinstance(base.get("method"), Mapping) else {}
        options = {k: v for k, v in dict(own or {}).items() if k != "kind"}
        options = options if (own or {}).get("kind") == "carot" else {}
        made = {
            "name": "ablate CaRot",
            "methods": [
                {
                    "label": label,
                    "method": {"kind": "carot", **options, **without},
                    "rate_of": "" if label == "CaRot" else "CaRot",
                }
                for label, without in ABLATED.items()
            ],
        }
    else:
        train = base.get("train")
        first = dict(train).get("seed", 0) if isinstance(train, Mapping) else 0
        first = first if isinstance(first, int) else 0
        name = str(base.get("name") or "a run")
        made = {
            "name": f"seeds of {name}"[:60].rstrip(),
            "seeds": [first, first + 1, first + 2],
            "rate": None,
        }
    return made | given


def parse_sweep(data: Any) -> SweepSpec:
    """Validate a decoded YAML or JSON document.

    Raises:
        SpecError: with every problem and the place it stands at.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"a SweepSpec is a mapping of fields, got {type(data).__name__}")
    try:
        return SweepSpec.model_validate(dict(data))
    except ValidationError as error:
        lines = [f"{p['pointer']}: {p['message']}" for p in sweep_problems(error)]
        raise SpecError("the SweepSpec is not valid:\n  " + "\n  ".join(lines)) from error


def sweep_problems(error: ValidationError) -> list[dict[str, str]]:
    """Validation problems as `{"pointer": "#/rate/ladder", "message": …}`, one per fault."""
    found = []
    for item in error.errors(include_url=False, include_context=False):
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] not in ("value_error", "missing") and not isinstance(item["input"], dict):
            message += f", got {item['input']!r}"
        found.append({"pointer": "#/" + "/".join(map(str, item["loc"])), "message": message})
    return found


def default_ladder(default_rate: float, model: str) -> tuple[float, ...]:
    """The rates that are tried where none are named.

    About a method's default: its neighbours in 1, 3, 10, …. The embedded model is far from what
    methods were published with, and has the ladder of the results study.
    """
    if model == "calift-tiny":
        return (1e-4, 3e-4, 1e-3, 3e-3)
    steps = round(2 * math.log10(default_rate))
    return tuple(_one_three_ten(step) for step in (steps - 1, steps, steps + 1))


def _one_three_ten(step: int) -> float:
    return float(f"{3 if step % 2 else 1}e{step // 2}")
