"""`calift train` and `calift evaluate`: on this machine, without a service."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from calift.commands.console import (
    SAY_EVERY_S,
    JsonFlag,
    SpecFile,
    duration_text,
    ece_text,
    err,
    faults_table,
    is_local_path,
    out,
    percent,
    print_json,
    progress_text,
    require_torch,
    show,
    sigma_text,
)
from calift_core.errors import SpecError
from calift_core.schema.places import expanded
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec, load_spec, parse_spec
from calift_core.schema.wire.runs import Validation
from frontend.tables import analysis

if TYPE_CHECKING:
    from calift_core.schema.records import Record

#: Columns of an evaluation that the report on a terminal is without.
_LEFT_OUT = (
    "role",
    "mean_confidence",
    "ece_debiased",
    "smooth_ece",
    "ece_batch_averaged",
    "brier",
    "aurc",
)


def train(
    spec_file: SpecFile,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the result (default: runs/NAME).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the spec, estimate the cost, run nothing.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Whether --dry-run times a few steps.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop what the folder holds and start anew.")
    ] = False,
    hosts: Annotated[
        int, typer.Option(min=1, help="Hosts that share the run; start it on each of them.")
    ] = 1,
    rendezvous: Annotated[
        str, typer.Option(help="HOST:PORT where they meet, of one of them, the same on all.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Train and evaluate on this machine, without a service. Goes on where it was stopped."""
    spec = load_spec(spec_file)
    _require_hosts(spec, hosts, rendezvous)
    require_torch()
    if dry_run:
        _dry_run(spec, as_json, folder=folder, measure=measure)
        return
    folder = folder or Path("runs") / _file_name(spec.name)
    if overwrite and (folder / "spec.json").is_file():
        shutil.rmtree(folder)
    report_file = folder / "report.json"
    if _is_finished(folder, spec):
        if not as_json:
            out.print(f"This run is finished already; its report is {report_file}.", markup=False)
        _show_report(_read_report(report_file), as_json)
        return
    with stop_on_signal() as stop:
        _follow_records(_run(spec, folder, stop, hosts, rendezvous), quiet=as_json)
    if not _is_reporting_host(hosts):
        return
    _show_report(_read_report(report_file), as_json)
    if not as_json:
        out.print(f"Everything is in {folder}.", markup=False)


def _require_hosts(spec: RunSpec, hosts: int, rendezvous: str) -> None:
    if hosts == 1:
        return
    if spec.resources.processes % hosts or spec.resources.processes < 2:
        raise SpecError(
            f"--hosts {hosts}: resources names the processes of all hosts together, expected a "
            f"multiple of {hosts}, got {spec.resources.processes}"
        )
    if ":" not in rendezvous:
        raise SpecError(
            f"--hosts {hosts} needs --rendezvous HOST:PORT, the same on all, got {rendezvous!r}"
        )


def _is_reporting_host(hosts: int) -> bool:
    """Whether this host shows what happens; under Slurm the first one does."""
    return hosts == 1 or os.environ.get("SLURM_NODEID", "0") == "0"


def _run(
    spec: RunSpec, folder: Path, stop: Callable[[], bool], hosts: int, rendezvous: str
) -> Iterator[Record]:
    if spec.resources.processes == 1:
        from calift_core.jobs.folder import run_in_folder

        return run_in_folder(spec, folder, stop=stop)
    from calift_core.jobs.several import run_on_several

    options = () if hosts == 1 else ("--hosts", str(hosts), "--rendezvous", rendezvous)
    return run_on_several(
        spec, folder, stop=stop, options=options, quiet=not _is_reporting_host(hosts)
    )


def evaluate(
    run_folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of finished runs, or checkpoints of a run: RUN/checkpoint/steps/STEP. "
            "Several are evaluated in one pass over the data.",
        ),
    ],
    folder: Annotated[
        Path,
        typer.Option("--out", help="Folder for the new report; of several, for a folder each."),
    ],
    spec_file: Annotated[
        Path | None,
        typer.Option("--suite", help="A RunSpec whose suite and evaluation are used instead."),
    ] = None,
    shift: Annotated[
        list[str] | None,
        typer.Option("--shift", help="NAME=folder:PATH; may be given several times."),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option("--ood", help="NAME=folder:PATH of images of none of the classes."),
    ] = None,
    corruptions: Annotated[
        str | None, typer.Option(help="all, benchmark or names separated by commas.")
    ] = None,
    severities: Annotated[str, typer.Option(help="Severities, separated by commas.")] = "1,3,5",
    precision: Annotated[
        str | None,
        typer.Option(help="Precision of the forward passes: train, auto, fp32, fp16 or bf16."),
    ] = None,
    perturbed_calibration: Annotated[
        bool,
        typer.Option(
            "--perturbed-calibration", help="Also predict the noisy copies that tsp is fitted on."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate finished models on other data, without training. Goes on where it was stopped."""
    require_torch()
    from calift_core.evaluation.subjects import name_of, run_folder_of
    from calift_core.jobs.evaluate import Evaluated, evaluate_finished, evaluate_many

    changes: dict[str, Any] = {
        "shifts": shifts_of(shift or ()),
        "ood": shifts_of(ood or (), "--ood"),
        "corruptions": corruptions_of(corruptions, severities),
        "evaluation": {},
    }
    if precision is not None:
        changes["evaluation"]["precision"] = precision
    if perturbed_calibration:
        changes["evaluation"]["perturbed_calibration"] = True
    specs = []
    for path in run_folders:
        source = spec_file or run_folder_of(path) / "spec.json"
        if spec_file is None and not source.is_file():
            raise SpecError(f"{str(path)!r} holds no run (there is no spec.json in it)")
        specs.append(_evaluation_suite(load_spec(source), changes))
    with stop_on_signal() as stop:
        if len(run_folders) == 1:
            records = evaluate_finished(specs[0], run_folders[0], folder, stop=stop)
            _follow_records(records, quiet=as_json)
            _show_report(_read_report(folder / "report.json"), as_json)
            return
        models = {
            name: Evaluated(path, spec)
            for name, path, spec in zip(
                _distinct([name_of(p) for p in run_folders]), run_folders, specs, strict=True
            )
        }
        _follow_records(evaluate_many(models, folder, stop=stop), quiet=as_json)
    reports = {name: _read_report(folder / name / "report.json") for name in models}
    if as_json:
        print_json({name: report.model_dump(mode="json") for name, report in reports.items()})
        return
    for name, report in reports.items():
        _show_report(report, as_json)
        out.print(f"This is in {folder / name}.\n", markup=False)


def shifts_of(items: Sequence[str], option: str = "--shift") -> dict[str, str]:
    """Name → source of shifts that are given as NAME=folder:PATH.

    Raises:
        SpecError: one is given otherwise.
    """
    found = {}
    for item in items:
        name, separator, uri = item.partition("=")
        if not separator:
            raise SpecError(f"{option} takes NAME=folder:PATH, got {item!r}")
        found[name] = uri
    return found


def corruptions_of(names: str | None, severities: str) -> dict[str, Any]:
    """Corruptions as a RunSpec has them; nothing where none are named.

    Raises:
        SpecError: the severities are no numbers.
    """
    if not names:
        return {}
    chosen: Any = names if names in ("all", "benchmark") else names.split(",")
    return {"names": chosen, "severities": _severities(severities)}


def _severities(text: str) -> list[int]:
    try:
        return [int(s) for s in text.split(",")]
    except ValueError:
        raise SpecError(f"--severities takes numbers from 1 to 5, got {text!r}") from None


def _evaluation_suite(spec: RunSpec, changes: dict[str, Any]) -> RunSpec:
    """A spec with what the options of `calift evaluate` add to its suite and evaluation."""
    data = spec.model_dump(mode="json")
    data["suite"]["shifts"] |= changes["shifts"]
    data["suite"]["ood"] |= changes["ood"]
    data["suite"]["corruptions"] |= changes["corruptions"]
    data["evaluation"] |= changes["evaluation"]
    return parse_spec(data)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names; those that occur more than once get a number each."""
    result: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in result or (number > 1 and candidate in names):
            number += 1
            candidate = f"{name}-{number}"
        result.append(candidate)
    return result


def _is_finished(folder: Path, spec: RunSpec) -> bool:
    if not ((folder / "report.json").is_file() and (folder / "spec.json").is_file()):
        return False
    if load_spec(folder / "spec.json").content_hash() != spec.content_hash():
        return False
    return not spec.input_runs or _inputs_unchanged(folder, spec)


def _inputs_unchanged(folder: Path, spec: RunSpec) -> bool:
    """Whether the runs that it was made from have not changed since, as far as they still exist."""
    merged = {
        item["run"]: item["sha256"]
        for item in _read_report(folder / "report.json").resolved.get("inputs", [])
    }
    for name in spec.input_runs:
        report = expanded(name) / "report.json"
        if report.is_file() and _read_report(report).model.get("sha256") != merged.get(name):
            return False
    return True


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _read_report(path: Path) -> Report:
    return Report.model_validate_json(path.read_bytes())


@contextmanager
def stop_on_signal(
    message: str = "Stopping after this step; a checkpoint is saved. Again to stop at once.",
) -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks the run to save and stop; a second Ctrl-C ends it at once.

    Schedulers send SIGTERM more than once.
    """
    import signal

    interrupts = 0

    def on_signal(signum: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        err.print(f"\n{message}")

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: interrupts > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow_records(records: Iterator[Record], *, quiet: bool) -> None:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=err, disable=quiet or not err.is_terminal) as bars:
        task: Any = None
        phase = loss = ""
        said_at = 0.0
        for record in records:
            if record.kind == "phase":
                phase = record.phase
                task = bars.add_task(phase, total=None, note=record.detail)
                if not bars.live.is_started and not quiet:
                    err.print(f"{phase}: {record.detail}" if record.detail else phase, markup=False)
            elif record.kind == "progress" and task is not None:
                speed = f"{record.samples_per_s:.0f} images/s" if record.samples_per_s else ""
                bars.update(
                    task,
                    completed=record.step,
                    total=record.total_steps,
                    note=" · ".join(p for p in (speed, loss, record.detail) if p),
                )
                plain = not bars.live.is_started and not quiet
                if plain and time.monotonic() - said_at >= SAY_EVERY_S:
                    said_at = time.monotonic()
                    err.print(f"{phase}{progress_text(record)}", markup=False)
            elif record.kind == "metrics" and "loss" in record.values:
                loss = f"loss {record.values['loss']:.3f}"
            elif record.kind == "log":
                err.print(f"{record.level}: {record.message}", markup=False)
            elif record.kind == "resumed":
                err.print(f"Going on from the checkpoint of step {record.step}.")


def _show_report(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    shown = analysis.evaluations(report.evaluations)
    title = f"{report.name} · {report.model['name']}"
    show(shown, title, without=_LEFT_OUT)
    s = report.summary
    line = f"ID {percent(s.id_accuracy)}, ECE {ece_text(s.id_ece, s.id_ece_floor)}"
    if s.ood_accuracy is not None:
        line += f" · mean OOD {percent(s.ood_accuracy)}, ECE {ece_text(s.ood_ece, s.ood_ece_floor)}"
    out.print(f"{line} · σ_min {sigma_text(s.sigma_min)}")
    first = report.evaluations[0].ece
    out.print(
        f"ECE: top label, {first.n_bins} {first.scheme.replace('_', '-')} bins, whole set; the "
        "floor is what a perfectly calibrated model would show at this n.",
        style="dim",
    )


def _sibling_reports(folder: Path | None) -> list[dict[str, Any]]:
    """Reports of the runs that lie where the new one would, the newest first."""
    place = Path("runs") if folder is None else folder.parent
    found = []
    for path in place.glob("*/report.json"):
        with suppress(OSError, ValueError):
            report = Report.model_validate_json(path.read_bytes())
            found.append((path.stat().st_mtime, str(path), report.model_dump(mode="json")))
    return [report for *_, report in sorted(found, reverse=True)]


def _dry_run(spec: RunSpec, as_json: bool, *, folder: Path | None, measure: bool) -> None:
    from calift_core.jobs.estimate import validate

    result = validate(spec, measure=measure, reports=_sibling_reports(folder))
    if as_json:
        print_json(result)
    else:
        _show_validation(spec, result)
    if not result.valid or result.missing:
        sys.exit(1)


def _show_validation(spec: RunSpec, result: Validation) -> None:
    if result.valid:
        out.print(f"The RunSpec {spec.name!r} is valid.", markup=False)
    files = [(p["file"], p["message"]) for p in result.errors if "file" in p]
    if files:
        err.print(faults_table(files))
        n = f"{len(files):,} image{'' if len(files) == 1 else 's'}"
        err.print(f"error: {n} cannot be read", style="red", markup=False)
    for problem in [p for p in result.errors if "file" not in p]:
        message = problem["message"]
        if message.startswith("unknown suite "):
            message = f"{message} {is_local_path(spec.suite.id)}".strip()
        err.print(f"error: {problem['pointer']}: {message}", style="red", markup=False)
    for sentence in result.missing:
        out.print(f"missing here: {sentence}", style="yellow", markup=False)
    for sentence in result.warnings:
        out.print(f"warning: {sentence}", style="yellow", markup=False)
    e = result.estimate
    rows = [
        ("parameters", f"{e.parameters:,}" if e.parameters else None),
        ("training images", f"{e.train_images:,}" if e.train_images else None),
        ("optimiser steps", f"{e.steps:,}" if e.steps else None),
        ("evaluated images", f"{e.evaluation_images:,}" if e.evaluation_images else None),
        ("for selection", f"{e.selection_images:,}" if e.selection_images else None),
        ("estimated time", duration_text(e.seconds) if e.seconds else None),
        ("of that", ", ".join(f"{k} {duration_text(s)}" for k, s in e.phases.items()) or None),
        (
            "per 1,000 images",
            f"{duration_text(e.train_seconds_per_1000)} of training"
            if e.train_seconds_per_1000
            else None,
        ),
    ]
    for name, value in rows:
        if value:
            out.print(f"  {name:<18}{value}")
    if e.basis:
        out.print(f"  {e.basis}", style="dim", markup=False)
    if result.missing and result.valid:
        out.print("It cannot run here until what is missing has been got.")
