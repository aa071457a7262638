"""Out-of-distribution (OOD) detection: scores of images, and how well they tell OOD from ID images.

Every score is larger for images that are more like the ID data. N ID images, M OOD images, C
classes, D features, T training images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration.bins import (
    Doubles,
    Floats,
    Ints,
    check_logits,
    check_probs,
    check_temperature,
    softmax,
)
from calift_core.errors import PredictionsError, SpecError

#: The scores by name: those of logits and probabilities first, those of features last.
LOGIT_SCORES = ("max_softmax", "energy", "mcm")
SCORES = (*LOGIT_SCORES, "knn", "relative_mahalanobis")
#: The neighbour that `knn` looks at.
NEIGHBOUR = 10
MEASURES = ("auroc", "aupr", "fpr95")
#: The share of ID images that FPR95 accepts, and its standard normal quantile for two sides.
ACCEPTED, _Z = 0.95, 1.959964
#: Numbers that are worked on at once: cosines, and weights of draws, which stay in a cache.
_CELLS, _WEIGHTS = 2_000_000, 100_000
#: Rates of false alarms that thresholds are chosen for, and the one that is told unasked.
ALARM_RATES, ALARM_RATE = (0.01, 0.05, 0.1), 0.05


# ---- Scores --------------------------------------------------------------------------------------


def max_softmax(probs: Floats) -> Doubles:
    """(N,) the largest probability of each image (Hendrycks & Gimpel 2017, arXiv 1610.02136).

    Args:
        probs: (N, C), after the calibrator where there is one.
    """
    found: Doubles = check_probs(probs).max(axis=1).astype(np.float64)
    return found


def energy(logits: Floats) -> Doubles:
    """(N,) the negative free energy, log Σ exp(logit), at T = 1 (Liu et al. 2020, 2010.03759)."""
    wide = check_logits(logits).astype(np.float64)
    top = wide.max(axis=1)
    found: Doubles = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return found


def mcm(logits: Floats, logit_scale: float) -> Doubles:
    """(N,) the largest softmax of cosines at τ = 1 (Ming et al. 2022, arXiv 2211.13445).

    Args:
        logits: (N, C), logit_scale · cosine.
    """
    check_temperature(logit_scale)
    probs = softmax(np.asarray(logits, np.float64), logit_scale)
    found: Doubles = probs.max(axis=1).astype(np.float64)
    return found


def knn(features: Floats, training: Floats, k: int = NEIGHBOUR) -> Doubles:
    """(N,) minus the distance to the k-th nearest training feature (Sun et al. 2022, 2204.06507).

    Args:
        features: (N, D), L2-normalised here.
        training: (T, D), too.

    Raises:
        SpecError: k is not in [1, T].
    """
    if not 1 <= k <= len(training):
        raise SpecError(f"k must lie in [1, {len(training)}], the training images, got {k}")
    own, known = _unit(features), _unit(training)
    rows = max(1, _CELLS // len(known))
    nearest = [
        np.partition(own[at : at + rows] @ known.T, len(known) - k, axis=1)[:, len(known) - k]
        for at in range(0, len(own), rows)
    ]
    found: Doubles = -np.sqrt(np.maximum(2 - 2 * np.concatenate(nearest), 0.0))
    return found


def relative_mahalanobis(features: Floats, training: Floats, labels: Ints) -> Doubles:
    """(N,) minus the least distance to a class, relative to all (Ren et al. 2021, 2106.09022).

    Classes are Gaussians around their means with one covariance; from the squared Mahalanobis
    distance to each that to one Gaussian of all training images is taken off. A covariance without
    an inverse gets a thousandth of its mean variance on its diagonal.

    Args:
        features: (N, D).
        training: (T, D).
        labels: (T,) classes; one without an image is left out.
    """
    own, known = np.asarray(features, np.float64), np.asarray(training, np.float64)
    classes, of = np.unique(labels, return_inverse=True)
    means = np.stack([known[of == at].mean(axis=0) for at in range(len(classes))])
    within = _precision(known - means[of])
    centre = known.mean(axis=0)
    background = _distance(own - centre, _precision(known - centre))
    nearest = np.min([_distance(own - mean, within) for mean in means], axis=0)
    found: Doubles = background - nearest
    return found


def _unit(features: Floats) -> Doubles:
    wide = np.asarray(features, np.float64)
    unit: Doubles = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


def _precision(centred: Doubles) -> Doubles:
    covariance = centred.T @ centred / len(centred)
    values = np.linalg.eigvalsh(covariance)
    singular = values[0] <= 1e-6 * values[-1]
    ridge = 1e-3 * max(float(values.mean()), 1e-12) if singular else 0.0
    inverse: Doubles = np.asarray(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))
    return inverse


def _distance(centred: Doubles, precision: Doubles) -> Doubles:
    squared: Doubles = np.einsum("nd,nd->n", centred @ precision, centred)
    return squared


# ---- Measures ------------------------------------------------------------------------------------


def auroc(id_scores: Doubles, ood_scores: Doubles) -> float:
    """Chance that an ID image has the larger score, ties counting half.

    Raises:
        PredictionsError: a side is empty or not finite.
    """
    return float(_measured(id_scores, ood_scores)[0])


def aupr(id_scores: Doubles, ood_scores: Doubles) -> float:
    """Average precision of finding OOD images, which are the positives, by small scores.

    It is M / (N + M) by chance, so that sets of other sizes do not compare.
    """
    return float(_measured(id_scores, ood_scores)[1])


def fpr_at(id_scores: Doubles, ood_scores: Doubles, accepted: float = ACCEPTED) -> float:
    """Share of OOD images that are accepted where a share of the ID images is; FPR95 by default.

    Images with the threshold's own score are accepted by lot, so that the share is met.
    """
    return float(_measured(id_scores, ood_scores, accepted)[2])


def threshold_at(id_scores: Doubles, accepted: float = ACCEPTED) -> float:
    """The largest score from which on at least a share of the ID images is accepted."""
    ordered = np.sort(_checked(id_scores, "ID"))[::-1]
    return float(ordered[int(np.ceil(accepted * len(ordered) - 1e-9)) - 1])


def _measured(id_scores: Doubles, ood_scores: Doubles, accepted: float = ACCEPTED) -> Doubles:
    order = _Order.of(id_scores, ood_scores)
    found: Doubles = order.measures(np.ones((1, len(order.order))), accepted)[0]
    return found


def _checked(scores: Doubles, side: str) -> Doubles:
    found = np.asarray(scores, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise PredictionsError(
            f"{side} scores must be finite numbers (N,), N ≥ 1, got the shape {found.shape}"
            + ("" if np.isfinite(found).all() else " with NaN or infinity")
        )
    return found


@dataclass(frozen=True, eq=False)
class _Order:
    """N + M images by their score, rising.

    Attributes:
        order: (N + M,) positions, ID images first.
        starts: (G,) where each distinct score begins.
    """

    order: NDArray[np.int64]
    is_id: NDArray[np.bool_]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, id_scores: Doubles, ood_scores: Doubles) -> _Order:
        values = np.concatenate([_checked(id_scores, "ID"), _checked(ood_scores, "OOD")])
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
        return cls(order, order < len(id_scores), starts)

    def measures(self, weights: Doubles, accepted: float = ACCEPTED) -> Doubles:
        """(R, 3) the `MEASURES` of images that count as often as weights (R, N + M) say."""
        ordered = weights[:, self.order]
        own = np.add.reduceat(ordered * self.is_id, self.starts, axis=1)  # (R, G)
        other = np.add.reduceat(ordered * ~self.is_id, self.starts, axis=1)
        own_below, other_below = own.cumsum(axis=1), other.cumsum(axis=1)  # up to and with g
        n, m = own_below[:, -1:], other_below[:, -1:]
        area = (other * (n - own_below + own / 2)).sum(axis=1)
        precision = other_below / np.maximum(own_below + other_below, 1e-12)
        # The threshold lies in the last group that has enough ID images above it and in it.
        from_here = n - own_below + own
        at = (from_here >= accepted * n - 1e-9).sum(axis=1, keepdims=True) - 1
        pick = np.take_along_axis
        above, inside = pick(n - own_below, at, 1), pick(own, at, 1)
        lot = np.clip((accepted * n - above) / np.maximum(inside, 1e-12), 0.0, 1.0)
        passed = pick(m - other_below, at, 1) + lot * pick(other, at, 1)
        return np.stack(
            [
                area / (n * m)[:, 0],
                (other * precision).sum(axis=1) / m[:, 0],
                (passed / m)[:, 0],
            ],
            axis=1,
        )


# ---- Intervals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval, and what it differs by from the baseline's.

    Attributes:
        difference: value less that of the baseline, on the same images; None of the baseline.
    """

    value: float
    interval: tuple[float, float]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


def detection(
    id_scores: Mapping[str, Doubles],
    ood_scores: Mapping[str, Doubles],
    *,
    baseline: str = "max_softmax",
    n_resamples: int = 1000,
    seed: int = 0,
    id_clusters: NDArray[Any] | None = None,
    ood_clusters: NDArray[Any] | None = None,
) -> dict[str, dict[str, Estimate]]:
    """The `MEASURES` of each score, with percentile intervals over drawn images of both sets.

    Every score sees the same draws, so that differences are paired. AUROC's interval holds that of
    Newcombe 2006 (method 5) and FPR95's that of Clopper and Pearson as well, which do not shrink to
    nothing where the scores part the sets completely. The two sets are drawn independently.

    Args:
        id_scores: (N,) each, of the ID test images; what the images of `ood_scores`, (M,) each, are
            held against.
        baseline: what differences are to; without it there are none.
        id_clusters: (N,) sources of the images, drawn as wholes; None: every image by itself.
        ood_clusters: (M,) of the others.

    Raises:
        PredictionsError: scores are missing, not finite, or of other numbers of images.
        SpecError: n_resamples < 1.
    """
    if n_resamples < 1:
        raise SpecError(f"n_resamples must be ≥ 1, got {n_resamples}")
    orders = {name: _Order.of(id_scores[name], ood_scores[name]) for name in id_scores}
    n, m = (len(next(iter(of.values()))) for of in (id_scores, ood_scores))
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[Doubles]] = {name: [] for name in orders}
    own, other = _Draws(n, id_clusters), _Draws(m, ood_clusters)
    for rows in _chunks(n_resamples, n + m):
        weights = np.concatenate([own.weights(rows, rng), other.weights(rows, rng)], axis=1)
        for name, order in orders.items():
            drawn[name].append(order.measures(weights))
    values = {name: order.measures(np.ones((1, n + m)))[0] for name, order in orders.items()}
    draws = {name: np.concatenate(parts) for name, parts in drawn.items()}
    return {
        name: {
            measure: _estimate(
                at,
                (n, m),
                values[name],
                draws[name],
                None if name == baseline else values.get(baseline),
                draws.get(baseline),
            )
            for at, measure in enumerate(MEASURES)
        }
        for name in orders
    }


def _chunks(n_resamples: int, images: int) -> Iterator[int]:
    most = max(1, _WEIGHTS // images)
    for at in range(0, n_resamples, most):
        yield min(most, n_resamples - at)


class _Draws:
    """How often each of n images is drawn, by itself or with its cluster."""

    def __init__(self, n: int, clusters: NDArray[Any] | None) -> None:
        self.of = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
        self.n = n if self.of is None else int(self.of.max()) + 1

    def weights(self, rows: int, rng: np.random.Generator) -> Doubles:
        at = rng.integers(0, self.n, (rows, self.n)) + np.arange(rows)[:, None] * self.n
        counts = np.bincount(at.ravel(), minlength=rows * self.n).reshape(rows, self.n)
        found: Doubles = (counts if self.of is None else counts[:, self.of]).astype(np.float64)
        return found


def _estimate(
    at: int,
    sizes: tuple[int, int],
    values: Doubles,
    draws: Doubles,
    base: Doubles | None,
    base_draws: Doubles | None,
) -> Estimate:
    low, high = np.quantile(draws[:, at], [0.025, 0.975]).tolist()
    value = float(values[at])
    least, most = (
        _newcombe(value, *sizes)
        if MEASURES[at] == "auroc"
        else _clopper_pearson(value, sizes[1])
        if MEASURES[at] == "fpr95"
        else (low, high)
    )
    interval = (min(low, least), max(high, most))
    if base is None or base_draws is None:
        return Estimate(value, interval)
    ends = np.quantile(draws[:, at] - base_draws[:, at], [0.025, 0.975]).tolist()
    return Estimate(value, interval, value - float(base[at]), (ends[0], ends[1]))


def _newcombe(value: float, n: int, m: int) -> tuple[float, float]:
    """95 % interval of an AUROC: Newcombe 2006, Statistics in Medicine 25:559, method 5."""
    area = np.linspace(0.0, 1.0, 20_001)
    extra = ((n + m) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
    variance = area * (1 - area) * (1 + extra) / (n * m)
    inside = area[np.square(value - area) <= _Z**2 * variance + 1e-12]
    return (float(inside[0]), float(inside[-1])) if len(inside) else (value, value)


def _clopper_pearson(share: float, m: int) -> tuple[float, float]:
    from calift_core.calibration.decisions import clopper_pearson

    low, high = clopper_pearson(share * m, m)
    return float(low), float(high)


def alarm_threshold(id_scores: Doubles, false_alarms: float) -> float | None:
    """The score below which an image is said to be unlike the ID data.

    New ID images like the N given ones fall below it with chance at most `false_alarms` (a
    conformal p-value's test, Bates et al. 2023, arXiv 2104.08279). None where N is too small.

    Raises:
        SpecError: the rate is not in (0, 1).
    """
    if not 0 < false_alarms < 1:
        raise SpecError(f"false_alarms must lie in (0, 1), got {false_alarms}")
    ordered = np.sort(_checked(id_scores, "ID"))
    k = int(np.floor(false_alarms * (len(ordered) + 1) + 1e-9))
    return float(ordered[k - 1]) if k else None
