"""What a notebook asks: how far can this confidence be trusted?

Arrays, lists and torch tensors are taken alike; N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calift_core.analysis.draws import Draws
from calift_core.analysis.reliability import reliability_numbers, smooth_curve
from calift_core.calibration import Binning, ece_report, evaluate_all, score_probs, softmax
from calift_core.calibration.bins import Norm, Scheme
from calift_core.errors import DataError, PredictionsError, UnknownNameError
from calift_core.installed import install_extra, missing_extra
from calift_core.schema.report import EceReport, EvaluationReport, Report

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from calift_core.analysis.library import Subject
    from calift_core.schema.wire.results import Reliability
    from calift_core.shipping.classifier import Answers, CalibratedClassifier


def ece(
    probs: Any,
    labels: Any,
    *,
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    n_resamples: int = 200,
    seed: int = 0,
) -> EceReport:
    """The calibration error of top-label confidence with what it can be compared to.

    Args:
        probs: (N, C) probabilities, rows sum to one.
        labels: (N,) class indices.
        scheme: `equal_mass` or `equal_width`.
        norm: `l1` (ECE), `l2` or `max` (MCE).

    Returns:
        `value`; `null_mean` and `null_q95`, what a perfectly calibrated model of this size would
        read on average and at most 19 times in 20; `interval` (95 %); `debiased`. Fractions.

    Raises:
        SpecError: an option is not valid.
        PredictionsError: probs or labels break their contract.
    """
    found = ece_report(
        score_probs(_array(probs), _array(labels)),
        Binning(n_bins, scheme, norm),
        n_resamples=n_resamples,
        seed=seed,
    )
    return EceReport.model_validate(found)


def reliability_diagram(
    probs: Any,
    labels: Any,
    *,
    title: str = "",
    n_bins: int = 15,
    scheme: Scheme = "equal_mass",
    norm: Norm = "l1",
    smooth: bool = False,
    n_resamples: int = 200,
    seed: int = 0,
) -> go.Figure:
    """A Plotly figure: accuracy against confidence, with n, error and floor in its heading.

    Args:
        probs: (N, C) probabilities, rows sum to one.
        labels: (N,) class indices.
        scheme: `equal_mass` or `equal_width`.
        smooth: draw the kernel curve of the smooth calibration error too.

    Raises:
        SpecError: an option is not valid.
        PredictionsError: probs or labels break their contract.
    """
    scores = score_probs(_array(probs), _array(labels))
    numbers = reliability_numbers(
        scores,
        Binning(n_bins, scheme, norm),
        Draws(n_resamples, seed),
        smooth=smooth_curve(scores) if smooth else None,
    )
    return _figure(_diagram_of(numbers), title, smooth=smooth)


def evaluate(
    model: Callable[[Any], Any],
    loader: Iterable[tuple[Any, Any]],
    *,
    classes: Sequence[str],
    dataset: str = "data",
    n_resamples: int = 200,
    seed: int = 0,
) -> EvaluationReport:
    """Every measure of a model on data, as a run's report has it.

    Args:
        model: takes a batch of images as the loader gives them, returns its logits (B, C).
        loader: pairs of a batch of images and their labels (B,).
        classes: C names, in the order of the logits.

    Raises:
        PredictionsError: no batch came, logits and labels do not fit, or a value is not finite.
    """
    logits, labels = [], []
    for images, own in loader:
        batch_logits = _array(model(images))
        if batch_logits.ndim != 2 or batch_logits.shape[1] != len(classes):
            raise PredictionsError(
                f"logits must be (B, {len(classes)}), one column a class, got {batch_logits.shape}"
            )
        logits.append(batch_logits)
        labels.append(_array(own))
    if not labels:
        raise PredictionsError("the loader must give at least one batch, got none")
    probs = softmax(np.concatenate(logits))
    found = evaluate_all(probs, np.concatenate(labels), n_resamples=n_resamples, seed=seed)
    return EvaluationReport.model_validate(
        {**found, "dataset": dataset, "role": "id", "n_classes": len(classes)}
    )


def load(run: str | Path) -> LoadedRun | CalibratedClassifier:
    """Open the folder of a finished run, or of a model that `calift export` wrote.

    Either has `predict(images)`.

    Raises:
        DataError: it is no folder of a finished run.
        CheckpointError: an exported model is damaged.
    """
    folder = Path(run)
    if (folder / "calift.json").is_file():
        from calift_core.shipping.classifier import CalibratedClassifier

        return CalibratedClassifier.load(folder)
    from calift_core.analysis.report import read_report

    return LoadedRun(folder, read_report(folder))


class LoadedRun:
    """A finished run's folder."""

    def __init__(self, folder: Path, report: Report) -> None:
        try:
            from calift_core.analysis.folder import FolderLibrary
        except ModuleNotFoundError as error:
            message, hint = missing_extra(error) or (str(error), "")
            raise DataError(message, hint=hint) from None
        self.folder, self.report = folder, report
        self._library = FolderLibrary()

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.folder)!r})"

    @cached_property
    def evaluations(self) -> dict[str, EvaluationReport]:
        """What was measured, by the name of the data set."""
        return {e.dataset: e for e in self.report.evaluations}

    def predictions(self, dataset: str) -> Any:
        """Ids, labels and logits (N, C) of one data set, as `calift.read_predictions` gives them.

        Raises:
            UnknownNameError: the run was not tested on it.
        """
        from calift_core.predictions.read import read_predictions

        return read_predictions(self._subject(dataset).target)

    @cached_property
    def model(self) -> CalibratedClassifier:
        """The run's model with the calibrator that `calift calibrate` chose, if it has."""
        from calift_core.shipping.classifier import CalibratedClassifier

        return CalibratedClassifier.load(self.folder)

    def predict(self, images: Any, *, batch_size: int = 64) -> Answers:
        """What the run's model sees in images: labels, confidences, calibrated probabilities.

        Args:
            images: paths, PIL images, arrays (H, W, 3) or tensors (3, H, W), one or many.
            batch_size: images at once.

        Raises:
            CheckpointError: the run's model is missing or damaged.
            UnreadableImageError: a file cannot be decoded.
            DataError: something is no image; says which.
        """
        return self.model.predict(images, batch_size=batch_size)

    def reliability_diagram(self, dataset: str, *, smooth: bool = False) -> go.Figure:
        """The diagram of one data set as it was evaluated.

        Raises:
            UnknownNameError: the run was not tested on it.
        """
        from calift_core.analysis.explorer import Explorer

        diagram = Explorer(self._library).reliability(self._subject(dataset))
        return _figure(diagram, f"{self.folder.name} on {dataset}", smooth=smooth)

    def _subject(self, dataset: str) -> Subject:
        found = {s.source.dataset: s for s in self._library.tested(str(self.folder))}
        if dataset not in found:
            raise UnknownNameError("data set of this run", dataset, [n or "" for n in found])
        return found[dataset]


def _array(values: Any) -> npt.NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float() if values.is_floating_point() else values.cpu()
    return np.asarray(values)


def _diagram_of(numbers: dict[str, Any]) -> Reliability:
    from calift_core.schema.wire.results import Reliability

    return Reliability(
        evaluation_id="", run_id="", run_name="", method="", dataset="", role="id",
        temperature=1.0, **numbers,
    )  # fmt: skip


def _figure(diagram: Reliability, title: str, *, smooth: bool) -> go.Figure:
    try:
        from frontend.figures import reliability
    except ModuleNotFoundError as error:
        raise DataError(
            f"a diagram needs {error.name}, which is not installed.",
            hint=install_extra("dashboard"),
        ) from error
    return reliability.diagram(diagram, title=title, smooth=smooth)
