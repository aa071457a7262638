"""`calift study`: studies of what the methods claim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from calift.commands.console import JsonFlag, err, out, plain_text, print_json, require_torch
from calift_core import __version__
from calift_core.errors import DataError, SpecError
from calift_core.home import calift_home

if TYPE_CHECKING:
    from calift_core.studies.bound.analysis import Analysis
    from calift_core.studies.bound.terms import BoundPoint
study_app = typer.Typer(no_args_is_help=True, help="Studies of what the methods claim.")


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
        bool, typer.Option("--synthetic", help="Train and evaluate the synthetic models.")
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
    from calift_core.studies.bound.analysis import analyse
    from calift_core.studies.bound.figure import need_matplotlib
    from calift_core.studies.bound.runs import read_runs, stored_run_folders
    from calift_core.studies.bound.written import study_document, write_study

    everything = not (synthetic or runs or folders)
    if quick and not (synthetic or everything):
        raise SpecError("--quick is about the synthetic experiment, which --synthetic asks for")
    if folder:
        need_matplotlib()
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
    require_torch()
    from calift_core.studies.bound.analysis import analyse
    from calift_core.studies.bound.synthetic import FULL, QUICK, synthetic_points, synthetic_scopes

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
    from calift_core.studies.bound.written import study_tables

    for contents in study_tables(analysis):
        table = Table(title=contents.title, title_justify="left")
        for i, name in enumerate(contents.header):
            left = i < contents.n_left
            table.add_column(name, justify="left" if left else "right", no_wrap=not left)
        for i, row in enumerate(contents.rows):
            ends = contents.n_left > 1 and [r[0] for r in contents.rows[i + 1 : i + 2]] != [row[0]]
            table.add_row(*map(plain_text, row), end_section=ends)
        out.print(table)
    for note in analysis.notes:
        out.print(note, markup=False)
