"""What `calift runs`, `evaluations`, `sweeps` and `workers` do with one of theirs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calift.commands.console import JsonFlag, make_client, out, print_json

if TYPE_CHECKING:
    from calift_core.client import Client
    from calift_core.schema.wire.runs import JobSummary, LogPage
    from calift_core.schema.wire.sweeps import SweepDetail

JobId = Annotated[str, typer.Argument(metavar="ID")]
#: Seconds between two looks at a log that is followed.
_LOG_POLL_S = 1.0
_PIECE_BYTES = 1 << 20


def say_job(job: JobSummary | SweepDetail, as_json: bool) -> None:
    """One line: which job, and where it is."""
    if as_json:
        print_json(job)
    else:
        out.print(f"{job.id}  {job.name}  {job.phase}", markup=False)


def add_steps(
    app: typer.Typer,
    steps: Mapping[str, tuple[str, Callable[[Client, str], Any]]],
    say: Callable[[Any, bool], None] = say_job,
) -> None:
    """A command for each step, such as `cancel`: its help, and the call that makes it."""

    def add(name: str, help: str, call: Callable[[Client, str], Any]) -> None:
        @app.command(name, help=help)
        def step(job_id: JobId, as_json: JsonFlag = False) -> None:
            with make_client() as client:
                found = call(client, job_id)
            say(found, as_json)

    for name, (help, call) in steps.items():
        add(name, help, call)


def add_delete(app: typer.Typer, help: str, call: Callable[[Client, str], None]) -> None:
    """`delete`, which `call` does."""

    @app.command("delete", help=help)
    def delete(job_id: JobId, as_json: JsonFlag = False) -> None:
        with make_client() as client:
            call(client, job_id)
        if as_json:
            print_json({"deleted": job_id})
        else:
            out.print(f"{job_id} is deleted.")


def add_logs(app: typer.Typer, help: str) -> None:
    """`logs`: what a run or an evaluation job has written."""

    @app.command("logs", help=help)
    def logs(
        job_id: JobId,
        tail: Annotated[
            int | None, typer.Option(min=1, max=100_000, help="Only the last so many lines.")
        ] = None,
        follow: Annotated[
            bool, typer.Option("--follow", "-f", help="Go on as lines come, until it has ended.")
        ] = False,
        as_json: JsonFlag = False,
    ) -> None:
        with make_client() as client:
            pieces = _log_pieces(partial(client.logs, job_id), tail, follow)
            if as_json:
                print_json({"id": job_id, "text": "".join(pieces)})
                return
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()


def _log_pieces(read: Callable[..., LogPage], tail: int | None, follow: bool) -> Iterator[str]:
    page = read(limit=_PIECE_BYTES, tail=tail)
    while True:
        yield page.text
        if page.complete or not (page.text or follow):
            return
        if not page.text:
            time.sleep(_LOG_POLL_S)
        page = read(offset=page.next_offset, limit=_PIECE_BYTES)
