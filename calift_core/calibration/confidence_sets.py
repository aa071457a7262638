"""Model confidence sets (Hansen et al. 2011): which of several models may be the best one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calift_core.calibration.bins import Doubles
from calift_core.calibration.squared import ROUNDING


@dataclass(frozen=True)
class ModelConfidenceSet:
    """The models any of which may be the best one: a model confidence set.

    Attributes:
        members: names, best first. The set holds the best model in at least `level` of repeats.
        excluded: names of the others, best first.
        values: name → the metric on the samples as they are.
        p_values: name → the largest level of doubt (1 − level) at which it is still a member.
        reach: name → other → half the width of the interval of the difference of their values. All
            of them hold at once in `level` of repeats. Of two models, the interval leaves 0 out
            exactly where the set leaves one of them out.
        n_clusters: independent units; n when nothing is clustered.
    """

    members: tuple[str, ...]
    excluded: tuple[str, ...]
    values: dict[str, float]
    p_values: dict[str, float]
    reach: dict[str, dict[str, float]]
    n: int
    n_clusters: int
    n_resamples: int
    level: float
    seed: int


def on_border(p_value: float, n_resamples: int) -> bool:
    """Whether other draws might as well decide otherwise: two standard errors reach the border."""
    return abs(p_value - 0.05) <= 2 * p_value_error(0.05, n_resamples)


def p_value_error(p_value: float, n_resamples: int) -> float:
    """The Monte-Carlo standard error of a p-value that comes from so many draws."""
    return math.sqrt(p_value * (1 - p_value) / n_resamples)


def confidence_set_of(
    names: Sequence[str],
    values: Doubles,
    noise: Doubles,
    *,
    higher_is_better: bool,
    n: int,
    n_clusters: int,
    level: float,
    seed: int,
) -> ModelConfidenceSet:
    """The set of models with these values (J,) and draws (R, J); see `ModelConfidenceSet`."""
    p_values = eliminate(values * (-1 if higher_is_better else 1), noise)
    by_name = dict(zip(names, p_values.tolist(), strict=True))
    reach = reach_of_all(noise, level).tolist()
    known = dict(zip(names, values.tolist(), strict=True))
    order = sorted(names, key=lambda name: -known[name] if higher_is_better else known[name])
    return ModelConfidenceSet(
        members=tuple(name for name in order if by_name[name] >= 1 - level),
        excluded=tuple(name for name in order if by_name[name] < 1 - level),
        values=known,
        p_values=by_name,
        reach={a: dict(zip(names, row, strict=True)) for a, row in zip(names, reach, strict=True)},
        n=n,
        n_clusters=n_clusters,
        n_resamples=len(noise),
        level=level,
        seed=seed,
    )


def eliminate(losses: Doubles, noise: Doubles) -> Doubles:
    """Return the p-value (J,) of each model's membership in the model confidence set.

    Args:
        losses: (J,) lower is better.
        noise: (R, J) values of shared draws, which vary as the losses do; their mean and sign are
            of no account.
    """
    n_models = len(losses)
    p_values = np.ones(n_models)
    apart = losses[:, None] - losses  # (J, J)
    drawn, error = _studentised(noise)
    sure = error <= ROUNDING
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(np.abs(apart) > ROUNDING, apart / np.where(sure, 0.0, error), 0.0)
    left, largest = np.arange(n_models), 0.0
    while len(left) > 1:
        inside = np.ix_(left, left)
        observed = far[inside]
        most = drawn[:, left[:, None], left].max(axis=(1, 2))
        beyond = np.count_nonzero(most >= observed.max())
        largest = max(largest, (1 + beyond) / (1 + len(noise)))
        worst = int(observed.max(axis=1).argmax())
        p_values[left[worst]] = largest
        left = np.delete(left, worst)
    return p_values


def reach_of_all(noise: Doubles, level: float) -> Doubles:
    """Half the widths (J, J) of intervals of all differences that hold at once.

    Args:
        noise: (R, J) as of `eliminate`, with J ≥ 2.
    """
    drawn, error = _studentised(noise)
    most = np.sort(drawn.max(axis=(1, 2), initial=0.0))[::-1]
    beyond = int(np.count_nonzero((1 + np.arange(len(most))) / (1 + len(most)) < 1 - level))
    return np.asarray(error * (most[max(beyond - 1, 0)] if len(most) else 0.0))


def _studentised(noise: Doubles) -> tuple[Doubles, Doubles]:
    """Differences of draws over their standard error (R, J, J), and these errors (J, J)."""
    noise = noise - noise.mean(axis=0) if noise.shape[1] > 1 else noise
    drawn = np.abs(noise[:, :, None] - noise[:, None, :])
    error = np.sqrt(np.square(drawn).mean(axis=0))
    sure = error <= ROUNDING
    np.divide(drawn, error, out=drawn, where=~sure)
    drawn[:, sure] = 0.0
    return drawn, error
