"""The tables of docs/results.md, from the records: what is gained, the recipes, the paper's claims.

python -m research.page --write docs/results.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.marks import refreshed
from research.recipes import ZERO_SHOT, Recipe
from research.records import RECORDS
from research.tables import Study, claims, complete_studies, verdicts

#: What the page shows of a suite; everything else is on the suite's own page.
SHOWN: tuple[tuple[str, Recipe], ...] = (
    ("zero-shot", (ZERO_SHOT, "end", "raw")),
    ("FLYP", ("flyp", "end", "raw")),
    ("FLYP, best published calibrator", ("flyp", "end", "published")),
    ("FLYP beside zero-shot", ("flyp", "end", "ensemble")),
    ("CaRot", ("carot", "end", "raw")),
    ("TRACER", ("tracer", "end", "raw")),
)


def gains_table(studies: Sequence[Study]) -> Iterator[str]:
    """A row a recipe, eight at most; a column a suite: on ID data / under shift / corrupted."""
    yield "| | " + " | ".join(study.suite for study in studies) + " |"
    yield "|---" * (1 + len(studies)) + "|"
    for name, recipe in SHOWN:
        cells = [gained(study, recipe) if recipe in study.recipes else "–" for study in studies]
        if set(cells) != {"–"}:
            yield f"| {name} | " + " | ".join(cells) + " |"


def gained(study: Study, recipe: Recipe) -> str:
    """Accuracy, NLL, ECE: ID / shift / corruptions, the last of NLL alone."""
    kinds = ("test", "shift", "corruption")
    accuracy = "/".join(f"{100 * study.mean(recipe, kind, 'accuracy'):.1f}" for kind in kinds[:2])
    nll = "/".join(f"{study.mean(recipe, kind, 'nll'):.3f}" for kind in kinds)
    ece = "/".join(f"{100 * study.mean(recipe, kind, 'ece'):.1f}" for kind in kinds[:2])
    return f"{accuracy}, {nll}, {ece}"


def claims_of_all(studies: Sequence[Study]) -> Iterator[str]:
    """A row a claim of the paper, a column a suite: the difference under shift and the verdict."""
    found: dict[str, dict[str, str]] = {}
    for study in studies:
        for text, _, difference, said in claims(study):
            found.setdefault(text, {})[study.suite] = f"{difference} **{said}**"
    yield "| claim | " + " | ".join(study.suite for study in studies) + " |"
    yield "|---" * (1 + len(studies)) + "|"
    for text, by in found.items():
        yield f"| {text} | " + " | ".join(by.get(s.suite, "–") for s in studies) + " |"


def verdict_lines(study: Study) -> Iterator[str]:
    """The primary family against each reference, in a row a recipe."""
    found: dict[Recipe, dict[Recipe, str]] = {}
    references: list[Recipe] = []
    for a, b, ood, id_nll, _, said in verdicts(study):
        low, high = ood.interval()
        words = f"{said}: {ood.value:+.3f} [{low:+.3f}, {high:+.3f}], ID {id_nll.value:+.3f}"
        found.setdefault(a, {})[b] = words
        if b not in references:
            references.append(b)
    yield "| | " + " | ".join(f"against {', '.join(b)}" for b in references) + " |"
    yield "|---" * (1 + len(references)) + "|"
    for a, words_by in found.items():
        yield f"| {', '.join(a)} | " + " | ".join(words_by.get(b, "–") for b in references) + " |"


def blocks(studies: Sequence[Study]) -> dict[str, list[str]]:
    """Name of a mark in the page → its lines."""
    made = {"gains": list(gains_table(studies)), "claims": list(claims_of_all(studies))}
    for study in studies:
        made[f"{study.suite}-verdicts"] = list(verdict_lines(study))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--write", type=Path, help="the page; without it, the tables are printed")
    options = parser.parse_args(arguments)
    made = blocks(complete_studies(options.records))
    if options.write:
        options.write.write_text(refreshed(options.write.read_text(), made))
        return
    for name, lines in made.items():
        print(f"\n{name}\n", *lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
