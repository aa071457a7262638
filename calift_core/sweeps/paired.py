"""Rows of a table, each of several seeds, compared on the same images and seeds.

Two sources of noise are kept apart. Source images (each with all its corruptions: a cluster) are
drawn with replacement, bins being cut once per run and set. Seeds are few, so their variance comes
from its unbiased estimate. Calibration is decided on the debiased squared L2 error, whose bias is
known (`calift_core.calibration.squared.SquaredError`).

The interval of a pair is a t interval with Satterthwaite's degrees of freedom; it is a plain 95 %
interval, not corrected for how many pairs there are. The rows any of which may be the best are a
model confidence set (Hansen et al. 2011), with the critical values of Tukey's range test for
blocks: see `best_rows`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration.means import standard_error, t_quantile
from calift_core.calibration.squared import ROUNDING

Doubles = NDArray[np.float64]
LEVEL = 0.95


def draw_images(n_images: int, *, n_resamples: int = 1000, seed: int = 0) -> Doubles:
    """How often each of N source images was drawn, (R + 1, N); row 0 is the data as they are."""
    rng = np.random.default_rng(seed)
    times = np.ones((n_resamples + 1, n_images))
    for row in times[1:]:
        row[:] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
    return times


def difference(a: Doubles, b: Doubles) -> dict[str, Any]:
    """A − b with its 95 % interval; a and b are (S, R + 1), or (1, R + 1) where nothing is random.

    Args:
        a: values of the first row; the first column is the data as they are.
        b: values of the second row.

    Returns:
        difference, low, high and per_seed, in the unit of a and b.
    """
    per_seed = a - b  # (S, R + 1)
    point, n_seeds = float(per_seed[:, 0].mean()), len(per_seed)
    of_images = float(per_seed[:, 1:].mean(axis=0).var())
    of_seeds = float(per_seed[:, 0].var(ddof=1)) / n_seeds if n_seeds > 1 else 0.0
    # Images are so many that their variance counts as known.
    se, df = standard_error([(of_seeds, max(n_seeds - 1, 1)), (of_images, np.inf)])
    reach = t_quantile(df, (1 + LEVEL) / 2) * se
    return {
        "difference": point,
        "low": point - reach,
        "high": point + reach,
        "per_seed": per_seed[:, 0].tolist(),
    }


def best_rows(values: Mapping[str, Doubles], *, higher_is_better: bool) -> dict[str, Any]:
    """Return the best row and the rows any of which may be the best: a model confidence set.

    While the largest studentised difference of two rows is larger than equal rows would give, the
    worse of the two is left out. A pair's seed variance is taken to be no smaller than the mean
    over all pairs: of many variances of a few seeds each, some are far too small by chance.
    The critical values come from draws with the same images, normal seeds, and a variance of
    (J − 1)(S − 1) degrees of freedom, J rows being left. Rows with much noisier seeds than others
    make the answer cautious.

    Args:
        values: label → (S, R + 1), or (1, R + 1) where nothing is random.
    """
    labels = list(values)
    sign = -1 if higher_is_better else 1
    n_seeds = max(len(v) for v in values.values())
    losses = np.stack([np.broadcast_to(sign * v[:, 0], n_seeds) for v in values.values()])  # (J, S)
    images = np.stack([v[:, 1:].mean(axis=0) for v in values.values()], axis=1)  # (R, J)
    random = np.array([float(len(v) > 1) for v in values.values()])
    p_values = _eliminate(losses, images, random)
    p_value = dict(zip(labels, p_values.tolist(), strict=True))
    mean = dict(zip(labels, losses.mean(axis=1).tolist(), strict=True))
    order = sorted(labels, key=mean.__getitem__)
    return {
        "label": order[0],
        "set": [label for label in order if p_value[label] >= 1 - LEVEL],
        "p_values": p_value,
    }


@dataclass(frozen=True)
class _Pairs:
    """The K pairs of the rows that are left.

    Attributes:
        a: (K,) the first row of each.
        b: (K,) the second.
        t: (K,) studentised differences.
        drawn: (R,) the largest of their sizes, were all rows equal.
    """

    a: NDArray[np.intp]
    b: NDArray[np.intp]
    t: Doubles
    drawn: Doubles


def _pairs(losses: Doubles, images: Doubles, random: Doubles, rng: np.random.Generator) -> _Pairs:
    n_rows, n_seeds = losses.shape
    a, b = np.triu_indices(n_rows, 1)
    apart = losses[a] - losses[b]  # (K, S)
    noise = images[:, a] - images[:, b]  # (R, K)
    noise = noise - noise.mean(axis=0)
    of_seeds = np.zeros(len(a))
    varied = np.maximum(random[a], random[b]) > 0
    scale = np.ones(len(noise))
    if n_seeds > 1 and varied.any():
        own = apart.var(axis=1, ddof=1) / n_seeds
        of_seeds = np.where(varied, np.maximum(own, own[varied].mean()), 0.0)
        freedom = (n_rows - 1) * (n_seeds - 1)
        scale = np.sqrt(rng.chisquare(freedom, size=len(noise)) / freedom)
    error = np.sqrt(of_seeds + noise.var(axis=0))
    normal = rng.standard_normal((len(noise), n_rows)) * random
    seeds = (normal[:, a] - normal[:, b]) / np.sqrt(np.maximum(random[a] + random[b], 1.0))
    drawn = np.abs(noise + seeds * np.sqrt(of_seeds) / scale[:, None])
    sure, mean = error <= ROUNDING, apart.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(np.abs(mean) > ROUNDING, mean / np.where(sure, 0.0, error), 0.0)
    drawn = np.where(sure, 0.0, drawn / np.where(sure, 1.0, error))
    return _Pairs(a, b, t, drawn.max(axis=1))


def _eliminate(losses: Doubles, images: Doubles, random: Doubles) -> Doubles:
    """The p-value (J,) of each row's membership in the set."""
    p_values, left, largest = np.ones(len(losses)), np.arange(len(losses)), 0.0
    rng = np.random.default_rng(0)
    while len(left) > 1:
        pairs = _pairs(losses[left], images[:, left], random[left], rng)
        most = int(np.abs(pairs.t).argmax())
        beyond = np.count_nonzero(pairs.drawn >= abs(pairs.t[most]))
        largest = max(largest, (1 + beyond) / (1 + len(pairs.drawn)))
        worse = (pairs.a if pairs.t[most] > 0 else pairs.b)[most]
        p_values[left[worse]] = largest
        left = np.delete(left, worse)
    return p_values
