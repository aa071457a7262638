"""Tables of the second study, from its records, and its verdicts, from its predictions.

    python benchmarks/study_tables.py                          # tables from the records alone
    python benchmarks/study_tables.py --out results/study      # and verdicts, with intervals

Rows, rates and rules are those of `benchmarks/protocol.md`. Records say what every run gave; an
interval over images needs every image's prediction, so it is made of the runs that are in --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import (
    BENCHES,
    ENSEMBLE,
    LADDER,
    OURS,
    PUBLISHED,
    RECORDS,
    SEEDS,
    TRAINED,
    Bench,
    Cell,
    cells,
    judge,
)

from calift_core.calibration import SampleScores
from calift_core.studies.sweep.verdict import Contender, JudgedRun, JudgedSet, make_verdict

#: What a row is shown after; `published` is the best published calibrator of each run.
AFTER = ("raw", "temperature", "published", OURS, ENSEMBLE)
#: Rows that the verdict is about.
OUR_ROWS = ("FLYP, path", "CaRot, path")
RIVALS = ("TRACER", "CaRot", "FLYP")
Record = Mapping[str, Any]


def load(records: Path, bench: Bench) -> list[Record]:
    """Every record of a suite that is one of the study's runs."""
    found = []
    for cell in cells(bench):
        file = cell.record(records)
        if file.is_file():
            found.append(json.loads(file.read_text()))
    return found


def after(record: Record, calibrator: str) -> Mapping[str, Mapping[str, float]]:
    """Data set → numbers after a calibrator."""
    name = record["published"] if calibrator == "published" else calibrator
    of: Mapping[str, Mapping[str, float]] = record["numbers"][name]
    return of


def mean(record: Record, calibrator: str, role: str, number: str) -> float:
    """Unweighted mean of a number over the sets of a role."""
    of = after(record, calibrator)
    return float(np.mean([of[name][number] for name, r in record["roles"].items() if r == role]))


def own_rates(records: Iterable[Record]) -> dict[str, float]:
    """Row → the rate with the lowest ID validation NLL after an ID temperature, over all seeds."""
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["lr"] is not None and "numbers" in record:
            value = mean(record, "temperature", "validation", "nll")
            scores[record["row"]][record["lr"]].append(value)
    return {row: min(of, key=lambda lr: float(np.mean(of[lr]))) for row, of in scores.items()}


def table(records: Sequence[Record]) -> list[str]:
    """Rows at their own rates: means over seeds, percent but for NLL."""
    rates = own_rates(records)
    lines = [
        "| row | rate | seeds | after | ID acc | ID ECE | ID NLL | OOD acc | OOD ECE (floor) | "
        "OOD NLL | OOD L2², 1e-4 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = dict.fromkeys(record["row"] for record in records)
    for row in rows:
        some = [r for r in records if r["row"] == row and r["lr"] == rates.get(row)]
        some = [r for r in some if "numbers" in r]
        known = some[0]["numbers"] if some else {}
        for calibrator in (c for c in AFTER if some and (c == "published" or c in known)):

            def of(role: str, number: str, calibrator: str = calibrator,
                   some: Sequence[Record] = some) -> float:  # fmt: skip
                return float(np.mean([mean(r, calibrator, role, number) for r in some]))

            lr = "–" if rates.get(row) is None else f"{rates[row]:g}"
            names = sorted({r["published"] for r in some})
            said = f"published ({', '.join(names)})" if calibrator == "published" else calibrator
            lines.append(
                f"| {row} | {lr} | {len(some)} | {said} | {100 * of('id', 'accuracy'):.1f} | "
                f"{100 * of('id', 'ece'):.1f} | {of('id', 'nll'):.3f} | "
                f"{100 * of('shift', 'accuracy'):.1f} | {100 * of('shift', 'ece'):.1f} "
                f"({100 * of('shift', 'floor'):.1f}) | {of('shift', 'nll'):.3f} | "
                f"{1e4 * of('shift', 'squared'):.0f} |"
            )
    return lines


# ------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Scored:
    """A run's scores after one calibrator, as a verdict reads them."""

    cell: Cell
    out: Path
    calibrator: str
    by_font: bool = False

    def run(self, record: Record) -> JudgedRun:
        """What a verdict compares."""
        of = after(record, self.calibrator)
        sets = {
            name: JudgedSet(name, role, of[name]["ece"], of[name]["floor"],
                            partial(self.opened, name))
            for name, role in record["roles"].items()
            if role in ("id", "shift")
        }  # fmt: skip
        return JudgedRun(f"{self.cell.name} {self.calibrator}", self.cell.seed, sets)

    def opened(self, name: str) -> tuple[NDArray[np.str_], SampleScores]:
        """Names of independent units, images or fonts, and scores."""
        scores, ids, published = _scores(self.cell, self.out)
        kind = published if self.calibrator == "published" else self.calibrator
        units = ids[name]
        if self.by_font:
            units = np.array(["/".join(one.split("/")[:3]) for one in units])
        return units, scores[kind][name]


_KEPT: dict[Cell, Any] = {}


def _scores(cell: Cell, out: Path) -> Any:
    """Scores of a run after every calibrator, the ids of its sets, its best published one."""
    if cell not in _KEPT:
        from study import predictions_of

        from calift_core.predictions.read import read_index

        judged = judge(cell.folder(out), Cell(cell.bench, "zero-shot").folder(out))
        ids = {name: read_index(file)[0] for name, file in
               predictions_of(cell.folder(out)).items()}  # fmt: skip
        _KEPT[cell] = judged.scores, ids, judged.published
    return _KEPT[cell]


def contender(
    bench: Bench, records: Path, out: Path, row: str, calibrator: str, *, by_font: bool
) -> Contender | None:
    """A row after a calibrator, with the ladder as far as all seeds of a rate are in `out`."""
    ladder: dict[float, list[JudgedRun]] = {}
    stored = load(records, bench)
    for lr in LADDER:
        runs = []
        for seed in SEEDS:
            cell = Cell(bench, row, lr, seed)
            record = next((r for r in stored if (r["row"], r["lr"], r["seed"]) == (row, lr, seed)
                           and "numbers" in r), None)  # fmt: skip
            if record is not None and (cell.folder(out) / "report.json").is_file():
                runs.append(Scored(cell, out, calibrator, by_font).run(record))
        if len(runs) == len(SEEDS):
            ladder[lr] = runs
    if not ladder:
        return None
    own = own_rates(r for r in stored if r["row"] == row)
    lr = own[row] if own[row] in ladder else next(iter(ladder))
    kind = "wise_ft" if row not in TRAINED else TRAINED[row]["kind"]
    label = f"{row} + {calibrator}"
    return Contender(label, kind, lr, "", ladder[lr], ladder)


def pair(ours: Contender, rival: Contender) -> tuple[str, str]:
    """The verdict of the protocol on two rows, and the numbers behind it."""
    found = make_verdict([ours, rival], sweep_id="study", name="study", seeds=SEEDS, complete=True)
    accuracy = {row.label: row.id_accuracy.mean for row in found.rows}
    is_equal = found.equal is not None and bool(found.equal.sets)
    if found.equal is not None and is_equal:
        sets, at = found.equal.sets, f"at {100 * (found.equal.id_accuracy or 0):.1f} % ID accuracy"
    else:
        own, other = (100 * accuracy[c.label] for c in (ours, rival))
        sets, at = found.sets, f"at own rates, {own:.1f} and {other:.1f} % ID accuracy"
    said, signs = [], []
    for metric, unit in (("nll", 1.0), ("squared", 1e4)):
        (d,) = next(one for one in sets if one.metric == metric).differences
        sign = 1 if d.label == ours.label else -1
        low, high = sorted(unit * sign * bound for bound in d.interval)
        said.append(f"{metric} {unit * sign * d.difference:+.3g} [{low:+.3g}, {high:+.3g}]")
        signs.append(-1 if high < 0 else 1 if low > 0 else 0)
    is_no_lower = is_equal or accuracy[ours.label] >= accuracy[rival.label]
    is_better = signs == [-1, -1] and is_no_lower
    word = "better" if is_better else "worse" if 1 in signs else "unresolved"
    return word, f"{at}: {'; '.join(said)}"


def verdicts(bench: Bench, records: Path, out: Path) -> list[str]:
    """Ours against each rival, by images and by fonts; then with our calibrator on the rivals."""
    lines = ["| ours | rival | drawn | verdict | difference, ours less rival (NLL; L2², 1e-4) |",
             "|---|---|---|---|---|"]  # fmt: skip
    for by_font in (False, True):
        for row in OUR_ROWS:
            ours = contender(bench, records, out, row, OURS, by_font=by_font)
            for calibrator in ("published", OURS):
                for rival in RIVALS:
                    other = contender(bench, records, out, rival, calibrator, by_font=by_font)
                    if ours is None or other is None:
                        continue
                    word, why = pair(ours, other)
                    drawn = "fonts" if by_font else "images"
                    lines.append(f"| {ours.label} | {other.label} | {drawn} | {word} | {why} |")
    return lines


def beside_others(records: Sequence[Record]) -> list[str]:
    """Disagreement temperature against every other calibrator, over all trained runs."""
    lines = ["| against | runs | OOD NLL lower | OOD L2² lower | ID NLL lower | worst OOD NLL |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    trained = [r for r in records if r["lr"] is not None and "numbers" in r]
    for other in ("raw", *PUBLISHED, "published"):

        def gain(role: str, number: str, other: str = other) -> NDArray[np.float64]:
            return np.array([mean(r, OURS, role, number) - mean(r, other, role, number)
                             for r in trained])  # fmt: skip

        nll = gain("shift", "nll")
        lines.append(
            f"| {other} | {len(trained)} | {int((nll < 0).sum())} | "
            f"{int((gain('shift', 'squared') < 0).sum())} | {int((gain('id', 'nll') < 0).sum())} | "
            f"{nll.max(initial=-np.inf):+.3f} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--suites", default=",".join(BENCHES))
    options = parser.parse_args(arguments)
    for name in options.suites.split(","):
        stored = load(options.records, BENCHES[name])
        print(f"## {name}: {len(stored)} of {len(list(cells(BENCHES[name])))} runs\n")
        print("\n".join(table(stored)), "\n")
        print("\n".join(beside_others(stored)), "\n")
        if options.out is not None:
            print("\n".join(verdicts(BENCHES[name], options.records, options.out)), "\n")


if __name__ == "__main__":
    sys.exit(main())
