"""Tables of the second study, from its records, and its verdicts, from its predictions.

    python -m research.second.tables                          # tables from the records alone
    python -m research.second.tables --out results/study      # and verdicts, with intervals
    python -m research.second.tables --out results/study --write research/second/pages

Rows, rates and rules are those of `protocol.md`. Records say what every run gave; an
interval over images needs every image's prediction, so it is made of the runs that are in --out.
While runs are missing the tables are of the seeds that are there and say how many; what they say is
then no verdict of the study. Records in `again/` begin with another pre-training of the suite's
model and stand in tables of their own: rows are compared with rows of one start. With --write each
suite's tables go into a file of their own; those of the results page, over all suites, are made by
`study_page.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration import SampleScores
from calift_core.files import atomic_write_bytes
from calift_core.predictions.read import read_index
from calift_core.sweeps.verdict import Contender, ScoredRun, ScoredSet, compare_contenders
from research.second.study import (
    BENCHES,
    BEYOND,
    CAUTIOUS,
    ENSEMBLE,
    LADDER,
    OURS,
    PATHS,
    PUBLISHED,
    RECORDS,
    SEEDS,
    TRAINED,
    Bench,
    Cell,
    cells,
    judge,
    later,
    own_rates,
    predictions_of,
    stored,
)

#: What a row is shown after; `published` is the best published calibrator of each run.
AFTER = ("raw", "temperature", "published", OURS, CAUTIOUS, ENSEMBLE)
#: Rows that the verdict is about.
OUR_ROWS = ("FLYP, path", "CaRot, path")
RIVALS = ("TRACER", "CaRot", "FLYP")
Record = Mapping[str, Any]


def load(records: Path, bench: Bench) -> list[Record]:
    """Every record of a suite that is one of the study's runs."""
    return stored((*cells(bench), *later(bench, records)), records)


def load_again(records: Path, bench: Bench) -> list[Record]:
    """Those that begin with another pre-training of the suite's model, which is not compared."""
    return load(records / "again", bench)


def after(record: Record, calibrator: str) -> Mapping[str, Mapping[str, float]]:
    """Data set → numbers after a calibrator."""
    name = record["published"] if calibrator == "published" else calibrator
    of: Mapping[str, Mapping[str, float]] = record["numbers"][name]
    return of


def mean(record: Record, calibrator: str, role: str, number: str) -> float:
    """Unweighted mean of a number over the sets of a role."""
    of = after(record, calibrator)
    return float(np.mean([of[name][number] for name, r in record["roles"].items() if r == role]))


def table(records: Sequence[Record]) -> list[str]:
    """Rows at their own rates: means over seeds, percent but for NLL."""
    trained = [r for r in records if r["row"] in (*TRAINED, *PATHS)]
    merged = {r["row"]: r["lr"] for r in records if r not in trained}
    rates = own_rates(trained) | merged
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

    def run(self, record: Record) -> ScoredRun:
        """What a verdict compares.

        Shifts that are one set of images in several styles are given as corruptions, the suite's
        own ones left out: so all of them, and the ID images, are drawn together.
        """
        of, styled = after(record, self.calibrator), self.cell.bench.styled
        sets = {
            name: ScoredSet(name, "corruption" if styled and role == "shift" else role,
                            of[name]["ece"], of[name]["floor"], partial(self.opened, name))
            for name, role in record["roles"].items()
            if role in ("id", "shift")
        }  # fmt: skip
        return ScoredRun(f"{self.cell.name} {self.calibrator}", self.cell.seed, sets)

    def opened(self, name: str) -> tuple[NDArray[np.str_], SampleScores]:
        """Names of independent units, images or fonts, and scores."""
        scores, ids, published = _scores(self.cell, self.out)
        kind = published if self.calibrator == "published" else self.calibrator
        units = ids[name]
        if self.cell.bench.styled:  # images/sketch/bird/0f….png: the image, whatever its style
            units = np.array(["/".join(one.split("/")[-2:]) for one in units])
        if self.by_font:
            units = np.array(["/".join(one.split("/")[:3]) for one in units])
        return units, scores[kind][name]


_KEPT: dict[Cell, Any] = {}


def _scores(cell: Cell, out: Path) -> Any:
    """Scores of a run after every calibrator, the ids of its sets, its best published one."""
    if cell not in _KEPT:
        judged = judge(cell.folder(out), Cell(cell.bench, "zero-shot").folder(out))
        ids = {name: read_index(file)[0] for name, file in
               predictions_of(cell.folder(out)).items()}  # fmt: skip
        _KEPT[cell] = judged.scores, ids, judged.published
    return _KEPT[cell]


@dataclass(frozen=True)
class Ledger:
    """Which of a suite's runs can be compared image by image.

    Attributes:
        bench: the suite.
        out: folder of the runs.
        records: of those of them that have one.
    """

    bench: Bench
    out: Path
    records: Mapping[Cell, Record]

    @classmethod
    def read(cls, bench: Bench, records: Path, out: Path) -> Ledger:
        """What is there."""
        found = {}
        for cell in (*cells(bench), *later(bench, records)):
            file = cell.record(records)
            if file.is_file() and (cell.folder(out) / "report.json").is_file():
                record = json.loads(file.read_text())
                if "numbers" in record:
                    found[cell] = record
        return cls(bench, out, found)

    def rates(self, row: str, seeds: Sequence[int]) -> list[float]:
        """Those of the ladder, and beyond, at which a row has all of these seeds."""
        ladder = sorted({*LADDER, *BEYOND.values()})
        return [
            lr
            for lr in ladder
            if all(Cell(self.bench, row, lr, seed) in self.records for seed in seeds)
        ]

    def seeds(self, rows: Sequence[str]) -> list[int]:
        """Those with which every row has been run along the whole ladder."""
        return [seed for seed in SEEDS
                if all(set(LADDER) <= {*self.rates(row, [seed])} for row in rows)]  # fmt: skip

    def contender(
        self,
        row: str,
        calibrator: str,
        seeds: Sequence[int],
        rates: Sequence[float],
        *,
        by_font: bool = False,
    ) -> Contender:
        """A row after a calibrator, along its ladder."""
        ladder, found = {}, []
        for lr in rates:
            some = [Cell(self.bench, row, lr, seed) for seed in seeds]
            found += [self.records[cell] for cell in some]
            ladder[lr] = [Scored(cell, self.out, calibrator, by_font).run(self.records[cell])
                          for cell in some]  # fmt: skip
        lr = own_rates(found)[row]
        kind = "wise_ft" if row in PATHS else TRAINED[row]["kind"]
        return Contender(f"{row} + {calibrator}", kind, lr, "", ladder[lr], ladder)


def pair(ours: Contender, rival: Contender, seeds: Sequence[int] = SEEDS) -> tuple[str, str]:
    """The verdict of the protocol on two rows, and the numbers behind it."""
    found = compare_contenders(
        [ours, rival], sweep_id="study", name="study", seeds=seeds, complete=True
    )
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


_ORDER = {"worse": 0, "unresolved": 1, "better": 2}


def verdicts(ledger: Ledger) -> list[str]:
    """Ours against each rival, with its best published calibrator and with ours; misses first."""
    found: list[tuple[int, str]] = []
    for by_font in (False, True) if ledger.bench.name == "typefaces" else (False,):
        for row in OUR_ROWS:
            for rival in RIVALS:
                seeds = ledger.seeds((row, rival))
                some = seeds or [0]
                rates = {one: ledger.rates(one, some) for one in (row, rival)}
                if not seeds:  # the first seed is under way: rates that both have
                    both = [lr for lr in rates[row] if lr in rates[rival]]
                    rates = dict.fromkeys(rates, both)
                if not all(rates.values()):
                    continue
                said = f"{len(seeds)} of {len(SEEDS)} seeds"
                if not seeds:
                    said = f"seed 0 at {', '.join(f'{lr:g}' for lr in rates[row])}"
                ours = ledger.contender(row, OURS, some, rates[row], by_font=by_font)
                for calibrator in ("published", OURS):
                    other = ledger.contender(rival, calibrator, some, rates[rival], by_font=by_font)
                    word, why = pair(ours, other, some)
                    drawn = "fonts" if by_font else "images"
                    line = f"| {word} | {ours.label} | {other.label} | {drawn} | {said} | {why} |"
                    found.append((_ORDER[word] + 3 * by_font, line))
    lines = ["| verdict | ours | rival | drawn | so far | ours less rival (NLL; L2², 1e-4) |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    return lines + [line for _, line in sorted(found, key=lambda one: one[0])]


def confidence_sets(ledger: Ledger) -> list[str]:
    """Which rows may be the best, of those of the verdict, each after either kind of calibrator."""
    every = (*OUR_ROWS, *RIVALS)
    seeds = ledger.seeds(every)
    lines = ["| read | measure | may be the best (95 % model confidence set) | are not |",
             "|---|---|---|---|"]  # fmt: skip
    if len(seeds) < 2:
        return lines
    rows = [
        ledger.contender(row, calibrator, seeds, ledger.rates(row, seeds))
        for row in every
        for calibrator in (OURS, "published")
    ]
    found = compare_contenders(rows, sweep_id="study", name="study", seeds=seeds, complete=True)
    reads = [("at own rates", found.sets)]
    if found.equal is not None and found.equal.id_accuracy is not None:
        left = ", ".join(one.label for one in found.equal.left_out)
        at = f"at {100 * found.equal.id_accuracy:.1f} % ID accuracy"
        reads.append((f"{at} (left out: {left})" if left else at, found.equal.sets))
    for read, sets in reads:
        for one in sets:
            if one.metric in ("nll", "squared"):
                name = {"nll": "OOD NLL", "squared": "OOD L2²"}[one.metric]
                lines.append(
                    f"| {read} | {name} | {', '.join(one.members)} | {', '.join(one.excluded)} |"
                )
    return lines


def kept_lines(bench: Bench, records: Path, name: str) -> list[str]:
    """A table that is kept among the records, empty where there is none."""
    file = records / bench.name / f"{name}.json"
    lines: list[str] = json.loads(file.read_text()) if file.is_file() else []
    return lines


def keep_lines(bench: Bench, records: Path, name: str, lines: Sequence[str]) -> None:
    """Keep a table among the records, where `kept_lines` finds it."""
    file = records / bench.name / f"{name}.json"
    atomic_write_bytes(file, (json.dumps(lines, ensure_ascii=False, indent=1) + "\n").encode())


def kept_of_images(
    name: str, make: Callable[[Ledger], list[str]], bench: Bench, records: Path, out: Path | None
) -> list[str]:
    """A table of the runs in `out`, kept among the records; without such runs the kept one."""
    lines = [] if out is None else make(Ledger.read(bench, records, out))
    if len(lines) > 2:
        keep_lines(bench, records, name, lines)
        return lines
    return kept_lines(bench, records, name)


def ladder_table(records: Sequence[Record]) -> list[str]:
    """Every row at every rate: raw, after an ID temperature, after disagreement temperature."""
    lines = ["| row | rate | seeds | ID acc | OOD acc | σ_min, 1e-4 | T | OOD ECE: raw, T, ours | "
             "OOD NLL: raw, T, ours | OOD L2², 1e-4: raw, T, ours |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row, lr in dict.fromkeys((r["row"], r["lr"]) for r in records):
        some = [r for r in records if (r["row"], r["lr"]) == (row, lr) and "numbers" in r]
        if not some:
            continue

        def of(kind: str, role: str, number: str, some: Sequence[Record] = some) -> float:
            return float(np.mean([mean(r, kind, role, number) for r in some]))

        three = [
            ", ".join(f"{scale * of(kind, 'shift', number):.{digits}f}"
                      for kind in ("raw", "temperature", OURS))
            for number, scale, digits in (("ece", 100, 1), ("nll", 1, 3), ("squared", 1e4, 0))
        ]  # fmt: skip
        heat = np.mean([r["parameters"]["temperature"]["temperature"] for r in some])
        sigma = 1e4 * float(np.mean([r["sigma_min"] for r in some]))
        lines.append(
            f"| {row} | {'–' if lr is None else f'{lr:g}'} | {len(some)} | "
            f"{100 * of('raw', 'id', 'accuracy'):.1f} | {100 * of('raw', 'shift', 'accuracy'):.1f}"
            f" | {sigma:.2f} | {heat:.2f} | {' | '.join(three)} |"
        )
    return lines


def beside_others(records: Sequence[Record], ours: str) -> list[str]:
    """A calibrator of ours against every other one, over all trained runs and paths."""
    lines = ["| against | runs | OOD NLL lower | OOD L2² lower | ID NLL lower | "
             "worst OOD NLL, against it |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    rows = (*TRAINED, *PATHS)
    trained = [r for r in records if r["row"] in rows and ours in r.get("numbers", {})]
    if not trained:
        return []
    for other in ("raw", *PUBLISHED, "published"):

        def gain(role: str, number: str, other: str = other) -> NDArray[np.float64]:
            return np.array([mean(r, ours, role, number) - mean(r, other, role, number)
                             for r in trained])  # fmt: skip

        nll = gain("shift", "nll")
        worst = f"{nll.max():+.3f}"
        lines.append(
            f"| {other} | {len(trained)} | {int((nll < 0).sum())} | "
            f"{int((gain('shift', 'squared') < 0).sum())} | {int((gain('id', 'nll') < 0).sum())} | "
            f"{worst} |"
        )
    return lines


def under_confidence(records: Sequence[Record]) -> list[str]:
    """How much of a row's gain in raw OOD ECE over FLYP is left after an ID temperature."""
    lines = ["| row | runs | raw OOD ECE less FLYP's | after temperature | left | fitted T |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    known = {(r["row"], r["lr"], r["seed"]): r for r in records if "numbers" in r}
    for row in TRAINED:
        pairs = [(r, known["FLYP", r["lr"], r["seed"]]) for key, r in known.items()
                 if key[0] == row != "FLYP" and ("FLYP", *key[1:]) in known]  # fmt: skip
        if not pairs:
            continue
        raw, cool = (
            100 * float(np.mean([mean(a, kind, "shift", "ece") - mean(b, kind, "shift", "ece")
                                 for a, b in pairs]))
            for kind in ("raw", "temperature")
        )  # fmt: skip
        heat = np.mean([a["parameters"]["temperature"]["temperature"] for a, _ in pairs])
        left = f"{100 * cool / raw:.0f} %" if abs(raw) >= 0.5 else "–"
        lines.append(f"| {row} | {len(pairs)} | {raw:+.1f} | {cool:+.1f} | {left} | {heat:.2f} |")
    return lines


def costs(records: Sequence[Record]) -> list[str]:
    """Processor seconds of a row's training and of all of its run, where they were measured."""
    lines = ["| row | runs | training, processor s | whole run |", "|---|---|---|---|"]
    for row in dict.fromkeys(r["row"] for r in records):
        some = [r["seconds"] for r in records if r["row"] == row and "seconds" in r]
        whole = [s["processor_s"] for s in some if "processor_s" in s]
        train = [s["training_cpu_s"] for s in some if "training_cpu_s" in s and "processor_s" in s]
        if whole:
            trained = f"{np.median(train):.0f}" if train else "–"
            lines.append(f"| {row} | {len(whole)} | {trained} | {np.median(whole):.0f} |")
    return lines


def page(bench: Bench, records: Path, out: Path | None) -> list[str]:
    """Everything that is said of a suite."""
    found, every = load(records, bench), len(list(cells(bench)))
    plain = [r for r in found if r["row"] in ("zero-shot", *TRAINED, *PATHS)]
    seeds = [s for s in SEEDS if sum(r["seed"] == s and r["lr"] in LADDER for r in found)
             >= len(LADDER) * (len(TRAINED) + len(PATHS))]  # fmt: skip
    said = "complete" if len(plain) >= every else "**part of the study: it is not complete**"
    lines = [
        f"# {bench.name}",
        "",
        f"Made by `python -m research.second.tables` from the records: {len(plain)} of {every} "
        f"runs, {len(seeds)} of {len(SEEDS)} seeds along the whole ladder; {said}. "
        "Rules: [protocol](../protocol.md).",
        "",
    ]
    parts = [
        ("Verdicts, misses first", kept_of_images("verdicts", verdicts, bench, records, out)),
        ("Which may be the best", kept_of_images("sets", confidence_sets, bench, records, out)),
        ("Along the ladder, means over the seeds that are there", ladder_table(found)),
        ("Rows at their own rates (of those that are there)", table(found)),
        ("How much is under-confidence", under_confidence(found)),
        (
            "Where rows sit on FLYP's weight path (research/second/on_path.py)",
            kept_lines(bench, records, "on_path"),
        ),
        ("Disagreement temperature against other calibrators", beside_others(found, OURS)),
        ("Cautious temperature against other calibrators", beside_others(found, CAUTIOUS)),
        (
            "Other forms of T (research/second/distances.py)",
            kept_lines(bench, records, "distances"),
        ),
        ("Cost", costs(found)),
    ]
    if again := load_again(records, bench):
        rows = len({r["row"] for r in again} & set(TRAINED))
        parts += [
            (f"From a second pre-training: {rows} rows along the ladder", ladder_table(again)),
            ("From a second pre-training: at their own rates", table(again)),
            ("From a second pre-training: how much is under-confidence", under_confidence(again)),
            (
                "From a second pre-training: disagreement temperature against other calibrators",
                beside_others(again, OURS),
            ),
            ("From a second pre-training: cost", costs(again)),
        ]
    for title, rows in parts:
        if len(rows) > 2:
            lines += [f"## {title}", "", *rows, ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--suites", default=",".join(BENCHES))
    parser.add_argument("--write", type=Path, help="folder that gets a file for each suite")
    options = parser.parse_args(arguments)
    for name in options.suites.split(","):
        lines = page(BENCHES[name], options.records, options.out)
        if options.write is None:
            print("\n".join(lines))
        else:
            atomic_write_bytes(options.write / f"{name}.md", "\n".join(lines).encode())


if __name__ == "__main__":
    sys.exit(main())
