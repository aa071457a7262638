"""Finished runs to other trackers: `calift push --to`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calift.console import make_client, out, print_json
from calift.interop.runs import outgoing
from calift_core.errors import SpecError, UnknownNameError

TRACKERS = ("csv", "mlflow", "tensorboard")
Experiment = Annotated[str, typer.Option(help="MLflow's experiment.")]


def to_tracker(runs: list[str], to: str, *, experiment: str, again: bool, as_json: bool) -> None:
    """Copy curves, settings and numbers of runs, ids or folders, to another tracker."""
    tracker, place = _place(to)
    sent = []
    for run in runs:
        if Path(run).is_dir():
            sent.append(outgoing(run, None))
        else:
            with make_client() as client:
                sent.append(outgoing(run, client))
    match tracker:
        case "csv":
            from calift.interop import csv_file

            written = csv_file.push(sent, place, again=again)
        case "tensorboard":
            from calift.interop import tensorboard

            written = tensorboard.push(sent, place, again=again)
        case _:
            from calift.interop import mlflow

            written = mlflow.push(sent, place, again=again, experiment=experiment)
    if as_json:
        print_json({"to": to, "written": written})
    else:
        for one in written:
            out.print(f"wrote {one}", markup=False, soft_wrap=True)


def _place(text: str) -> tuple[str, str]:
    tracker, colon, place = text.partition(":")
    if tracker not in TRACKERS:
        raise UnknownNameError("tracker", tracker, TRACKERS)
    if not colon or not place:
        raise SpecError(f"{tracker} must be followed by where it is, as {tracker}:PLACE.")
    return tracker, place
