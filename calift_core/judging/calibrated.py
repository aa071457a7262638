"""A calibrator of probabilities after scikit-learn's manners, cross-fitted on one part."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from calift_core.calibration import CALIBRATORS, Calibrator
from calift_core.calibration.bins import check_probs, logits_of, two_columns
from calift_core.errors import PredictionsError, SpecError, UnknownNameError
from calift_core.judging.labels import class_indices

#: What needs more than one file of logits.
_NOT_HERE = ("tsp",)


class ProbabilityCalibrator:
    """Maps a model's probabilities to calibrated ones.

    An estimator of scikit-learn, which need not be installed: it can be cloned, searched over, and
    put behind a model in a pipeline.

    Args:
        kind: a calibrator of `calift_core.calibration`: temperature, ets, svs, sms, vector,
            histogram, isotonic. All but temperature, ets and histogram need SciPy
            (`calift[analysis]`).
        classes: (C,) labels in the order of the columns; None: 0 to C − 1 for integers, the sorted
            labels for strings, as scikit-learn orders them.
        n_folds: of the cross-fitting.
        seed: of the folds.

    Attributes:
        calibrator_: fitted on all samples.
        classes_: (C,) labels in the order of the columns.
        cross_fitted_: (N, C) probabilities of the samples it was fitted on, each by a calibrator
            that has not seen it: what an error may be measured on.
    """

    calibrator_: Calibrator
    classes_: npt.NDArray[Any]
    cross_fitted_: npt.NDArray[Any]

    def __init__(
        self, kind: str = "temperature", *, classes: Any = None, n_folds: int = 5, seed: int = 0
    ) -> None:
        self.kind, self.classes, self.n_folds, self.seed = kind, classes, n_folds, seed

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What it was made with; `deep` means nothing here."""
        return {name: getattr(self, name) for name in ("kind", "classes", "n_folds", "seed")}

    def set_params(self, **params: Any) -> Self:
        """Change what it was made with, before `fit`.

        Raises:
            UnknownNameError: there is no such parameter.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise UnknownNameError("parameter", name, self.get_params())
            setattr(self, name, value)
        return self

    def fit(self, probs: Any, labels: Any) -> Self:
        """Fit on probabilities (N, C) and labels (N,), and cross-fit them.

        Raises:
            UnknownNameError: there is no calibrator of this kind.
            SpecError: there are fewer than two folds.
            PredictionsError: they break their contract, or there are fewer samples than folds.
        """
        known = [name for name in CALIBRATORS if name not in _NOT_HERE]
        if self.kind not in known:
            raise UnknownNameError("calibrator", self.kind, known)
        if self.n_folds < 2:
            raise SpecError(f"n_folds must be at least 2, got {self.n_folds}")
        checked = check_probs(two_columns(probs))
        targets, classes = class_indices(labels, *checked.shape, classes=self.classes)
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
        self.classes_, self.cross_fitted_ = classes, out
        return self

    def _fitted(self, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Calibrator:
        return CALIBRATORS[self.kind]().fit(logits, labels, split="calibration", role="id")

    def predict_proba(self, probs: Any) -> npt.NDArray[Any]:
        """Calibrated probabilities (N, C) of probabilities (N, C).

        Raises:
            SpecError: `fit` was not called, or C differs from the fitted one.
            PredictionsError: the probabilities break their contract.
        """
        self._require_fit()
        checked = check_probs(two_columns(probs))
        if checked.shape[1] != len(self.classes_):
            raise SpecError(
                f"probs must have the fitted {len(self.classes_)} classes, got {checked.shape[1]}"
            )
        return self.calibrator_.transform(logits_of(checked))

    def predict(self, probs: Any) -> npt.NDArray[Any]:
        """The most probable class (N,) after calibration, as the labels name it."""
        found: npt.NDArray[Any] = self.classes_[self.predict_proba(probs).argmax(axis=1)]
        return found

    @property
    def temperature(self) -> float:
        """Of the calibrator fitted on all samples, where it has one; above 1 it makes less sure."""
        self._require_fit()
        return float(getattr(self.calibrator_, "temperature", float("nan")))

    def _require_fit(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise SpecError("a calibrator must be fitted first: fit(probs, labels)")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibrator_")

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator; it is there where this is called."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
        )


def calibrate(
    probs: Any,
    labels: Any,
    *,
    kind: str = "temperature",
    classes: Any = None,
    n_folds: int = 5,
    seed: int = 0,
) -> ProbabilityCalibrator:
    """Fit a calibrator of probabilities.

    Args:
        probs: (N, C) probabilities, rows sum to one, or (N,) of the second of two classes.
        labels: (N,) class indices or names.
        kind: see `ProbabilityCalibrator`.
        classes: (C,) labels in the order of the columns; see `ProbabilityCalibrator`.
        n_folds: of the cross-fitting.
        seed: of the folds.

    Returns:
        It, with `predict_proba` for new probabilities and `cross_fitted_` for these.

    Raises:
        UnknownNameError: there is no such calibrator.
        PredictionsError: probs or labels break their contract.
    """
    made = ProbabilityCalibrator(kind, classes=classes, n_folds=n_folds, seed=seed)
    return made.fit(probs, labels)
