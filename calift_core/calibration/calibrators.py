"""Post-hoc calibrators: fitted once on ID calibration data, then applied anywhere.

All map logits (N, C) to probabilities (N, C). A calibrator remembers what it was fitted on and
refuses anything but the ID calibration split, unless it is asked to be an `oracle`, which it then
says of itself for good.
"""

import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np

from calift_core.calibration.bins import (
    DEFAULT_BINNING,
    Binning,
    Bools,
    Doubles,
    Floats,
    Ints,
    assign_bins,
    check_labels,
    check_logits,
    gather,
    softmax,
)
from calift_core.calibration.scores import score_probs
from calift_core.errors import LeakageError, SpecError

log = logging.getLogger(__name__)

TEMPERATURE_RANGE = (0.01, 100.0)


class Calibrator(ABC):
    """What every calibrator shares: the leakage guard, and a memory of what it was fitted on.

    Attributes:
        reads_initial: whether it reads the logits of the initial model beside the tuned one's, when
            it is fitted and when it is applied: two towers are run for it.
        fitted_on: {"split", "role", "n"}, None before `fit`.
        oracle: whether it was fitted on data that it will be evaluated by.
    """

    kind: ClassVar[str]
    reads_initial: ClassVar[bool] = False

    def __init__(self) -> None:
        self.fitted_on: dict[str, str | int] | None = None
        self.oracle = False

    def fit(
        self,
        logits: Floats,
        labels: Ints,
        *,
        split: str,
        role: str,
        oracle: bool = False,
        initial: Floats | None = None,
    ) -> Self:
        """Fit on one split and return self.

        Args:
            logits: (N, C), logit scale included.
            labels: (N,) integers in [0, C).
            split: part of the data set: `calibration`, or another one for an oracle.
            role: `id`, or another one for an oracle.
            oracle: allow any data, and mark this calibrator as an oracle if the data are not the
                ID calibration split.
            initial: (N, C) logits of the initial model on the same samples; others than those that
                read them do not look at it.

        Raises:
            LeakageError: the data are not the ID calibration split and `oracle` is false.
            SpecError: it reads the initial model's logits, and there are none.
            PredictionsError: logits or labels break their contract.
        """
        allowed = _allowed(split, role, oracle)
        wide = check_logits(logits)
        targets = check_labels(labels, *wide.shape)
        if self.reads_initial:
            self._fit_with_initial(wide, self._initial(initial, wide), targets)
        else:
            self._fit(wide, targets)
        self.fitted_on = {"split": split, "role": role, "n": len(targets)}
        self.oracle = not allowed
        return self

    def transform(self, logits: Floats, initial: Floats | None = None) -> Floats:
        """Return calibrated probabilities (N, C), float32 or better.

        Args:
            logits: (N, C), logit scale included.
            initial: (N, C) logits of the initial model, as for `fit`.

        Raises:
            SpecError: `fit` was not called, C differs from the fitted one, or it reads the initial
                model's logits and there are none.
            PredictionsError: logits break their contract.
        """
        if self.fitted_on is None:
            raise SpecError(f"calibrator {self.kind!r} must be fitted before transform, got no fit")
        wide = check_logits(logits)
        if self.reads_initial:
            return self._transform_with_initial(wide, self._initial(initial, wide))
        return self._transform(wide)

    def _initial(self, initial: Floats | None, logits: Floats) -> Floats:
        if initial is None:
            raise SpecError(
                f"calibrator {self.kind!r} must have the initial model's logits, got none",
                hint="Predict the same samples with the zero-shot model that the run began with.",
            )
        wide = check_logits(initial)
        if wide.shape != logits.shape:
            raise SpecError(
                f"the initial model's logits must be {logits.shape}, they are {wide.shape}"
            )
        return wide

    def to_dict(self) -> dict[str, object]:
        """Return kind, fitted_on, oracle and parameters as plain values for JSON."""
        return {
            "kind": self.kind,
            "fitted_on": self.fitted_on,
            "oracle": self.oracle,
            "parameters": self._parameters(),
        }

    def _fit(self, logits: Floats, labels: Ints) -> None:
        raise NotImplementedError

    def _transform(self, logits: Floats) -> Floats:
        raise NotImplementedError

    def _fit_with_initial(self, logits: Floats, initial: Floats, labels: Ints) -> None:
        raise NotImplementedError

    def _transform_with_initial(self, logits: Floats, initial: Floats) -> Floats:
        raise NotImplementedError

    @abstractmethod
    def _parameters(self) -> dict[str, object]: ...

    @abstractmethod
    def _restore(self, parameters: dict[str, Any]) -> None: ...


def _allowed(split: str, role: str, oracle: bool) -> bool:
    """Return whether data are the ID calibration split; raise if they are not and must be."""
    allowed = split == "calibration" and role == "id"
    if not allowed and not oracle:
        raise LeakageError(
            "a calibrator must be fitted on split 'calibration' of role 'id', got "
            f"split {split!r} of role {role!r}.",
            hint="Pass oracle=True to fit it all the same; it then counts as an oracle.",
        )
    return allowed


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Return the temperature in [0.01, 100] that minimises the NLL of softmax(logits / T).

    The NLL is convex in β = 1/T; its slope is found to be zero by Newton steps that fall back to
    bisection, so the result does not depend on a starting point.

    Args:
        logits: (N, C).
        labels: (N,) integers in [0, C).
    """
    wide = check_logits(logits)
    targets = check_labels(labels, *wide.shape)
    centred = wide - wide.max(axis=1, keepdims=True)  # (N, C)
    own = float(centred[np.arange(len(targets)), targets].mean(dtype=np.float64))
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]

    def slope_and_curvature(beta: float) -> tuple[float, float]:
        weight = np.exp(np.float32(beta) * centred)
        total = weight.sum(axis=1, dtype=np.float64)
        first = np.einsum("nc,nc->n", weight, centred, dtype=np.float64) / total
        second = np.einsum("nc,nc,nc->n", weight, centred, centred, dtype=np.float64) / total
        return float(first.mean()) - own, float((second - np.square(first)).mean())

    if slope_and_curvature(low)[0] >= 0 or slope_and_curvature(high)[0] <= 0:
        beta = low if slope_and_curvature(low)[0] >= 0 else high
        log.warning("temperature hits its bound %g: no finite optimum in range", 1 / beta)
        return 1 / beta
    beta = 1.0
    for _ in range(100):
        slope, curvature = slope_and_curvature(beta)
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else np.inf
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - beta) <= 1e-6 * beta:
            break
        beta = following
    return float(1 / beta)


class Temperature(Calibrator):
    """softmax(logits / T), T by NLL (Guo 2017); never changes the predicted class."""

    kind = "temperature"
    temperature: float

    def _fit(self, logits: Floats, labels: Ints) -> None:
        self.temperature = fit_temperature(logits, labels)

    def _transform(self, logits: Floats) -> Floats:
        return softmax(logits, self.temperature)

    def _parameters(self) -> dict[str, object]:
        return {"temperature": self.temperature}

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.temperature = float(parameters["temperature"])


class PerturbedTemperature(Temperature):
    """TS-P: one temperature for ID data and perturbed copies of it (Tomani 2021).

    `fit` takes their union: the logits of the split and of its Gaussian-perturbed copies, at
    `perturbation_levels`, one under the other. A perturbed copy belongs to the split that it is a
    copy of, so the leakage guard is the same.
    """

    kind = "tsp"


class Vector(Calibrator):
    """softmax(w ⊙ logits + b), w and b (C,) by NLL (Guo 2017); may change the predicted class."""

    kind = "vector"
    weight: Doubles
    bias: Doubles

    def _fit(self, logits: Floats, labels: Ints) -> None:
        n, n_classes = logits.shape
        # Starting at the best temperature, with columns centred, spares L-BFGS most of its steps:
        # a common offset of the logits would otherwise tie every weight to its bias.
        start = 1 / fit_temperature(logits, labels)
        centre = logits.mean(axis=0, dtype=np.float64)
        centred = logits - centre
        rows = np.arange(n)

        def loss(parameters: Doubles) -> tuple[float, Doubles]:
            weight, bias = parameters[:n_classes], parameters[n_classes:]
            z = centred * weight + bias
            z -= z.max(axis=1, keepdims=True)
            np.exp(z, out=z)
            z /= z.sum(axis=1, keepdims=True)
            own = np.maximum(z[rows, labels], np.finfo(np.float64).tiny)
            value = float(-np.log(own).mean())
            z[rows, labels] -= 1
            gradient = np.concatenate([np.einsum("nc,nc->c", z, centred), z.sum(axis=0)]) / n
            return value, gradient

        from scipy.optimize import minimize  # half a second that only a fit needs

        found = minimize(
            loss,
            np.concatenate([np.full(n_classes, start), start * centre]),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200, "ftol": 1e-9, "gtol": 1e-6},
        )
        self.weight = found.x[:n_classes]
        self.bias = found.x[n_classes:] - self.weight * centre

    def _transform(self, logits: Floats) -> Floats:
        if logits.shape[1] != len(self.weight):
            raise SpecError(
                f"logits must have the fitted {len(self.weight)} classes, got {logits.shape[1]}"
            )
        return softmax(logits * self.weight + self.bias)

    def _parameters(self) -> dict[str, object]:
        return {"weight": self.weight.tolist(), "bias": self.bias.tolist()}

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.weight = np.asarray(parameters["weight"], dtype=np.float64)
        self.bias = np.asarray(parameters["bias"], dtype=np.float64)


class TopLabelMap(Calibrator):
    """Maps the confidence in the predicted class; the other classes share the rest.

    The others keep their proportions. Where the new confidence is so low that another class would
    overtake it, the probabilities say so, and the predicted class of a row changes; `confidences`
    gives the new confidence in the class that was predicted before.
    """

    def confidences(self, logits: Floats) -> Doubles:
        """Return the calibrated confidence (N,) in the class that the logits predict."""
        if self.fitted_on is None:
            raise SpecError(f"calibrator {self.kind!r} must be fitted before use, got no fit")
        return self._map(softmax(logits).max(axis=1).astype(np.float64))

    def _fit(self, logits: Floats, labels: Ints) -> None:
        scores = score_probs(softmax(logits), labels)
        self._fit_map(scores.confidences, scores.correct)

    def _transform(self, logits: Floats) -> Floats:
        probs = softmax(logits).astype(np.float64)
        rows, top = np.arange(len(probs)), probs.argmax(axis=1)
        new = self._map(probs[rows, top])
        probs[rows, top] = 0.0
        rest = probs.sum(axis=1)
        if probs.shape[1] > 1:
            # A confidence of exactly one leaves no proportions to keep.
            probs[rest <= 0] = 1 / (probs.shape[1] - 1)
            probs[rows, top] = 0.0
            probs *= ((1 - new) / np.where(rest > 0, rest, 1.0))[:, None]
        else:
            new = np.ones_like(new)
        probs[rows, top] = new
        return probs

    @abstractmethod
    def _fit_map(self, confidences: Doubles, correct: Bools) -> None: ...

    @abstractmethod
    def _map(self, confidences: Doubles) -> Doubles: ...


class Histogram(TopLabelMap):
    """Histogram binning of the top-label confidence (Zadrozny & Elkan 2001).

    A confidence becomes the accuracy of its bin; an empty bin keeps the confidence as it is.

    Args:
        binning: of the confidences; its norm plays no part.
    """

    kind = "histogram"
    edges: Doubles
    values: Doubles

    def __init__(self, binning: Binning = DEFAULT_BINNING) -> None:
        super().__init__()
        self.binning = binning

    def _fit_map(self, confidences: Doubles, correct: Bools) -> None:
        binned = gather(confidences, correct, self.binning)
        self.edges, self.values = binned.edges, binned.accuracy

    def _map(self, confidences: Doubles) -> Doubles:
        found = self.values[assign_bins(confidences, self.edges)]
        return np.where(np.isnan(found), confidences, found)

    def _parameters(self) -> dict[str, object]:
        return {
            "n_bins": self.binning.n_bins,
            "scheme": self.binning.scheme,
            "edges": self.edges.tolist(),
            "values": [None if np.isnan(value) else value for value in self.values.tolist()],
        }

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.binning = Binning(int(parameters["n_bins"]), parameters["scheme"])
        self.edges = np.asarray(parameters["edges"], dtype=np.float64)
        self.values = np.asarray(parameters["values"], dtype=np.float64)


class Isotonic(TopLabelMap):
    """Isotonic regression of correctness on the top-label confidence (Zadrozny & Elkan 2002).

    Pool-adjacent-violators over distinct confidences, linear between them, constant beyond.
    """

    kind = "isotonic"
    x: Doubles
    y: Doubles

    def _fit_map(self, confidences: Doubles, correct: Bools) -> None:
        distinct, index, counts = np.unique(confidences, return_inverse=True, return_counts=True)
        rate = np.bincount(index, weights=correct) / counts
        from scipy.optimize import isotonic_regression

        fitted = np.asarray(isotonic_regression(rate, weights=counts).x)
        # Only the ends of each level matter to the interpolation.
        level = np.flatnonzero(np.diff(fitted) != 0)
        keep = np.unique(np.concatenate([[0], level, level + 1, [len(distinct) - 1]]))
        self.x, self.y = distinct[keep], fitted[keep]

    def _map(self, confidences: Doubles) -> Doubles:
        return np.interp(confidences, self.x, self.y)

    def _parameters(self) -> dict[str, object]:
        return {"x": self.x.tolist(), "y": self.y.tolist()}

    def _restore(self, parameters: dict[str, Any]) -> None:
        self.x = np.asarray(parameters["x"], dtype=np.float64)
        self.y = np.asarray(parameters["y"], dtype=np.float64)
