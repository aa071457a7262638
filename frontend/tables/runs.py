"""Runs as a list shows them: what a row says, which columns there are, how they are ordered."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.runs import TERMINAL_PHASES, JobSummary, RunGroup, RunSummary, SortKey
from frontend import text
from frontend.tables import Column, Row, Table, headline

#: All that a list can show beside the name.
COLUMNS: dict[str, Column] = {
    c.name: c
    for c in (
        Column("phase", "Status", "mark"),
        Column("status", "Progress or reason"),
        Column("age", "Age"),
        Column("method", "Method"),
        *headline(("id_accuracy", "ood_accuracy", "id_ece", "ood_ece"), floors=True),
        Column("worst", "Lowest accuracy"),
        Column("suite", "Data"),
        Column("tags", "Tags"),
        Column("model", "Model"),
        Column("seed", "Seed"),
        *headline(("sigma_min",)),
        Column("took", "Took"),
        Column("owner", "Owner"),
    )
}
#: Those that people choose from: a floor goes with its error.
OFFERED = [name for name in COLUMNS if not name.endswith("_floor")]
SHOWN = OFFERED[: OFFERED.index("model")]
#: Left out where they are empty in every row, unless somebody chose the columns.
_MAY_MISS = ("status", "worst", "tags")
#: Column → the order of the API that a first click into its heading asks for.
ORDERS: dict[str, SortKey] = {
    "name": "name", "phase": "phase", "age": "-created", "method": "method", "model": "model",
    "suite": "suite", "seed": "seed", "id_accuracy": "-id_accuracy",
    "ood_accuracy": "-ood_accuracy", "id_ece": "id_ece", "ood_ece": "ood_ece",
    "sigma_min": "-sigma_min",
}  # fmt: skip
SORTS: tuple[SortKey, ...] = get_args(SortKey)


def columns(rows: Collection[Row], chosen: Collection[str] = SHOWN) -> list[Column]:
    """The columns of a list, the name first."""
    wanted = {*chosen, *(f"{name}_floor" for name in chosen)}
    if list(chosen) == SHOWN:
        wanted -= {name for name in _MAY_MISS if not any(row.get(name) for row in rows)}
    shown = [column for name, column in COLUMNS.items() if name in wanted]
    return [Column("name", "Run", "open"), *shown]


def groups(found: Sequence[RunGroup]) -> Table:
    """Groups of runs that differ in their seed alone: means ± standard errors, and how many."""
    rows = [
        {
            "name": group.name,
            "sweep": group.sweep_name,
            "method": group.method,
            "n": max((one.n for one in group.numbers.values()), default=0),
            "runs": len(group.run_ids),
            "suite": text.short_suite(group.suite),
            **group.numbers,
            **{k: v.mean for k, v in group.numbers.items() if k.endswith("_floor")},
        }
        for group in found
    ]
    columns = [
        Column("name", "Configuration", "open"),
        Column("sweep", "Sweep"),
        Column("method", "Method"),
        Column("n", "Finished runs", "count"),
        Column("runs", "Runs", "count"),
        *headline(("id_accuracy", "ood_accuracy", "id_ece", "ood_ece"), floors=True),
        Column("suite", "Data"),
    ]
    return Table([c for c in columns if c.name != "sweep" or any(r["sweep"] for r in rows)], rows)


def row(run: RunSummary) -> dict[str, Any]:
    summary: Mapping[str, Any] = {} if run.summary is None else run.summary.model_dump()
    status = "" if run.phase == "SUCCEEDED" else run.reason or ""
    if run.phase not in TERMINAL_PHASES:
        status = progress_words(run)
    worst = None
    if run.summary is not None and run.summary.worst_shift is not None:
        accuracy = text.percent(run.summary.worst_shift_accuracy)
        worst = f"{accuracy}, {text.worst_shift(run.summary)}"
    when = run.finished_at or run.started_at or run.created_at
    took = text.elapsed_s(run.started_at, run.finished_at) if run.finished_at else None
    return {
        **run.model_dump(include={"name", "method", "model", "owner"}),
        **summary,
        "phase": text.phase_mark(run.phase),
        "status": status,
        "seed": str(run.seed),
        "suite": text.short_suite(run.suite),
        "worst": worst,
        "tags": ", ".join(run.tags),
        "took": None if took is None else text.duration(took),
        "age": text.age(when),
        "age_by": -when.timestamp(),
    }


def results(found: Sequence[Evaluation]) -> Table:
    """Evaluations of runs."""
    rows = [
        {
            **dict(e),
            "run": e.run_name,
            "dataset": text.evaluation_title(e),
            "ece": text.ece_with_floor(e.ece.value, e.ece.null_mean),
        }
        for e in found
    ]
    columns = [
        Column("run", "Run", "open"),
        Column("dataset", "Data"),
        Column("n", "n", "count"),
        Column("accuracy", "Accuracy", "percent"),
        Column("ece", "ECE (floor)"),
        Column("nll", "NLL", "number"),
    ]
    return Table(columns, rows)


def progress_words(run: RunSummary) -> str:
    """Phase, step and rest of a run that is not over."""
    p = run.progress
    if p is None or run.phase == "QUEUED":
        return "waits for a worker" if run.phase == "QUEUED" else "starting"
    words = p.phase or "working"
    if p.total_steps:
        words += f", step {p.step:,} of {p.total_steps:,}"
    return f"{words}, {left_words(run)}" if run.eta_seconds is not None else words


def left_words(job: JobSummary) -> str:
    """How long a job still takes, over all its phases; empty where nothing is known."""
    if job.eta_seconds is None:
        return ""
    return f"about {text.duration(job.eta_seconds)} left" if job.eta_seconds >= 1 else "nearly done"
