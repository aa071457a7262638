"""`calift`: runs on this machine without a service, and a client of the service.

Exit status: 0 success, 1 an error or a failed run, 2 wrong usage, 130 interrupted.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from calift.commands.console import err, is_local_path, out, print_json
from calift_core import __version__, threads
from calift_core.errors import CaliftError, InterruptedRunError, SpecError, UnknownNameError
from calift_core.installed import as_typed, missing_extra


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
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        _fail(SpecError(missing[0], hint=missing[1]))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: CaliftError) -> NoReturn:
    if _State.as_json:
        _print_error(error)
    else:
        err.print(f"error: {error.message}", style="bold red", markup=False)
        if hint := error.hint or _is_local_path(error):
            err.print(f"  {hint}", markup=False)
    sys.exit(1)


def _print_error(error: CaliftError) -> None:
    hint = as_typed(error.hint) or _is_local_path(error)
    print_json({"error": {"code": error.code, "message": error.message, "hint": hint}})


def _is_local_path(error: CaliftError) -> str:
    if isinstance(error, UnknownNameError) and error.kind == "suite":
        return is_local_path(error.name)
    return ""


def _print_version(requested: bool) -> None:
    if requested:
        out.print(f"calift {__version__}", markup=False)
        raise typer.Exit


def calift(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
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
    from calift.commands.stack import need_embedded

    need_embedded()
    from calift.commands.demo import run_demo

    run_demo(report_folder, headless=headless, api_port=api_port, dashboard_port=dashboard_port)


def version() -> None:
    """Print the version."""
    out.print(__version__)


#: Panel of the help → command → what it is in `calift.commands`, and an example; in this order.
_PANELS: dict[str, dict[str, tuple[str, str]]] = {
    "Data": {
        "data": ("data.app", "calift data inspect folder:/data/pacs/photo"),
        "import-predictions": (
            "predictions.import_predictions",
            "calift import-predictions mine.npz --dataset my-test-set --out runs/mine",
        ),
        "export-predictions": (
            "predictions.export_predictions",
            "calift export-predictions runs/mine/predictions/my-test-set.parquet mine.csv",
        ),
    },
    "Train": {
        "train": ("local.train", "calift train spec.yaml --out runs/photos"),
        "evaluate": (
            "local.evaluate",
            "calift evaluate runs/photos --shift night=folder:/data/night --out runs/night",
        ),
        "list": ("catalogue.list_things", "calift list methods"),
        "slurm": ("slurm.slurm_app", "calift slurm script spec.yaml > job.sbatch"),
        "demo": ("main.demo", "calift demo --headless --out demo-report"),
    },
    "Judge": {
        "judge": ("judging.judge", "calift judge mine.csv night.csv --against other.csv"),
        "report": ("reporting.report", "calift report runs/a runs/b --out report.html"),
        "compare": ("service.compare", "calift compare runs/a runs/b"),
        "analyse": (
            "analyse.analyse_app",
            "calift analyse audit runs/mine/predictions/my-test-set.parquet",
        ),
    },
    "Export model": {
        "calibrate": ("shipping.calibrate", "calift calibrate runs/photos --with auto"),
        "export": ("shipping.export", "calift export runs/photos models/photos"),
        "predict": ("shipping.predict", "calift predict models/photos /data/new --out answers.csv"),
        "serve": ("shipping.serve", "calift serve models/photos --port 8080"),
        "watch": ("watching.watch", "calift watch models/photos /data/new"),
        "push": ("push.push", "calift push runs/photos --to tensorboard:logs"),
    },
    "Service": {
        "up": ("stack.up", "calift up"),
        "link": ("stack.link", "calift link"),
        "submit": ("service.submit", "calift submit spec.yaml --wait"),
        "sweep": ("sweeps.sweep", "calift sweep spec.yaml --preset compare-methods --dry-run"),
        "runs": ("service.runs_app", "calift runs list"),
        "evaluations": ("evaluations.evaluations_app", "calift evaluations list"),
        "sweeps": ("sweeps.sweeps_app", "calift sweeps list"),
    },
    "Operate": {
        "doctor": ("doctor.doctor", "calift doctor"),
        "workers": ("operations.workers_app", "calift workers list"),
        "tokens": ("operations.tokens_app", "calift tokens list"),
        "backup": ("backup.backup", "calift backup /backups/today"),
        "restore": ("backup.restore", "calift restore /backups/today"),
        "prune": ("operations.prune", "calift prune --dry-run"),
        "audit": ("operations.audit", "calift audit"),
        "version": ("main.version", "calift version"),
    },
}
_EXAMPLES = {name: (panel, *row) for panel, rows in _PANELS.items() for name, row in rows.items()}


class _Commands(Mapping[str, Any]):
    """Commands by name. The module of one is imported when it is asked for: most load much."""

    def __iter__(self) -> Iterator[str]:
        return iter(_EXAMPLES)

    def __len__(self) -> int:
        return len(_EXAMPLES)

    def __getitem__(self, name: str) -> Any:
        return _command(name)


@cache
def _command(name: str) -> Any:
    panel, place, example = _EXAMPLES[name]
    module, _, attribute = place.partition(".")
    options: dict[str, Any] = {"rich_help_panel": panel, "epilog": f"Example: {example}"}
    try:
        found = getattr(importlib.import_module(f"calift.commands.{module}"), attribute)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        found = _unavailable(*missing)
        options["context_settings"] = {"allow_extra_args": True, "ignore_unknown_options": True}
        options["help"] = f"Not installed: {missing[0]}"
    holder = typer.Typer(callback=lambda: None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name, **options)
    else:
        holder.command(name, **options)(found)
    group: Any = typer.main.get_command(holder)
    return group.commands[name]


def _unavailable(message: str, hint: str) -> Callable[[], None]:
    def refuse() -> None:
        raise SpecError(message, hint=hint)

    return refuse


class _Group(typer.core.TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    cls=_Group,
    callback=calift,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
