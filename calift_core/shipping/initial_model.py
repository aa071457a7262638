"""The initial model beside one that is shipped, for calibrators that read its logits too.

Such a model is two towers: twice the weights, and two passes for every image. The folder `initial`
of a run, or of an exported model, holds the second.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calift_core.analysis.calibrators import require_same
from calift_core.analysis.choosing import INITIAL_NAME
from calift_core.analysis.report import read_report
from calift_core.calibration import Calibrator
from calift_core.calibration.bins import Floats
from calift_core.errors import DataError, PredictionsError
from calift_core.files import atomic_write_json, sha256_file, storage_error
from calift_core.predictions.read import read_predictions
from calift_core.predictions.types import Predictions, predictions_name

CONFIG_NAME = "open_clip_config.json"


def reads_initial(calibrator: Calibrator | None) -> bool:
    """Whether a calibrator needs the initial model's logits."""
    return calibrator is not None and calibrator.reads_initial


def require_start(run: Path, initial: Path) -> None:
    """Make sure that a run started from the model of another one.

    Raises:
        DataError: it did not, their classes or preprocessing differ, or it was not tested on the
            ID data and shifts that the run was.
    """
    from calift_core.models.finished import read_finished  # torch, for two towers alone

    started = read_report(run).model.get("start_sha256")
    other = read_report(initial).model.get("sha256")
    if started != other:
        raise DataError(
            f"{str(initial)!r} must hold the model that {str(run)!r} started from; its weights are "
            f"{str(other)[:12]}…, the run started from {str(started)[:12]}…",
            hint="Run zero_shot with the same model and suite, and name that run.",
        )
    own, first = read_finished(run)[1], read_finished(initial)[1]
    for what in ("classes", "preprocess"):
        if own[what] != first[what]:
            raise DataError(f"the {what} of {str(initial)!r} must be those of {str(run)!r}")
    tested = [e.dataset for e in read_report(run).evaluations if e.role in ("id", "shift")]
    lacking = [name for name in tested if not (initial / predictions_name(name)).is_file()]
    if lacking:
        raise DataError(
            f"{str(initial)!r} must have been tested on what {str(run)!r} was, it has no "
            f"predictions of {', '.join(lacking)}",
            hint="Run zero_shot with the same suite and shifts, and name that run.",
        )


def keep_initial(run: Path, initial: Path) -> None:
    """Keep a run's initial model, and what it predicted, in the run's folder.

    Files are linked where the file system can, else copied.

    Raises:
        StorageError, DiskFullError: a file cannot be written.
    """
    part, place = run / f".{INITIAL_NAME}.part", run / INITIAL_NAME
    try:
        shutil.rmtree(part, ignore_errors=True)
        for where in ("checkpoint", "predictions"):
            shutil.copytree(initial / where, part / where, copy_function=_link)
        _link(str(initial / "report.json"), str(part / "report.json"))
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    except OSError as error:
        raise storage_error(error, place, "write") from error


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def initial_logits(
    initial: Path | None, own: Predictions, calibrator: Calibrator | None
) -> Floats | None:
    """The initial model's logits (N, C) on the samples of a whole predictions file of a run.

    Args:
        initial: folder of the initial model, finished or kept by a run.

    Returns:
        None where the calibrator reads none.

    Raises:
        PredictionsError: the initial model has not predicted these samples.
    """
    if initial is None or not reads_initial(calibrator):
        return None
    first = read_predictions(initial_predictions_path(initial, own.metadata.dataset))
    require_same(own, first)
    return first.logits


def initial_predictions_path(initial: Path, dataset: str) -> Path:
    """Where an initial model's predictions of a data set lie.

    Raises:
        PredictionsError: there are none.
    """
    path = initial / predictions_name(dataset)
    if not path.is_file():
        raise PredictionsError(
            f"there are no predictions of the initial model on {dataset!r}",
            hint="Evaluate it on the same data, then `calift calibrate` once more.",
        )
    return path


def export_initial(run: Path, folder: Path) -> dict[str, str]:
    """Write a run's initial model into an export, as open_clip reads it, with its head.

    Returns:
        Name, as seen from the export's folder → SHA-256.

    Raises:
        CheckpointError: the initial model is missing or damaged.
    """
    from calift_core.models import finished

    source, place = run / INITIAL_NAME, folder / INITIAL_NAME
    _, description = finished.read_finished(source)
    weights, head, about = finished.EXPORTED_WEIGHTS, finished.EXPORTED_HEAD, finished.EXPORT_NAME
    place.mkdir()
    shutil.copyfile(finished.weights_of(source), place / weights)
    shutil.copyfile(source / "checkpoint" / head, place / head)
    write_open_clip(place, description)
    atomic_write_json(place / about, {"model": without_paths(description)})
    names = (weights, head, CONFIG_NAME, about)
    return {f"{INITIAL_NAME}/{name}": sha256_file(place / name) for name in names}


def write_open_clip(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the configuration by which open_clip builds a model of `model.json`."""
    preprocess = {**description["preprocess"], "mode": "RGB"}
    atomic_write_json(
        folder / CONFIG_NAME, {"model_cfg": description["config"], "preprocess_cfg": preprocess}
    )


def without_paths(description: Mapping[str, Any]) -> dict[str, Any]:
    """A `model.json` without the folders that its parts lay in."""
    return {
        **description,
        "name": without_path(description["name"]),
        "pretrained": without_path(description["pretrained"] or "") or None,
    }


def without_path(source: str) -> str:
    """A data source without the folders that it lies in: they are nobody else's business."""
    kind, colon, where = source.partition(":")
    if not colon:
        return Path(source).name if "/" in source else source
    return f"{kind}:{Path(where).name}"
