"""Structured vector and matrix scaling (Berta, Holzmüller, Jordan & Bach 2025, arXiv 2511.03685).

softmax(W z' + b) with W = I + diag(v) + M, M zero on its diagonal. z' are the logarithms of what a
temperature makes of the logits, mixed with a little of the uniform distribution. A ridge pulls v, b
and M to 0, that is to plain temperature, and harder the more parameters there are for the images
that fit them: λ (C/N) (‖v‖² + ‖b‖²) + λ (C (C − 1)/N) ‖M‖², λ = 1.

Differs from the reference, `probmetrics`: its SAGA solvers and other penalties are left out; what
it finds with its defaults is found here by L-BFGS on the same objective.
"""

from typing import Any

import numpy as np

from calift_core.calibration.bins import Doubles, Floats, Ints, softmax
from calift_core.calibration.calibrators import Calibrator, fit_temperature
from calift_core.errors import SpecError


class _Structured(Calibrator):
    """What both share: the temperature before, the objective, and how it is minimised."""

    temperature: float
    n: int
    weight: Doubles
    bias: Doubles

    def _scaled(self, logits: Floats) -> Doubles:
        """Z' (N, C): log of (N p + u)/(N + 1), p after the temperature and u uniform."""
        probs = softmax(logits, self.temperature).astype(np.float64)
        mixed = (self.n * probs + 1 / probs.shape[1]) / (self.n + 1)
        return np.asarray(np.log(mixed))

    def _fit(self, logits: Floats, labels: Ints) -> None:
        self.temperature, self.n = fit_temperature(logits, labels), len(labels)
        z = self._scaled(logits)
        n, n_classes = z.shape
        rows, ridge = np.arange(n), n_classes / n
        n_weights = self._n_weights(n_classes)

        def loss(parameters: Doubles) -> tuple[float, Doubles]:
            own, b = parameters[:n_weights], parameters[n_weights:]
            out = self._applied(z, own) + b
            out -= out.max(axis=1, keepdims=True)
            np.exp(out, out=out)
            out /= out.sum(axis=1, keepdims=True)
            value = float(-np.log(np.maximum(out[rows, labels], np.finfo(np.float64).tiny)).mean())
            out[rows, labels] -= 1
            penalty, pull = self._penalty(own, n_classes, ridge)
            gradient = np.concatenate(
                [self._slope(out, z) / n + pull, out.mean(axis=0) + 2 * ridge * b]
            )
            return value + penalty + ridge * float(b @ b), gradient

        from scipy.optimize import minimize  # half a second that only a fit needs

        found = minimize(
            loss,
            np.zeros(n_weights + n_classes),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-7},
        )
        self.weight, self.bias = found.x[:n_weights], found.x[n_weights:]

    def _transform(self, logits: Floats) -> Floats:
        if logits.shape[1] != len(self.bias):
            raise SpecError(
                f"logits must have the fitted {len(self.bias)} classes, got {logits.shape[1]}"
            )
        return softmax(self._applied(self._scaled(logits), self.weight) + self.bias)

    def _n_weights(self, n_classes: int) -> int:
        raise NotImplementedError

    def _applied(self, z: Doubles, weight: Doubles) -> Doubles:
        """W z' (N, C) without the bias."""
        raise NotImplementedError

    def _slope(self, residual: Doubles, z: Doubles) -> Doubles:
        """Gradient of the summed NLL by the weights."""
        raise NotImplementedError

    def _penalty(self, weight: Doubles, n_classes: int, ridge: float) -> tuple[float, Doubles]:
        return ridge * float(weight @ weight), 2 * ridge * weight

    def _parameters(self) -> dict[str, object]:
        return {
            "temperature": self.temperature,
            "n": self.n,
            "weight": self.weight.tolist(),
            "bias": self.bias.tolist(),
        }

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.temperature, self.n = float(parameters["temperature"]), int(parameters["n"])
        self.weight = np.asarray(parameters["weight"], dtype=np.float64)
        self.bias = np.asarray(parameters["bias"], dtype=np.float64)


class StructuredVector(_Structured):
    """SVS: W = I + diag(v)."""

    kind = "svs"

    def _n_weights(self, n_classes: int) -> int:
        return n_classes

    def _applied(self, z: Doubles, weight: Doubles) -> Doubles:
        return z * (1 + weight)

    def _slope(self, residual: Doubles, z: Doubles) -> Doubles:
        return np.asarray(np.einsum("nc,nc->c", residual, z))


class StructuredMatrix(_Structured):
    """SMS: W = I + diag(v) + M."""

    kind = "sms"

    def _n_weights(self, n_classes: int) -> int:
        return n_classes * n_classes

    def _applied(self, z: Doubles, weight: Doubles) -> Doubles:
        return np.asarray(z + z @ weight.reshape(z.shape[1], -1).T)

    def _slope(self, residual: Doubles, z: Doubles) -> Doubles:
        return np.asarray((residual.T @ z).reshape(-1))

    def _penalty(self, weight: Doubles, n_classes: int, ridge: float) -> tuple[float, Doubles]:
        strength = np.full((n_classes, n_classes), ridge * (n_classes - 1))
        np.fill_diagonal(strength, ridge)
        flat = strength.reshape(-1)
        return float((flat * weight * weight).sum()), 2 * flat * weight
