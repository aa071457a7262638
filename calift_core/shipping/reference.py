"""What an exported model knows of its own ID data: the answers to compare new ones with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from calift_core.analysis.choosing import INITIAL_NAME, calibrated, read_choice
from calift_core.analysis.report import read_report
from calift_core.calibration import Calibrator
from calift_core.calibration.unlabelled import EstimatorError, Labelled, validate_estimators
from calift_core.errors import CheckpointError, DataError
from calift_core.files import atomic_write_bytes
from calift_core.models.finished import is_exported
from calift_core.predictions.read import read_predictions
from calift_core.schema.report import Report
from calift_core.shipping.choosing import part_of
from calift_core.shipping.exported_scores import stored_tests
from calift_core.shipping.folder import REFERENCE_NAME, read_exported
from calift_core.shipping.initial_model import initial_logits

#: Images of the ID validation part that are kept at most, drawn with a fixed seed.
MOST = 5_000
#: Images of each labelled shift that are kept at most, to tell which new images are like them.
MOST_OF_SHIFT = 500
_SHIFT = "shift:"


@dataclass(frozen=True)
class Reference:
    """Answers on the ID validation part, which the calibrator was not fitted on.

    Attributes:
        logits: (N, C) float32, before the calibrator.
        labels: (N,).
        evaluated: how far each estimator of accuracy was off on the run's shifts.
        initial: (N, C) float32, the initial model's, where the calibrator reads them.
        shifts: name → (M, C) float32, logits on the run's labelled shifts that have all classes.
    """

    dataset: str
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    validated: list[EstimatorError]
    initial: NDArray[np.float32] | None = None
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def labelled(self, calibrator: Calibrator | None) -> Labelled:
        """Its calibrated confidences and hits."""
        return labelled(self.logits, self.labels, calibrator, self.initial)


def labelled(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    calibrator: Calibrator | None,
    initial: NDArray[np.float32] | None,
) -> Labelled:
    """Confidences and hits of the likeliest classes of calibrated probabilities."""
    probs = calibrated(logits, calibrator, initial)
    return Labelled(probs.max(axis=1), probs.argmax(axis=1) == labels)


def reference_of(run: Path, report: Report, calibrator: Calibrator | None) -> Reference:
    """The reference of a finished run.

    Raises:
        DataError: it has no ID validation part.
        PredictionsError: a predictions file is missing or damaged.
    """
    paths = part_of(run, report, "validation")
    if not paths:
        raise DataError(
            f"{str(run)!r} must have an ID validation part to compare with, it has none."
        )
    own = read_predictions(paths[0])
    kept = np.arange(len(own))
    if len(own) > MOST:
        kept = np.sort(np.random.default_rng(0).choice(len(own), MOST, replace=False))
    place = run / INITIAL_NAME
    first = initial_logits(place, own, calibrator)
    logits, labels = own.logits[kept], own.labels[kept]
    initial = None if first is None else first[kept].astype(np.float32)
    evaluated_on, shifts = {}, {}
    for evaluation, found in stored_tests(run, report, roles=("shift",)):
        evaluated_on[evaluation.dataset] = labelled(
            found.logits, found.labels, calibrator, initial_logits(place, found, calibrator)
        )
        if found.logits.shape[1] == own.logits.shape[1]:
            drawn = np.random.default_rng(0).permutation(len(found))[:MOST_OF_SHIFT]
            shifts[evaluation.dataset] = found.logits[np.sort(drawn)]
    validated = validate_estimators(labelled(logits, labels, calibrator, initial), evaluated_on)
    return Reference(own.metadata.dataset, logits, labels, validated, initial, shifts)


def save_reference(folder: Path, reference: Reference) -> None:
    """Put the answers into an exported folder; what was evaluated stands in its description."""
    tensors = {
        "logits": torch.from_numpy(np.ascontiguousarray(reference.logits)),
        "labels": torch.from_numpy(np.ascontiguousarray(reference.labels)),
    }
    if reference.initial is not None:
        tensors["initial"] = torch.from_numpy(np.ascontiguousarray(reference.initial))
    for name, rows in reference.shifts.items():
        tensors[_SHIFT + name] = torch.from_numpy(np.ascontiguousarray(rows))
    atomic_write_bytes(folder / REFERENCE_NAME, save(tensors))


def read_reference(folder: Path) -> Reference:
    """The reference of an exported folder, or of a finished run.

    Raises:
        DataError: there is none.
        CheckpointError: it is damaged.
    """
    if not is_exported(folder):
        choice = read_choice(folder)
        calibrator = None if choice is None else choice.fitted()
        return reference_of(folder, read_report(folder), calibrator)
    exported = read_exported(folder)
    if exported.reference is None:
        raise DataError(
            f"{str(folder)!r} holds no answers on ID data to compare with.",
            hint="Its run had no ID validation part.",
        )
    try:
        tensors = load_file(folder / REFERENCE_NAME)
        logits, labels = tensors["logits"].numpy(), tensors["labels"].numpy()
        initial = tensors["initial"].numpy() if "initial" in tensors else None
        shifts = {
            name.removeprefix(_SHIFT): rows.numpy()
            for name, rows in sorted(tensors.items())
            if name.startswith(_SHIFT)
        }
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{REFERENCE_NAME} in {str(folder)!r} is damaged: {error}") from None
    validated = [EstimatorError(one.estimator, one.errors) for one in exported.reference.validated]
    return Reference(exported.reference.dataset, logits, labels, validated, initial, shifts)
