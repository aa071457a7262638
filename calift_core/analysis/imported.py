"""What stands for a run where predictions were imported: its spec, report and folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from calift_core import __version__
from calift_core.analysis.report import evaluation_report, run_id_of, summarise
from calift_core.errors import SpecError
from calift_core.files import atomic_write_json
from calift_core.predictions.types import (
    Predictions,
    PredictionsMetadata,
    TopKPredictions,
    predictions_name,
)
from calift_core.predictions.write import Keep, write_predictions
from calift_core.schema.imported import Imported, ImportedSpec, ImportedSuite
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.spec import EvaluationSpec


def imported_spec(name: str, metadata: PredictionsMetadata) -> ImportedSpec:
    """The spec of a run that begins with these predictions.

    Raises:
        SpecError: the name is not allowed, or the part is one that no run can consist of.
    """
    if metadata.split != "test":
        raise SpecError(
            f"predictions of the {metadata.role} part are added to an imported run, they do not "
            "make one.",
            hint="Import the test predictions first, then name that run with --run.",
        )
    return ImportedSpec.checked(
        name=name, method=Imported(), suite=ImportedSuite(id=metadata.dataset)
    )


def run_name(text: str) -> str:
    """A text such as a file's stem, made a run's name."""
    plain = re.sub(r"[^A-Za-z0-9 ._:+()/-]", "-", text)[:120].lstrip(" ._:+()/-")
    return plain or "imported predictions"


def evaluation_of(
    predictions: Predictions | TopKPredictions, evaluation: EvaluationSpec, sha256: str
) -> EvaluationReport | None:
    """The report of one set; None of a calibration or validation part, which is not evaluated."""
    if predictions.metadata.split != "test":
        return None
    return evaluation_report(predictions, evaluation, sha256=sha256)


def imported_report(
    run_id: str, spec: ImportedSpec, evaluations: Sequence[EvaluationReport]
) -> Report:
    """The `report.json` of an imported run: its evaluations and the headline from them."""
    return Report(
        run_id=run_id,
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        spec_sha256=spec.content_hash(),
        resolved={},
        summary=summarise(evaluations, None),
        evaluations=list(evaluations),
        spectrum=None,
        selection={},
        model=spec.model.model_dump(mode="json"),
        data={},
        timings_s={},
        environment={"calift": __version__},
    )


def import_into_folder(
    predictions: Predictions | TopKPredictions,
    folder: Path,
    *,
    name: str | None = None,
    keep: Keep = "auto",
) -> Report:
    """Write a folder like that of a finished run, or add a data set to one that an import made.

    Args:
        folder: `report.json` and `predictions/` go there.
        name: of the run; None: the folder's.
        keep: as in `write_predictions`.

    Raises:
        SpecError: the folder holds another kind of run, or this data set already.
        StorageError: it cannot be written.
    """
    dataset = predictions.metadata.dataset
    report_file = folder / "report.json"
    known: list[EvaluationReport] = []
    if report_file.is_file():
        report = Report.model_validate_json(report_file.read_bytes())
        if report.spec["method"]["kind"] != "imported":
            raise SpecError(
                f"{folder} must be empty or an imported run, got one of {report.spec['method']}"
            )
        spec, known = ImportedSpec.model_validate(report.spec), list(report.evaluations)
    else:
        spec = imported_spec(name or run_name(folder.absolute().name), predictions.metadata)
    relative = predictions_name(dataset)
    if (folder / relative).exists():
        raise SpecError(f"the run in {folder} has predictions of {dataset!r} already")
    sha256 = write_predictions(folder / relative, predictions, keep=keep)
    evaluation = evaluation_of(predictions, spec.evaluation, sha256)
    known += [evaluation] if evaluation else []
    report = imported_report(run_id_of(folder), spec, known)
    atomic_write_json(report_file, report.model_dump(mode="json"))
    return report
