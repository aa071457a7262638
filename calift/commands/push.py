"""`calift push`: runs to another tracker, an exported model to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from calift.commands.console import JsonFlag, make_client, out, print_json, require_torch
from calift.commands.shipping import to_hub
from calift.trackers.runs import outgoing
from calift_core.errors import SpecError, UnknownNameError

TRACKERS = ("csv", "mlflow", "tensorboard")
#: What a folder of `calift export` holds; its own module loads torch.
_EXPORTED = "calift.json"
Experiment = Annotated[str, typer.Option(help="MLflow's experiment.")]


def push(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... | DIR ORG/NAME",
            help="With --to: ids of finished runs, or folders of such; for mlflow also folders of "
            "`calift export`, as pyfunc models. Without: such a folder and a repository on the "
            "Hugging Face hub.",
        ),
    ],
    to: Annotated[
        str | None, typer.Option("--to", help="mlflow:URI, tensorboard:FOLDER or csv:FILE.")
    ] = None,
    experiment: Experiment = "calift",
    again: Annotated[bool, typer.Option("--again", help="Replace what was pushed.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Hub: let everybody see a new repository.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Hub: send it; without, it is only said.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy runs to another tracker (--to), or send an exported model to the Hugging Face hub.

    A tracker gets curves, settings and every number, each calibration error with its floor and
    interval. Nothing goes to the hub without --yes; the token is that of `hf auth login` or
    HF_TOKEN.
    """
    if to is not None:
        if public or yes:
            raise SpecError("--public and --yes are for the hub, got --to as well.")
        to_tracker(what, to, experiment=experiment, again=again, as_json=as_json)
        return
    if len(what) != 2:
        raise SpecError(
            "push takes runs and --to, or the folder of an exported model and ORG/NAME, got "
            f"{' '.join(what)!r} without --to.",
            hint="calift push RUN --to csv:curves.csv, or calift push DIR org/name",
        )
    to_hub(Path(what[0]), what[1], public=public, yes=yes, as_json=as_json)


def to_tracker(runs: list[str], to: str, *, experiment: str, again: bool, as_json: bool) -> None:
    """Copy curves, settings and numbers of runs, ids or folders, to another tracker."""
    tracker, place = _place(to)
    exported = [Path(run) for run in runs if (Path(run) / _EXPORTED).is_file()]
    if exported:
        if tracker != "mlflow" or len(exported) < len(runs):
            raise SpecError(f"exported models go to mlflow: alone, got {', '.join(runs)} and {to}.")
        require_torch()
        from calift.trackers.mlflow_model import push_models

        _say(to, push_models(exported, place, experiment=experiment), as_json)
        return
    sent = []
    for run in runs:
        if Path(run).is_dir():
            sent.append(outgoing(run, None))
        else:
            with make_client() as client:
                sent.append(outgoing(run, client))
    match tracker:
        case "csv":
            from calift.trackers import csv_file

            written = csv_file.push(sent, place, again=again)
        case "tensorboard":
            from calift.trackers import tensorboard

            written = tensorboard.push(sent, place, again=again)
        case _:
            from calift.trackers import mlflow

            written = mlflow.push(sent, place, again=again, experiment=experiment)
    _say(to, written, as_json)


def _say(to: str, written: list[str], as_json: bool) -> None:
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
