"""`calift`: runs on this machine without a service, and a client of the service.

Exit status: 0 success, 1 an error or a failed run, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from calift.commands import (
    analyse,
    backup,
    catalogue,
    data,
    doctor,
    evaluations,
    local,
    operations,
    predictions,
    reporting,
    service,
    shipping,
    slurm,
    stack,
    study,
    sweeps,
)
from calift.commands.console import err, lies_here, out, print_json
from calift.commands.push import push
from calift.commands.stack import need_embedded
from calift_core import __version__, threads
from calift_core.errors import CaliftError, InterruptedRunError, UnknownNameError
from calift_core.installed import as_typed

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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
        if hint := error.hint or _lies_here(error):
            err.print(f"  {hint}", markup=False)
    sys.exit(1)


def _print_error(error: CaliftError) -> None:
    hint = as_typed(error.hint) or _lies_here(error)
    print_json({"error": {"code": error.code, "message": error.message, "hint": hint}})


def _lies_here(error: CaliftError) -> str:
    if isinstance(error, UnknownNameError) and error.kind == "suite":
        return lies_here(error.name)
    return ""


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
    """The whole path on real data: fine-tune, merge, evaluate, calibrate, compare, look."""
    need_embedded()
    from calift.commands.demo import run_demo

    run_demo(report_folder, headless=headless, api_port=api_port, dashboard_port=dashboard_port)


def version() -> None:
    """Print the version."""
    out.print(__version__)


# In the order that the help shows.
app.command()(predictions.import_predictions)
app.command()(predictions.export_predictions)
app.command()(local.train)
app.command()(local.evaluate)
app.command()(shipping.calibrate)
app.command()(shipping.export)
app.command()(shipping.predict)
app.command()(shipping.serve)
app.command()(shipping.watch)
app.command()(service.submit)
app.command()(service.compare)
app.command()(reporting.report)
app.command()(push)
app.command()(sweeps.sweep)
app.command("list")(catalogue.list_things)
app.command()(doctor.doctor)
app.command()(stack.up)
app.command()(stack.link)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(operations.prune)
app.command()(operations.audit)
app.command()(demo)
app.command()(version)
app.add_typer(service.runs_app, name="runs")
app.add_typer(evaluations.evaluations_app, name="evaluations")
app.add_typer(data.app, name="data")
app.add_typer(operations.workers_app, name="workers")
app.add_typer(operations.tokens_app, name="tokens")
app.add_typer(sweeps.sweeps_app, name="sweeps")
app.add_typer(slurm.slurm_app, name="slurm")
app.add_typer(study.study_app, name="study")
app.add_typer(analyse.analyse_app, name="analyse")
