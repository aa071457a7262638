"""Which calibrator the run in a folder is shipped with; see `analysis.choosing`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calift_core.analysis.calibrators import read_to_fit, require_same
from calift_core.analysis.choosing import AUTO, CHOICE_NAME, NONE, Choice, calibrated, choose
from calift_core.analysis.report import read_report
from calift_core.calibration import CALIBRATORS, Calibrator
from calift_core.calibration.bins import Doubles
from calift_core.calibration.registry import INITIAL_MODEL_CALIBRATORS, require_initial
from calift_core.errors import DataError, PredictionsError, UnknownNameError
from calift_core.files import atomic_write_json
from calift_core.predictions.read import read_predictions
from calift_core.predictions.types import Predictions
from calift_core.recommendation import RECOMMENDED
from calift_core.schema.report import Report
from calift_core.shipping.initial_model import (
    initial_logits,
    initial_predictions_path,
    keep_initial,
    require_start,
)


def choose_calibrator(folder: Path, kind: str = AUTO, *, initial: Path | None = None) -> Choice:
    """Fit a run's calibrators and choose one.

    Args:
        folder: of a finished run, with the predictions of its ID calibration part.
        kind: of the calibrator, `none`, or `auto`: the first of `CANDIDATES` whose NLL on ID
            validation is within one standard error of the lowest, among those that there are images
            enough for. A kind that is named is fitted on however few there are, with a note.
        initial: folder of the finished zero-shot run that this one started from, for calibrators
            that read its logits; `auto` then is the ensemble of both.

    Raises:
        UnknownNameError: there is no such calibrator.
        SpecError: it reads the initial model's logits, and `initial` is not there; or it does not,
            and it is.
        DataError: the run is not finished, or has no ID calibration part (for `auto` none of ID
            validation either).
        PredictionsError: a predictions file is damaged or does not hold all logits.
    """
    if kind not in (AUTO, NONE, *CALIBRATORS, *INITIAL_MODEL_CALIBRATORS):
        raise UnknownNameError(
            "calibrator", kind, [AUTO, NONE, *CALIBRATORS, *INITIAL_MODEL_CALIBRATORS]
        )
    require_initial(kind, named=initial is not None)
    if kind == AUTO and initial is not None:
        kind = RECOMMENDED.with_initial
    report = read_report(folder)
    if initial is not None:
        require_start(folder, initial)
    paths = part_of(folder, report, "calibration")
    if not paths:
        raise DataError(
            f"{str(folder)!r} must have an ID calibration part to fit a calibrator on, it has "
            "none.",
            hint="The suite of the run has no such part: name one with images to spare for it.",
        )
    clean = read_to_fit(paths[0])
    validation = part_of(folder, report, "validation")
    if kind == AUTO and not validation:
        raise DataError(
            f"{str(folder)!r} must have an ID validation part to choose a calibrator on, it has "
            "none.",
            hint="Name the calibrator: --with temperature.",
        )
    first, first_on_validation = None, None
    if initial is not None:
        first = read_to_fit(initial_predictions_path(initial, clean.metadata.dataset))
    parts = [clean]
    if kind == "tsp":
        parts += [read_to_fit(path) for path in _perturbed(folder, report)]
    own = read_predictions(validation[0]) if validation else None
    if initial is not None and own is not None:
        other = read_predictions(initial_predictions_path(initial, own.metadata.dataset))
        require_same(own, other)
        first_on_validation = other.logits
    return choose(kind, parts, own, initial=first, initial_on_validation=first_on_validation)


def stored_probs(own: Predictions, calibrator: Calibrator | None, initial: Path | None) -> Doubles:
    """Calibrated probabilities (N, C) of a whole predictions file.

    Args:
        initial: folder of the initial model, for calibrators that read its logits.

    Raises:
        PredictionsError: the initial model has not predicted these samples.
    """
    return calibrated(own.logits, calibrator, initial_logits(initial, own, calibrator))


def save_choice(folder: Path, choice: Choice, *, initial: Path | None = None) -> Path:
    """Keep a choice in the run's folder; what predicts or exports the run takes it from there.

    Args:
        initial: what `choose_calibrator` was given; its model is kept beside it.
    """
    if initial is not None:
        keep_initial(folder, initial)
    path = folder / CHOICE_NAME
    atomic_write_json(path, choice.model_dump(mode="json"))
    return path


def part_of(folder: Path, report: Report, part: str) -> Sequence[Path]:
    """The predictions file of an ID part of a run, as a list of one or none.

    Raises:
        PredictionsError: the report names a file that is not there.
    """
    found = report.selection.get(part)
    return [] if not isinstance(found, dict) else [_existing(folder, found)]


def _perturbed(folder: Path, report: Report) -> list[Path]:
    copies = report.selection.get("perturbed_calibration") or []
    return [_existing(folder, copy) for copy in copies]


def _existing(folder: Path, stored: dict[str, Any]) -> Path:
    path = folder / str(stored["predictions"])
    if not path.is_file():
        raise PredictionsError(f"the report names {str(path)!r}, which is not there")
    return path
