"""`calift sweep` and `calift sweeps`: many runs of one question."""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calift.commands.console import (
    SAY_EVERY_S,
    JsonFlag,
    duration_text,
    err,
    make_client,
    out,
    percent,
    plain_text,
    print_json,
    show,
)
from calift.commands.jobs import add_steps, say_job
from calift.commands.service import absolute_paths, show_runs
from calift_core.errors import ServiceError, SpecError
from calift_core.schema.documents import load_document
from calift_core.schema.sweep import PRESETS, SweepSpec, parse_sweep
from calift_core.schema.wire.sweeps import (
    SWEEP_ENDS,
    SweepCost,
    SweepDetail,
    SweepValidation,
    SweepVerdict,
)
from frontend.tables import Column
from frontend.tables import Table as Rows
from frontend.tables import sweeps as sweep_tables

if TYPE_CHECKING:
    from calift_core.client import Client

sweeps_app = typer.Typer(no_args_is_help=True, help="Sweeps of the service.")


def sweep(
    spec_file: Annotated[
        Path, typer.Argument(help="A SweepSpec, YAML or JSON; with --preset a RunSpec.")
    ],
    preset: Annotated[
        str | None, typer.Option(help=f"The file is a RunSpec; make of it: {', '.join(PRESETS)}.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take; 1 if something lacks.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end and show the verdict.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Methods × seeds × values as one question. With --wait a failed sweep is exit status 1."""
    spec = read_sweep(spec_file, preset)
    with make_client() as client:
        if dry_run:
            found = client.validate_sweep(spec)
            if as_json:
                print_json(found)
            else:
                _show_validation(found)
            if not found.valid or found.missing:
                sys.exit(1)
            return
        begun = client.sweep(spec)
        if wait:
            _wait(client, begun.id, as_json)
        else:
            say_job(begun, as_json)


def read_sweep(path: Path, preset: str | None) -> SweepSpec:
    """The SweepSpec of a file, with absolute paths.

    Args:
        path: of a SweepSpec, or with a preset of a RunSpec.

    Raises:
        SpecError: it is not valid.
    """
    data = load_document(path, "SweepSpec" if preset is None else "RunSpec")
    if not isinstance(data, dict):
        raise SpecError(f"a SweepSpec is a mapping of fields, got {type(data).__name__}")
    if preset is not None:
        if preset not in PRESETS:
            raise SpecError(f"--preset is one of {', '.join(PRESETS)}, got {preset!r}")
        data = {"preset": preset, "base": data}
    elif "method" in data and "base" not in data:
        raise SpecError(
            f"{str(path)!r} is a RunSpec.",
            hint=f"Name what to make of it, --preset {' or '.join(PRESETS)}, or put it under "
            "`base` of a SweepSpec.",
        )
    data = copy.deepcopy(data)
    if isinstance(data.get("base"), dict):
        absolute_paths(data["base"])
    return parse_sweep(data)


def _show_validation(found: SweepValidation) -> None:
    for fault in found.errors:
        err.print(f"error: {fault['pointer']}: {fault['message']}", style="red", markup=False)
    for sentence in found.missing:
        err.print(f"missing: {sentence}", markup=False)
    for sentence in found.warnings:
        err.print(f"warning: {sentence}", style="yellow", markup=False)
    e = found.estimate
    if e is None:
        return
    runs = f"{e.runs_at_least} to {e.runs_at_most}" if e.runs_at_most > e.runs_at_least else (
        f"{e.runs_at_most}"
    )  # fmt: skip
    out.print(f"{e.arms} configurations: {', '.join(found.labels)}", markup=False)
    out.print(f"runs       {runs}")
    unknown = "known once a run like these has finished"
    out.print(f"time       {unknown if e.hours is None else duration_text(3600 * e.hours)}")
    out.print(f"disk       {unknown if e.disk_bytes is None else f'{e.disk_bytes / 1e9:.2f} GB'}")


def _wait(client: Client, sweep_id: str, as_json: bool) -> None:
    found = _follow(client, sweep_id)
    verdict = _verdict(client, sweep_id)
    if as_json:
        body: dict[str, Any] = found.model_dump(mode="json")
        print_json(body | {"verdict": verdict and verdict.model_dump(mode="json")})
    else:
        _show(found, verdict)
    if found.phase != "SUCCEEDED":
        sys.exit(1)


def _follow(client: Client, sweep_id: str) -> SweepDetail:
    """Wait for the end, or a pause, and say on stderr how far it is."""
    last_line, at = "", 0.0
    while True:
        found = client.get_sweep(sweep_id)
        line = f"{found.name}: {found.phase.lower()}, {_cost_words(found.cost)}"
        ended = found.phase in SWEEP_ENDS or found.phase == "PAUSED"
        if line != last_line and (ended or time.monotonic() - at >= SAY_EVERY_S):
            err.print(line, markup=False)
            last_line, at = line, time.monotonic()
        if ended:
            return found
        time.sleep(1.0)


def _cost_words(cost: SweepCost) -> str:
    words = [f"{cost.runs_done} of {cost.runs_planned} runs done"]
    if cost.runs_working:
        words.append(f"{cost.runs_working} working")
    if cost.runs_failed:
        words.append(f"{cost.runs_failed} failed or diverged")
    if cost.runs_cancelled:
        words.append(f"{cost.runs_cancelled} cancelled")
    if cost.hours_to_come:
        words.append(f"about {duration_text(3600 * cost.hours_to_come)} of work left")
    return ", ".join(words)


def _verdict(client: Client, sweep_id: str) -> SweepVerdict | None:
    try:
        return client.sweep_verdict(sweep_id)
    except ServiceError as error:
        if error.status not in (404, 422):
            raise
        err.print(error.message, markup=False)
        return None


def _show(found: SweepDetail, verdict: SweepVerdict | None) -> None:
    if verdict is not None:
        out.print(plain_text(verdict.sentence))
    out.print(f"{found.id}  {found.name}  {found.phase}  {_cost_words(found.cost)}", markup=False)
    if found.message:
        out.print(plain_text(found.message))
    show(sweep_tables.arms(found.arms), "Configurations", without=("method",))
    if verdict is not None:
        show_verdict(verdict)


def show_verdict(verdict: SweepVerdict) -> None:
    """Write the tables of a verdict; its sentence stands first."""

    def evaluated(table: Rows) -> Rows:
        return sweep_tables.as_evaluated(table, verdict.evaluated_on)

    show(evaluated(sweep_tables.verdict_rows(verdict)), "Each at its own rate", without=("lr",))
    show(evaluated(sweep_tables.confidence_sets(verdict.sets)), "Confidence sets, seeds and images")
    show(evaluated(sweep_tables.differences(verdict.sets)), "Minus the best")
    equal = verdict.equal
    if equal is not None and equal.id_accuracy is not None:
        title = f"At equal ID accuracy, {percent(equal.id_accuracy)}; over {equal.covers}"
        show(evaluated(sweep_tables.confidence_sets(equal.sets)), title)
        show(evaluated(sweep_tables.differences(equal.sets)), "Minus the best there")
    for left in [*verdict.left_out, *(equal.left_out if equal else [])]:
        out.print(plain_text(f"without {left.label}: {left.why}"))
    for note in verdict.notes:
        out.print(plain_text(note))


@sweeps_app.command("list")
def sweeps_list(
    limit: Annotated[int, typer.Option(min=1, max=200)] = 25, as_json: JsonFlag = False
) -> None:
    """The newest sweeps."""
    with make_client() as client:
        page = client.sweeps(limit=limit)
    if as_json:
        print_json(page)
        return
    if not page.items:
        out.print("There are no sweeps yet. `calift sweep SPEC` begins one.")
        return
    rows = sweep_tables.sweeps_table(page.items)
    show(rows._replace(columns=[Column("id", "Id"), *rows.columns]), without=("share",))


@sweeps_app.command("show")
def sweeps_show(
    sweep_id: str,
    runs: Annotated[bool, typer.Option("--runs", help="List its runs, too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """One sweep: the verdict so far, its configurations, what it has cost."""
    with make_client() as client:
        found = client.get_sweep(sweep_id)
        verdict = _verdict(client, sweep_id)
        listed = client.sweep_runs(sweep_id, limit=200).items if runs else []
    if as_json:
        body: dict[str, Any] = found.model_dump(mode="json")
        body["verdict"] = verdict and verdict.model_dump(mode="json")
        body |= {"runs": [run.model_dump(mode="json") for run in listed]} if runs else {}
        print_json(body)
        return
    _show(found, verdict)
    if listed:
        show_runs(listed, "Runs")


@sweeps_app.command("wait")
def sweeps_wait(sweep_id: str, as_json: JsonFlag = False) -> None:
    """Wait for a sweep's end, or a pause; exit status 1 if it did not succeed."""
    with make_client() as client:
        _wait(client, sweep_id, as_json)


add_steps(
    sweeps_app,
    {
        "cancel": (
            "Cancel a sweep and its runs that have not ended.",
            lambda client, sweep_id: client.cancel_sweep(sweep_id),
        ),
        "pause": (
            "Queue nothing more of a sweep; runs that work go on.",
            lambda client, sweep_id: client.pause_sweep(sweep_id),
        ),
        "retry": (
            "Queue the failed and cancelled runs of a sweep again.",
            lambda client, sweep_id: client.retry_sweep(sweep_id),
        ),
    },
)


@sweeps_app.command("resume")
def sweeps_resume(
    sweep_id: str,
    max_hours: Annotated[float | None, typer.Option(min=0.0, help="Another cap.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a paused sweep."""
    with make_client() as client:
        say_job(client.resume_sweep(sweep_id, max_hours=max_hours), as_json)
