"""The tables of the results page, over all suites, from the small records of the second study.

    python -m research.second.page --write research/second/pages/results.md
    python -m research.second.page                          # print them

A table stands between two marks of the page, `<!-- NAME -->` and `<!-- /NAME -->`, and is made
anew; what stands elsewhere is written by hand. Verdicts are those that `tables.py` keeps. A
suite without a record is left out, a row without one has a dash. What begins with a second
pre-training of a suite's model is marked with ², beside zero-shot and FLYP of the same. Everything
at length is in the pages of the suites, by `tables.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calift_core.files import atomic_write_bytes
from research.marks import refreshed
from research.second.study import (
    BENCHES,
    LADDER,
    MERGED,
    OURS,
    PATHS,
    RECORDS,
    TRAINED,
    cells,
    own_rates,
)
from research.second.tables import (
    OUR_ROWS,
    RIVALS,
    Record,
    beside_others,
    costs,
    kept_lines,
    load,
    load_again,
    mean,
    under_confidence,
)

#: As the page names them.
NAMES = {
    "typefaces": "letters",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "caltech101": "Caltech-101",
}
KINDS = ("raw", "temperature", "published", OURS)
#: Worst first: a miss is not to be looked for.
ORDER = ("worse", "unresolved", "better")
#: Of a number that begins with a suite's second pre-training.
SECOND = " ²"
Suites = Mapping[str, Sequence[Record]]


def cells_of(line: str) -> list[str]:
    """A table's line, cell by cell."""
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def verdict_rows(suites: Suites, records: Path) -> list[tuple[str, list[str]]]:
    """Suite and cells of its verdicts over images on rivals with their best published calibrator.

    The cells: verdict, ours, rival, drawn, so far, differences.
    """
    found = []
    for name in suites:
        for line in kept_lines(BENCHES[name], records, "verdicts")[2:]:
            row = cells_of(line)
            if row[2].endswith("+ published") and row[3] == "images":
                found.append((name, row))
    return found


def matrix(suites: Suites, records: Path) -> list[str]:
    """One word for each pair and suite."""
    words = {(name, row[1].partition(" +")[0], row[2].partition(" +")[0]): row[0]
             for name, row in verdict_rows(suites, records)}  # fmt: skip
    shown = {"unresolved": "unresolved", "worse": "**worse**", "better": "**better**"}
    rows = [
        [f"{ours}, against {rival}", *(shown.get(words.get((s, ours, rival), ""), "–")
                                       for s in suites)]
        for ours in OUR_ROWS
        for rival in RIVALS
    ]  # fmt: skip
    return table(["ours", *(NAMES[s] for s in suites)], rows)


def verdicts(suites: Suites, records: Path) -> list[str]:
    """All of them with their intervals, misses first."""
    rows = [
        [row[0], NAMES[name], row[1].partition(" +")[0], row[2].partition(" +")[0], row[5]]
        for name, row in verdict_rows(suites, records)
    ]
    rows.sort(key=lambda row: ORDER.index(row[0]))
    return table(["verdict", "suite", "ours", "rival", "ours less rival (NLL; L2², 1e-4)"], rows)


def own(suites: Suites, again: Suites, said: Callable[[Sequence[Record]], str]) -> list[str]:
    """Every row at its own rate, a column for each suite."""

    def rates(of: Suites) -> Mapping[str, Mapping[str, float]]:
        return {s: own_rates([r for r in some if r["row"] in (*TRAINED, *PATHS)])
                for s, some in of.items()}  # fmt: skip

    chosen, chosen_again = rates(suites), rates(again)

    def words(row: str, records: Sequence[Record], rates: Mapping[str, float]) -> str:
        at = rates.get(row, rates.get("FLYP") if row in MERGED else None)
        some = [r for r in records if (r["row"], r["lr"]) == (row, at) and "numbers" in r]
        return said(some) if some else ""

    rows = []
    for row in ("zero-shot", *TRAINED, *PATHS, *MERGED):
        first = {s: words(row, some, chosen[s]) for s, some in suites.items()}
        second = {s: words(row, some, chosen_again[s]) + SECOND for s, some in again.items()}
        second = {s: said for s, said in second.items() if said != SECOND}
        beside = any(first[s] for s in second)
        rows.append([row, *(first[s] or (not beside and second.get(s)) or "–" for s in suites)])
        if beside:
            rows.append([row + SECOND, *(second.get(s, "–") for s in suites)])
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    return table(["row", *(NAMES[s] for s in suites)], rows)


def accuracies(some: Sequence[Record]) -> str:
    """Rate, ID and OOD accuracy, seeds."""
    of = [100 * float(np.mean([mean(r, "raw", role, "accuracy") for r in some]))
          for role in ("id", "shift")]  # fmt: skip
    rate = "" if some[0]["lr"] is None else f"{some[0]['lr']:g}: "
    return f"{rate}{of[0]:.1f}, {of[1]:.1f} ({len(some)})"


def measured(number: str, scale: float, digits: int) -> Callable[[Sequence[Record]], str]:
    """A number under shift: raw, after a temperature, the best published one, ours."""

    def said(some: Sequence[Record]) -> str:
        values = [float(np.mean([mean(r, kind, "shift", number) for r in some])) for kind in KINDS]
        return ", ".join(f"{scale * value:.{digits}f}" for value in values)

    return said


def beside(
    suites: Suites, made: Callable[[Sequence[Record]], Sequence[str]], first: str,
    said: Callable[[list[str]], str], again: Suites | None = None,
) -> list[str]:  # fmt: skip
    """The tables of all suites as one, a cell for each of their lines.

    A line that a suite has of its second pre-training alone is marked.
    """

    def lines_of(of: Suites, mark: str = "") -> dict[str, dict[str, str]]:
        return {s: {row[0]: said(row) + mark for row in map(cells_of, made(records)[2:])}
                for s, records in of.items()}  # fmt: skip

    found, more = lines_of(suites), lines_of(again or {}, SECOND)
    first_lines = next(iter(found.values()))
    found = {s: more.get(s, {}) | rows for s, rows in found.items()}
    known = {name for rows in found.values() for name in rows}
    order = dict.fromkeys(("zero-shot", *TRAINED, *PATHS, *MERGED, *first_lines))
    names = [*(n for n in order if n in known), *sorted(known - set(order))]
    lines = [[name, *(rows.get(name, "–") for rows in found.values())] for name in names]
    return table([first, *(NAMES[s] for s in suites)], lines)


def on_path(suites: Suites, records: Path) -> list[str]:
    """Where methods sit on FLYP's path, of every suite that has been asked."""
    head: list[str] = []
    rows = []
    for name in suites:
        lines = kept_lines(BENCHES[name], records, "on_path")
        if lines:
            head = cells_of(lines[0])
            # The rate is part of the head's first cell, and may differ between suites.
            rate = head[0].partition("row at ")[2]
            rows += [[NAMES[name], f"{row[0]} at {rate}", *row[1:]]
                     for row in map(cells_of, lines[2:])]  # fmt: skip
    return table(["suite", "row", *head[1:]], rows) if rows else []


def blocks(suites: Suites, records: Path) -> dict[str, list[str]]:
    """Mark → lines of the page."""
    found = {s: load_again(records, BENCHES[s]) for s in suites}
    again = {s: some for s, some in found.items() if some}
    planned = max(len(list(cells(BENCHES[s]))) for s in suites)
    counted = []
    for s, some in suites.items():
        made = [r for r in some if r["row"] not in MERGED]
        n = sum(r["lr"] in (None, *LADDER) for r in made)
        counted.append(f"{NAMES[s]} {n}, {len(made) - n}, {len(again.get(s, ()))}")
    heading = f"Runs of the ladder's {planned}, beyond it, from a second pre-training"
    return {
        "so-far": [f"{heading}: {'; '.join(counted)}."],
        "matrix": matrix(suites, records),
        "verdicts": verdicts(suites, records),
        "accuracies": own(suites, again, accuracies),
        "nll": own(suites, again, measured("nll", 1, 3)),
        "squared": own(suites, again, measured("squared", 1e4, 0)),
        "others": beside(
            {s: [*some, *again.get(s, ())] for s, some in suites.items()},
            lambda some: beside_others(some, OURS),
            "against",
            lambda row: f"{row[2]}, {row[3]}, {row[4]} of {row[1]}; {row[5]}",
        ),
        "under-confidence": beside(
            suites, under_confidence, "row", lambda row: f"{row[2]} → {row[3]} ({row[1]})", again
        ),
        "on-path": on_path(suites, records),
        "cost": beside(suites, costs, "row", lambda row: f"{row[2]}, {row[3]}", again),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--write", type=Path, help="the page")
    options = parser.parse_args(arguments)
    suites: dict[str, Any] = {name: load(options.records, bench) for name, bench in BENCHES.items()}
    made = blocks({name: some for name, some in suites.items() if some}, options.records)
    if options.write is None:
        print("\n\n".join("\n".join([name, "", *lines]) for name, lines in made.items()))
        return
    page = refreshed(options.write.read_text(encoding="utf-8"), made)
    atomic_write_bytes(options.write, page.encode())


if __name__ == "__main__":
    sys.exit(main())
