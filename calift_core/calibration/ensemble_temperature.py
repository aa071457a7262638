"""Ensemble temperature scaling (ETS): Zhang, Kailkhura & Han 2020, "Mix-n-Match", section 4.1."""

from typing import Any

import numpy as np

from calift_core.calibration.bins import Doubles, Floats, Ints, softmax
from calift_core.calibration.calibrators import Calibrator, fit_temperature

_ROUNDS = 2000


class EnsembleTemperature(Calibrator):
    """w₁ softmax(z / T) + w₂ softmax(z) + w₃ / C, weights ≥ 0 that sum to 1.

    T first, then the weights, both by NLL. No part changes the order of a sample's classes, so
    predictions stay.

    Differs from the reference: there a general solver minimises the NLL or the squared error; here
    expectation maximisation finds the weights, in which the NLL is convex.
    """

    kind = "ets"
    temperature: float
    weights: Doubles

    def _fit(self, logits: Floats, labels: Ints) -> None:
        self.temperature = fit_temperature(logits, labels)
        own = self._parts(logits)[:, np.arange(len(labels)), labels]  # (3, N)
        own = np.maximum(own, np.finfo(np.float64).tiny)
        self.weights = np.full(3, 1 / 3)
        for _ in range(_ROUNDS):
            shares = self.weights[:, None] * own
            following = (shares / shares.sum(axis=0)).mean(axis=1)
            moved = np.abs(following - self.weights).max()
            self.weights = following
            if moved < 1e-7:
                break

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
