"""Where other methods sit on FLYP's weight path.

    python -m research.second.on_path --out results/study [--lr 3e-4] [--seeds 0,1,2]

For FLYP's finished runs at one rate, the path between the initial and the tuned weights is judged
at five points on every test set (two minutes of one core a seed; goes on where it was). Each other
trained row, at the same rate and seeds, is then put beside the point of the path that has its OOD
accuracy: what differs there is what the method does that going half the way back does not. The
table goes to `research/second/records/SUITE/on_path.json` and is shown by `tables.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calift_core.analysis.report import read_report
from calift_core.jobs.folder import run_in_folder
from calift_core.schema.report import FrontierPoint
from calift_core.schema.spec import parse_spec
from research.second.study import BENCHES, OF, RECORDS, TRAINED, Bench, Cell, stored
from research.second.tables import Record, keep_lines, mean

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUMBERS = ("ood_accuracy", "id_accuracy", "ood_nll", "ood_ece")


def path_of(bench: Bench, out: Path, lr: float, seed: int) -> list[FrontierPoint]:
    """The path of a FLYP run, with its ends."""
    tuned = Cell(bench, OF, lr, seed)
    folder = out / bench.name / f"on-path-{lr:g}-{seed}"
    if not (folder / "report.json").is_file():
        spec = tuned.spec(out).model_dump(mode="json")
        spec["name"] = f"path of {tuned.name}"
        spec["method"] = {
            "kind": "wise_ft",
            "alpha": 0.5,
            "sweep": [0.0, *ALPHAS, 1.0],
            "run": str(tuned.folder(out).absolute()),
        }
        deque(run_in_folder(parse_spec(spec), folder), maxlen=0)
    return list(read_report(folder).frontier or [])


def beside(path: Sequence[FrontierPoint], row: Mapping[str, float]) -> dict[str, float]:
    """The point of the path with a row's OOD accuracy, linear between measured ones.

    OOD accuracy need not fall all along a path; read from its best point on.
    """
    points = sorted(path, key=lambda p: p.alpha)
    best = int(np.argmax([p.ood_accuracy for p in points]))
    falling = points[best:]
    accuracy = [float(p.ood_accuracy or 0.0) for p in falling]
    at = dict.fromkeys(("alpha", *NUMBERS), float("nan"))
    if not min(accuracy) <= row["ood_accuracy"] <= max(accuracy):
        return at
    order = np.argsort(accuracy)
    for name in at:
        values = np.array([float(getattr(falling[i], name)) for i in order])
        at[name] = float(np.interp(row["ood_accuracy"], np.sort(accuracy), values))
    return at


def of_record(record: Record) -> dict[str, float]:
    """The same numbers of a trained run, raw."""
    return {
        f"{short}_{number}": mean(record, "raw", role, number)
        for short, role in (("id", "id"), ("ood", "shift"))
        for number in ("accuracy", "nll", "ece")
    }


def table(bench: Bench, out: Path, records: Path, lr: float, seeds: Sequence[int]) -> list[str]:
    """A line a row: means over seeds of the row less the path at its OOD accuracy."""
    paths = {seed: path_of(bench, out, lr, seed) for seed in seeds}
    lines = [
        f"| row at {lr:g} | seeds | OOD acc | α of {OF}'s path there | ID acc less the path's | "
        "OOD NLL less the path's | OOD ECE less the path's |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in TRAINED:
        found = stored((Cell(bench, label, lr, seed) for seed in seeds), records)
        if label == OF or not found:
            continue
        own = [of_record(record) for record in found]
        there = [beside(paths[r["seed"]], one) for r, one in zip(found, own, strict=True)]
        known = [(a, b) for a, b in zip(own, there, strict=True) if not np.isnan(b["alpha"])]
        accuracy = 100 * float(np.mean([one["ood_accuracy"] for one in own]))
        if not known:
            lines.append(f"| {label} | {len(own)} | {accuracy:.1f} | none | – | – | – |")
            continue

        def less(name: str, known: Sequence[tuple[Mapping, Mapping]] = known) -> float:  # type: ignore[type-arg]
            return float(np.mean([a[name] - b[name] for a, b in known]))

        alpha = float(np.mean([b["alpha"] for _, b in known]))
        lines.append(
            f"| {label} | {len(known)} of {len(own)} | {accuracy:.1f} | {alpha:.2f} | "
            f"{100 * less('id_accuracy'):+.1f} | {less('ood_nll'):+.3f} | "
            f"{100 * less('ood_ece'):+.1f} |"
        )
    return lines


def main() -> None:
    """Read the arguments, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/study"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--suite", choices=BENCHES, default="typefaces")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    lines = table(BENCHES[options.suite], options.out, options.records, options.lr, seeds)
    keep_lines(BENCHES[options.suite], options.records, "on_path", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
