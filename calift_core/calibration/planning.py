"""How many samples a difference between two models takes, and what a number of them shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from calift_core.calibration.bins import Doubles
from calift_core.calibration.compare import PairedDifference
from calift_core.calibration.scores import TopLabel
from calift_core.calibration.squared import SquaredDifference, SquaredError
from calift_core.calibration.uncertainty import check_resampling
from calift_core.errors import SpecError

#: Draws behind a power; its standard error at 80 % is 0.6 points.
_DRAWS = 4000
#: Ten samples for each of 15 bins: below, no promise is made.
_LEAST = 150
_MOST = 10**12
_Z95 = NormalDist().inv_cdf(0.95)


def check_power(level: float, power: float, difference: float) -> None:
    """Raise SpecError unless level and power lie in (0, 1) and the difference is not 0."""
    check_resampling(1, level)
    if not 0 < power < 1:
        raise SpecError(f"power must lie in (0, 1), got {power}")
    if not abs(difference) > 0:
        raise SpecError(f"difference must not be 0, got {difference}")


def samples_needed(
    found: PairedDifference, *, difference: float, level: float = 0.95, power: float = 0.8
) -> int:
    """Return how many samples would show a difference of means, from a first comparison's noise.

    n · ((z_level + z_power) · standard_error / difference)², because the standard error falls with
    the root of n; for clustered samples the clusters must grow in step. For accuracy, NLL, Brier
    score and confidence; a calibration error's noise depends on the errors themselves, see
    `SquaredPlan`.

    Args:
        found: a paired comparison on n samples, not of `squared_ece`.
        difference: the one to show, in the metric's unit. Choose it for what it would mean: the
            observed one is as noisy as the comparison, and promises the power of a coin.
        power: chance to show it when it is real.

    Raises:
        SpecError: level or power is not in (0, 1), or the difference is 0, which no sample shows,
            or so small that too many would be needed.
    """
    check_power(level, power, difference)
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    if z * found.standard_error > abs(difference) * math.sqrt(_MOST / found.n):
        raise _too_small(difference)
    return max(1, math.ceil(found.n * (z * found.standard_error / difference) ** 2))


def _too_small(difference: float) -> SpecError:
    return SpecError(
        f"a difference of {difference:g} must need at most {_MOST:,} samples, got more"
    )


@dataclass(frozen=True)
class SquaredPlan:
    """The comparison of two calibration errors, played through at other numbers of samples.

    The bins' means are drawn from a normal around what is supposed to be true, with the observed
    covariance, and `SquaredDifference`'s rule is applied to each draw: the power is that of the
    very rule that a comparison uses.

    Attributes:
        a: the model that is supposed to be worse.
        paired: whether both see the same samples; else each as many of its own.
    """

    a: SquaredError
    b: SquaredError
    paired: bool = True
    seed: int = 0

    def needed(self, difference: float, *, level: float = 0.95, power: float = 0.8) -> int:
        """Return how many samples show that `a`'s root-mean-square error is larger by a difference.

        `b`'s error is supposed to be no larger than the data show (the lower end of a one-sided
        95 % interval, 0 where that is negative): nearer to 0 a difference takes more samples.
        Gaps differ from bin to bin as far as they do by more than noise. At least 150 samples, ten
        a bin.

        Args:
            difference: of the L2 calibration errors, a fraction.
            power: chance to show it when it is real.

        Raises:
            SpecError: level or power is not in (0, 1), or the difference is 0.
        """
        check_power(level, power, difference)
        draws = self._draws(abs(difference))
        low, high = _LEAST - 1, _LEAST
        while draws.power(high, level) < power:
            low, high = high, 2 * high
            if high > _MOST:
                raise _too_small(difference)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if draws.power(middle, level) >= power else (middle, high)
        return high

    def detectable(self, *, level: float = 0.95, power: float = 0.8) -> float | None:
        """Return the difference that the stored samples show with this power; None for none ≤ 1."""
        check_power(level, power, 1.0)
        n = len(self.a.bins)

        def shows(difference: float) -> bool:
            return self._draws(difference).power(n, level) >= power

        low, high = 0.0, 1.0
        if not shows(high):
            return None
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if shows(middle) else (middle, high)
        return high

    def _draws(self, difference: float) -> _Draws:
        observed = SquaredDifference.of(self.a, self.b, paired=self.paired)
        own = SquaredDifference.of(self.b, _nothing(self.b))
        base = math.sqrt(max(0.0, own.value - _Z95 * math.sqrt(own.variance)))
        truth = np.concatenate([_gaps(self.a, base + difference), _gaps(self.b, base)])
        return _Draws(truth, observed.form, observed.covariance * len(self.a.bins), self.seed)


def _gaps(model: SquaredError, size: float) -> Doubles:
    """(K,) means of an error of a given size, whose gaps differ as far as the observed ones do.

    The observed gaps are drawn to their mean by what noise explains of their scatter.
    """
    mean = float(model.means.sum())
    scatter = model.means - mean * model.shares
    square = float((np.square(scatter) / model.shares).sum())
    noise = float((model.covariance.diagonal() / model.shares).sum() - model.covariance.sum())
    kept = math.sqrt(max(0.0, 1 - noise / square)) if square > 0 else 0.0
    side = -model.shares if mean < 0 else model.shares
    shape = mean * model.shares + kept * scatter if mean or kept else side
    plain = math.sqrt(float((np.square(shape) / model.shares).sum()))
    return shape * (size / plain)


def _nothing(like: SquaredError) -> SquaredError:
    """A model whose error is 0 and known."""
    n = len(like.bins)
    return SquaredError(TopLabel(np.ones(n), np.ones(n, dtype=np.bool_)), like.units)


class _Draws:
    """Draws of the rule's numbers as polynomials in 1/√n, so that any n is one evaluation."""

    def __init__(self, truth: Doubles, form: Doubles, covariance: Doubles, seed: int) -> None:
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        normal = np.random.default_rng(seed).standard_normal((_DRAWS, len(truth)))
        noise = normal @ root.T  # (R, K + L), of one sample
        scaled = form[:, None] * covariance
        inner = scaled * form  # MΣM
        self._square = float((scaled * scaled.T).sum())
        self._value = (
            float(truth @ (form * truth)),
            noise @ (2 * form * truth),
            np.square(noise) @ form - float(np.trace(scaled)),
        )
        self._linear = (
            float(truth @ inner @ truth),
            noise @ (2 * inner @ truth),
            ((noise @ inner) * noise).sum(axis=1),
        )

    def power(self, n: int, level: float) -> float:
        """Return how often n samples show that the first model is worse."""
        x = 1 / math.sqrt(n)
        value = self._value[0] + x * self._value[1] + x * x * self._value[2]
        linear = self._linear[0] + x * self._linear[1] + x * x * self._linear[2]
        least = 2 * self._square * x**4
        variance = np.maximum(4 * linear * x * x - least, least)
        z = NormalDist().inv_cdf((1 + level) / 2)
        return float((value > z * np.sqrt(variance)).mean())
