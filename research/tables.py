"""Every interval of the third study, made again from `research/records`, in well under 2 minutes.

python -m research.tables                      # every suite that has a record
python -m research.tables --suite letters --write research/pages
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from research.benches import BENCHES
from research.derived import DERIVED
from research.intervals import Estimate, estimate, holm, jackknifed, verdict
from research.recipes import CANDIDATES, CLAIMS, REFERENCES, ZERO_SHOT, Recipe
from research.records import NUMBERS, RECORDS, read
from research.scoring import USES
from research.study import BY_NAME, FIRST, SEEDS


class Study:
    """A suite's record."""

    def __init__(self, suite: str, folder: Path = RECORDS) -> None:
        self.suite = suite
        self.about, self.arrays = read(suite, folder=folder)
        some = next(run for run in self.about if run["row"] == ZERO_SHOT)
        self.kinds: dict[str, str] = some["kinds"]
        self.sets = [name for name in some["sizes"] if name != "calibration"]
        self.groups = {n: np.asarray(g, dtype=np.int64) for n, g in some["groups"].items()}

    def of_kind(self, kind: str) -> list[int]:
        """Positions of the sets of a kind: `test`, `shift` or `corruption`."""
        if kind == "test":
            return [self.sets.index("test")]
        return [i for i, name in enumerate(self.sets) if self.kinds[name] == kind]

    @cached_property
    def recipes(self) -> list[Recipe]:
        """Every recipe that has a run."""
        found = [tuple(at.split("/")[1:]) for at in self.arrays if at.startswith("runs/")]
        order = [ZERO_SHOT, *BY_NAME, *DERIVED]
        known = [r for r in found if r[0] in order]
        return sorted(
            known,
            key=lambda r: (order.index(r[0]), r[1], USES.index(r[2])),  # type: ignore[arg-type,return-value]
        )

    def runs(self, recipe: Recipe) -> dict[int, np.ndarray]:
        """Seed → (K, numbers); zero-shot's is that of the seed's pre-training."""
        stored = self.arrays["runs/" + "/".join(recipe)]
        found: dict[int, np.ndarray] = {}
        for of in stored:
            about = self.about[int(of[0, 0])]
            if recipe[0] == ZERO_SHOT:
                found |= {s: of[:, 1:] for s in SEEDS if s % 2 == about["pretraining"]}
            else:
                found[about["seed"]] = of[:, 1:]
        return found

    def mean(self, recipe: Recipe, kind: str, what: str) -> float:
        """Over seeds and sets."""
        at = NUMBERS.index(what)
        return float(np.mean([of[self.of_kind(kind), at] for of in self.runs(recipe).values()]))

    def difference(
        self, a: Recipe, b: Recipe, kind: str, what: str, *, grouped: bool = False
    ) -> Estimate:
        """A − b over a kind of sets.

        Args:
            a: a recipe.
            b: another.
            kind: `test`, `shift` or `corruption`.
            what: of `NUMBERS`.
            grouped: let images of a group (fonts of a family) vary together.
        """
        first, second = self.runs(a), self.runs(b)
        seeds = sorted(first.keys() & second.keys())
        sets, at = self.of_kind(kind), NUMBERS.index(what)
        runs = np.array([(first[s] - second[s])[sets, at] for s in seeds], dtype=np.float64)
        if what in ("nll", "accuracy"):
            images = [self._image_difference(a, b, self.sets[k], what) for k in sets]
            groups = [self.groups[self.sets[k]] for k in sets] if grouped else None
            return estimate(runs, images, groups)
        replicates = self._jackknife(a) - self._jackknife(b)
        if kind != "shift" or what != "squared":  # by seeds alone
            replicates = np.zeros((2, len(sets)))
        return jackknifed(runs, replicates)

    def _image_difference(self, a: Recipe, b: Recipe, name: str, what: str) -> np.ndarray:
        key = "nll" if what == "nll" else "correct"
        at = [f"images/{'/'.join(r)}/{name.replace('/', '@')}/{key}" for r in (a, b)]
        return self.arrays[at[0]].astype(np.float64) - self.arrays[at[1]].astype(np.float64)

    def _jackknife(self, recipe: Recipe) -> np.ndarray:
        return np.asarray(self.arrays["jackknife/" + "/".join(recipe)], dtype=np.float64)


def complete_studies(folder: Path = RECORDS) -> list[Study]:
    """Those whose first rows have every seed: the page of results waits for them."""
    there = [name for name in BENCHES if (folder / f"{name}.npz.xz").is_file()]
    first = [(row, "end", "raw") for row in FIRST]
    studies = [Study(name, folder) for name in there]
    return [
        study
        for study in studies
        if all(r in study.recipes and len(study.runs(r)) == len(SEEDS) for r in first)
    ]


# ------------------------------------------------------------------------------------- tables


def rows_table(study: Study) -> Iterator[str]:
    """Every recipe: means over its runs."""
    yield (
        "| recipe | seeds | ID acc | ID NLL | ID ECE | OOD acc | OOD NLL | OOD ECE | "
        "OOD L2² (e-4) | corr. acc | corr. NLL | corr. ECE |"
    )
    yield "|---" * 12 + "|"
    for recipe in study.recipes:

        def of(kind: str, what: str, scale: float = 1.0, r: Recipe = recipe) -> float:
            return scale * study.mean(r, kind, what)

        yield (
            f"| {', '.join(recipe)} | {len(study.runs(recipe))} | {of('test', 'accuracy', 100):.1f}"
            f" | {of('test', 'nll'):.3f} | {of('test', 'ece', 100):.1f}"
            f" | {of('shift', 'accuracy', 100):.1f} | {of('shift', 'nll'):.3f}"
            f" | {of('shift', 'ece', 100):.1f} | {of('shift', 'squared', 1e4):.0f}"
            f" | {of('corruption', 'accuracy', 100):.1f} | {of('corruption', 'nll'):.3f}"
            f" | {of('corruption', 'ece', 100):.1f} |"
        )


def verdicts(study: Study) -> Iterator[tuple[Recipe, Recipe, Estimate, Estimate, Estimate, str]]:
    """The primary family: a verdict for each candidate against each reference."""
    pairs = [
        (a, b)
        for b in REFERENCES
        for a in CANDIDATES
        if a in study.recipes and b in study.recipes and len(study.runs(a)) > 1
    ]
    found = {
        (a, b): (
            study.difference(a, b, "shift", "nll"),
            study.difference(a, b, "test", "nll"),
            study.difference(a, b, "shift", "squared"),
        )
        for a, b in pairs
    }
    zero = holm({str(pair): e[0].p_zero() for pair, e in found.items()})
    apart = holm({str(pair): e[0].p_apart(0.02) for pair, e in found.items()})
    for (a, b), (ood, id_nll, squared) in found.items():
        said = verdict(ood, id_nll, squared, p_zero=zero[str((a, b))], p_apart=apart[str((a, b))])
        yield a, b, ood, id_nll, squared, decided(said, ood)


def decided(said: str, found: Estimate) -> str:
    """What is said, or how many seeds are still to come: nothing is decided on fewer."""
    n = len(found.per_run)
    return said if n >= len(SEEDS) else f"open, {n} of {len(SEEDS)} seeds"


def verdict_table(study: Study) -> Iterator[str]:
    """The primary family, corruptions beside it."""
    yield (
        "| recipe | against | OOD NLL, 95 % | by family of fonts | ID NLL, bound | "
        "OOD L2² (e-4), bound | verdict | corruptions NLL, 95 % |"
    )
    yield "|---" * 8 + "|"
    for a, b, ood, id_nll, squared, said in verdicts(study):
        wide = study.difference(a, b, "shift", "nll", grouped=True)
        other = study.difference(a, b, "corruption", "nll")
        yield (
            f"| {', '.join(a)} | {', '.join(b)} | {_said(ood)} | {_said(wide)} "
            f"| {id_nll.value:+.3f}, {id_nll.upper():+.3f} "
            f"| {1e4 * squared.value:+.0f}, {1e4 * squared.upper():+.0f} | **{said}** "
            f"| {_said(other)} |"
        )


def claims(study: Study) -> Iterator[tuple[str, float, str, str]]:
    """The claims of the paper, one by one, Holm over them.

    Yields:
        The claim, the difference in ID accuracy in points, that under shift, the verdict.
    """
    have = [c for c in CLAIMS if c.a in study.recipes and c.b in study.recipes]
    have = [c for c in have if len(study.runs(c.a)) > 1]
    found = {c: study.difference(c.a, c.b, "shift", c.what) for c in have}
    p_values = holm({str(i): found[c].p_zero() for i, c in enumerate(have)})
    for i, claim in enumerate(have):
        one, own = found[claim], study.difference(claim.a, claim.b, "test", "accuracy")
        holds = (one.value < 0) == claim.below
        said = "unresolved" if p_values[str(i)] > 0.05 else "holds" if holds else "does not hold"
        scale = 1 if claim.what == "nll" else 100
        yield claim.text, 100 * own.value, _said(one, scale), decided(said, one)


def claims_table(study: Study) -> Iterator[str]:
    """A row a claim."""
    yield "| claim | ID accuracy, difference | difference under shift, 95 % | verdict |"
    yield "|---" * 4 + "|"
    for text, own, difference, said in claims(study):
        yield f"| {text} | {own:+.1f} | {difference} | **{said}** |"


def sigma_table(study: Study) -> Iterator[str]:
    """σ_min by row, and how it ranks the errors under shift over rows and seeds."""
    yield "| row | runs | σ_min, mean (range) |"
    yield "|---|---|---|"
    points: list[tuple[float, float, float, float]] = []
    for row in (ZERO_SHOT, *BY_NAME):
        recipe = (row, "end", "raw")
        if recipe not in study.recipes:
            continue
        values = []
        for of in study.arrays["runs/" + "/".join(recipe)]:
            about: dict[str, Any] = study.about[int(of[0, 0])]
            sigma = float(about["sigma_min"]["end"])
            values.append(sigma)
            test, shift = study.of_kind("test")[0], study.of_kind("shift")
            ece, nll = 1 + NUMBERS.index("ece"), 1 + NUMBERS.index("nll")
            points.append(
                (
                    sigma,
                    float(of[test, ece]),
                    float(of[shift, ece].mean()),
                    float(of[shift, nll].mean()),
                )  # fmt: skip
            )
        yield f"| {row} | {len(values)} | {_small(np.mean(values))} ({_small(min(values))} … {_small(max(values))}) |"  # noqa: E501
    if len(points) > 3:
        table = np.array(points)
        terms = {
            "1/σ_min": 1 / table[:, 0],
            "ε_ID (ECE)": table[:, 1],
            "sum": 1 / table[:, 0] + table[:, 1],
            "product": table[:, 1] / table[:, 0],
        }
        yield ""
        yield "| term | rank correlation with OOD ECE | with OOD NLL |"
        yield "|---|---|---|"
        for name, values_of in terms.items():
            ranks = [spearmanr(values_of, table[:, k]).statistic for k in (2, 3)]
            yield f"| {name} | {ranks[0]:+.2f} | {ranks[1]:+.2f} |"


def _small(value: Any) -> str:
    return f"{float(value):.1e}"


def _said(one: Estimate, scale: float = 1) -> str:
    low, high = (scale * x for x in one.interval())
    digits = 3 if scale == 1 else 1
    return f"{scale * one.value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def page(study: Study) -> Iterator[str]:
    """All tables of a suite."""
    yield f"# {study.suite}"
    for title, lines in (
        ("Recipes", rows_table(study)),
        ("Against TRACER", verdict_table(study)),
        ("The paper's claims", claims_table(study)),
        ("The smallest singular value", sigma_table(study)),
    ):
        yield from ("", f"## {title}", "")
        yield from lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--suite", choices=BENCHES, action="append")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--write", type=Path, help="folder of a page for each suite")
    options = parser.parse_args(arguments)
    for suite in options.suite or BENCHES:
        if not (options.records / f"{suite}.npz.xz").is_file():
            print(f"{suite}: no record")
            continue
        text = "\n".join(page(Study(suite, options.records))) + "\n"
        if options.write:
            (options.write / f"{suite}.md").write_text(text)
        else:
            print(text)


if __name__ == "__main__":
    sys.exit(main())
