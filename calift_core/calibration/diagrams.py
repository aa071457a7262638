"""Reliability diagrams as numbers: what a chart needs, and no ink."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import ndtri

from calift_core.calibration.bins import (
    Bools,
    Doubles,
    Floats,
    Ints,
    Scheme,
    check_confidences,
    gather,
    top_label,
)
from calift_core.calibration.measures import (
    SMOOTH_GRID,
    smooth_density,
    smooth_ece_from_confidence,
)
from calift_core.calibration.uncertainty import check_resampling, null_correct_sums
from calift_core.errors import SpecError


class _Arrays:
    def to_dict(self) -> dict[str, object]:
        """Return plain lists and numbers for JSON, None where a number does not exist."""
        out: dict[str, object] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                out[field.name] = [None if np.isnan(x) else x for x in value.tolist()]
            else:
                out[field.name] = value
        return out


@dataclass(frozen=True)
class ReliabilityCurve(_Arrays):
    """One entry per bin, K bins; an empty bin has count 0 and NaN, never its midpoint.

    Attributes:
        lower: (K,) lower edge, excluded (the first bin takes 0).
        upper: (K,) upper edge, included.
        mean_confidence: (K,) where the point sits on the x axis.
        accuracy: (K,) where it sits on the y axis.
        count: (K,) integers.
        interval_low: (K,) Wilson interval of the accuracy.
        interval_high: (K,) Wilson interval of the accuracy.
        gap: (K,) mean confidence − accuracy, positive where over-confident.
        band_low: (K,) consistency band: accuracies that a calibrated model would show here.
        band_high: (K,) upper end of the band.
        n: samples.
        n_bins: bins asked for.
        scheme: `equal_mass` or `equal_width`.
        confidence_level: of the intervals and of the band.
    """

    lower: Doubles
    upper: Doubles
    mean_confidence: Doubles
    accuracy: Doubles
    count: Ints
    interval_low: Doubles
    interval_high: Doubles
    gap: Doubles
    band_low: Doubles
    band_high: Doubles
    n: int
    n_bins: int
    scheme: Scheme
    confidence_level: float


@dataclass(frozen=True)
class SmoothReliabilityCurve(_Arrays):
    """A kernel regression of correctness on confidence at the smooth ECE's own bandwidth.

    Attributes:
        confidence: (G,) x axis.
        accuracy: (G,) smoothed accuracy; NaN where there is practically no sample nearby.
        density: (G,) smoothed density of the confidences, integrates to one over [0, 1].
        bandwidth: kernel width σ, equal to `smooth_ece`.
        smooth_ece: the smooth calibration error, a fraction.
        n: samples.
    """

    confidence: Doubles
    accuracy: Doubles
    density: Doubles
    bandwidth: float
    smooth_ece: float
    n: int


def wilson_interval(
    successes: Floats, count: Floats, confidence_level: float = 0.95
) -> tuple[Doubles, Doubles]:
    """Return the Wilson 1927 score interval of a proportion, elementwise; NaN where count is 0.

    Args:
        successes: (K,) number of successes.
        count: (K,) number of trials.
        confidence_level: nominal coverage.

    Returns:
        low and high, (K,) fractions in [0, 1].
    """
    check_resampling(1, confidence_level)
    hits, trials = np.asarray(successes, np.float64), np.asarray(count, np.float64)
    z2 = float(ndtri((1 + confidence_level) / 2)) ** 2
    n = np.where(trials > 0, trials, np.nan)
    centre = (hits + z2 / 2) / (n + z2)
    half = np.sqrt(z2) * np.sqrt(hits * (n - hits) / n + z2 / 4) / (n + z2)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def reliability_curve_from_confidence(
    confidences: Floats,
    correct: Bools,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    confidence_level: float = 0.95,
    n_resamples: int = 200,
    seed: int = 0,
) -> ReliabilityCurve:
    """Return the curve of confidences (N,) against correct (N,); see `reliability_curve`."""
    check_resampling(n_resamples, confidence_level)
    values, hits = check_confidences(confidences, correct)
    binned = gather(values, hits, n_bins, scheme)
    low, high = wilson_interval(binned.correct_sum, binned.count, confidence_level)
    sums = null_correct_sums(values, binned.edges, n_resamples, np.random.default_rng(seed))
    tail = (1 - confidence_level) / 2
    trials = np.where(binned.count > 0, binned.count, np.nan)
    band_low, band_high = np.quantile(sums, [tail, 1 - tail], axis=0) / trials
    return ReliabilityCurve(
        lower=binned.edges[:-1],
        upper=binned.edges[1:],
        mean_confidence=binned.mean_confidence,
        accuracy=binned.accuracy,
        count=binned.count.astype(np.int64),
        interval_low=low,
        interval_high=high,
        gap=binned.gap,
        band_low=band_low,
        band_high=band_high,
        n=len(values),
        n_bins=n_bins,
        scheme=scheme,
        confidence_level=confidence_level,
    )


def reliability_curve(
    probs: Floats,
    labels: Ints,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    confidence_level: float = 0.95,
    n_resamples: int = 200,
    seed: int = 0,
) -> ReliabilityCurve:
    """Return the bins of a reliability diagram, cut exactly as `ece` cuts them.

    Σ count/n · |gap| over the filled bins equals `ece` at the same n_bins and scheme.

    Args:
        probs: (N, C), rows sum to one.
        labels: (N,) integers in [0, C).
        n_bins: bins asked for.
        scheme: `equal_mass` or `equal_width`.
        confidence_level: of the Wilson intervals and of the consistency band.
        n_resamples: label draws behind the consistency band.
        seed: of those draws.

    Raises:
        SpecError: an argument is not valid.
        PredictionsError: probs or labels break their contract.
    """
    return reliability_curve_from_confidence(
        *top_label(probs, labels),
        n_bins=n_bins,
        scheme=scheme,
        confidence_level=confidence_level,
        n_resamples=n_resamples,
        seed=seed,
    )


def smooth_reliability_curve_from_confidence(
    confidences: Floats, correct: Bools, *, n_points: int = 256
) -> SmoothReliabilityCurve:
    """Return the smooth curve of confidences (N,) against correct (N,); see below."""
    if not 2 <= n_points <= SMOOTH_GRID:
        raise SpecError(f"n_points must lie in [2, {SMOOTH_GRID}], got {n_points}")
    values, hits = check_confidences(confidences, correct)
    bandwidth = smooth_ece_from_confidence(values, hits)
    # A kernel narrower than the grid would only draw the grid.
    width = max(bandwidth, 2.0 / SMOOTH_GRID)
    density = smooth_density(values, np.ones(len(values)), width) / len(values)
    right = smooth_density(values, hits.astype(np.float64), width) / len(values)
    share = np.full(SMOOTH_GRID, np.nan)
    # Below a hundredth of a sample under the kernel the ratio is rounding noise.
    np.divide(right, density, out=share, where=density * width * len(values) > 1e-2)
    x = np.linspace(0.0, 1.0, n_points)
    at = np.minimum((x * SMOOTH_GRID).astype(np.int64), SMOOTH_GRID - 1)
    return SmoothReliabilityCurve(
        confidence=x,
        accuracy=np.clip(share[at], 0.0, 1.0),
        density=np.maximum(density[at], 0.0),
        bandwidth=bandwidth,
        smooth_ece=bandwidth,
        n=len(values),
    )


def smooth_reliability_curve(
    probs: Floats, labels: Ints, *, n_points: int = 256
) -> SmoothReliabilityCurve:
    """Return the kernel diagram that belongs to `smooth_ece` (Błasiok & Nakkiran 2023).

    Args:
        probs: (N, C), rows sum to one.
        labels: (N,) integers in [0, C).
        n_points: G, points on [0, 1].
    """
    return smooth_reliability_curve_from_confidence(*top_label(probs, labels), n_points=n_points)
