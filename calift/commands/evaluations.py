"""`calift submit --evaluate` and `calift evaluations`: finished runs evaluated by the service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from calift.commands.console import (
    JsonFlag,
    make_client,
    out,
    plain_text,
    print_json,
    show,
)
from calift.commands.follow import follow
from calift.commands.jobs import add_delete, add_logs, add_steps, say_job
from calift.commands.query_options import takes
from calift_core.errors import SpecError, UnknownNameError
from calift_core.schema.documents import load_document
from calift_core.schema.evaluation_job import (
    EvaluationJob,
    EvaluationJobSpec,
    EvaluationJobsQuery,
)
from calift_core.schema.suite import absolute_uri
from frontend.tables import Column
from frontend.tables import runs as run_tables

if TYPE_CHECKING:
    from calift_core.client import Client
    from calift_core.schema.wire.results import Evaluation

evaluations_app = typer.Typer(
    no_args_is_help=True,
    help="Evaluation jobs of the service: finished runs evaluated on more data.",
)


def job_of(what: Sequence[str], data: dict[str, Any]) -> dict[str, Any]:
    """What the command line asks of an evaluation job.

    Args:
        what: ids of runs, or one YAML or JSON file that names them.
        data: `suites`, `shifts`, `folders`, `corruptions`, `name` and `device` as options say them;
            they come before those of the file.

    Raises:
        SpecError: the file cannot be read, or has a field that no evaluation has.
    """
    params: dict[str, Any] = {"runs": list(what)}
    if len(what) == 1 and what[0].endswith((".yaml", ".yml", ".json")):
        found = load_document(what[0], "evaluation")
        if not isinstance(found, dict):
            raise SpecError(
                f"an evaluation is a mapping of fields, such as runs and shifts, got "
                f"{type(found).__name__} in {what[0]!r}"
            )
        params = found
    for key in params:
        if key not in EvaluationJobSpec.model_fields:
            raise UnknownNameError("field", str(key), EvaluationJobSpec.model_fields)
    params = params | {key: value for key, value in data.items() if value}
    for key in ("suites", "folders", "unlabelled"):
        if isinstance(params.get(key), list):
            params[key] = [_absolute(item) for item in params[key]]
    if isinstance(params.get("shifts"), dict):
        params["shifts"] = {name: _absolute(uri) for name, uri in params["shifts"].items()}
    return params


def _absolute(source: Any) -> Any:
    """A folder's source with its absolute path: the service works in another folder."""
    if not isinstance(source, str):
        return source  # said by the schema
    return absolute_uri(source)


def submit_job(params: dict[str, Any], *, priority: int, wait: bool, as_json: bool) -> None:
    """Queue a job, and wait for its end if that is wanted."""
    runs = params.pop("runs", ())
    with make_client() as client:
        job = client.evaluate(runs, priority=priority, **params)
        if wait:
            _wait(client, job.id, as_json)
        else:
            say_job(job, as_json)


def _wait(client: Client, job_id: str, as_json: bool) -> None:
    job = follow(client.evaluation_job, [job_id], quiet=as_json)[0]
    _show(client, job, as_json)
    if job.phase != "SUCCEEDED":
        sys.exit(1)


def _results(client: Client, job_id: str) -> list[Evaluation]:
    page = client.job_evaluations(job_id)
    found = list(page.items)
    while page.next_cursor:
        page = client.job_evaluations(job_id, cursor=page.next_cursor)
        found += page.items
    return found[::-1]


def _show(client: Client, job: EvaluationJob, as_json: bool) -> None:
    results = _results(client, job.id)
    unlabelled = client.unlabelled(job.id) if job.spec.unlabelled else []
    if as_json:
        found = {
            "evaluations": [e.model_dump(mode="json") for e in results],
            "unlabelled": [e.model_dump(mode="json") for e in unlabelled],
        }
        print_json(job.model_dump(mode="json") | found)
        return
    phase = job.phase + (f" ({job.reason})" if job.reason else "")
    out.print(f"{job.id}  {job.name}  {phase}", markup=False)
    for line in (job.message, job.hint, job.waiting):
        if line:
            out.print(line, markup=False)
    for one in unlabelled:
        out.print(f"{one.run} on {one.source}: {one.sentence}", markup=False)
    if results:
        shown = run_tables.results(results)
        show(shown._replace(columns=[Column("run_id", "Id"), *shown.columns]))


@evaluations_app.command("list")
@takes(EvaluationJobsQuery)
def evaluations_list(query: EvaluationJobsQuery, as_json: JsonFlag = False) -> None:
    """The newest evaluation jobs, or those that are asked for."""
    with make_client() as client:
        page = client.evaluation_jobs(query)
    if as_json:
        print_json(page)
        return
    if not page.items:
        out.print("There are none. `calift submit --evaluate RUN --shift NAME=PATH` queues one.")
        return
    table = Table()
    for name in ("id", "name", "phase", "runs", "results"):
        table.add_column(name, no_wrap=name != "name")
    for job in page.items:
        phase_text = f"{job.phase} {job.reason or run_tables.left_words(job)}".strip()
        table.add_row(
            job.id, plain_text(job.name), phase_text, str(len(job.spec.runs)), str(job.results)
        )
    out.print(table)
    out.print(f"{len(page.items)} of {page.total} evaluation jobs.")


@evaluations_app.command("show")
def evaluations_show(job_id: str, as_json: JsonFlag = False) -> None:
    """One evaluation job with its results so far."""
    with make_client() as client:
        _show(client, client.evaluation_job(job_id), as_json)


@evaluations_app.command("wait")
def evaluations_wait(job_id: str, as_json: JsonFlag = False) -> None:
    """Wait for a job's end; exit status 1 if it did not succeed."""
    with make_client() as client:
        _wait(client, job_id, as_json)


add_logs(evaluations_app, "The log of a job.")
add_steps(
    evaluations_app,
    {
        "cancel": (
            "Ask a job to stop. What it has finished stays under the runs.",
            lambda client, job_id: client.cancel(job_id),
        ),
        "retry": (
            "Queue a failed or cancelled job again; it goes on where it was.",
            lambda client, job_id: client.retry(job_id),
        ),
    },
)
add_delete(
    evaluations_app,
    "Delete a job that has ended; its results stay.",
    lambda client, job_id: client.delete(job_id),
)
