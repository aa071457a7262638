"""Calibrators that read the initial model's logits beside those of the model that was tuned.

Fine-tuning moves a model, and where the two disagree it has moved: that is known of every sample,
shifted or not, without its label. Each costs a pass of the initial model for a sample.
All but the last keep every prediction.
"""

from typing import Any, ClassVar

import numpy as np

from calift_core.calibration.bins import Doubles, Floats, Ints, softmax
from calift_core.calibration.calibrators import TEMPERATURE_RANGE, Calibrator, fit_temperature

#: Of the logarithm of a temperature.
LARGEST = float(np.log(TEMPERATURE_RANGE[1]))
#: Standard deviation of the prior on b, about 0: few images leave it at plain temperature.
PRIOR = 2.0


def disagreement(logits: Floats, initial: Floats) -> Doubles:
    """D = ½ ‖softmax z − softmax z₀‖₁ of each sample (N,), 0 for equal models, 1 at most.

    Args:
        logits: z (N, C), of the tuned model.
        initial: z₀ (N, C), of the initial model.
    """
    apart = np.abs(softmax(logits) - softmax(initial)).sum(axis=1, dtype=np.float64)
    return np.asarray(np.minimum(apart / 2, 1.0))


class DisagreementTemperature(Calibrator):
    """softmax(z / T), T = exp(a + b·d): hotter where the tuned model departs from the initial one.

    (a, b) minimise the NLL on ID calibration data plus b² / (2 σ² N), σ = 2: with few images b
    stays near 0, which is plain temperature. A temperature is positive, so the order of a sample's
    logits, and with it every prediction, stays as it is.

    [calift]
    """

    kind = "disagreement"
    reads_initial = True
    #: Where b is looked for.
    bounds: ClassVar[tuple[float, float]] = (-LARGEST, LARGEST)
    a: float
    b: float

    def _fit_with_initial(self, logits: Floats, initial: Floats, labels: Ints) -> None:
        d = disagreement(logits, initial)
        n, rows = len(labels), np.arange(len(labels))
        centred = logits - logits.max(axis=1, keepdims=True)
        own = centred[rows, labels].astype(np.float64)

        def loss(parameters: Doubles) -> tuple[float, Doubles]:
            a, b = parameters
            beta = np.exp(-(a + b * d))
            z = centred * beta[:, None]
            weight = np.exp(z, dtype=np.float64)
            total = weight.sum(axis=1)
            value = (np.log(total) - beta * own).mean() + b * b / (2 * PRIOR**2 * n)
            # dNLL/dβ = E_p[z] − z_y, and dβ/d(a, b) = −β (1, d).
            slope = -beta * ((weight * centred).sum(axis=1) / total - own)
            return float(value), np.array([slope.mean(), (slope * d).mean() + b / (PRIOR**2 * n)])

        from scipy.optimize import minimize  # half a second that only a fit needs

        start = np.array([np.log(fit_temperature(logits, labels)), 0.0])
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=[(-LARGEST, LARGEST), self.bounds]
        )
        self.a, self.b = map(float, found.x)

    def temperatures(self, logits: Floats, initial: Floats) -> Doubles:
        """T of each sample (N,)."""
        low, high = TEMPERATURE_RANGE
        return np.clip(np.exp(self.a + self.b * disagreement(logits, initial)), low, high)

    def _transform_with_initial(self, logits: Floats, initial: Floats) -> Floats:
        return softmax(logits / self.temperatures(logits, initial)[:, None])

    def _parameters(self) -> dict[str, object]:
        return {"a": self.a, "b": self.b}

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.a, self.b = float(parameters["a"]), float(parameters["b"])


class CautiousTemperature(DisagreementTemperature):
    """Disagreement temperature with b ≥ 0: where the two models disagree it is never colder.

    On ID data alone b may come out below 0, where the tuned model is right when the two disagree:
    then disagreement there says nothing of a shift, and this is plain temperature.

    [calift]
    """

    kind = "cautious"
    bounds = (0.0, LARGEST)


class SampleScaling(Calibrator):
    """SaLS: a sample's logits are stretched to the range of the initial model's (Murugesan 2024).

    z' = (z − min z) · (max z₀ − min z₀) / (max z − min z) + min z₀. Nothing is fitted. It is as
    confident as the initial model is, and keeps every prediction.

    Source: "Robust Calibration of Large Vision-Language Adapters", ECCV 2024, section 4.
    """

    kind = "sals"
    reads_initial = True

    def _fit_with_initial(self, logits: Floats, initial: Floats, labels: Ints) -> None:
        """Nothing to fit."""

    def _transform_with_initial(self, logits: Floats, initial: Floats) -> Floats:
        low, high = logits.min(axis=1, keepdims=True), logits.max(axis=1, keepdims=True)
        base, top = initial.min(axis=1, keepdims=True), initial.max(axis=1, keepdims=True)
        width = high - low
        # Logits that are all equal have no range to stretch.
        share = (logits - low) / np.where(width > 0, width, 1.0)
        return softmax(share * (top - base) + base)

    def _parameters(self) -> dict[str, object]:
        return {}

    def _restore(self, parameters: dict[str, Any]) -> None:
        """Nothing was fitted."""


class Ensemble(Calibrator):
    """½ softmax(z / T) + ½ softmax(z₀ / T₀): the mean of two calibrated models (Kumar 2022).

    T and T₀ are each model's own temperature on ID calibration data. Predictions may change.

    Source: "Calibrated ensembles can mitigate accuracy tradeoffs under distribution shift", UAI
    2022, section 3.
    """

    kind = "ensemble"
    reads_initial = True
    own: float
    first: float

    def _fit_with_initial(self, logits: Floats, initial: Floats, labels: Ints) -> None:
        self.own, self.first = fit_temperature(logits, labels), fit_temperature(initial, labels)

    def _transform_with_initial(self, logits: Floats, initial: Floats) -> Floats:
        return (softmax(logits, self.own) + softmax(initial, self.first)) / 2

    def _parameters(self) -> dict[str, object]:
        return {"own": self.own, "first": self.first}

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.own, self.first = float(parameters["own"]), float(parameters["first"])
