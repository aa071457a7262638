"""What a sweep says: its contenders on the same images and seeds, twice.

Once each at its own rate, and once at equal ID accuracy: a method that was merely trained harder
differs in both ID accuracy and everything under shift, so each is also read where its ladder of
rates reaches one common ID accuracy. Between two rates of a ladder both accuracy and metric are
taken for linear. The interval there allows for the noise of the ID accuracy to first order: a
contender that is better on the drawn ID images is read at a lower rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration import SampleScores
from calift_core.calibration.squared import SquaredError, Units
from calift_core.errors import PredictionsError, UnpairedError
from calift_core.schema.wire.runs import Spread
from calift_core.schema.wire.sweeps import (
    EqualAccuracy,
    EqualRow,
    LeftOut,
    SweepVerdict,
    VerdictDifference,
    VerdictMetric,
    VerdictRow,
    VerdictSet,
)
from calift_core.sweeps.paired import LEVEL, Doubles, best_rows, difference, draw_images
from calift_core.sweeps.words import sentence_of

METRICS: tuple[VerdictMetric, ...] = ("accuracy", "squared", "nll")
HIGHER_IS_BETTER = frozenset({"accuracy"})
#: Draws times images: bounds memory (80 MB) and time, and stays above 200 draws.
_CELLS, _FEWEST, _MOST = 10_000_000, 200, 1000
EvaluatedOn = Literal["shifts", "corruptions", "id"]


@dataclass(frozen=True)
class ScoredSet:
    """One model on one data set.

    Attributes:
        role: `id`, `shift` or `corruption`.
        floor: what it would read of a calibrated model.
        open: reads the N samples in the order of their ids: (N,) names of their source images, and
            their scores.
    """

    dataset: str
    role: str
    ece: float
    floor: float
    open: Callable[[], tuple[NDArray[np.str_], SampleScores]]


@dataclass(frozen=True)
class ScoredRun:
    """A finished run: its ID test set and what it was evaluated on besides."""

    run_id: str
    seed: int
    sets: Mapping[str, ScoredSet]


@dataclass(frozen=True)
class Contender:
    """An arm with its finished runs.

    Attributes:
        lr: its rate, None where none was chosen.
        at_edge: whether that lies at an end of its ladder.
        runs: evaluated at its own rate, in the order of the seeds.
        ladder: rate → runs at it, in the order of the seeds.
    """

    label: str
    method: str
    lr: float | None
    at_edge: Literal["", "lower", "upper"]
    runs: Sequence[ScoredRun]
    ladder: Mapping[float, Sequence[ScoredRun]] = field(default_factory=dict)


class _Images:
    """How often each source image was drawn, for every set; ID images and their corruptions share.

    Each shift is a population of its own.
    """

    def __init__(self, run: ScoredRun, names: Sequence[str]) -> None:
        self._first = run.run_id
        self._units = {name: run.sets[name].open()[0] for name in names}
        self._population = {n: n if run.sets[n].role == "shift" else "" for n in names}
        everybody: dict[str, NDArray[np.str_]] = {}
        for name, units in self._units.items():
            key = self._population[name]
            everybody[key] = np.union1d(everybody.get(key, units[:0]), units)
        self.n_images = sum(len(n) for n in everybody.values())
        self.n_resamples = int(min(_MOST, max(_FEWEST, _CELLS // max(1, self.n_images))))
        self._everybody = everybody
        self._drawn = {
            key: draw_images(len(n), n_resamples=self.n_resamples, seed=index)
            for index, (key, n) in enumerate(everybody.items())
        }
        self._last: tuple[tuple[str, bytes], Doubles] | None = None

    def read(self, run: ScoredRun, name: str) -> tuple[Units, Doubles, SampleScores]:
        """Independent units of a set, (R + 1, G) how often each was drawn, and scores.

        Raises:
            UnpairedError: the run was evaluated on other images than the first one.
        """
        names, scores = run.sets[name].open()
        if not np.array_equal(names, self._units[name]):
            raise UnpairedError(
                f"run {run.run_id} was evaluated on other images of {name} than run {self._first}, "
                "so the two cannot be compared in pairs",
                hint="Values that change the data make several questions; sweep them apart.",
            )
        distinct = np.unique(names)
        clustered = len(distinct) < len(names)
        units = Units(names if clustered else None, len(names))
        population = self._population[name]
        at = np.searchsorted(self._everybody[population], distinct if clustered else names)
        key = (population, at.tobytes())
        if self._last is None or self._last[0] != key:  # corruptions share their images
            self._last = key, self._drawn[population][:, at]
        return units, self._last[1], scores


@dataclass(frozen=True)
class _Values:
    """A run's numbers for each draw, (R + 1,); the first is the data as they are."""

    id_accuracy: Doubles
    metrics: Mapping[VerdictMetric, Doubles]
    ood_ece: float
    ood_floor: float
    id_ece: float
    id_floor: float


def _of_set(units: Units, times: Doubles, scores: SampleScores) -> dict[VerdictMetric, Doubles]:
    sizes = times @ units.sizes
    error = SquaredError(scores, units)
    noise = error.noise(times[1:])
    return {
        "accuracy": times @ units.totals(scores.correct.astype(np.float64)) / sizes,
        "nll": times @ units.totals(scores.nll) / sizes,
        "squared": error.value + np.concatenate([[0.0], noise - noise.mean()]),
    }


def _values(run: ScoredRun, datasets: Sequence[str], id_set: str, images: _Images) -> _Values:
    found = [_of_set(*images.read(run, name)) for name in datasets]
    units, times, scores = images.read(run, id_set)
    correct = units.totals(scores.correct.astype(np.float64))
    own = run.sets[id_set]
    return _Values(
        np.asarray(times @ correct / (times @ units.sizes)),
        {m: np.mean([one[m] for one in found], axis=0) for m in METRICS},
        float(np.mean([run.sets[name].ece for name in datasets])),
        float(np.mean([run.sets[name].floor for name in datasets])),
        own.ece,
        own.floor,
    )


class _RunScores:
    """The numbers of all runs, on draws that they share."""

    def __init__(self, contenders: Sequence[Contender]) -> None:
        runs = [run for c in contenders for run in (*c.runs, *_on_ladder(c))]
        self.id_set, self.datasets, self.evaluated_on = _common_sets(runs)
        self._contenders = contenders
        names = list(dict.fromkeys([self.id_set, *self.datasets]))
        self.images = _Images(runs[0], names)
        self._known: dict[str, _Values] = {}

    def __call__(self, run: ScoredRun) -> _Values:
        if run.run_id not in self._known:
            self._known[run.run_id] = _values(run, self.datasets, self.id_set, self.images)
        return self._known[run.run_id]

    @cached_property
    def own(self) -> dict[str, list[_Values]]:
        """Label → numbers of its evaluated runs."""
        return {c.label: [self(run) for run in c.runs] for c in self._contenders}


def _common_sets(runs: Sequence[ScoredRun]) -> tuple[str, list[str], EvaluatedOn]:
    """The ID set, the sets that OOD values are means over, and what these are."""
    first = runs[0]
    everywhere = [one for name, one in first.sets.items() if all(name in run.sets for run in runs)]
    ids = [one.dataset for one in everywhere if one.role == "id"]
    if not ids:
        raise UnpairedError("the runs of the sweep have no ID test set in common")
    by_role = {r: [o.dataset for o in everywhere if o.role == r] for r in ("shift", "corruption")}
    if by_role["shift"]:
        return ids[0], by_role["shift"], "shifts"
    if by_role["corruption"]:
        return ids[0], by_role["corruption"], "corruptions"
    return ids[0], ids[:1], "id"


def _on_ladder(c: Contender) -> list[ScoredRun]:
    return [run for some in c.ladder.values() for run in some]


def compare_contenders(
    contenders: Sequence[Contender],
    *,
    sweep_id: str,
    name: str,
    seeds: Sequence[int],
    complete: bool,
    left_out: Sequence[LeftOut] = (),
) -> SweepVerdict:
    """Evaluate the contenders.

    Args:
        contenders: each with a run for each evaluated seed, or one run where nothing is random.

    Raises:
        PredictionsError: there is no contender.
        UnpairedError: runs were evaluated on different images.
    """
    if not contenders:
        raise PredictionsError(
            "no method of the sweep has all of its evaluated runs yet",
            hint="The verdict comes with the first method whose seeds have all finished.",
        )
    scored = _RunScores(contenders)
    values = {
        metric: {
            label: np.stack([v.metrics[metric] for v in runs]) for label, runs in scored.own.items()
        }
        for metric in METRICS
    }
    rows = [_row(c, scored.own[c.label]) for c in contenders]
    sets = _sets(values)
    equal = _equal(contenders, scored)
    notes = _notes(contenders, scored, seeds)
    return SweepVerdict(
        sweep_id=sweep_id,
        name=name,
        complete=complete,
        sentence=sentence_of(rows, sets, equal, scored.evaluated_on, complete=complete),
        evaluated_on=scored.evaluated_on,
        datasets=scored.datasets,
        n_images=scored.images.n_images,
        n_resamples=scored.images.n_resamples,
        level=LEVEL,
        rows=rows,
        sets=sets,
        equal=equal,
        left_out=list(left_out),
        notes=notes,
    )


def _row(c: Contender, values: Sequence[_Values]) -> VerdictRow:
    def of(metric: VerdictMetric) -> Spread:
        return Spread.of([float(v.metrics[metric][0]) for v in values])

    return VerdictRow(
        label=c.label,
        method=c.method,
        lr=c.lr,
        at_edge=c.at_edge,
        seeds=[run.seed for run in c.runs],
        run_ids=[run.run_id for run in c.runs],
        id_accuracy=Spread.of([float(v.id_accuracy[0]) for v in values]),
        ood_accuracy=of("accuracy"),
        ood_nll=of("nll"),
        ood_squared=of("squared"),
        ood_ece=Spread.of([v.ood_ece for v in values]),
        ood_ece_floor=float(np.mean([v.ood_floor for v in values])),
        id_ece=Spread.of([v.id_ece for v in values]),
        id_ece_floor=float(np.mean([v.id_floor for v in values])),
    )


def _sets(values: Mapping[VerdictMetric, Mapping[str, Doubles]]) -> list[VerdictSet]:
    """Per metric, which contender may be the best, and each one's difference to that."""
    found = []
    for metric, of in values.items():
        best = best_rows(of, higher_is_better=metric in HIGHER_IS_BETTER)
        leader = best["label"]
        differences = []
        for label in of:
            if label != leader:
                d = difference(of[label], of[leader])
                differences.append(
                    VerdictDifference(
                        label=label,
                        against=leader,
                        difference=d["difference"],
                        interval=(d["low"], d["high"]),
                        distinguishable=d["low"] > 0 or d["high"] < 0,
                    )
                )
        found.append(
            VerdictSet(
                metric=metric,
                best=leader,
                members=best["set"],
                excluded=[label for label in of if label not in best["set"]],
                p_values=best["p_values"],
                differences=differences,
            )
        )
    return found


def _notes(contenders: Sequence[Contender], scored: _RunScores, seeds: Sequence[int]) -> list[str]:
    notes = []
    edges = [f"{c.label} ({c.at_edge} edge, {c.lr:g})" for c in contenders if c.at_edge and c.lr]
    if edges:
        notes.append(
            f"Best at the end of the ladder, so perhaps not the best there is: {'; '.join(edges)}."
        )
    if len(seeds) == 1:
        notes.append("There is one seed: the intervals cover images alone.")
    if scored.evaluated_on == "id":
        notes.append("No shifted data was evaluated; what stands for OOD is the ID test set.")
    return notes


# ---- Equal ID accuracy --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Branch:
    """The rising part of a ladder: from its lowest rate to its highest ID accuracy.

    Attributes:
        rates: (K,) ascending.
        accuracy: (K,) of the ID test set, mean over seeds.
        runs: (K, S) numbers of the runs at each rate.
    """

    rates: Sequence[float]
    accuracy: Doubles
    runs: Sequence[Sequence[_Values]]

    def segment(self, target: float) -> int | None:
        """The highest pair of neighbouring rates that the target lies between."""
        for k in range(len(self.rates) - 2, -1, -1):
            if self.accuracy[k] <= target <= self.accuracy[k + 1]:
                return k
        return None

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest ID accuracy that can be read along it."""
        return float(self.accuracy.min()), float(self.accuracy[-1])


def _branch(c: Contender, scored: _RunScores) -> _Branch:
    rates = sorted(c.ladder)
    runs = [[scored(run) for run in c.ladder[lr]] for lr in rates]
    accuracy = np.array([np.mean([v.id_accuracy[0] for v in some]) for some in runs])
    top = int(accuracy.argmax()) + 1
    return _Branch(rates[:top], accuracy[:top], runs[:top])


def _equal(contenders: Sequence[Contender], scored: _RunScores) -> EqualAccuracy | None:
    """The contenders at one ID accuracy; None where at most one has a ladder."""
    climbing = [c for c in contenders if c.ladder]
    if len(climbing) < 2:
        return None
    branches = {c.label: _branch(c, scored) for c in climbing}
    every = all(len(some) > 1 for b in branches.values() for some in b.runs)
    covers: Literal["seeds and images", "images"] = "seeds and images" if every else "images"
    left_out = [
        LeftOut(label=c.label, why="it has no ladder of rates to be read along")
        for c in contenders
        if not c.ladder
    ]
    target = _target(branches)
    rows: list[EqualRow] = []
    values: dict[VerdictMetric, dict[str, Doubles]] = {
        m: {} for m in METRICS if scored.evaluated_on != "id" or m != "accuracy"
    }
    for label, branch in branches.items():
        at = branch.segment(target) if len(branch.rates) > 1 else None
        if at is None:
            left_out.append(LeftOut(label=label, why=_why_not(branch, target)))
            continue
        rows.append(_equal_row(label, branch, at, target))
        for metric in values:
            values[metric][label] = _at(branch, at, target, metric)
    if len(rows) < 2:
        rows, sets = [], []
    else:
        sets = _sets(values)
    return EqualAccuracy(
        id_accuracy=target if rows else None, covers=covers, rows=rows, left_out=left_out, sets=sets
    )


def _target(branches: Mapping[str, _Branch]) -> float:
    """The ID accuracy that most contenders reach; of several the highest."""
    usable = [b for b in branches.values() if len(b.rates) > 1]
    tops = sorted({b.ends[1] for b in usable or branches.values()}, reverse=True)
    return max(tops, key=lambda t: sum(b.segment(t) is not None for b in usable))


def _why_not(branch: _Branch, target: float) -> str:
    low, high = branch.ends
    if len(branch.rates) < 2:
        return (
            f"its ID accuracy is highest at its lowest rate ({branch.rates[0]:g}), with nothing to "
            "read between"
        )
    if target > high:
        return f"it reaches {100 * high:.1f} % at most on its ladder"
    return f"it has {100 * low:.1f} % at its lowest rate ({branch.rates[0]:g}) already"


def _share(branch: _Branch, at: int, target: float) -> float:
    low, high = branch.accuracy[at], branch.accuracy[at + 1]
    return float((target - low) / (high - low)) if high > low else 1.0


def _at(branch: _Branch, at: int, target: float, metric: VerdictMetric) -> Doubles:
    """A metric (S, R + 1) where the ID accuracy is the target, to first order in its noise."""
    share = _share(branch, at, target)
    below, above = branch.runs[at], branch.runs[at + 1]

    def mixed(of: Any) -> Doubles:
        return np.stack(
            [(1 - share) * of(a) + share * of(b) for a, b in zip(below, above, strict=True)]
        )

    y, x = mixed(lambda v: v.metrics[metric]), mixed(lambda v: v.id_accuracy)
    rise = branch.accuracy[at + 1] - branch.accuracy[at]
    gain = np.mean([b.metrics[metric][0] - a.metrics[metric][0]
                    for a, b in zip(below, above, strict=True)])  # fmt: skip
    slope = gain / rise if rise > 0 else 0.0
    return np.asarray(y - slope * (x - target))


def _equal_row(label: str, branch: _Branch, at: int, target: float) -> EqualRow:
    share = _share(branch, at, target)

    def between(of: Any) -> float:
        low, high = (np.mean([of(v) for v in branch.runs[k]]) for k in (at, at + 1))
        return float((1 - share) * low + share * high)

    return EqualRow(
        label=label,
        lr_low=branch.rates[at],
        lr_high=branch.rates[at + 1],
        share=share,
        ood_accuracy=between(lambda v: v.metrics["accuracy"][0]),
        ood_nll=between(lambda v: v.metrics["nll"][0]),
        ood_squared=between(lambda v: v.metrics["squared"][0]),
        ood_ece=between(lambda v: v.ood_ece),
        ood_ece_floor=between(lambda v: v.ood_floor),
    )
