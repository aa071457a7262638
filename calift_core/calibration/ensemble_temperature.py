"""Ensemble temperature scaling (ETS): Zhang, Kailkhura & Han 2020, "Mix-n-Match", section 4.1."""

from typing import Any

import numpy as np

from calift_core.calibration.bins import Doubles, Floats, Ints, softmax
from calift_core.calibration.calibrators import Calibrator, fit_temperature

_ROUNDS = 500


class EnsembleTemperature(Calibrator):
    """w₁ softmax(z / T) + w₂ softmax(z) + w₃ / C, weights ≥ 0 that sum to 1.

    T first, then the weights, both by NLL. No part changes the order of a sample's classes, so
    predictions stay.

    Differs from the reference: there a general solver minimises the NLL or the squared error; here
    weight goes from one part to another as far as the NLL falls, which is convex in the weights.
    """

    kind = "ets"
    temperature: float
    weights: Doubles

    def _fit(self, logits: Floats, labels: Ints) -> None:
        self.temperature = fit_temperature(logits, labels)
        own = self._parts(logits)[:, np.arange(len(labels)), labels]  # (3, N)
        own = np.maximum(own, np.finfo(np.float64).tiny)
        self.weights = _likeliest(own)

    def _parts(self, logits: Floats) -> Doubles:
        """(3, N, C)."""
        even = np.full(logits.shape, 1 / logits.shape[1])
        return np.stack([softmax(logits, self.temperature), softmax(logits), even]).astype(
            np.float64
        )

    def _transform(self, logits: Floats) -> Floats:
        return np.asarray(np.einsum("k,knc->nc", self.weights, self._parts(logits)))

    def _parameters(self) -> dict[str, object]:
        return {"temperature": self.temperature, "weights": self.weights.tolist()}

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.temperature = float(parameters["temperature"])
        self.weights = np.asarray(parameters["weights"], dtype=np.float64)


def _likeliest(own: Doubles) -> Doubles:
    """Weights (3,) of the mixture under which probabilities of the labels (3, N) are likeliest."""
    weights = np.full(3, 1 / 3)
    for _ in range(_ROUNDS):
        before = weights.copy()
        for to, giving in ((0, 1), (0, 2), (1, 2)):
            mixed, change = weights @ own, own[to] - own[giving]
            low, high = -weights[to], weights[giving]

            def rises(step: float, mixed: Doubles = mixed, change: Doubles = change) -> bool:
                """Whether the likelihood still rises behind this step."""
                likely = np.maximum(mixed + step * change, np.finfo(np.float64).tiny)
                with np.errstate(over="ignore"):
                    return float((change / likely).mean()) > 0

            if not rises(low):
                step = low
            elif rises(high):
                step = high
            else:
                for _ in range(50):
                    middle = (low + high) / 2
                    low, high = (middle, high) if rises(middle) else (low, middle)
                step = low
            weights[to], weights[giving] = weights[to] + step, weights[giving] - step
        if np.abs(weights - before).max() < 1e-9:
            break
    return weights
