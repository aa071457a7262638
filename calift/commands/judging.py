"""`calift judge`: files of predictions, judged without a service and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calift.commands.console import JsonFlag, err, out, print_json


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
    from calift_core.files import atomic_write_bytes
    from calift_core.judging.files import PredictionsFile, judge_files

    found = judge_files(
        [PredictionsFile(str(path), path) for path in files],
        against=None if against is None else PredictionsFile(str(against), against),
        class_names=read_class_names(class_names),
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
