"""Do the floors, intervals and comparisons hold what they promise? Simulated models of known truth.

    python benchmarks/calibration_simulation.py            # full size, written into the docs
    python benchmarks/calibration_simulation.py --quick    # a tenth of it, printed only
    python benchmarks/calibration_simulation.py --only intervals

A simulated model is a distribution of confidences and a truth: the chance to be right at each
confidence. The population's own binned errors are computed from 100,000 further samples in the very
bins that an estimate used. Everything is seeded. Each table goes between the markers
`<!-- simulation:NAME -->` and `<!-- /simulation:NAME -->` of docs/calibration.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core import calibration as cal

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Truth = Callable[[Doubles], Doubles]

DOCS = Path(__file__).parent.parent / "docs" / "calibration.md"
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
    "0.04 too sure": lambda q: np.minimum(q + 0.04, 1),
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
        edges = cal.bin_edges(values, 15, scheme)
        gap, share = population.means(edges)
        used = np.bincount(cal.assign_bins(values, edges), minlength=len(gap)) > 0
        gap, share = np.abs(gap[used & (share > 0)]), share[used & (share > 0)]
        targets.append(
            gap @ share if norm == "l1" else np.sqrt(gap**2 @ share) if norm == "l2" else gap.max()
        )
        ends = cal.interval_from_confidence(
            values, correct, scheme=scheme, norm=norm, n_resamples=n_resamples, seed=repeat
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
    metric: str = "ece",
    repeats: int,
    n_resamples: int = 200,
    seed: int = 0,
) -> tuple[Coverage, float]:
    """How often `paired_difference` holds the truth, and how often it calls models different."""
    rng = np.random.default_rng([seed, n])
    q, (said_a, _), (said_b, _) = _outcomes(rng, POPULATION, pair)
    of_a, of_b = Population(said_a, said_a - q), Population(said_b, said_b - q)
    low, high, targets, called = [], [], [], 0
    for repeat in range(repeats):
        _, a, b = _outcomes(rng, n, pair)
        found = cal.paired_difference_of_scores(
            scores_of(*a), scores_of(*b), metric=metric, n_resamples=n_resamples, seed=repeat
        )
        truth = 0.0
        if metric == "ece":
            for sign, population, values in ((1, of_a, a[0]), (-1, of_b, b[0])):
                gap, share = population.means(cal.bin_edges(values))
                truth += sign * float(np.abs(gap) @ share)
        low.append(found.low)
        high.append(found.high)
        targets.append(truth)
        called += found.distinguishable
    return _coverage(low, high, targets), called / repeats


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
        curve = cal.reliability_curve_from_confidence(
            values, rng.random(n) < TRUTHS[truth](values), scheme=scheme, seed=repeat
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
            found[scheme].append(cal.ece_from_confidence(values, correct, scheme=scheme))
        found["smooth_ece"].append(cal.smooth_ece_from_confidence(values, correct))
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
                cal.ece_batch_averaged_from_confidence(values, correct, batch_size=size or n)
            )
    return {size: float(np.mean(values)) for size, values in found.items()}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def floor_table(scale: float) -> str:
    """What a perfect model reads, by n and estimator."""
    rows = []
    for n in (200, 500, 2000, 7500, 10_000, 50_000):
        repeats = max(4, int(scale * min(400, 4_000_000 // n)))
        found = floors(n, repeats=repeats)
        rows.append([f"{n:,}", *(_percent(value) for value in found.values()), str(repeats)])
    return _table(
        ["n", "ECE, 15 equal-width bins", "ECE, 15 equal-mass bins", "smooth ECE", "repeats"], rows
    )


def batch_table(scale: float) -> str:
    """What the batch average of a perfect model reads."""
    sizes, repeats = (64, 128, 256, 512), max(2, int(20 * scale))
    found = batch_bias(50_000, sizes, repeats=repeats)
    row = [_percent(found[size]) for size in (*sizes, 0)]
    head = ["n = 50,000, 10 equal-width bins", *(f"batch {size}" for size in sizes), "whole set"]
    return _table(head, [[f"mean of {repeats} repeats", *row]])


def interval_table(scale: float) -> str:
    """Coverage of the interval by norm, model, truth, n and scheme."""
    repeats = max(20, int(400 * scale))
    rows = []
    for n, scheme in ((500, "equal_mass"), (2000, "equal_mass"), (10_000, "equal_mass"),
                      (2000, "equal_width")):  # fmt: skip
        for model in CONFIDENCES:
            for truth in TRUTHS:
                found = [
                    interval_coverage(model, truth, n, scheme=scheme, norm=norm, repeats=repeats)
                    for norm in ("l1", "l2", "max")
                ]
                cells = [f"{_percent(f.covered, 1)} ({_percent(f.width, 1)})" for f in found]
                rows.append([f"{n:,} {scheme.replace('_', '-')}", model, truth, *cells])
    head = ["n, bins", "confidences", "truth", "l1", "l2", "max"]
    return (
        _table(head, rows) + f"\n\nCoverage at nominal 95 % (mean width), {repeats} repeats each."
    )


def pair_table(scale: float) -> str:
    """Coverage of the paired difference in ECE, and how often it calls two models different."""
    repeats = max(20, int(300 * scale))
    rows = []
    for n in (500, 2000, 8000):
        for pair in PAIRS:
            found, called = pair_coverage(pair, n, repeats=repeats)
            rows.append(
                [
                    f"{n:,}",
                    pair[0],
                    pair[1],
                    "yes" if pair[2] else "no",
                    _percent(found.covered, 1),
                    _percent(found.above, 1),
                    _percent(found.below, 1),
                    _percent(found.width, 1),
                    _percent(called, 1),
                ]
            )
    head = ["n", "model a", "model b", "predict alike", "covered", "too high", "too low", "width"]
    return (
        _table([*head, "called different"], rows)
        + f"\n\nNominal 95 %, {repeats} repeats each. Two models of the same kind have no true "
        "difference: there, “called different” is the false-positive rate."
    )


def bin_table(scale: float) -> str:
    """Coverage per bin of the diagram's intervals."""
    repeats = max(20, int(200 * scale))
    rows = []
    for scheme in ("equal_mass", "equal_width"):
        for n in (500, 5000):
            for truth in ("calibrated", "over-confident", "wavy"):
                held, inside = bin_coverage("hesitant", truth, n, scheme=scheme, repeats=repeats)
                band = _percent(inside, 1) if truth == "calibrated" else "–"
                rows.append([f"{n:,}", scheme.replace("_", "-"), truth, _percent(held, 1), band])
    head = ["n", "bins", "truth", "Wilson interval holds the true accuracy"]
    return _table([*head, "band holds the observed accuracy"], rows)


TABLES: dict[str, Callable[[float], str]] = {
    "floors": floor_table,
    "batches": batch_table,
    "bins": bin_table,
    "intervals": interval_table,
    "pairs": pair_table,
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
