"""Do thresholds keep their promise on real ID data, and how far off are estimates of accuracy?

    python -m research.second.promises RUN…             # finished runs: folders, or folders of them
    python -m research.second.promises --resamplings 200 --only thresholds RUN…

**Thresholds.** A run's predictions of its ID test part are the population. As many images as its ID
validation part has are drawn from it with replacement, a threshold for at most 1, 2, 5 and 10 %
errors is chosen on them, and the errors among what it keeps of the *whole* population are its true
error: nothing is left to chance but the draw, which is what the promise is about. It should hold in
95 % of draws. Beside it what somebody sees who has no population: thresholds chosen on one half of
the test part and counted on the other, where the count itself is of few images.

**Estimates.** The expected accuracy of every labelled shift by average confidence, difference of
confidences and ATC, as `calift watch` makes them (calibrator chosen on ID data, ID validation as
the reference), less the accuracy, in points; and that of the estimator which the *other* shifts
recommend.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calift_core.analysis.choosing import calibrated
from calift_core.analysis.report import read_report
from calift_core.calibration import Calibrator, score_probs
from calift_core.calibration.decisions import choose_threshold, keep
from calift_core.calibration.unlabelled import (
    AVERAGE,
    DIFFERENCE,
    THRESHOLD,
    EstimatorError,
    recommended,
)
from calift_core.predictions.read import read_predictions
from calift_core.schema.report import Report
from calift_core.shipping.choosing import choose_calibrator, part_of
from calift_core.shipping.exported_scores import stored_tests
from calift_core.shipping.promises import LEVEL, RISKS
from calift_core.shipping.reference import reference_of

#: Those that the study knew.
ESTIMATORS = (AVERAGE, DIFFERENCE, THRESHOLD)
#: An estimate of an estimator that the other shifts recommend.
CHOSEN = "recommended by the other shifts"


def runs_in(places: Sequence[Path]) -> Iterator[Path]:
    """Finished runs that were trained: the folders themselves, or those in them."""
    for place in places:
        for folder in [place] if (place / "report.json").is_file() else sorted(place.iterdir()):
            if (folder / "report.json").is_file():
                yield folder


def thresholds(
    probs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], n: int, repeats: int
) -> dict[float, dict[str, list[float]]]:
    """Risk → what `repeats` draws gave: true errors of those found, coverage, errors of halves."""
    population, rng = score_probs(probs, labels), np.random.default_rng(0)
    found: dict[float, dict[str, list[float]]] = {r: defaultdict(list) for r in RISKS}
    for _ in range(repeats):
        rows = rng.integers(len(labels), size=n)
        mixed = rng.permutation(len(labels))
        half = len(labels) // 2
        sample = score_probs(probs[rows], labels[rows])
        one, other = (score_probs(probs[at], labels[at]) for at in (mixed[:half], mixed[half:]))
        for risk in RISKS:
            at = choose_threshold(sample, risk=risk, level=LEVEL)
            if at is not None:
                kept = keep(population, at)
                found[risk]["true"].append(kept.risk or 0.0)
                found[risk]["coverage"].append(kept.coverage)
            at = choose_threshold(one, risk=risk, level=LEVEL)
            if at is not None:
                found[risk]["halves"].append(keep(other, at).risk or 0.0)
    return found


def of_run(folder: Path, report: Report, calibrator: Calibrator | None, repeats: int) -> Any:
    """`thresholds` on a run's ID test part, with as many images as its validation part has."""
    ((_, own),) = list(stored_tests(folder, report, roles=("id",)))
    n = len(read_predictions(part_of(folder, report, "validation")[0]))
    return thresholds(calibrated(own.logits, calibrator), own.labels, n, repeats), n, len(own)


def off(judged: list[EstimatorError]) -> dict[str, dict[str, float]]:
    """Estimator → shift → estimate less accuracy, with the one that other shifts recommend."""
    errors = {one.estimator: dict(one.errors) for one in judged}
    errors[CHOSEN] = {}
    for shift in errors[ESTIMATORS[0]]:
        rest = [
            EstimatorError(one.estimator, {k: v for k, v in one.errors.items() if k != shift})
            for one in judged
        ]
        errors[CHOSEN][shift] = errors[recommended(rest)][shift]
    return errors


def summed(found: dict[str, Any], repeats: int) -> dict[str, Any]:
    """What thresholds gave over all runs, small enough to be kept.

    Shares of draws: `found` one at all, `held` the promise, in all draws and in the worst run, and
    on other halves. A draw in which no threshold is found keeps nothing, and breaks no promise.
    """
    first = next(iter(found.values()))
    risks = {}
    for risk in RISKS:
        rows = [one["draws"][risk] for one in found.values()]
        true = np.concatenate([row["true"] for row in rows])
        broken = [sum(e > risk for e in row["true"]) / repeats for row in rows]
        halves = [sum(e > risk for e in row["halves"]) / repeats for row in rows]
        some = len(true) > 0
        kept = np.concatenate([row["coverage"] for row in rows])
        risks[str(risk)] = {
            "found": len(true) / repeats / len(rows),
            "held": float(1 - np.mean(broken)),
            "held_worst_run": float(1 - max(broken)),
            "true_error": float(true.mean()) if some else None,
            "kept": float(kept.mean()) if some else None,
            "held_on_other_halves": float(1 - np.mean(halves)),
        }
    calibrators = Counter(one["calibrator"] for one in found.values())
    return {
        "runs": list(found),
        "calibrators": dict(calibrators),
        "draws": repeats,
        "n": first["n"],
        "population": first["population"],
        "risks": risks,
    }


def show_thresholds(summary: dict[str, Any]) -> None:
    """Of each share of errors: how often the promise held, over all runs and in the worst."""
    print(f"\nThresholds: {len(summary['runs'])} runs, {summary['draws']} draws of "
          f"{summary['n']:,} of {summary['population']:,} ID test images each\n")  # fmt: skip
    print("| at most | found | held, all draws | held, worst run | true error, mean | kept, mean "
          "| held on other halves |\n|" + "---|" * 7)  # fmt: skip
    for risk in RISKS:
        row = summary["risks"][str(risk)]
        if row["true_error"] is None:
            print(f"| {risk:.0%} | 0 % | – | – | – | – | – |")
            continue
        print(f"| {risk:.0%} | {row['found']:.1%} | {row['held']:.1%} "
              f"| {row['held_worst_run']:.1%} | {row['true_error']:.2%} | {row['kept']:.1%} "
              f"| {row['held_on_other_halves']:.1%} |")  # fmt: skip


def show_estimates(found: dict[str, Any]) -> None:
    """Of each shift: mean absolute error by estimator over the runs, in points."""
    names = (*ESTIMATORS, CHOSEN)
    shifts = list(next(iter(found.values()))["errors"][ESTIMATORS[0]])
    print(f"\nEstimates: {len(found)} runs; mean |estimate − accuracy|, mean signed, points\n")
    print("| shift | accuracy | " + " | ".join(n.replace("_", " ") for n in names) + " |")
    print("|" + "---|" * (2 + len(names)))
    absolute: dict[str, list[float]] = defaultdict(list)
    for shift in shifts:
        cells = []
        for name in names:
            errors = [100 * one["errors"][name][shift] for one in found.values()]
            absolute[name] += map(abs, errors)
            cells.append(f"{np.mean(np.abs(errors)):.1f} ({np.mean(errors):+.1f})")
        truth = np.mean([one["accuracy"][shift] for one in found.values()])
        print(f"| {shift} | {truth:.1%} | {' | '.join(cells)} |")
    print("| mean | | " + " | ".join(f"{np.mean(absolute[n]):.1f}" for n in names) + " |")
    print("| largest | | " + " | ".join(f"{max(absolute[n]):.1f}" for n in names) + " |")


def main() -> int:
    """Measure both on every run, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--resamplings", type=int, default=200)
    parser.add_argument("--only", choices=("thresholds", "estimates"))
    parser.add_argument("--record", type=Path, help="keep what thresholds gave in this file")
    parser.add_argument("--json", action="store_true", help="the last line holds the numbers")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for folder in runs_in(options.runs):
        report = read_report(folder)
        method = report.spec["method"]["kind"]
        if method == "zero_shot" or not part_of(folder, report, "validation"):
            continue
        choice = choose_calibrator(folder)
        calibrator, row = choice.fitted(), {"method": method, "calibrator": choice.kind}
        if options.only != "estimates":
            draws, n, population = of_run(folder, report, calibrator, options.resamplings)
            row |= {"draws": draws, "n": n, "population": population}
        if options.only != "thresholds":
            row["errors"] = off(reference_of(folder, report, calibrator).validated)
            row["accuracy"] = {
                e.dataset: e.accuracy for e in report.evaluations if e.role == "shift"
            }
        found[folder.name] = row
        print(f"{folder.name}: {choice.kind}", file=sys.stderr, flush=True)
    if options.only != "estimates":
        summary = summed(found, options.resamplings)
        show_thresholds(summary)
        if options.record is not None:
            options.record.write_text(json.dumps(summary, indent=1) + "\n")
    if options.only != "thresholds":
        show_estimates(found)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
