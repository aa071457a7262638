"""The power of the third protocol, simulated: what a true difference would be called.

    python -m research.power

Standard deviations of the paired difference of OOD NLL from seed to seed are those of the second
study's records (0.002 to 0.043 between trained rows, by suite and calibrator; "published" up to
0.11 where it was fitted on few images), twice as large for two pre-trainings in place of one. By
image the difference of two models' NLL has a standard deviation of about 0.9 (the selection runs on
ID validation give 0.4 to 0.9).
"""

from __future__ import annotations

import sys

import numpy as np

from research.statistics import estimate, holm, verdict
from research.tables import CANDIDATES, REFERENCES

SETS, SUITES, TRIALS = 6, 4, 1000


def simulated(
    effect: float,
    *,
    rng: np.random.Generator,
    seeds: int,
    images: int,
    seed_sd: float,
    image_sd: float,
    others: float = 0.0,
) -> list[str]:
    """What each comparison of one suite's family is called; the first has the effect."""
    n = len(CANDIDATES) * len(REFERENCES)
    found = []
    for k in range(n):
        true = effect if k == 0 else others
        by_seed = rng.normal(0, seed_sd, seeds)
        by_image = rng.normal(0, image_sd, (SETS, images))
        error = rng.normal(0, 0.3 * image_sd / np.sqrt(images), (seeds, SETS))
        runs = true + by_seed[:, None] + by_image.mean(axis=1) + error
        ood = estimate(runs, list(true + by_seed.mean() + by_image))
        own = rng.normal(0, seed_sd / 2, seeds)
        own_image = rng.normal(0, image_sd / 2, images)
        id_nll = estimate(own[:, None] + own_image.mean(), [own.mean() + own_image])
        found.append((ood, id_nll))
    zero = holm({str(k): e[0].p_zero() for k, e in enumerate(found)})
    apart = holm({str(k): e[0].p_apart(0.02) for k, e in enumerate(found)})
    return [
        verdict(ood, own, None, p_zero=zero[str(k)], p_apart=apart[str(k)])
        for k, (ood, own) in enumerate(found)
    ]


def main() -> None:
    """Print the table of the protocol's page."""
    rng = np.random.default_rng(0)
    print("| true difference | seeds × images | seed SD | better | worse | equivalent | "
          "better on 3 of 4 |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for seeds, images in ((10, 5000), (5, 750)):
        for seed_sd in (0.01, 0.03):
            for effect in (0.0, -0.03, -0.06):
                said = [
                    simulated(effect, rng=rng, seeds=seeds, images=images, seed_sd=seed_sd,
                              image_sd=0.9)[0]
                    for _ in range(TRIALS // 10)
                ]  # fmt: skip
                share = {w: said.count(w) / len(said) for w in ("better", "worse", "equivalent")}
                p = share["better"]
                three = p**4 + 4 * p**3 * (1 - p)
                print(
                    f"| {effect:+.2f} | {seeds} × {images} | {seed_sd} | {share['better']:.2f} "
                    f"| {share['worse']:.2f} | {share['equivalent']:.2f} | {three:.2f} |",
                    flush=True,
                )
    wrong = 0
    for _ in range(TRIALS // 10):
        said = simulated(0.0, rng=rng, seeds=10, images=5000, seed_sd=0.03, image_sd=0.9)
        wrong += any(w in ("better", "worse") for w in said)
    print(f"no difference anywhere: some better or worse in {wrong / (TRIALS // 10):.2f} of suites")


if __name__ == "__main__":
    sys.exit(main())
