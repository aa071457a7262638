"""A finished run as a folder that stands alone."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from open_clip import get_pretrained_cfg
from pydantic import ValidationError

from calift_core import __version__
from calift_core.analysis.choosing import read_choice
from calift_core.analysis.report import read_report
from calift_core.catalogue import TINY
from calift_core.errors import DataError, SpecError
from calift_core.files import (
    atomic_write_bytes,
    atomic_write_json,
    sha256_file,
    storage_error,
    sync_folder,
)
from calift_core.models.finished import EXPORTED_HEAD, EXPORTED_WEIGHTS, read_finished, weights_of
from calift_core.schema.report import Report
from calift_core.schema.spec import ModelSpec, RunSpec
from calift_core.schema.suite import TINY_SUITES
from calift_core.shipping.card import chance_warnings, model_card
from calift_core.shipping.choosing import part_of
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.exported_scores import DatasetScores, exported_scores
from calift_core.shipping.folder import (
    CARD_NAME,
    CONFIG_NAME,
    EXPORT_NAME,
    ONNX_NAME,
    PICTURE_NAME,
    REFERENCE_NAME,
    Exported,
    KnownAccuracy,
    Provenance,
    ReferenceSet,
)
from calift_core.shipping.initial_model import (
    export_initial,
    reads_initial,
    without_path,
    without_paths,
    write_open_clip,
)
from calift_core.shipping.none_of_these import none_of_these
from calift_core.shipping.onnx import export_onnx
from calift_core.shipping.picture import reliability_png
from calift_core.shipping.promises import promises_of
from calift_core.shipping.reference import Reference, reference_of, save_reference


@dataclass(frozen=True)
class Shipped:
    """An exported folder.

    Attributes:
        exported: its `calift.json`.
        notes: sentences on what is not in it, and on where it is no better than guessing.
    """

    folder: Path
    exported: Exported
    rows: list[DatasetScores]
    notes: list[str]


def export_run(
    run: Path,
    folder: Path,
    *,
    onnx: bool = False,
    overwrite: bool = False,
    license: str | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> Shipped:
    """Write a finished run as open_clip reads it, with its head, its calibrator and a model card.

    Args:
        run: folder of a finished run; the calibrator is the one that it keeps (`save_choice`).
        folder: must not exist or be empty.
        onnx: write the graph too, `model.onnx`.
        license: of the model, as a hub writes it (`mit`, `apache-2.0`); None: `unknown`.

    Raises:
        DataError: the run is not finished, or the folder holds something else.
        CheckpointError: the run's model is damaged.
        PredictionsError: a predictions file of the run is missing or damaged.
        StorageError, DiskFullError: the folder cannot be written; nothing stays of it.
    """
    report = read_report(run)
    _, description = read_finished(run)
    choice = read_choice(run)
    _require_free(folder, overwrite)
    on_message("evaluating the calibrated model on the stored predictions")
    calibrator = None if choice is None else choice.fitted()
    rows = list(exported_scores(run, report, calibrator))
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        on_message("writing the model")
        shutil.copyfile(weights_of(run), part / EXPORTED_WEIGHTS)
        shutil.copyfile(run / "checkpoint" / "classifier.safetensors", part / EXPORTED_HEAD)
        write_open_clip(part, description)
        second = export_initial(run, part) if reads_initial(calibrator) else {}
        names, reference = [CONFIG_NAME, EXPORTED_WEIGHTS, EXPORTED_HEAD], None
        if part_of(run, report, "validation"):
            reference = reference_of(run, report, calibrator)
            save_reference(part, reference)
            names.append(REFERENCE_NAME)
        exported = Exported(
            model=without_paths(description),
            templates=list(report.data.get("templates", [])),
            choice=choice,
            reference=None if reference is None else _described(reference),
            promises=promises_of(run, report, calibrator),
            none_of_these=none_of_these(run, report, tested=True),
            provenance=_provenance(report, license),
            files={name: sha256_file(part / name) for name in names} | second,
        )
        atomic_write_json(part / EXPORT_NAME, exported.model_dump(mode="json"))
        if onnx:
            on_message("writing the graph")
            export_onnx(CalibratedClassifier.load(part, device="cpu"), part / ONNX_NAME)
            files = exported.files | {ONNX_NAME: sha256_file(part / ONNX_NAME)}
            exported = exported.model_copy(update={"files": files})
            atomic_write_json(part / EXPORT_NAME, exported.model_dump(mode="json"))
        on_message("writing the model card")
        note = _write_card(part, exported, rows)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(error, folder, "write") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    notes = [*filter(None, [note]), *chance_warnings(exported, rows)]
    return Shipped(folder, exported, rows, notes)


def _described(reference: Reference) -> ReferenceSet:
    return ReferenceSet(
        dataset=reference.dataset,
        n=len(reference.labels),
        known=[
            KnownAccuracy(name=one.name, accuracy=one.accuracy, estimates=dict(one.estimates))
            for one in reference.known
        ],
    )


def _write_card(folder: Path, exported: Exported, rows: list[DatasetScores]) -> str:
    """Write the card and its picture; a sentence where there can be none."""
    drawn, note = [row for row in rows if row.curve is not None and row.role == "id"][:1], ""
    shifts = [row for row in rows if row.curve is not None and row.role != "id"]
    if shifts:
        drawn.append(max(shifts, key=lambda row: row.ece.value))
    picture = False
    if drawn:
        try:
            atomic_write_bytes(folder / PICTURE_NAME, reliability_png(drawn))
            picture = True
        except SpecError as error:
            note = f"The card is without its diagram: {error.message} {error.hint}"
    card = model_card(exported, rows, picture=picture)
    atomic_write_bytes(folder / CARD_NAME, card.encode())
    return note


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / EXPORT_NAME).is_file():
        raise DataError(
            f"{str(folder)!r} must be a new folder, something else is there.",
            hint="Name another folder; nothing is written into it.",
        )
    if not overwrite:
        raise DataError(
            f"{str(folder)!r} holds an exported model already.", hint="--overwrite replaces it."
        )


def _provenance(report: Report, license: str | None) -> Provenance:
    try:
        spec = RunSpec.model_validate(report.spec)
    except ValidationError as error:
        raise DataError(f"the RunSpec in the run's report cannot be read: {error}") from None
    return Provenance(
        calift_version=__version__,
        run_id=report.run_id,
        name=report.name,
        base_model=_base(spec.model),
        base_repository=_repository(spec.model),
        license=license or "unknown",
        method_title=spec.method.title,
        method=spec.method.model_dump(mode="json"),
        suite=without_path(spec.suite.id),
        train=spec.train.model_dump(mode="json"),
        spec_sha256=report.spec_sha256,
        environment=report.environment,
    )


def _base(model: ModelSpec) -> str:
    """The weights that a run started from, in words; no path."""
    if model.name == TINY and model.pretrained in TINY_SUITES:
        return f"{TINY}, weights {model.pretrained} (Apache-2.0)"
    name = model.name if model.name.startswith("hf-hub:") else without_path(model.name)
    if model.pretrained is not None:
        return f"{name}, weights {without_path(model.pretrained)}"
    own = model.name.startswith(("hf-hub:", "local-dir:"))
    return name if own else f"{name}, random weights"


def _repository(model: ModelSpec) -> str | None:
    """`org/name` of the weights at the hub, None where they are not from there."""
    if model.name.startswith("hf-hub:"):
        return model.name.removeprefix("hf-hub:")
    found = get_pretrained_cfg(model.name, model.pretrained or "").get("hf_hub") or ""
    return "/".join(found.split("/")[:2]) or None
