"""A calibrator of probabilities after scikit-learn's manners, cross-fitted on one part."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from calift_core.calibration import CALIBRATORS, Calibrator
from calift_core.calibration.bins import check_labels, check_probs, logits_of, two_columns
from calift_core.errors import PredictionsError, SpecError, UnknownNameError

#: What needs more than one file of logits.
_NOT_HERE = ("tsp",)


class ProbabilityCalibrator:
    """Maps a model's probabilities to calibrated ones.

    Args:
        kind: a calibrator of `calift_core.calibration`: temperature, ets, svs, sms, vector,
            histogram, isotonic.
        n_folds: of the cross-fitting.
        seed: of the folds.

    Attributes:
        calibrator_: fitted on all samples; None before `fit`.
        classes_: (C,) class indices.
        cross_fitted: (N, C) probabilities of the samples it was fitted on, each by a calibrator
            that has not seen it: what an error may be measured on.
    """

    def __init__(self, kind: str = "temperature", *, n_folds: int = 5, seed: int = 0) -> None:
        known = [name for name in CALIBRATORS if name not in _NOT_HERE]
        if kind not in known:
            raise UnknownNameError("calibrator", kind, known)
        if n_folds < 2:
            raise SpecError(f"n_folds must be at least 2, got {n_folds}")
        self.kind, self.n_folds, self.seed = kind, n_folds, seed
        self.calibrator_: Calibrator | None = None
        self.classes_: npt.NDArray[np.int64] | None = None
        self._cross_fitted: npt.NDArray[Any] | None = None

    def fit(self, probs: Any, labels: Any) -> Self:
        """Fit on probabilities (N, C) and labels (N,), and cross-fit them.

        Raises:
            PredictionsError: they break their contract, or there are fewer samples than folds.
        """
        checked = check_probs(two_columns(probs))
        targets = check_labels(np.asarray(labels), *checked.shape)
        n = len(targets)
        if n < self.n_folds:
            raise PredictionsError(
                f"there must be at least {self.n_folds} samples, one a fold, got {n}"
            )
        logits = logits_of(checked)
        fold = np.random.default_rng(self.seed).permutation(np.arange(n) % self.n_folds)
        out = np.empty(logits.shape)
        for k in range(self.n_folds):
            out[fold == k] = self._fitted(logits[fold != k], targets[fold != k]).transform(
                logits[fold == k]
            )
        self.calibrator_ = self._fitted(logits, targets)
        self.classes_ = np.arange(checked.shape[1])
        self._cross_fitted = out
        return self

    def _fitted(self, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Calibrator:
        return CALIBRATORS[self.kind]().fit(logits, labels, split="calibration", role="id")

    def predict_proba(self, probs: Any) -> npt.NDArray[Any]:
        """Calibrated probabilities (N, C) of probabilities (N, C).

        Raises:
            SpecError: `fit` was not called, or C differs from the fitted one.
            PredictionsError: the probabilities break their contract.
        """
        return self._fit_done().transform(logits_of(check_probs(two_columns(probs))))

    def predict(self, probs: Any) -> npt.NDArray[np.int64]:
        """The most probable class (N,) after calibration."""
        return np.asarray(self.predict_proba(probs).argmax(axis=1), dtype=np.int64)

    @property
    def cross_fitted(self) -> npt.NDArray[Any]:
        """See the class."""
        self._fit_done()
        assert self._cross_fitted is not None
        return self._cross_fitted

    @property
    def temperature(self) -> float:
        """Of the calibrator fitted on all samples, where it has one; above 1 it makes less sure."""
        return float(getattr(self._fit_done(), "temperature", float("nan")))

    def _fit_done(self) -> Calibrator:
        if self.calibrator_ is None:
            raise SpecError("a calibrator must be fitted first: fit(probs, labels)")
        return self.calibrator_


def calibrate(
    probs: Any, labels: Any, *, kind: str = "temperature", n_folds: int = 5, seed: int = 0
) -> ProbabilityCalibrator:
    """Fit a calibrator of probabilities.

    Args:
        probs: (N, C) probabilities, rows sum to one, or (N,) of the second of two classes.
        labels: (N,) class indices.
        kind: see `ProbabilityCalibrator`.
        n_folds: of the cross-fitting.
        seed: of the folds.

    Returns:
        It, with `predict_proba` for new probabilities and `cross_fitted` for these.

    Raises:
        UnknownNameError: there is no such calibrator.
        PredictionsError: probs or labels break their contract.
    """
    return ProbabilityCalibrator(kind, n_folds=n_folds, seed=seed).fit(probs, labels)
