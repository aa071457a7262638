"""Do the floors, intervals and comparisons hold what they promise? Simulated models of known truth.

    python -m research.measurements.calibration_simulation  # full size, written into the docs
    python -m research.measurements.calibration_simulation --quick    # a tenth of it, printed only
    python -m research.measurements.calibration_simulation --only intervals

A simulated model is a distribution of confidences and a truth: the chance to be right at each
confidence. The population's own binned errors are computed from 100,000 further samples in the very
bins that an estimate used. Everything is seeded. Where a rule has replaced an earlier one
(`calibration_first_rules.py`), both are tried on the same samples. Each table goes between the
markers `<!-- simulation:NAME -->` and `<!-- /simulation:NAME -->` of docs/calibration.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core import calibration as cal
from calift_core.calibration.measures import debiased_squared_error
from calift_core.calibration.planning import SquaredPlan
from calift_core.calibration.registry import CALIBRATORS
from calift_core.calibration.squared import SquaredError
from research.measurements import calibration_first_rules as first_rules

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Truth = Callable[[Doubles], Doubles]

DOCS = Path(__file__).parents[2] / "docs" / "calibration.md"
POPULATION = 100_000

#: Confidences: a model that hesitates, and one that is fine-tuned and mostly sure.
CONFIDENCES: dict[str, Callable[[np.random.Generator, int], Doubles]] = {
    "hesitant": lambda rng, n: rng.beta(4, 1.2, n),
    "sure": lambda rng, n: rng.beta(5, 0.5, n),
}
TRUTHS: dict[str, Truth] = {
    "calibrated": lambda c: c,
    "over-confident": lambda c: c**1.5,
    "under-confident": lambda c: c**0.7,
    "0.02 too sure": lambda c: np.clip(c - 0.02, 0, 1),
    "0.20 too sure": lambda c: np.clip(c - 0.2, 0, 1),
    "wavy": lambda c: np.clip(c + 0.05 * np.sin(12 * c), 0, 1),
    "too sure at the top": lambda c: np.where(c > 0.9, c - 0.15, c),
}

#: What two models say where the chance to be right is q.
SAYS: dict[str, Truth] = {
    "calibrated": lambda q: q,
    "over-confident": lambda q: q**0.6,
    "under-confident": lambda q: q**1.3,
    "0.02 too sure": lambda q: np.minimum(q + 0.02, 1),
    "0.04 too sure": lambda q: np.minimum(q + 0.04, 1),
    "0.09 too sure": lambda q: np.minimum(q + 0.09, 1),
    "wavy": lambda q: np.clip(q + 0.05 * np.sin(12 * q), 0, 1),
}
#: Two models, and whether they predict alike (as one model at two temperatures does).
PAIRS: tuple[tuple[str, str, bool], ...] = (
    ("calibrated", "calibrated", False),
    ("0.04 too sure", "0.04 too sure", False),
    ("calibrated", "over-confident", True),
    ("calibrated", "over-confident", False),
    ("calibrated", "0.04 too sure", True),
    ("calibrated", "wavy", False),
    ("0.04 too sure", "0.09 too sure", True),
    ("over-confident", "0.04 too sure", True),
    ("over-confident", "under-confident", False),
)


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the truth.

    Attributes:
        covered: share of repeats.
        above: share in which the interval lay above the truth.
        below: share in which it lay below.
        width: mean width, a fraction.
    """

    covered: float
    above: float
    below: float
    width: float


def _coverage(low: Sequence[float], high: Sequence[float], truth: Sequence[float]) -> Coverage:
    lows, highs, truths = np.array(low), np.array(high), np.array(truth)
    above, below = lows > truths + 1e-12, highs < truths - 1e-12
    return Coverage(
        float((~above & ~below).mean()),
        float(above.mean()),
        float(below.mean()),
        float((highs - lows).mean()),
    )


class Population:
    """Confidences (P,) with a value each, sorted once, so that any bins are cut quickly."""

    def __init__(self, confidences: Doubles, values: Doubles) -> None:
        order = np.argsort(confidences)
        self.confidences = confidences[order]
        self.totals = np.concatenate([[0.0], np.cumsum(values[order])])

    def means(self, edges: Doubles) -> tuple[Doubles, Doubles]:
        """Return mean value and share (K,) of the population in given bins; NaN where empty."""
        inner = np.searchsorted(self.confidences, edges[1:-1], side="right")
        bounds = np.concatenate([[0], inner, [len(self.confidences)]])
        count = np.diff(bounds)
        with np.errstate(invalid="ignore"):
            return np.diff(self.totals[bounds]) / count, count / len(self.confidences)


def interval_coverage(
    confidences: str,
    truth: str,
    n: int,
    *,
    scheme: cal.Scheme = "equal_mass",
    norm: cal.Norm = "l1",
    repeats: int,
    n_resamples: int = 200,
    seed: int = 0,
) -> Coverage:
    """How often `interval` holds the population's error in the bins that the sample made."""
    rng = np.random.default_rng([seed, n])
    drawn = CONFIDENCES[confidences](rng, POPULATION)
    population = Population(drawn, drawn - TRUTHS[truth](drawn))
    low, high, targets = [], [], []
    for repeat in range(repeats):
        values = CONFIDENCES[confidences](rng, n)
        correct = rng.random(n) < TRUTHS[truth](values)
        edges = cal.bin_edges(values, cal.Binning(15, scheme))
        gap, share = population.means(edges)
        used = np.bincount(cal.assign_bins(values, edges), minlength=len(gap)) > 0
        gap, share = np.abs(gap[used & (share > 0)]), share[used & (share > 0)]
        targets.append(
            gap @ share if norm == "l1" else np.sqrt(gap**2 @ share) if norm == "l2" else gap.max()
        )
        ends = cal.interval(
            cal.TopLabel(values, correct),
            cal.Binning(scheme=scheme, norm=norm),
            n_resamples=n_resamples,
            seed=repeat,
        )
        low.append(ends[0])
        high.append(ends[1])
    return _coverage(low, high, targets)


def _outcomes(
    rng: np.random.Generator, n: int, pair: tuple[str, str, bool]
) -> tuple[Doubles, tuple[Doubles, Bools], tuple[Doubles, Bools]]:
    says_a, says_b, alike = pair
    q, luck = rng.beta(4, 1.2, n), rng.random(n)
    other = luck if alike else np.where(rng.random(n) < 0.6, luck, rng.random(n))
    return q, (SAYS[says_a](q), luck < q), (SAYS[says_b](q), other < q)


def scores_of(confidences: Doubles, correct: Bools) -> cal.SampleScores:
    """Two-class scores with these confidences and hits; other fields follow from them."""
    own = np.where(correct, confidences, 1 - confidences)
    predicted = np.zeros(len(confidences), dtype=np.int64)
    return cal.SampleScores(
        labels=predicted,  # one label for both models; only ECE and accuracy are compared
        predicted=predicted,
        confidences=confidences,
        correct=correct,
        nll=-np.log(np.maximum(own, 1e-38)),
        brier=2 * (1 - own) ** 2,
        rank=(~correct).astype(np.int64),
    )


def pair_coverage(
    pair: tuple[str, str, bool],
    n: int,
    *,
    metric: str = "squared_ece",
    first_rule: bool = False,
    repeats: int,
    n_resamples: int = 200,
    seed: int = 0,
) -> tuple[Coverage, float]:
    """How often a paired interval holds the truth, and how often it calls models different.

    Args:
        pair: what two models say, and whether they predict alike.
        n: samples.
        metric: `squared_ece` or `accuracy`.
        first_rule: the earlier rule for the difference of two ECEs instead.
        repeats: of the comparison.
        n_resamples: where samples are drawn.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, n])
    q, (said_a, _), (said_b, _) = _outcomes(rng, POPULATION, pair)
    of_a, of_b = Population(said_a, said_a - q), Population(said_b, said_b - q)
    low, high, targets, called = [], [], [], 0
    for repeat in range(repeats):
        _, a, b = _outcomes(rng, n, pair)
        scores = scores_of(*a), scores_of(*b)
        found = (
            first_rules.ece_difference(*scores, n_resamples=n_resamples, seed=repeat)
            if first_rule
            else cal.paired_difference(*scores, metric=metric, n_resamples=n_resamples, seed=repeat)
        )
        truth = 0.0
        if metric != "accuracy":
            for sign, population, values in ((1, of_a, a[0]), (-1, of_b, b[0])):
                gap, share = population.means(cal.bin_edges(values))
                truth += sign * float((np.abs(gap) if first_rule else gap**2) @ share)
        low.append(found.low)
        high.append(found.high)
        targets.append(truth)
        called += found.distinguishable
    return _coverage(low, high, targets), called / repeats


def saturated_coverage(
    accuracy: float,
    n: int,
    *,
    norm: cal.Norm = "l1",
    sure: float = 1.0,
    first_rule: bool = False,
    repeats: int,
    seed: int = 0,
) -> Coverage:
    """How often `interval` holds the error of a model that is sure: confidence about 0.999.

    Args:
        accuracy: of what it is sure of.
        n: samples.
        norm: l1 or l2.
        sure: share of samples that it is sure of; of the others it is calibrated.
        first_rule: the earlier noise of a bin instead.
        repeats: of the interval.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, n, round(1000 * accuracy)])

    def draw(size: int) -> tuple[Doubles, Doubles]:
        values = 1 - 0.002 * rng.random(size)
        hesitant = rng.random(size) >= sure
        values = np.where(hesitant, 0.998 * rng.beta(4, 1.2, size), values)
        return values, np.where(hesitant, values, accuracy)

    drawn, rate = draw(POPULATION)
    population = Population(drawn, drawn - rate)
    low, high, targets = [], [], []
    for repeat in range(repeats):
        values, rate = draw(n)
        correct = rng.random(n) < rate
        gap, share = population.means(cal.bin_edges(values))
        gap, share = gap[share > 0], share[share > 0]
        targets.append(float(np.abs(gap) @ share if norm == "l1" else np.sqrt(gap**2 @ share)))
        with first_rules.first_interval() if first_rule else nullcontext():
            ends = cal.interval(cal.TopLabel(values, correct), cal.Binning(norm=norm), seed=repeat)
        low.append(ends[0])
        high.append(ends[1])
    return _coverage(low, high, targets)


def rivals(
    rng: np.random.Generator, n: int, *, n_models: int = 10, lead: float = 0.0, off: float = 0.0
) -> dict[str, cal.SampleScores]:
    """Models on the same samples, equally good but for the first.

    Args:
        rng: of the draws.
        n: samples.
        n_models: of them.
        lead: accuracy that the first has before the others.
        off: what the others say too much; the first is calibrated.
    """
    q, luck = rng.beta(4, 1.2, n), rng.random(n)
    models = {}
    for j in range(n_models):
        own = np.where(rng.random(n) < 0.6, luck, rng.random(n))
        rate = np.minimum(q + lead, 1) if j == 0 else q
        says = rate if j == 0 else np.minimum(rate + off, 1)
        models[f"model {j}"] = scores_of(says, own < rate)
    return models


@dataclass(frozen=True)
class Sets:
    """What became of rival models in many repeats.

    Attributes:
        split: share of repeats in which a model was told from the best.
        kept: share in which the first model was among the best.
        alone: share in which it was the only one.
        size: mean number of models that may be the best.
    """

    split: float
    kept: float
    alone: float
    size: float


def best_models(
    n: int,
    metric: str,
    *,
    lead: float = 0.0,
    off: float = 0.0,
    first_rule: bool = False,
    repeats: int,
    n_resamples: int = 200,
    seed: int = 0,
) -> Sets:
    """How often rival models are told apart by the confidence set, or by the earlier groups."""
    best = []
    for repeat in range(repeats):
        models = rivals(np.random.default_rng([seed, n, repeat]), n, lead=lead, off=off)
        if first_rule:
            groups = first_rules.groups(models, metric=metric, n_resamples=n_resamples, seed=repeat)
            best.append(groups[0])
        else:
            found = cal.model_confidence_set(
                models, metric="squared_ece" if metric == "ece" else metric,
                n_resamples=n_resamples, seed=repeat,
            )  # fmt: skip
            best.append(list(found.members))
    return Sets(
        float(np.mean([len(names) < 10 for names in best])),
        float(np.mean(["model 0" in names for names in best])),
        float(np.mean([names == ["model 0"] for names in best])),
        float(np.mean([len(names) for names in best])),
    )


@dataclass(frozen=True)
class Promise:
    """What a first look at few samples promised, and what came of it.

    Attributes:
        needed: median number of samples promised for a power of 80 %.
        power: share of comparisons at the promised numbers that called the models different.
    """

    needed: int
    power: float


def promised_power(
    pair: tuple[str, str, bool],
    n: int,
    *,
    first_rule: bool = False,
    pilots: int,
    repeats: int,
    seed: int = 0,
) -> Promise:
    """How many samples a pilot of n samples promises to be enough, and the power that they have.

    The first model is the worse one; the difference asked for is the true one of the L2 errors.

    Args:
        pair: what two models say, and whether they predict alike.
        n: samples of a pilot.
        first_rule: the earlier promise and the earlier comparison instead.
        pilots: first looks, each with a promise of its own.
        repeats: comparisons at each promised number.
        seed: of everything.
    """
    rng = np.random.default_rng([seed, n])
    q, (said_a, _), (said_b, _) = _outcomes(rng, POPULATION, pair)
    sizes = []
    for said in (said_a, said_b):
        gap, share = Population(said, said - q).means(cal.bin_edges(said))
        sizes.append(float(np.sqrt(gap**2 @ share)))
    difference = sizes[0] - sizes[1]
    promises, called = [], 0
    for pilot in range(pilots):
        _, a, b = _outcomes(rng, n, pair)
        if first_rule:
            found = first_rules.ece_difference(
                scores_of(*a), scores_of(*b), n_resamples=200, seed=pilot
            )
            promises.append(first_rules.samples_needed(found, difference))
        else:
            plan = SquaredPlan(SquaredError(cal.TopLabel(*a)), SquaredError(cal.TopLabel(*b)))
            promises.append(plan.needed(difference))
        for repeat in range(repeats):
            _, a, b = _outcomes(rng, promises[-1], pair)
            scores = scores_of(*a), scores_of(*b)
            if first_rule:
                called += first_rules.ece_difference(*scores, n_resamples=200, seed=repeat).low > 0
            else:
                called += cal.paired_difference(*scores).low > 0
    return Promise(int(np.median(promises)), called / (pilots * repeats))


@dataclass(frozen=True)
class Debiased:
    """The debiased error of a perfectly calibrated model.

    Attributes:
        negative: share of repeats below zero.
        median: of the l1 form, a fraction.
        mean: of the l1 form.
        squared_mean: of the squared l2 form, in units of its standard error over repeats.
    """

    negative: float
    median: float
    mean: float
    squared_mean: float


def debiased(n: int, *, repeats: int, seed: int = 0) -> Debiased:
    """What is left of the error of a perfectly calibrated model when the noise is taken out."""
    rng = np.random.default_rng([seed, n])
    squared, plain = np.empty(repeats), np.empty(repeats)
    for repeat in range(repeats):
        values = rng.beta(5, 1.0, n)
        correct = rng.random(n) < values
        scores = cal.TopLabel(values, correct)
        squared[repeat] = debiased_squared_error(scores)
        plain[repeat] = cal.debiased_calibration_error(scores)
    return Debiased(
        float((squared < 0).mean()),
        float(np.median(plain)),
        float(plain.mean()),
        float(squared.mean() / (squared.std() / np.sqrt(repeats))),
    )


def calibrated_views(kind: str, n: int, *, repeats: int, seed: int = 0) -> dict[str, float]:
    """Mean ECE after a calibrator on n samples, and what a calibrated model would show.

    The model is over-confident, two classes. Keys: `in_sample` and `in_sample_floor` (fitted on the
    very samples), `elsewhere` and `elsewhere_floor` (fitted on as many others).
    """
    rng = np.random.default_rng([seed, n])

    def draw() -> tuple[Doubles, NDArray[np.int64]]:
        q = rng.beta(2, 1, n)
        logits = 2.5 * np.log(np.maximum(q, 1e-6) / np.maximum(1 - q, 1e-6))
        labels = (rng.random(n) >= q).astype(np.int64)
        return np.stack([logits / 2, -logits / 2], axis=1), labels

    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        fitted, tested = draw(), draw()
        calibrator = CALIBRATORS[kind]()
        calibrator.fit(*fitted, split="calibration", role="id")
        for name, (logits, labels) in (("in_sample", fitted), ("elsewhere", tested)):
            if hasattr(calibrator, "confidences"):
                confidences = calibrator.confidences(logits)
            else:
                confidences = calibrator.transform(logits).max(axis=1)
            correct = logits.argmax(axis=1) == labels
            scores = cal.TopLabel(confidences, correct)
            floor = cal.null_floor(scores, n_resamples=50, seed=repeat)
            found.setdefault(name, []).append(cal.ece(scores))
            found.setdefault(f"{name}_floor", []).append(floor.mean)
    return {name: float(np.mean(values)) for name, values in found.items()}


def bin_coverage(
    confidences: str,
    truth: str,
    n: int,
    *,
    scheme: cal.Scheme = "equal_mass",
    repeats: int,
    seed: int = 0,
) -> tuple[float, float]:
    """How often a bin's Wilson interval holds its true accuracy, and its band the observed one.

    The band is what a calibrated model shows: for a calibrated one it must hold 95 % of the points.
    """
    rng = np.random.default_rng([seed, n])
    drawn = CONFIDENCES[confidences](rng, POPULATION)
    population = Population(drawn, TRUTHS[truth](drawn))
    held = inside = bins = 0
    for repeat in range(repeats):
        values = CONFIDENCES[confidences](rng, n)
        curve = cal.reliability_curve(
            cal.TopLabel(values, rng.random(n) < TRUTHS[truth](values)),
            cal.Binning(scheme=scheme),
            seed=repeat,
        )
        rate, share = population.means(np.append(curve.lower, 1.0))
        used = (curve.count > 0) & (share > 0)
        bins += int(used.sum())
        held += int(((curve.interval_low <= rate) & (rate <= curve.interval_high))[used].sum())
        observed = curve.accuracy
        inside += int(((curve.band_low <= observed) & (observed <= curve.band_high))[used].sum())
    return held / bins, inside / bins


def floors(n: int, *, repeats: int, seed: int = 0) -> dict[str, float]:
    """Mean error that a perfectly calibrated model of n samples shows, by estimator."""
    rng = np.random.default_rng([seed, n])
    found: dict[str, list[float]] = {"equal_width": [], "equal_mass": [], "smooth_ece": []}
    for _ in range(repeats):
        values = rng.beta(5, 1.0, n)
        correct = rng.random(n) < values
        for scheme in ("equal_width", "equal_mass"):
            found[scheme].append(cal.ece(cal.TopLabel(values, correct), cal.Binning(scheme=scheme)))
        found["smooth_ece"].append(cal.smooth_ece(cal.TopLabel(values, correct)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def batch_bias(n: int, sizes: Sequence[int], *, repeats: int, seed: int = 0) -> dict[int, float]:
    """Mean batch-averaged ECE of a perfectly calibrated model; key 0 is the whole set."""
    rng = np.random.default_rng([seed, n])
    found: dict[int, list[float]] = {size: [] for size in (*sizes, 0)}
    for _ in range(repeats):
        values = rng.beta(5, 1.0, n)
        correct = rng.random(n) < values
        for size in found:
            found[size].append(
                cal.ece_batch_averaged(cal.TopLabel(values, correct), batch_size=size or n)
            )
    return {size: float(np.mean(values)) for size, values in found.items()}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def _in_percent(value: float, digits: int = 1) -> str:
    """For a table whose heading or last line says that its numbers are in per cent."""
    return f"{100 * value:.{digits}f}"


def floor_table(scale: float) -> str:
    """What a perfect model reads, by n and estimator."""
    rows = []
    for n in (200, 500, 2000, 7500, 10_000, 50_000):
        repeats = max(4, int(scale * min(400, 4_000_000 // n)))
        found = floors(n, repeats=repeats)
        rows.append([f"{n:,}", *(_in_percent(value, 2) for value in found.values()), str(repeats)])
    head = ["n", "ECE, 15 equal-width bins", "ECE, 15 equal-mass bins", "smooth ECE", "repeats"]
    return _table(head, rows) + "\n\nMeans, in %."


def batch_table(scale: float) -> str:
    """What the batch average of a perfect model reads."""
    sizes, repeats = (64, 128, 256, 512), max(2, int(20 * scale))
    found = batch_bias(50_000, sizes, repeats=repeats)
    row = [_percent(found[size]) for size in (*sizes, 0)]
    head = ["n = 50,000, 10 equal-width bins", *(f"batch {size}" for size in sizes), "whole set"]
    return _table(head, [[f"mean of {repeats} repeats", *row]])


def interval_table(scale: float) -> str:
    """Coverage of the interval by norm, model, n and scheme: lowest and highest of all truths."""
    repeats = max(20, int(100 * scale))
    rows = []
    for n, scheme in ((500, "equal_mass"), (2000, "equal_mass"), (10_000, "equal_mass"),
                      (2000, "equal_width")):  # fmt: skip
        for model in CONFIDENCES:
            cells = []
            for norm in ("l1", "l2", "max"):
                found = [
                    interval_coverage(model, truth, n, scheme=scheme, norm=norm, repeats=repeats)
                    for truth in TRUTHS
                ]
                covered, width = [f.covered for f in found], [f.width for f in found]
                cells.append(
                    f"{_in_percent(min(covered))}–{_in_percent(max(covered))} "
                    f"({_in_percent(min(width))}–{_in_percent(max(width))})"
                )
            rows.append([f"{n:,} {scheme.replace('_', '-')}", model, *cells])
    head = ["n, bins", "confidences", "l1", "l2", "max"]
    return (
        _table(head, rows)
        + f"\n\nLowest and highest coverage at nominal 95 % (mean width) over {len(TRUTHS)} "
        f"truths, in %, {repeats} repeats each: {', '.join(TRUTHS)}."
    )


def saturated_table(scale: float) -> str:
    """Coverage for models that are sure of everything, or of half of it."""
    repeats = max(20, int(100 * scale))
    rows = []
    for sure, accuracy in ((1.0, 0.9), (1.0, 0.97), (1.0, 0.99), (0.5, 0.97)):
        for n in (200, 500, 2000, 10_000):
            cells = []
            for norm in ("l1", "l2"):
                for first_rule in (True, False):
                    found = saturated_coverage(
                        accuracy, n, norm=norm, sure=sure, first_rule=first_rule, repeats=repeats
                    )
                    cells.append(f"{_in_percent(found.covered)} ({_in_percent(found.width)})")
            rows.append([f"{accuracy:g}", f"{sure:.0%}".replace("%", " %"), f"{n:,}", *cells])
    head = ["accuracy where sure", "sure of", "n", "l1, before", "l1, now", "l2, before", "l2, now"]
    return _table(head, rows) + (
        f"\n\nConfidence is about 0.999 where the model is sure. Coverage at nominal 95 % (mean "
        f"width), in %, {repeats} repeats each."
    )


def pair_table(scale: float) -> str:
    """Coverage of the paired difference, and how often it calls two models different."""
    repeats = max(20, int(150 * scale))
    rows = []
    for n in (500, 2000, 8000):
        for pair in PAIRS:
            before, called_before = pair_coverage(pair, n, first_rule=True, repeats=repeats)
            now, called = pair_coverage(pair, n, repeats=repeats)
            rows.append(
                [
                    f"{n:,}",
                    pair[0],
                    pair[1],
                    "yes" if pair[2] else "no",
                    _in_percent(before.covered),
                    _in_percent(called_before),
                    _in_percent(now.covered),
                    _in_percent(now.above),
                    _in_percent(now.below),
                    _in_percent(called),
                ]
            )
    head = ["n", "model a", "model b", "predict alike", "before: covered", "before: different"]
    return (
        _table([*head, "covered", "too high", "too low", "different"], rows)
        + f"\n\nIn %, nominal 95 %, {repeats} repeats each, the same samples for both rules. "
        "Two models of the same kind have no true difference: there, “different” is the "
        "false-positive rate."
    )


def set_table(scale: float) -> str:
    """Equal models and one better model, by groups and by confidence sets."""
    repeats = max(20, int(100 * scale))
    rows = []
    cases: tuple[tuple[str, str, dict[str, float]], ...] = (
        ("ten equal models", "accuracy", {}),
        ("ten equal models", "nll", {}),
        ("ten equal models", "ece", {}),
        ("one has 5 points more accuracy", "accuracy", {"lead": 0.05}),
        ("one has 5 points more accuracy", "nll", {"lead": 0.05}),
        ("nine are 0.05 too sure", "ece", {"off": 0.05}),
        ("nine are 0.10 too sure", "ece", {"off": 0.10}),
    )
    for n in (500, 2000):
        for title, metric, what in cases:
            before = best_models(n, metric, first_rule=True, repeats=repeats, **what)
            now = best_models(n, metric, repeats=repeats, **what)
            rows.append(
                [f"{n:,}", title, metric.upper() if metric != "accuracy" else metric,
                 *(_in_percent(v) for v in (before.split, before.kept, before.alone)),
                 *(_in_percent(v) for v in (now.split, now.kept, now.alone)), f"{now.size:.1f}"]
            )  # fmt: skip
    head = ["n", "models", "metric"]
    for rule in ("groups", "set"):
        head += [f"{rule}: split", f"{rule}: best kept", f"{rule}: best alone"]
    return (
        _table([*head, "mean size of the set"], rows)
        + f"\n\nIn %, {repeats} repeats each. “Split”: some model is told from the best; for equal "
        "models that is the rate of false claims, nominally 5 %."
    )


def power_table(scale: float) -> str:
    """What is promised for a power of 80 %, and the power it has."""
    pilots, repeats = max(4, int(10 * scale)), 20
    rows = []
    for n in (500, 2000, 8000):
        for pair in (
            ("0.04 too sure", "calibrated", True),
            ("0.04 too sure", "calibrated", False),
            ("0.02 too sure", "calibrated", False),
            ("over-confident", "calibrated", True),
            ("0.09 too sure", "0.04 too sure", True),
            ("0.09 too sure", "0.04 too sure", False),
        ):
            before = promised_power(pair, n, first_rule=True, pilots=pilots, repeats=repeats)
            now = promised_power(pair, n, pilots=pilots, repeats=repeats)
            rows.append(
                [f"{n:,}", pair[0], pair[1], "yes" if pair[2] else "no",
                 f"{before.needed:,}", _in_percent(before.power, 0),
                 f"{now.needed:,}", _in_percent(now.power, 0)]
            )  # fmt: skip
    head = ["first look, n", "model a", "model b", "predict alike", "before: promised"]
    return (
        _table([*head, "before: power, %", "promised", "power, %"], rows)
        + f"\n\nMedian promise of {pilots} first looks for the true difference at a power of 80 %, "
        f"and the power of {repeats} comparisons at each promised number."
    )


def debiased_table(scale: float) -> str:
    """The debiased error of a perfect model."""
    rows = []
    for n in (500, 2000, 10_000):
        repeats = max(40, int(scale * min(2000, 10_000_000 // n)))
        found = debiased(n, repeats=repeats)
        rows.append(
            [f"{n:,}", _percent(found.negative, 0), _percent(found.median), _percent(found.mean),
             f"{found.squared_mean:+.1f}", str(repeats)]
        )  # fmt: skip
    head = ["n", "reads negative", "median, l1", "mean, l1", "mean, squared, in standard errors"]
    return _table([*head, "repeats"], rows)


def view_table(scale: float) -> str:
    """ECE after a calibrator, on the samples it was fitted on and on others."""
    repeats = max(10, int(50 * scale))
    rows = []
    for kind in ("temperature", "histogram", "isotonic"):
        for n in (500, 2000, 10_000):
            found = calibrated_views(kind, n, repeats=repeats)
            rows.append([kind, f"{n:,}", *(_in_percent(value, 2) for value in found.values())])
    head = ["calibrator", "n", "in-sample ECE", "its floor", "ECE on other samples", "its floor"]
    return (
        _table(head, rows)
        + f"\n\nIn %, means of {repeats} repeats; fitted on n samples, shown on the "
        "same and on n others."
    )


def bin_table(scale: float) -> str:
    """Coverage per bin of the diagram's intervals."""
    repeats = max(20, int(200 * scale))
    rows = []
    for scheme in ("equal_mass", "equal_width"):
        for n in (500, 5000):
            for truth in ("calibrated", "over-confident", "wavy"):
                held, inside = bin_coverage("hesitant", truth, n, scheme=scheme, repeats=repeats)
                band = _in_percent(inside) if truth == "calibrated" else "–"
                rows.append([f"{n:,}", scheme.replace("_", "-"), truth, _in_percent(held), band])
    head = ["n", "bins", "truth", "Wilson interval holds the true accuracy"]
    table = _table([*head, "band holds the observed accuracy"], rows)
    return table + f"\n\nIn %, {repeats} repeats each."


TABLES: dict[str, Callable[[float], str]] = {
    "floors": floor_table,
    "batches": batch_table,
    "bins": bin_table,
    "debiased": debiased_table,
    "intervals": interval_table,
    "saturated": saturated_table,
    "pairs": pair_table,
    "sets": set_table,
    "power": power_table,
    "views": view_table,
}


def write_block(text: str, name: str, block: str) -> str:
    """Return a document whose block `name` holds `block`.

    Raises:
        ValueError: the document has no such markers.
    """
    pattern = re.compile(
        rf"(<!-- simulation:{name} -->\n).*?(<!-- /simulation:{name} -->)", re.DOTALL
    )
    if not pattern.search(text):
        raise ValueError(f"expected the markers of simulation:{name}, got a document without them")
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


def main() -> None:
    """Run the simulations and write or print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the repeats, print only")
    parser.add_argument("--only", choices=sorted(TABLES), help="one table")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the repeats")
    arguments = parser.parse_args()
    scale = 0.1 if arguments.quick else arguments.scale
    for name, make in TABLES.items():
        if arguments.only in (None, name):
            block = make(scale)
            print(f"## {name}\n\n{block}\n", flush=True)
            if not arguments.quick:
                DOCS.write_text(write_block(DOCS.read_text(), name, block))


if __name__ == "__main__":
    main()
