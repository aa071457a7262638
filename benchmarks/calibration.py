"""What the numbers cost: calift beside netcal and relplot, both sides in one run.

    python benchmarks/calibration.py                 # a table, 50,000 samples × 1,000 classes
    python benchmarks/calibration.py --json          # its last line holds the numbers
    python benchmarks/calibration.py --n 5000 --classes 100

The task is an ECE, a reliability diagram's numbers and an interval from 200 resamples, from
probabilities (N, C). calift: `top_label` once, then `ece`, `reliability_curve` with its consistency
band and `interval`, each with 200 resamples. netcal has no interval, so a person writes the
bootstrap by hand: 200 resamples of netcal's ECE. It is timed in both ways that people write it:

- **netcal**: the arrays of probabilities are resampled and measured. A resample costs seconds, so
  `--netcal-resamples` of them are timed in each round and their mean counts 200 times.
- **netcal, confidences**: confidences and hits are taken once by hand, and all 200 resamples of
  those are timed.

Smooth ECE is timed from confidences on both sides. Contenders take turns round after round, so that
a busy machine slows all of them; medians over rounds count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import relplot
from netcal.metrics import ECE
from numpy.typing import NDArray

from calift_core import calibration as cal

RESAMPLES = 200
BINS = 15


def seconds(task: Callable[[], object]) -> float:
    """Run a task once and return its wall time in seconds."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def simulate(n: int, n_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities (N, C) float32 and labels drawn from a cooler truth."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, n_classes)).astype(np.float32)
    logits[np.arange(n), rng.integers(n_classes, size=n)] += 6 + 3 * rng.random(n, np.float32)
    truth = cal.softmax(logits, 1.3).cumsum(axis=1)
    labels = (truth < rng.random((n, 1), np.float32) * truth[:, -1:]).sum(axis=1)
    return np.asarray(cal.softmax(logits), np.float32), labels


def ours(probs: NDArray[Any], labels: NDArray[Any]) -> float:
    """ECE, reliability curve and interval, 200 resamples."""
    scores = cal.score_probs(probs, labels)
    cal.reliability_curve(scores, cal.Binning(BINS), n_resamples=RESAMPLES)
    cal.interval(scores, cal.Binning(BINS), n_resamples=RESAMPLES)
    return cal.ece(scores, cal.Binning(BINS, "equal_width"))


def by_hand(x: NDArray[Any], y: NDArray[Any], resamples: int) -> tuple[float, float]:
    """Seconds of netcal's ECE, and of one resample of it, mean of `resamples`."""
    rng = np.random.default_rng(0)
    metric = ECE(BINS)
    once = seconds(lambda: metric.measure(x, y))

    def bootstrap() -> None:
        for _ in range(resamples):
            rows = rng.integers(len(y), size=len(y))
            metric.measure(x[rows], y[rows])

    return once, seconds(bootstrap) / resamples


def main() -> None:
    """Time all contenders and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--netcal-resamples", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # netcal's and relplot's own
    probs, labels = simulate(arguments.n, arguments.classes)
    scores = cal.score_probs(probs, labels)
    confidences, correct = scores.confidences, scores.correct
    hits = correct.astype(np.int64)
    mine, theirs = ours(probs, labels), ECE(BINS).measure(confidences, hits)
    if abs(mine - theirs) > 1e-6:
        raise SystemExit(f"the two ECEs must agree within 1e-6, got {mine} and {theirs}")
    values = correct.astype(np.float64)
    cal.smooth_ece(scores)
    relplot.smECE(f=confidences, y=values)
    times: dict[str, list[float]] = {
        name: [] for name in ("ours", "netcal", "netcal_confidences", "smece_ours", "relplot")
    }
    for _ in range(arguments.rounds):
        times["ours"].append(seconds(lambda: ours(probs, labels)))
        once, each = by_hand(probs, labels, arguments.netcal_resamples)
        times["netcal"].append(once + RESAMPLES * each)
        taking = seconds(lambda: (probs.max(axis=1), probs.argmax(axis=1) == labels))
        once, each = by_hand(confidences, hits, RESAMPLES)
        times["netcal_confidences"].append(taking + once + RESAMPLES * each)
        times["smece_ours"].append(seconds(lambda: cal.smooth_ece(scores)))
        times["relplot"].append(seconds(lambda: relplot.smECE(f=confidences, y=values)))
    median = {name: statistics.median(of) for name, of in times.items()}

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    report = {
        "n": arguments.n,
        "classes": arguments.classes,
        "resamples": RESAMPLES,
        "rounds": arguments.rounds,
        **{f"{name}_s": value for name, value in median.items()},
        "ours_over_netcal": ratio("ours", "netcal"),
        "ours_over_netcal_confidences": ratio("ours", "netcal_confidences"),
        "smece_ours_over_relplot": ratio("smece_ours", "relplot"),
    }
    for name, value in median.items():
        print(f"{name:<20} {1e3 * value:12.1f} ms")
    for name in ("ours_over_netcal", "ours_over_netcal_confidences", "smece_ours_over_relplot"):
        print(f"{name:<30} {report[name]:.4f}  (1/{1 / float(report[name]):.1f})")
    if arguments.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
