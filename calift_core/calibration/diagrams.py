"""Reliability diagrams as numbers: what a chart needs, and no ink."""

from dataclasses import asdict, dataclass, fields
from statistics import NormalDist

import numpy as np

from calift_core.calibration.bins import (
    DEFAULT_BINNING,
    Binning,
    Doubles,
    Floats,
    Ints,
    error_of_gaps,
    gather,
)
from calift_core.calibration.scores import Scores, checked
from calift_core.calibration.smooth import SMOOTH_GRID, smooth_density, smooth_ece
from calift_core.calibration.uncertainty import check_resampling, null_correct_sums
from calift_core.errors import SpecError

#: Of the consistency band: a calibrated model's points lie in it nineteen times in twenty.
_BAND = (0.025, 0.975)


class _Arrays:
    def to_dict(self) -> dict[str, object]:
        """Return plain lists and numbers for people's own JSON, None where there is no number."""
        out: dict[str, object] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                out[field.name] = [None if np.isnan(x) else x for x in value.tolist()]
            elif isinstance(value, Binning):
                out |= asdict(value)
            else:
                out[field.name] = value
        return out


@dataclass(frozen=True)
class ReliabilityCurve(_Arrays):
    """One entry per bin, K bins; an empty bin has count 0 and NaN, never its midpoint.

    Band and floor come from one set of draws.

    Attributes:
        lower: (K,) lower edge, excluded (the first bin takes 0).
        upper: (K,) upper edge, included.
        mean_confidence: (K,) where the point sits on the x axis.
        accuracy: (K,) where it sits on the y axis.
        count: (K,) integers.
        interval_low: (K,) 95 % Wilson interval of the accuracy.
        interval_high: (K,) upper end of the interval.
        gap: (K,) mean confidence − accuracy, positive where over-confident.
        band_low: (K,) 95 % consistency band: accuracies that a calibrated model would show here.
        band_high: (K,) upper end of the band.
        binning: of the bins and of the error.
        ece: the calibration error at that norm, a fraction.
        null_mean: its mean if the model were perfectly calibrated.
        null_q95: the 95 % quantile of the same.
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
    binning: Binning
    ece: float
    null_mean: float
    null_q95: float


@dataclass(frozen=True)
class SmoothReliabilityCurve(_Arrays):
    """A kernel regression of correctness on confidence at the smooth ECE's own bandwidth.

    Attributes:
        confidence: (G,) x axis.
        accuracy: (G,) smoothed accuracy; NaN where there is practically no sample nearby.
        density: (G,) smoothed density of the confidences, integrates to one over [0, 1].
        bandwidth: kernel width σ, equal to `smooth_ece`.
        smooth_ece: the smooth calibration error, a fraction.
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

    Returns:
        low and high, (K,) fractions in [0, 1].
    """
    check_resampling(1, confidence_level)
    hits, trials = np.asarray(successes, np.float64), np.asarray(count, np.float64)
    z2 = NormalDist().inv_cdf((1 + confidence_level) / 2) ** 2
    n = np.where(trials > 0, trials, np.nan)
    centre = (hits + z2 / 2) / (n + z2)
    half = np.sqrt(z2) * np.sqrt(hits * (n - hits) / n + z2 / 4) / (n + z2)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def reliability_curve(
    scores: Scores, binning: Binning = DEFAULT_BINNING, *, n_resamples: int = 200, seed: int = 0
) -> ReliabilityCurve:
    """Return the bins of a reliability diagram, cut exactly as `ece` cuts them.

    Σ count/n · |gap| over the filled bins is the l1 error at the same binning.

    Args:
        binning: of the bins and of the error.
        n_resamples: label draws behind the consistency band and the floor.

    Raises:
        SpecError: n_resamples < 1.
        PredictionsError: confidences or hits break their contract.
    """
    check_resampling(n_resamples)
    top = checked(scores)
    binned = gather(top.confidences, top.correct, binning)
    full, filled = binned.filled(), binned.count > 0
    drawn = null_correct_sums(
        top.confidences, binned.edges, n_resamples, np.random.default_rng(seed)
    )
    rates = drawn[:, filled] / full.count  # (R, K filled)
    null = error_of_gaps(full.mean_confidence - rates, full.weights, binning.norm)
    band = np.full((2, len(filled)), np.nan)
    band[:, filled] = np.quantile(rates, _BAND, axis=0)
    low, high = wilson_interval(binned.correct_sum, binned.count)
    return ReliabilityCurve(
        lower=binned.edges[:-1],
        upper=binned.edges[1:],
        mean_confidence=binned.mean_confidence,
        accuracy=binned.accuracy,
        count=binned.count.astype(np.int64),
        interval_low=low,
        interval_high=high,
        gap=binned.gap,
        band_low=band[0],
        band_high=band[1],
        n=len(top.correct),
        binning=binning,
        ece=float(error_of_gaps(full.gap, full.weights, binning.norm)),
        null_mean=float(null.mean()),
        null_q95=float(np.quantile(null, 0.95)),
    )


def smooth_reliability_curve(scores: Scores, *, n_points: int = 256) -> SmoothReliabilityCurve:
    """Return the kernel diagram that belongs to `smooth_ece` (Błasiok & Nakkiran 2023).

    Args:
        n_points: G, points on [0, 1].

    Raises:
        SpecError: n_points is not in [2, 4096].
        PredictionsError: confidences or hits break their contract.
    """
    if not 2 <= n_points <= SMOOTH_GRID:
        raise SpecError(f"n_points must lie in [2, {SMOOTH_GRID}], got {n_points}")
    top = checked(scores)
    values, hits = top.confidences, top.correct
    bandwidth = smooth_ece(top)
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
