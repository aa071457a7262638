"""`calift import-predictions` and `calift export-predictions`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from calift_core.errors import SpecError, UnknownNameError
from calift_core.words import nats, percent

if TYPE_CHECKING:
    from calift_core.schema.report import EvaluationReport

JsonFlag = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def import_predictions(
    file: Annotated[
        Path,
        typer.Argument(
            help="NPZ, Parquet or CSV with labels and probs or logits (in tables probs_0, probs_1 "
            "… or, in Parquet, one list column); ids and class_names are optional."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the run (default: the file's name).")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set (default: what the file says).")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(help="id, shift, corruption, calibration or validation (default: id)."),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", help="A text file, one class a line.")
    ] = None,
    keep: Annotated[
        str, typer.Option(help="auto, full, or how many of the largest logits to keep.")
    ] = "auto",
    run: Annotated[
        str | None, typer.Option(help="Id of an imported run that the data set is added to.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Write a folder like a finished run's; needs no service."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring in predictions that were made elsewhere, to be measured and compared like a run's.

    Without ids the samples are numbered: files of one data set in one order are then compared
    sample by sample.
    """
    from calift.commands import console
    from calift_core.predictions.types import Role

    if role is not None and role not in get_args(Role):
        raise UnknownNameError("role", role, get_args(Role))
    options: dict[str, Any] = {
        "dataset": dataset,
        "role": role,
        "class_names": read_class_names(class_names),
    }
    if folder is not None:
        if run is not None:
            raise SpecError(
                "--run names a run of the service, and --out a folder; give one of them.",
                hint="Import into the same folder again to add a data set to it.",
            )
        from calift_core.analysis.imported import import_into_folder, run_name
        from calift_core.predictions.foreign.load import load_predictions

        predictions = load_predictions(file, **options)
        report = import_into_folder(
            predictions, folder, name=name or run_name(file.stem), keep=_keep(keep)
        )
        if as_json:
            console.print_json(report)
            return
        _say(report.evaluations, predictions.metadata.dataset, predictions.metadata.provenance)
        console.out.print(f"Everything is in {folder}.", markup=False)
        return
    from calift_core.client import Client

    with Client() as client:
        made = client.import_predictions(file, name=name, run=run, keep=_keep(keep), **options)
        if as_json:
            console.print_json(made)
            return
        _say(client.run_evaluations(made.id), None, "")
    console.out.print(f"{made.id}  {made.name}  {made.phase}", markup=False)
    console.out.print(
        f"`calift compare {made.id} OTHER_RUN` sets it beside a run with data sets of the same "
        "names (--dataset).",
        markup=False,
    )


def export_predictions(
    source: Annotated[
        str, typer.Argument(metavar="FILE|EVALUATION", help="A predictions file, or its id.")
    ],
    target: Annotated[Path, typer.Argument(help="Ends in .parquet, .csv or .npz.")],
    as_json: JsonFlag = False,
) -> None:
    """Write stored predictions as Parquet, CSV or NPZ, which import-predictions reads back."""
    from calift.commands import console
    from calift_core.predictions.export import export_predictions as export

    if Path(source).is_file():
        export(source, target)
    elif "/" in source or "." in source:
        raise SpecError(f"there is no predictions file {source!r}")
    else:
        from calift_core.client import Client

        with Client() as client, tempfile.TemporaryDirectory() as folder:
            export(client.download_predictions(source, Path(folder) / "file.parquet"), target)
    if as_json:
        console.print_json({"path": str(target), "size_bytes": target.stat().st_size})
    else:
        console.out.print(f"wrote {target}", markup=False)


def read_class_names(path: Path | None) -> list[str] | None:
    """The lines of a text file, one class each; None where there is no file.

    Raises:
        SpecError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the class names {str(path)!r}: {error}") from error


def _keep(text: str) -> Any:
    if text in ("auto", "full"):
        return text
    if not (text.isdecimal() and int(text) >= 1):
        raise SpecError(f"--keep must be auto, full or a number ≥ 1, got {text!r}")
    return int(text)


def _say(evaluations: Sequence[EvaluationReport], dataset: str | None, provenance: str) -> None:
    """A line for each evaluated data set, and what was made of probabilities."""
    from calift.commands import console

    for e in evaluations:
        console.out.print(
            f"{e.dataset} ({e.role}): {e.n:,} samples, {e.n_classes:,} classes, accuracy "
            f"{percent(e.accuracy)}, ECE {percent(e.ece.value)} (floor "
            f"{percent(e.ece.null_mean)}), NLL {nats(e.nll)}",
            markup=False,
        )
    if dataset is not None and dataset not in {e.dataset for e in evaluations}:
        console.out.print(f"{dataset}: stored for calibrators; it is not evaluated.", markup=False)
    if provenance:
        console.out.print(provenance[0].upper() + provenance[1:] + ".", style="dim", markup=False)
