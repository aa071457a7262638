"""`calift submit`, `calift runs` and `calift compare`: a client of the service."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from calift.commands.console import (
    JsonFlag,
    duration_text,
    ece_text,
    err,
    make_client,
    of_folders,
    out,
    percent,
    plain_text,
    print_json,
    progress_text,
    show,
    sigma_text,
)
from calift.commands.evaluations import job_of, submit_job
from calift.commands.follow import follow
from calift.commands.jobs import add_delete, add_logs, add_steps, say_job
from calift.commands.local import corruptions_of, shifts_of
from calift.commands.query_options import takes
from calift_core.errors import SpecError
from calift_core.schema.places import expanded
from calift_core.schema.spec import RunSpec, load_spec, parse_spec
from calift_core.schema.suite import absolute_uri
from calift_core.schema.wire.answers import Board
from calift_core.schema.wire.operations import BulkAction
from calift_core.schema.wire.queries import CompareQuery, RunFilter, RunsQuery
from calift_core.schema.wire.results import Comparison
from calift_core.schema.wire.runs import TERMINAL_PHASES, RunDetail, RunSummary, counted
from frontend import text
from frontend.tables import Column, comparisons
from frontend.tables import Table as Rows
from frontend.tables import runs as run_tables

if TYPE_CHECKING:
    from calift_core.client import Client

runs_app = typer.Typer(no_args_is_help=True, help="Runs of the service.")


def submit(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC|RUN...",
            help="A RunSpec, YAML or JSON. With --evaluate: ids of finished runs, or a file that "
            "names them under runs.",
        ),
    ],
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Evaluate finished runs on more data, in one pass.")
    ] = False,
    shift: Annotated[
        list[str] | None,
        typer.Option("--shift", help="With --evaluate: NAME=folder:PATH; any number of times."),
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option("--folder", help="With --evaluate: a shift that is called as its folder."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="With --evaluate: a named suite of the runs' classes."),
    ] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(help="With --evaluate: all, benchmark or names separated by commas."),
    ] = None,
    severities: Annotated[str, typer.Option(help="Of the corruptions.")] = "1,3,5",
    unlabelled: Annotated[
        list[str] | None,
        typer.Option("--unlabelled", help="With --evaluate: a folder of images without labels."),
    ] = None,
    name: Annotated[str, typer.Option(help="With --evaluate: what the job is called.")] = "",
    device: Annotated[
        str | None, typer.Option(help="With --evaluate: auto, cpu, cuda, cuda:1 or mps.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and show it.")] = False,
    priority: Annotated[int, typer.Option(min=-10, max=10)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Queue a run, or an evaluation of finished runs. With --wait a failed job is exit status 1."""
    data: dict[str, Any] = {
        "shifts": shifts_of(shift or ()),
        "folders": folder,
        "suites": suite,
        "corruptions": corruptions_of(corruptions, severities),
        "unlabelled": unlabelled,
        "name": name,
        "device": device,
    }
    if evaluate:
        submit_job(job_of(what, data), priority=priority, wait=wait, as_json=as_json)
        return
    named = [key for key, value in data.items() if value]
    if named or len(what) != 1:
        raise SpecError(
            f"a run is submitted by one RunSpec, got {', '.join(named) or f'{len(what)} files'}",
            hint="calift submit --evaluate evaluates finished runs on more data.",
        )
    spec = with_absolute_paths(load_spec(what[0]))
    with make_client() as client:
        run = client.submit(spec, priority=priority)
        if wait:
            _wait(client, run.id, as_json)
        else:
            say_job(run, as_json)


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The spec with absolute paths, for a service that works in another folder.

    Relative `folder:` data, `local-dir:` models, and config and weights files that are found from
    here become absolute.
    """
    return parse_spec(absolute_paths(spec.model_dump(mode="json")))


def absolute_paths(data: dict[str, Any]) -> dict[str, Any]:
    """A RunSpec, or a part of one, with absolute paths; what it does not say stays unsaid."""
    suite, model = data.get("suite"), data.get("model")
    if isinstance(suite, dict):
        if isinstance(suite.get("id"), str):
            suite["id"] = absolute_uri(suite["id"])
        for sets in ("shifts", "ood"):
            if isinstance(suite.get(sets), dict):
                suite[sets] = {name: absolute_uri(uri) for name, uri in suite[sets].items()}
    if isinstance(model, dict):
        for key in ("name", "pretrained"):
            if isinstance(model.get(key), str) and Path(model[key]).is_file():
                model[key] = str(Path(model[key]).absolute())
        name = model.get("name")
        if isinstance(name, str) and name.startswith("local-dir:"):
            place = name.removeprefix("local-dir:")
            model["name"] = f"local-dir:{expanded(place).absolute()}"
    return data


def _wait(client: Client, run_id: str, as_json: bool) -> None:
    run = follow_runs(client, [run_id], quiet=as_json)[0]
    if as_json:
        print_json(run)
    else:
        _show_run(run)
    if run.phase != "SUCCEEDED":
        sys.exit(1)


def follow_runs(
    client: Client,
    run_ids: Sequence[str],
    *,
    quiet: bool = False,
    then: Callable[[RunDetail], Sequence[str]] = lambda _: (),
) -> list[RunDetail]:
    """Show the progress of runs until every one has ended; see `follow`."""
    return follow(client.run, run_ids, quiet=quiet, then=then)


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
        rows += [
            ("progress", f"{run.progress.phase}{progress_text(run.progress)}"),
            ("of all", f"{percent(run.fraction_done)}, {duration_text(run.eta_seconds)} left"),
        ]
    if s:
        rows += [
            ("ID accuracy", percent(s.id_accuracy)),
            ("ID ECE", ece_text(s.id_ece, s.id_ece_floor)),
            ("OOD accuracy", percent(s.ood_accuracy)),
            ("OOD ECE", ece_text(s.ood_ece, s.ood_ece_floor)),
            ("σ_min", sigma_text(s.sigma_min)),
        ]
    for name, value in rows:
        if value:
            table.add_row(name, plain_text(value))
    out.print(table)


_SHOWN = ("phase", "status", "id_accuracy", "ood_accuracy", "id_ece", "ood_ece", "sigma_min")


def show_runs(runs: Sequence[RunSummary], title: str = "") -> None:
    """Runs side by side, as the page lists them."""
    rows = [{**run_tables.row(run), "id": run.id} for run in runs]
    show(Rows([Column("id", "Id"), *run_tables.columns(rows, _SHOWN)], rows), title)


@runs_app.command("list")
@takes(RunsQuery, without=("archived",))
def runs_list(query: RunsQuery, as_json: JsonFlag = False) -> None:
    """The newest runs, or those that are asked for."""
    with make_client() as client:
        page = client.runs(query)
    if as_json:
        print_json(page)
    elif not page.items:
        out.print("There are no runs yet. `calift submit SPEC` queues one.")
    else:
        show_runs(page.items)
        out.print(f"{len(page.items)} of {counted(page.total)} runs.")


@runs_app.command("groups")
@takes(RunFilter, without=("archived",))
def runs_groups(query: RunFilter, as_json: JsonFlag = False) -> None:
    """Runs that differ in their seed alone: means with their standard error, and how many."""
    with make_client() as client:
        groups = client.run_groups(query)
    if as_json:
        print_json(groups)
    else:
        show(run_tables.groups(groups))


@runs_app.command("show")
def runs_show(run_id: str, as_json: JsonFlag = False) -> None:
    """One run."""
    with make_client() as client:
        run = client.run(run_id)
    if as_json:
        print_json(run)
    else:
        _show_run(run)


@runs_app.command("continue")
def runs_continue(
    run_id: str,
    epochs: Annotated[int, typer.Option(min=1, max=10_000, help="How many more.")] = 2,
    name: Annotated[
        str | None, typer.Option(help="Of the new run (default: the run's, and how many more).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a finished run's model for more epochs, as a new run."""
    with make_client() as client:
        say_job(client.continue_run(run_id, epochs, name=name), as_json)


@runs_app.command("wait")
def runs_wait(run_id: str, as_json: JsonFlag = False) -> None:
    """Wait for a run's end; exit status 1 if it did not succeed."""
    with make_client() as client:
        _wait(client, run_id, as_json)


add_logs(runs_app, "The log of a run.")
add_steps(
    runs_app,
    {
        "cancel": ("Ask a run to stop after saving a checkpoint.", lambda c, i: c.cancel(i)),
    },
)


def _add_bulk(action: BulkAction, help: str, **meant: Any) -> None:
    """An action on runs that are named, or that options find, which then are counted first.

    Args:
        meant: what is looked for where the options do not say.
    """

    @runs_app.command(action, help=f"{help} Runs are named, or found by the options of `list`.")
    @takes(RunFilter, without=("archived",))
    def change(
        query: RunFilter,
        ids: Annotated[list[str] | None, typer.Argument(metavar="RUN")] = None,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
        as_json: JsonFlag = False,
    ) -> None:
        found = query.model_dump(exclude_defaults=True)
        if bool(ids) == bool(found):
            raise SpecError(f"{action} takes ids of runs, or options that find them, one of both.")
        wanted = None if ids else RunFilter.of(params=meant | found)
        done: list[str] = []
        refused: dict[str, str] = {}
        with make_client() as client:
            if wanted is not None and not yes:
                n = client.runs(RunsQuery.of(wanted, {"limit": 1})).total
                typer.confirm(f"{action} {counted(n)} runs?", abort=True, err=True)
            while True:
                some = client.change_runs(action, ids=ids or None, filter=wanted)
                done += some.done
                refused |= {one.id: one.message for one in some.refused}
                if not (some.more and some.done):
                    break
        if as_json:
            print_json({"done": done, "refused": refused})
        else:
            out.print(f"{action}: {len(done):,} of {len(done) + len(refused):,} runs.")
            for message in refused.values():
                err.print(message, markup=False)
        if refused:
            raise typer.Exit(1)


_add_bulk(
    "retry",
    "Queue failed and cancelled runs again; they go on from their checkpoints.",
    phase=["FAILED", "CANCELLED"],
)
_add_bulk("archive", "Take runs out of the lists; they keep everything.")
_add_bulk("unarchive", "Put archived runs back into the lists.", archived=True)
add_delete(
    runs_app,
    "Delete a run that has ended, with its files.",
    lambda client, run_id: client.delete(run_id),
)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Two or more finished runs: ids, or folders of such."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this one (default: first).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What differs between runs, and paired differences with intervals."""
    if len(runs) < 2:
        raise SpecError(f"compare takes at least 2 runs, got {len(runs)}")
    query = CompareQuery.of(params={"run_id": runs, "baseline": baseline})
    if of_folders(runs):
        from calift_core.analysis.comparer import Comparer
        from calift_core.analysis.explorer import Explorer
        from calift_core.analysis.folder import FolderLibrary

        library = FolderLibrary()
        comparer = Comparer(library, Explorer(library))
        comparison, boards = comparer.compare(query), comparer.leaders(query).boards
    else:
        with make_client() as client:
            comparison = client.compare(query)
            boards = client.leaders(run_id=query.run_id).boards
    if as_json:
        print_json(comparison)
        return
    show_comparison(comparison, boards)


def show_comparison(comparison: Comparison, boards: Sequence[Board] = ()) -> None:
    """Write a comparison for people, its answer first."""
    from frontend import answers

    names = {c.run.id: c.run.name for c in comparison.runs}
    for run in names:
        if run != comparison.baseline:
            for answer in answers.overall(run, comparison.baseline, boards, names):
                out.print(answers.plain(answer.sentence), markup=False)
    show_runs([c.run for c in comparison.runs])
    if comparison.parameters:
        show(comparisons.parameters(comparison), "What differs")
    base = next(c.run.name for c in comparison.runs if c.run.id == comparison.baseline)
    every = [d for compared in comparison.runs for d in compared.differences]
    titles = {d.metric: text.METRICS[d.metric].title if d.metric in text.METRICS else d.metric
              for d in every}  # fmt: skip
    for metric, title in titles.items():
        shown = comparisons.differences(comparison, metric)
        show(shown, f"Minus {base}, same samples: {title}", without=("baseline", "n"))
    if any(d.squared for d in every):
        out.print(
            "L2 difference: of the L2 calibration errors with the noise taken out, with its "
            "interval. It decides; no interval of a difference of ECEs can be trusted."
        )
    for warning in comparison.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False)
