"""Runs to and from other trackers: `calift pull`, and `calift push --to`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from calift.console import JsonFlag, make_client, out, print_json
from calift.interop.runs import Exchanged, outgoing
from calift_core.errors import NotFoundError, SpecError, UnknownNameError
from calift_core.files import atomic_write_bytes, atomic_write_json

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


def pull(
    source: Annotated[str, typer.Argument(help="mlflow:URI, tensorboard:FOLDER or csv:FILE.")],
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Name or id of a run; repeatable (all).")
    ] = None,
    experiment: Experiment = "calift",
    folder: Annotated[Path, typer.Option("--out", help="Folder for the files.")] = Path("pulled"),
    as_json: JsonFlag = False,
) -> None:
    """Bring in curves, settings and last values of runs that another tracker holds.

    Each becomes NAME.csv, which the page Curves shows beside runs, and NAME.json. They do not
    become runs of calift: without predictions no number of theirs has a floor or an interval. With
    predictions, use `calift import-predictions`.
    """
    found = _pulled(source, experiment)
    if run:
        chosen = [r for r in found if r.name in run or r.id in run]
        missing = set(run) - {r.name for r in chosen} - {r.id for r in chosen}
        if missing:
            names = ", ".join(sorted(r.name for r in found)[:20])
            raise NotFoundError(f"there is no run {sorted(missing)[0]!r}; there are: {names}.")
        found = chosen
    from calift_core.analysis.foreign_curves import to_csv

    files = []
    for one, stem in zip(found, _stems(found), strict=True):
        atomic_write_bytes(folder / f"{stem}.csv", to_csv({one.name: one.curves}).encode())
        atomic_write_json(
            folder / f"{stem}.json",
            {
                "name": one.name,
                "id": one.id,
                "source": source,
                "settings": dict(one.settings),
                "numbers": dict(one.numbers),
                "measured_by_calift": False,
            },
        )
        files.append(str(folder / f"{stem}.csv"))
    if as_json:
        print_json({"source": source, "files": files})
    else:
        for file, one in zip(files, found, strict=True):
            said = f"{len(one.curves.series)} curves, {len(one.numbers)} numbers"
            out.print(f"wrote {file}: {one.name}, {said}", markup=False, soft_wrap=True)


def _place(text: str) -> tuple[str, str]:
    tracker, colon, place = text.partition(":")
    if tracker not in TRACKERS:
        raise UnknownNameError("tracker", tracker, TRACKERS)
    if not colon or not place:
        raise SpecError(f"{tracker} must be followed by where it is, as {tracker}:PLACE.")
    return tracker, place


def _pulled(source: str, experiment: str) -> list[Exchanged]:
    tracker, place = _place(source)
    match tracker:
        case "csv":
            from calift.interop import csv_file

            return csv_file.pull(place)
        case "tensorboard":
            from calift.interop import tensorboard

            return tensorboard.pull(place)
    from calift.interop import mlflow

    return mlflow.pull(place, experiment=experiment)


def _stems(runs: list[Exchanged]) -> list[str]:
    """File names that tell the runs apart."""
    stems: list[str] = []
    for run in runs:
        stem = re.sub(r"[^\w.+-]+", "-", run.name).strip("-.")[:80] or "run"
        at = 2
        while (name := stem if stem not in stems else f"{stem}-{at}") in stems:
            at += 1
        stems.append(name)
    return stems
