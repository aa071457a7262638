"""What every command writes with: the console, JSON, and numbers for people."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from calift_core.errors import SpecError
from calift_core.installed import as_typed, install_extra
from calift_core.words import percent as percent

if TYPE_CHECKING:
    from calift_core.client import Client
    from calift_core.schema.records import ProgressRecord
    from calift_core.schema.wire.runs import Progress
    from frontend.tables import Table as Rows

#: Without a terminal for bars, a line says how far a run is, at most so often.
SAY_EVERY_S = 10.0
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


def is_local_path(name: str) -> str:
    """What a suite's name without a folder may have meant, where such a file is here."""
    here = os.path.exists(os.path.expanduser(name.partition("#")[0]))
    return f"What lies here is named ./{name}." if here else ""


def print_json(value: Any) -> None:
    """One JSON document on stdout, of models too."""
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def make_client() -> Client:
    """A client of the service that this machine is set to."""
    from calift_core.client import Client

    return Client()


def ece_text(value: float | None, floor: float | None) -> str:
    """A calibration error and its floor, both fractions, in percent."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" + ("" if floor is None else f" (floor {100 * floor:.1f})")


def sigma_text(value: float | None) -> str:
    """A singular value, as the pages write it."""
    from frontend.text import number

    return number(value)


def duration_text(seconds: float | None) -> str:
    """A time in seconds, in the unit that a person would use."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def require_torch() -> None:
    """Make sure that models can be loaded.

    Raises:
        SpecError: torch or open_clip is not installed.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("open_clip") is None:
        raise SpecError(
            "training and evaluation need torch and open_clip, which are not installed.",
            hint=install_extra("train"),
        )


def progress_text(p: Progress | ProgressRecord) -> str:
    """Step, rest of the phase and speed of a run that works, to go behind the phase's name."""
    parts = [f"step {p.step:,} of {p.total_steps:,}"] if p.total_steps else []
    parts += [p.detail] if p.detail else []
    parts += [f"{duration_text(p.eta_s)} left"] if p.eta_s is not None else []
    parts += [f"{p.samples_per_s:,.0f} images/s"] if p.samples_per_s else []
    return ", ".join(["", *parts]) if parts else ""


def of_folders(runs: Sequence[str]) -> bool:
    """Whether runs are folders of this machine; else they are ids of the service.

    Raises:
        SpecError: some are and others are not, or one can be neither.
    """
    folders = [Path(run).is_dir() for run in runs]
    for run, is_folder in zip(runs, folders, strict=True):
        if not is_folder and ("/" in run or run in (".", "..")):
            raise SpecError(f"{run!r} must be a folder of a finished run, there is none.")
    if any(folders) and not all(folders):
        raise SpecError(
            "RUN... must be all folders or all ids of the service, got both.",
            hint="Differences are paired sample by sample, which needs the predictions in one "
            "place.",
        )
    return all(folders)


def faults_table(faults: Iterable[tuple[str, str]]) -> Table:
    """Files that cannot be used, all of them: where each is, and what is wrong with it."""
    table = Table("in", "what cannot be read", title_justify="left")
    for place, why in faults:
        table.add_row(plain_text(place), plain_text(why))
    return table


def show(shown: Rows, title: str = "", *, without: Collection[str] = ()) -> None:
    """Print one of the dashboard's tables; the ends of an interval share a column."""
    from frontend import tables

    ends = [c.label.endswith(" high") for c in shown.columns]
    kept = [
        c for c, end in zip(shown.columns, ends, strict=True) if c.name not in without and not end
    ]
    lines: list[list[str]] = []
    for row in shown.rows:
        cells: list[str] = []
        for column, is_end, words in zip(
            shown.columns, ends, tables.words_of(shown, row), strict=True
        ):
            if column.name in without:
                continue
            if not is_end:
                cells.append(words.replace("\u00a0", " "))
            elif row.get(column.name) is not None:
                cells[-1] += f" … {words}".replace("\u00a0", " ")
        lines.append(cells)
    table = Table(title=title or None, title_justify="left")
    for at, column in enumerate(kept):
        label, number = column.label.removesuffix(" low"), column.kind in tables.NUMERIC
        if number:  # its numbers stay whole in a narrow window, so its heading wraps
            width = max([*map(len, label.split()), *(len(cells[at]) for cells in lines)])
            table.add_column(fill(label, width), justify="right", no_wrap=True)
        else:
            table.add_column(label, overflow="fold")
    for cells in lines:
        table.add_row(*map(plain_text, cells))
    out.print(table)


def plain_text(text: str) -> Any:
    """A text in which Rich finds no markup."""
    from rich.text import Text

    return Text(text)
