"""The contenders of a sweep: each method with each combination of the values."""

import copy
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from calift_core.errors import SpecError
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.spec import RunSpec, problems_of
from calift_core.schema.sweep import Range, SweepMethod, SweepSpec, default_ladder
from calift_core.sweeps.ladder import extended

#: Stands for the runs that a merge is made from until they are known.
PENDING = "pending"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9 ._:+()/-]+")


@dataclass(frozen=True)
class Arm:
    """A contender.

    Attributes:
        index: its place among the arms; its runs are known by it.
        body: a RunSpec without name, seed and chosen rate.
        seeded: whether seeds differ; zero-shot is the same on all.
        rates: every rate that its ladder may reach, ascending; empty where none is chosen for it.
        at_once: rates of the ladder that run in any case.
        rate_of: index of the arm whose rate it takes; None: none.
        merges: index of the arm that its input runs are of; None: it is no merge, or names them.
    """

    index: int
    label: str
    body: Mapping[str, Any]
    seeded: bool = True
    rates: tuple[float, ...] = ()
    at_once: int = 0
    rate_of: int | None = None
    merges: int | None = None

    @property
    def kind(self) -> str:
        """The method's kind."""
        return str(self.body["method"]["kind"])

    def spec(
        self, sweep: str, *, seed: int, lr: float | None, inputs: Sequence[str] = ()
    ) -> RunSpec:
        """The run of a seed at a rate.

        Args:
            lr: its learning rate; None: as the base or the method says.
            inputs: the runs that a merge is made from.

        Raises:
            ValidationError: it is no valid RunSpec.
        """
        body = copy.deepcopy(dict(self.body))
        train = body.setdefault("train", {})
        train["seed"] = seed
        rate = ""
        if lr is not None:
            train["lr"] = lr
            rate = f" lr {lr:g}"
        if self.merges is not None:
            body["method"] |= {"run": inputs[0]} if self.kind == "wise_ft" else {"runs": [*inputs]}
        tail = f"{rate} seed {seed}" if self.seeded else ""
        label = _NOT_IN_NAMES.sub("-", self.label.replace("=", ":"))
        body["name"] = f"{sweep}: {label}"[: 120 - len(tail)] + tail
        return RunSpec.model_validate(body)

    def inputs_of(self, seed: int, seeds: Sequence[int]) -> tuple[int, ...]:
        """Seeds of the runs that a merge of this seed is made from."""
        if self.kind == "wise_ft":
            return (seed,)
        return (seed, seeds[(list(seeds).index(seed) + 1) % len(seeds)])


@dataclass(frozen=True)
class Arms:
    """The arms of a sweep, and how many runs they take."""

    spec: SweepSpec
    arms: tuple[Arm, ...]

    def __iter__(self) -> Iterator[Arm]:
        return iter(self.arms)

    def __len__(self) -> int:
        return len(self.arms)

    def __getitem__(self, index: int) -> Arm:
        return self.arms[index]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The evaluated seeds."""
        return self.spec.seeds

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """The evaluated seeds of an arm."""
        return self.seeds if arm.seeded else self.seeds[:1]

    def _per_rate(self, arm: Arm) -> int:
        """Runs at one more rate of an arm's ladder."""
        every = self.spec.rate is not None and self.spec.rate.every_seed
        return 1 + (len(self.seeds_of(arm)) if every else 0)

    def runs_at_least(self, arm: Arm) -> int:
        """Runs of an arm where its ladder is not climbed beyond the rates that run in any case."""
        evaluated = len(self.seeds_of(arm))
        if not arm.rates:
            return evaluated
        per_rate = self._per_rate(arm)
        # With every seed at every rate, the evaluated ones at the chosen rate are among them.
        return arm.at_once * per_rate + (0 if per_rate > 1 else evaluated)

    def runs_at_most(self, arm: Arm) -> int:
        """Runs of an arm where its ladder is climbed to its end."""
        further = (len(arm.rates) - arm.at_once) * self._per_rate(arm) if arm.rates else 0
        return self.runs_at_least(arm) + further

    @property
    def at_least(self) -> int:
        """Runs that the sweep takes in any case."""
        return sum(map(self.runs_at_least, self))

    @property
    def at_most(self) -> int:
        """Runs where every ladder is climbed to its end; within the cap."""
        return sum(map(self.runs_at_most, self))


def make_arms(spec: SweepSpec) -> Arms:
    """Every arm of a sweep.

    Further rates above the ladders are shared out before anything runs, so that no order in which
    runs end changes which runs there are.

    Raises:
        SpecError: an arm is no valid RunSpec, or the sweep takes more runs than it may.
    """
    arms = Arms(spec, _expand(spec))
    if arms.at_least > spec.max_runs:
        raise SpecError(
            f"the sweep takes at least {arms.at_least} runs ({len(arms)} configurations, "
            f"{len(spec.seeds)} seeds), and max_runs is {spec.max_runs}",
            hint="Raise max_runs, or take fewer methods, values, seeds or rates.",
        )
    climbing = [arm for arm in arms if arm.rates]
    cost = sum(arms._per_rate(arm) for arm in climbing)
    spare = (spec.max_runs - arms.at_least) // cost if cost else 0
    kept = tuple(
        Arm(**(vars(arm) | {"rates": arm.rates[: arm.at_once + spare]})) if arm.rates else arm
        for arm in arms
    )
    return Arms(spec, kept)


def _expand(spec: SweepSpec) -> tuple[Arm, ...]:
    train = spec.base.get("train", {})
    if not isinstance(train, Mapping):
        raise SpecError(f"the base's train is a mapping of fields, got {type(train).__name__}")
    methods = spec.methods or (_base_method(spec),)
    labels = {method.label: method for method in methods}
    pairs: list[tuple[SweepMethod, dict[str, Any], dict[str, Any]]] = []
    combinations = _combinations(spec)
    used: set[str] = set()
    for method in methods:
        options = _options(spec, method)
        seen: set[str] = set()
        for combination in combinations:
            own = {f: v for f, v in combination.items() if _goes_with(f, options)}
            used |= set(own)
            if _key(own) not in seen:
                seen.add(_key(own))
                pairs.append((method, options, own))
    if len(pairs) > spec.max_runs:
        raise SpecError(
            f"the sweep has {len(pairs)} configurations, and max_runs is {spec.max_runs}"
        )
    found = [(method, own, _body(spec, options, method, own)) for method, options, own in pairs]
    unused = sorted(set(spec.values) - used)
    if unused:
        raise SpecError(
            f"{unused[0]} is an option of none of the methods "
            f"({', '.join(dict.fromkeys(m.kind for m in methods))})"
        )
    index_of = {(m.label, _key(own)): i for i, (m, own, _) in enumerate(found)}
    arms = []
    for index, (method, own, body) in enumerate(found):
        owner = labels.get(method.rate_of or method.label, method)
        rate_of = None
        if owner is not method:
            rate_of = _same(index_of, owner.label, own, f"{method.label} takes its rate")
        merges = None
        if _is_open_merge(body["method"]):
            merges = _tuned(methods, index_of, own, method)
            if method.kind == "model_stock" and len(spec.seeds) < 2:
                raise SpecError(f"{method.label} merges runs of two seeds, got {len(spec.seeds)}")
        rates, at_once = ((), 0) if rate_of is not None else _ladder(spec, body, own)
        arm = Arm(
            index=index,
            label=_label(method.label, own),
            body=body,
            seeded=method.kind != "zero_shot",
            rates=rates,
            at_once=at_once,
            rate_of=rate_of,
            merges=merges,
        )
        _check(spec, arm)
        arms.append(arm)
    for arm in arms:
        if arm.rate_of is not None and not arms[arm.rate_of].rates and spec.rate is not None:
            raise SpecError(
                f"{arm.label} takes the rate of {arms[arm.rate_of].label}, for which none is chosen"
            )
    return tuple(arms)


def _base_method(spec: SweepSpec) -> SweepMethod:
    method = spec.base.get("method")
    if not isinstance(method, Mapping) or method.get("kind") not in METHOD_SPECS:
        raise SpecError("a sweep names methods, or its base has one; got neither")
    return SweepMethod(label=str(method["kind"]), method=dict(method))


def _options(spec: SweepSpec, method: SweepMethod) -> dict[str, Any]:
    """A method's options: a bare kind that is the base's own has the base's."""
    base = spec.base.get("method")
    bare = set(method.method) == {"kind"}
    if bare and isinstance(base, Mapping) and base.get("kind") == method.kind:
        return dict(base)
    return dict(method.method)


def _goes_with(field: str, method: Mapping[str, Any]) -> bool:
    """Whether a method has the field; those of `method` are options of some methods alone.

    A merge goes with the training of what it is made from.
    """
    top, _, option = field.partition(".")
    cls = METHOD_SPECS[method["kind"]]
    if top == "method":
        return option.split(".")[0] in cls.model_fields
    return top != "train" or cls.trains or _is_open_merge(method)


def _is_open_merge(method: Mapping[str, Any]) -> bool:
    """Whether a method merges runs that it does not name: the sweep's own."""
    named = method.get("run") or method.get("runs")
    return METHOD_SPECS[method["kind"]].family == "merge" and not named


def _combinations(spec: SweepSpec) -> list[dict[str, Any]]:
    if not spec.values:
        return [{}]
    if spec.search.kind == "grid":
        lists = [v for v in spec.values.values() if not isinstance(v, Range)]
        return [dict(zip(spec.values, one, strict=True)) for one in itertools.product(*lists)]
    rng = random.Random(spec.search.seed)
    return [
        {field: _draw(rng, choices) for field, choices in spec.values.items()}
        for _ in range(spec.search.n)
    ]


def _draw(rng: random.Random, choices: tuple[Any, ...] | Range) -> Any:
    if not isinstance(choices, Range):
        return choices[rng.randrange(len(choices))]
    low, high = choices.low, choices.high
    if choices.integer:
        low, high = math.ceil(low) - 0.5, math.floor(high) + 0.5
    if choices.log:
        value = math.exp(rng.uniform(math.log(max(low, 1e-300)), math.log(high)))
    else:
        value = rng.uniform(low, high)
    if choices.integer:
        return int(min(math.floor(choices.high), max(math.ceil(choices.low), round(value))))
    return min(choices.high, max(choices.low, float(f"{value:.4g}")))


def _body(
    spec: SweepSpec, options: dict[str, Any], method: SweepMethod, own: Mapping[str, Any]
) -> dict[str, Any]:
    body = copy.deepcopy({k: v for k, v in spec.base.items() if k not in ("name", "method")})
    body["method"] = copy.deepcopy(options)
    if method.train:
        body["train"] = {**body.get("train", {}), **method.train}
    for field, value in own.items():
        place = body
        *path, last = field.split(".")
        for name in path:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise SpecError(f"{field} is no field of a RunSpec: {name} is one value")
        place[last] = value
    return body


def _label(label: str, own: Mapping[str, Any]) -> str:
    words = [f"{f.rpartition('.')[2]}={v:g}" if isinstance(v, float) else
             f"{f.rpartition('.')[2]}={v}" for f, v in own.items()]  # fmt: skip
    return " ".join([label, *words])


def _key(own: Mapping[str, Any]) -> str:
    return repr(sorted(own.items(), key=lambda item: item[0]))


def _same(
    index_of: Mapping[tuple[str, str], int], label: str, own: Mapping[str, Any], what: str
) -> int:
    """The arm of a label with the same values, or with those of them that it has."""
    found = index_of.get((label, _key(own)))
    if found is not None:
        return found
    arms = [i for (name, _), i in index_of.items() if name == label]
    if len(arms) == 1:
        return arms[0]
    raise SpecError(f"{what} from {label}, which has other values: {_label(label, own)} is missing")


def _tuned(
    methods: Sequence[SweepMethod],
    index_of: Mapping[tuple[str, str], int],
    own: Mapping[str, Any],
    merge: SweepMethod,
) -> int:
    tuned = next((m for m in methods if m.kind == "finetune"), None)
    if tuned is None:
        raise SpecError(
            f"{merge.label} is made from finished runs: name them in its options, or take finetune "
            "among the methods"
        )
    return _same(index_of, tuned.label, own, f"{merge.label} is made")


def _ladder(
    spec: SweepSpec, body: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[tuple[float, ...], int]:
    """The rates of an arm that chooses its own, and how many of them run in any case."""
    cls = METHOD_SPECS[body["method"]["kind"]]
    if spec.rate is None or not cls.trains or "train.lr" in own:
        return (), 0
    if body["method"].get("solver") == "lbfgs":  # it has no rate
        return (), 0
    model = body.get("model")
    name = model.get("name", "calift-tiny") if isinstance(model, Mapping) else "calift-tiny"
    ladder = spec.rate.ladder or default_ladder(cls.default_lr, str(name))
    return extended(ladder, spec.rate.extend), len(ladder)


def _check(spec: SweepSpec, arm: Arm) -> None:
    """Raise unless the arm's runs are valid."""
    seed = spec.seeds[0]
    pending = [f"{PENDING}-{n}" for n in range(len(arm.inputs_of(seed, spec.seeds)))]
    try:
        for lr in (arm.rates[0], arm.rates[-1]) if arm.rates else (None,):
            arm.spec(spec.name, seed=seed, lr=lr, inputs=pending)
    except ValidationError as error:
        faults = "; ".join(f"{p['pointer']}: {p['message']}" for p in problems_of(error))
        raise SpecError(f"{arm.label}: {faults}") from error
