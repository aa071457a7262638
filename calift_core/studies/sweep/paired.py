"""Rows of a table, each of several seeds, compared on the same images and seeds.

By a bootstrap over source images (each with all its corruptions: a cluster) and seeds together
(basic bootstrap). Bins are cut once per run and set. Calibration is decided on the debiased squared
L2 error, whose bias is known (`calift_core.calibration.squared.SquaredError`). Drawing S seeds with
replacement understates their spread by (S − 1)/S, so seed draws are stretched by √(S/(S − 1)).
Intervals of pairs are plain 95 % intervals, not corrected for how many there are. The sets of rows
any of which may be the best are: they are model confidence sets, on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration.compare import eliminate

Doubles = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Draws:
    """One set of bootstrap draws for all rows of a study; row 0 is the data as they are.

    Attributes:
        images: (R + 1, N) how often each source image was drawn.
        seeds: (R + 1, S) weight of each seed; rows sum to 1.
    """

    images: Doubles
    seeds: Doubles


def make_draws(n_images: int, n_seeds: int, *, n_resamples: int = 1000, seed: int = 0) -> Draws:
    """Draw source images and seeds with replacement, `n_resamples` times."""
    rng = np.random.default_rng(seed)
    images = np.ones((n_resamples + 1, n_images))
    seeds = np.full((n_resamples + 1, n_seeds), 1 / n_seeds)
    stretch = np.sqrt(n_seeds / (n_seeds - 1)) if n_seeds > 1 else 1.0
    for r in range(1, n_resamples + 1):
        images[r] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
        drawn = np.bincount(rng.integers(n_seeds, size=n_seeds), minlength=n_seeds) / n_seeds
        seeds[r] += stretch * (drawn - 1 / n_seeds)
    return Draws(images, seeds)


def folded(values: Doubles, seeds: Doubles) -> Doubles:
    """Fold values (S, R + 1) of a row's seeds into (R,) draws; (1, R + 1): nothing is random."""
    drawn = values[:, 1:]
    return np.asarray((drawn.T * seeds[1:]).sum(axis=1) if len(values) > 1 else drawn[0])


def difference(a: Doubles, b: Doubles, seeds: Doubles) -> dict[str, Any]:
    """A − b with its 95 % interval; a and b are (S, R + 1), or (1, R + 1) where nothing is random.

    Args:
        a: values of the first row; the first column is the data as they are.
        b: values of the second row.
        seeds: (R + 1, S) weight of each seed.

    Returns:
        difference, low, high and per_seed, in the unit of a and b.
    """
    per_seed = a - b  # (S, R + 1)
    point = float(per_seed[:, 0].mean())
    drawn = folded(per_seed, seeds)
    tail = (1 - LEVEL) / 2
    below, above = np.quantile(drawn - drawn.mean(), [tail, 1 - tail], method="weibull")
    return {
        "difference": point,
        "low": point - float(above),
        "high": point - float(below),
        "per_seed": per_seed[:, 0].tolist(),
    }


def best_rows(
    values: Mapping[str, Doubles], seeds: Doubles, *, higher_is_better: bool
) -> dict[str, Any]:
    """Return the best row and the rows any of which may be the best: a model confidence set.

    Args:
        values: label → (S, R + 1) or (1, R + 1).
        seeds: (R + 1, S) weight of each seed.
        higher_is_better: of the values.
    """
    sign = -1 if higher_is_better else 1
    losses = {label: sign * float(v[:, 0].mean()) for label, v in values.items()}
    noise = np.stack([folded(v, seeds) for v in values.values()], axis=1)
    p_values = eliminate(np.array(list(losses.values())), noise)
    p_value = dict(zip(values, p_values.tolist(), strict=True))
    order = sorted(values, key=losses.__getitem__)
    return {
        "label": order[0],
        "set": [label for label in order if p_value[label] >= 1 - LEVEL],
        "p_values": p_value,
    }
