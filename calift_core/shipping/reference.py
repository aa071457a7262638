"""What an exported model knows of its own ID data: the answers to compare new ones with."""

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
from calift_core.calibration.bins import Floats, Ints
from calift_core.calibration.unlabelled import (
    AccuracyEstimators,
    EstimatorError,
    KnownSet,
    Labelled,
    validate_estimators,
)
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
        known: accuracies of this part and of the run's shifts, and what estimators say of them.
        initial: (N, C) float32, the initial model's, where the calibrator reads them.
        shifts: name → (M, C) float32, logits on the run's labelled shifts that have all classes.
    """

    dataset: str
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    known: list[KnownSet]
    initial: NDArray[np.float32] | None = None
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def validated(self) -> list[EstimatorError]:
        """How far each estimator of accuracy was off on the run's shifts."""
        return validate_estimators(self.known[0], self.known[1:])

    def estimators(self, calibrator: Calibrator | None) -> AccuracyEstimators:
        """Estimators of accuracy, ready for images without labels."""
        return AccuracyEstimators(_labelled(self.logits, self.labels, calibrator, self.initial))


def _labelled(
    logits: Floats, labels: Ints, calibrator: Calibrator | None, initial: Floats | None
) -> Labelled:
    """Calibrated probabilities with their labels."""
    return Labelled(calibrated(logits, calibrator, initial), initial, labels)


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
    estimators = AccuracyEstimators(_labelled(logits, labels, calibrator, initial))
    known = [estimators.known("ID", _labelled(logits, labels, calibrator, initial))]
    shifts = {}
    for evaluation, found in stored_tests(run, report, roles=("shift",)):
        if found.logits.shape[1] != own.logits.shape[1]:
            continue  # of some classes alone: its answers are no sample of these
        first = initial_logits(place, found, calibrator)
        shift = _labelled(found.logits, found.labels, calibrator, first)
        known.append(estimators.known(evaluation.dataset, shift))
        drawn = np.random.default_rng(0).permutation(len(found))[:MOST_OF_SHIFT]
        shifts[evaluation.dataset] = found.logits[np.sort(drawn)]
    return Reference(own.metadata.dataset, logits, labels, known, initial, shifts)


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
    known = [KnownSet(**one.model_dump()) for one in exported.reference.known]
    return Reference(exported.reference.dataset, logits, labels, known, initial, shifts)
