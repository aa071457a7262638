"""The power of the third protocol, simulated: what a true difference would be called.

    python -m research.power

Standard deviations of the paired difference of OOD NLL from seed to seed are those of the second
study's records: 0.002 to 0.043 between trained rows after a temperature or as an ensemble
("published" up to 0.11 where it was fitted on few images). From image to image, mean over ten
seeds, 0.9 is taken under shift and 0.4 on ID data: two FLYP runs that differ in nothing but the
seed differ by 0.6 on ID validation images.
"""

from __future__ import annotations

import sys

import numpy as np

from research.intervals import Estimate, combined, holm, verdict
from research.recipes import CANDIDATES, REFERENCES

SETS, TRIALS = 6, 600
SEEDS_SD = (0.01, 0.03)
#: From image to image, of OOD NLL and of ID NLL.
OOD_SD, ID_SD = 0.9, 0.4


def drawn(
    true: float,
    rng: np.random.Generator,
    *,
    seeds: int,
    images: int,
    sets: int,
    seed_sd: float,
    image_sd: float,
) -> Estimate:
    """A paired difference as a study would see it; images enter by the mean over them."""
    over_images = image_sd**2 / images / sets
    by_run = rng.normal(0, seed_sd, seeds) + rng.normal(0, 0.3 * over_images**0.5, seeds)
    return combined(
        true + rng.normal(0, over_images**0.5) + by_run, [(over_images, sets * (images - 1.0))]
    )


def simulated(
    effect: float, rng: np.random.Generator, *, seeds: int, images: int, seed_sd: float
) -> list[str]:
    """What each comparison of one suite's family is called; the first has the effect."""
    found = [
        (
            drawn(
                true, rng, seeds=seeds, images=images, sets=SETS, seed_sd=seed_sd, image_sd=OOD_SD
            ),
            drawn(
                0.0, rng, seeds=seeds, images=images, sets=1, seed_sd=seed_sd / 3, image_sd=ID_SD
            ),
        )
        for true in [effect, *[0.0] * (len(CANDIDATES) * len(REFERENCES) - 1)]
    ]
    zero = holm({str(k): e[0].p_zero() for k, e in enumerate(found)})
    apart = holm({str(k): e[0].p_apart(0.02) for k, e in enumerate(found)})
    return [
        verdict(ood, own, None, p_zero=zero[str(k)], p_apart=apart[str(k)])
        for k, (ood, own) in enumerate(found)
    ]


def main() -> None:
    """Print the table of the protocol's page."""
    rng = np.random.default_rng(0)
    print(
        "| seeds × images a shift | SD between seeds | true difference | better | equivalent | "
        "worse | better on 3 of 4 suites |"
    )
    print("|---" * 7 + "|")
    for seeds, images in ((10, 5000), (5, 750)):
        for seed_sd in SEEDS_SD:
            for effect in (0.0, -0.03, -0.06):
                said = [
                    simulated(effect, rng, seeds=seeds, images=images, seed_sd=seed_sd)[0]
                    for _ in range(TRIALS)
                ]
                better, same, worse = (
                    said.count(word) / TRIALS for word in ("better", "equivalent", "worse")
                )
                three = better**4 + 4 * better**3 * (1 - better)
                print(
                    f"| {seeds} × {images:,} | {seed_sd} | {effect:+.2f} | {better:.2f} "
                    f"| {same:.2f} | {worse:.3f} | {three:.2f} |",
                    flush=True,
                )
    for seed_sd in SEEDS_SD:
        wrong = sum(
            not {"better", "worse"}.isdisjoint(
                simulated(0.0, rng, seeds=10, images=5000, seed_sd=seed_sd)
            )
            for _ in range(TRIALS)
        )
        print(
            f"No difference anywhere, SD {seed_sd}: some comparison of a suite's 20 is called "
            f"better or worse in {100 * wrong / TRIALS:.1f} % of suites."
        )


if __name__ == "__main__":
    sys.exit(main())
