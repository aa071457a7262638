"""`calift judge`: files of predictions, judged without a service and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from calift.commands.console import JsonFlag, err, out, print_json
from calift_core.errors import PredictionsError


def judge(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Predictions with labels: NPZ, Parquet, CSV or JSON lines. The first is the data "
            "that the model was made for, the others are shifts.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="Another model's predictions of the first file's samples."),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option("--class-names", help="A text file, one class a line.")
    ] = None,
    page: Annotated[Path, typer.Option("--out", help="The HTML page.")] = Path("judgement.html"),
    as_json: JsonFlag = False,
) -> None:
    """Say in three sentences how far predictions can be trusted, and write one HTML page."""
    from calift.commands.predictions import read_class_names
    from calift_core.calibration import softmax
    from calift_core.files import atomic_write_bytes
    from calift_core.judging.judgement import judge as judged
    from calift_core.predictions.foreign.load import load_predictions
    from calift_core.predictions.types import Predictions

    names = read_class_names(class_names)

    def read(path: Path) -> Predictions:
        found = load_predictions(path, class_names=names)
        if not isinstance(found, Predictions):
            raise PredictionsError(
                f"{path} must hold the probabilities of all classes, it holds the largest alone"
            )
        return found

    first, *others = (read(path) for path in files)
    shifts: dict[str, Any] = {}
    for path, one in zip(files[1:], others, strict=True):
        name = path.stem if path.stem not in shifts else str(path)
        shifts[name] = (softmax(one.logits), one.labels)
    rival = None
    if against is not None:
        other = read(against)
        if not np.array_equal(other.ids, first.ids) or not np.array_equal(
            other.labels, first.labels
        ):
            raise PredictionsError(
                f"{against} must have the samples of {files[0]} in the same order: ids or labels "
                "differ"
            )
        rival = softmax(other.logits)
    found = judged(
        softmax(first.logits),
        first.labels,
        shifts=shifts,
        against=rival,
        name=files[0].stem,
        other=against.stem if against is not None else "",
    )
    atomic_write_bytes(
        page, found.to_html(title=f"How far {files[0].name} can be trusted").encode()
    )
    if as_json:
        print_json(found.to_dict() | {"page": str(page)})
        return
    for sentence in found.sentences:
        out.print(sentence, markup=False)
    err.print(f"wrote {page}", markup=False, soft_wrap=True)
