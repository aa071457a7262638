"""What corrupting an image costs: calift's corruptions and those of corrupt-tta, on one core.

    python benchmarks/corruptions.py            # a table
    python benchmarks/corruptions.py --json     # its last line holds the numbers

Both make all 19 corruptions at 5 severities of the same synthetic pictures (coloured noise whose
spectrum falls with the frequency, as that of photographs does) and deliver uint8. They take turns
call by call in one process, so that a busy machine slows both. OpenCV is held to one thread; calift
uses one. The time is that of the processor, which on an idle machine is that of the clock.

A corruption's time is the mean over severities of the median over pictures and rounds; the first
round is not counted. The ratio of sums is the cost of the whole set. More than a third of
corrupt-tta's sum is `glass_blur`, which is a Python loop there; the ratio without it is given too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import corrupt_tta
import cv2
import numpy as np
from numpy.typing import NDArray

from calift_core.data.corruptions import CORRUPTIONS, corrupt

Pixels = NDArray[np.uint8]
SEVERITIES = (1, 2, 3, 4, 5)


def picture(side: int, seed: int) -> Pixels:
    """A coloured picture with the spectrum of a photograph, (side, side, 3)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = 1
    noise = np.random.default_rng(seed).standard_normal((3, side, side))
    light, *tints = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.1, s=(side, side))
    colours = np.stack([light + 0.3 * tints[0], light, light + 0.3 * tints[1]], axis=2)
    return np.uint8(np.clip((colours - colours.mean()) / colours.std() * 50 + 115, 0, 255))


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(pictures: Sequence[Pixels], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per image of either side, by corruption; a round before the first is dropped."""
    times: dict[tuple[str, str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for seed, image in enumerate(pictures):
            for name in CORRUPTIONS:
                for severity in SEVERITIES:
                    sides = {
                        "ours": lambda i=image, n=name, s=severity, r=seed: corrupt(
                            i, n, s, seed=r
                        ),
                        "corrupt_tta": lambda i=image, n=name, s=severity: np.uint8(
                            corrupt_tta.corrupt(i, s, n)
                        ),
                    }
                    for side, function in sides.items():
                        spent = seconds(function)
                        if turn:
                            times.setdefault((name, side, severity), []).append(spent)
    result = {}
    for name in CORRUPTIONS:
        ours, theirs = (
            1e3 * statistics.fmean(statistics.median(times[name, side, s]) for s in SEVERITIES)
            for side in ("ours", "corrupt_tta")
        )
        result[name] = {"ours_ms": ours, "corrupt_tta_ms": theirs, "ratio": theirs / ours}
    return result


def summary(by_name: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ratios of the summed times, of all and of all but `glass_blur`, and the median ratio."""

    def ratio(names: Sequence[str]) -> float:
        return sum(by_name[n]["corrupt_tta_ms"] for n in names) / sum(
            by_name[n]["ours_ms"] for n in names
        )

    return {
        "corrupt_tta_over_ours": ratio(list(by_name)),
        "corrupt_tta_over_ours_without_glass_blur": ratio(
            [name for name in by_name if name != "glass_blur"]
        ),
        "median_ratio": statistics.median(row["ratio"] for row in by_name.values()),
    }


def show(by_name: dict[str, dict[str, float]], totals: dict[str, float]) -> None:
    """Print the table."""
    print(f"{'corruption':<20}{'calift':>10}{'corrupt-tta':>14}{'ratio':>9}")
    for name, row in by_name.items():
        print(
            f"{name:<20}{row['ours_ms']:>7.2f} ms{row['corrupt_tta_ms']:>11.2f} ms"
            f"{row['ratio']:>8.1f}×"
        )
    ours = sum(row["ours_ms"] for row in by_name.values())
    theirs = sum(row["corrupt_tta_ms"] for row in by_name.values())
    ratio = totals["corrupt_tta_over_ours"]
    print(f"{'all 19':<20}{ours:>7.2f} ms{theirs:>11.2f} ms{ratio:>8.1f}×")
    print(
        f"without glass_blur {totals['corrupt_tta_over_ours_without_glass_blur']:.1f}×, "
        f"median corruption {totals['median_ratio']:.1f}×"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=224, help="of the square pictures, in pixels")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="beside one that is not counted")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    np.random.seed(0)
    pictures = [picture(options.side, seed) for seed in range(options.pictures)]
    by_name = measure(pictures, options.rounds)
    totals = summary(by_name)
    show(by_name, totals)
    if options.json:
        packages = ("numpy", "scipy", "pillow", "corrupt-tta", "opencv-python", "scikit-image")
        record = {
            **totals,
            "corruptions": by_name,
            "side": options.side,
            "pictures": options.pictures,
            "rounds": options.rounds,
            "threads": 1,
            "platform": platform.platform(),
            "packages": {name: metadata.version(name) for name in packages},
        }
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
