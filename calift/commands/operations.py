"""`calift workers`, `tokens`, `prune` and `audit`: keeping a service in order."""

from typing import Annotated, Literal, cast

import typer
from rich.table import Table

from calift.commands.console import JsonFlag, err, make_client, out, plain_text, print_json, show
from calift.commands.jobs import add_steps
from calift.commands.query_options import takes
from calift_core.schema.wire.operations import Prunable, Pruned, PruneRequest, TokenMake
from calift_core.schema.wire.queries import AuditLogQuery
from calift_core.schema.wire.service import WorkerInfo
from frontend.tables import Column
from frontend.tables import workers as worker_tables

workers_app = typer.Typer(no_args_is_help=True, help="Workers of the service.")
tokens_app = typer.Typer(no_args_is_help=True, help="Tokens of the service.")


@workers_app.command("list")
def workers_list(as_json: JsonFlag = False) -> None:
    """Which workers report in, and what each does."""
    with make_client() as client:
        workers = client.workers()
    if as_json:
        print_json(workers)
        return
    if not workers:
        out.print("No worker has reported in lately. `calift up` starts one.")
        return
    shown = worker_tables.workers(workers)
    show(shown._replace(columns=[Column("id", "Id"), *shown.columns]), without=("host",))


def _say_worker(worker: WorkerInfo, as_json: bool) -> None:
    if as_json:
        print_json(worker)
    else:
        out.print(f"{worker.id}  {worker_tables.state(worker).word}", markup=False)


add_steps(
    workers_app,
    {
        "drain": (
            "Have a worker take no run after the one that it works on.",
            lambda client, worker_id: client.drain_worker(worker_id),
        ),
        "resume": (
            "Have a drained worker take runs again.",
            lambda client, worker_id: client.resume_worker(worker_id),
        ),
    },
    _say_worker,
)


@tokens_app.command("list")
def tokens_list(as_json: JsonFlag = False) -> None:
    """Tokens without their secrets: your own, and with the scope admin everybody's."""
    with make_client() as client:
        tokens = client.tokens()
    if as_json:
        print_json(tokens)
        return
    table = Table()
    for name in ("id", "owner", "scope", "state", "made", "expires", "for"):
        table.add_column(name, no_wrap=name == "id")
    for token in tokens:
        expires = f"{token.expires_at:%Y-%m-%d}" if token.expires_at else "never"
        made = f"{token.created_at:%Y-%m-%d}"
        row = (token.id, plain_text(token.owner), token.scope, token.state, made, expires)
        table.add_row(*row, plain_text(token.note))
    out.print(table)


@tokens_app.command("add")
def tokens_add(
    owner: str,
    scope: Annotated[str, typer.Option(help="read, submit or admin.")] = "submit",
    days: Annotated[float | None, typer.Option(help="Until it expires (default: never).")] = None,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a token and print it, once: your own that gives no more than yours, an admin any."""
    if scope not in ("read", "submit", "admin"):
        raise typer.BadParameter(f"scope must be read, submit or admin, got {scope!r}")
    wanted = cast("Literal['read', 'submit', 'admin']", scope)
    with make_client() as client:
        made = client.make_token(TokenMake(owner=owner, scope=wanted, days=days, note=note))
    if as_json:
        print_json(made)
    else:
        out.print(made.token, markup=False, soft_wrap=True)


@tokens_app.command("revoke")
def tokens_revoke(token_id: str) -> None:
    """Make a token worthless, and the sessions that it opened."""
    with make_client() as client:
        client.revoke_token(token_id)
    out.print(f"{token_id}  revoked", markup=False)


_KINDS: tuple[Prunable, ...] = ("checkpoints", "archived_predictions", "archived_runs")


def prune(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            help="checkpoints, archived_predictions, archived_runs (default: the first two)."
        ),
    ] = None,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, help="Days since the run ended.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove old checkpoints, predictions of archived runs, or archived runs whole."""
    for kind in kinds or []:
        if kind not in _KINDS:
            raise typer.BadParameter(f"must be one of {', '.join(_KINDS)}, got {kind!r}")
    chosen = cast("list[Prunable]", kinds or list(_KINDS[:2]))
    request = PruneRequest(kinds=chosen, older_than_days=older_than)
    with make_client() as client:
        found = client.prune(request, preview=True)
        if not dry_run and (found.files or found.runs):
            if not (yes or as_json):
                err.print(_words(found), markup=False)
                typer.confirm("Remove it? This cannot be undone.", abort=True)
            found = client.prune(request)
    if as_json:
        print_json(found)
    else:
        out.print(_words(found), markup=False)


def _words(found: Pruned) -> str:
    what = f"{found.files:,} files of {len(found.run_ids):,} runs"
    if len(found.run_ids) == 200:
        what = f"{found.files:,} files of 200 or more runs"
    if found.runs:
        what += f", and {found.runs:,} archived runs whole"
    verb = "Removed" if found.done else "To be removed"
    return f"{verb}: {what}. {found.freed_bytes / 1e6:,.1f} MB become free."


@takes(AuditLogQuery, without=("before",))
def audit(query: AuditLogQuery, as_json: JsonFlag = False) -> None:
    """Who did what to which object, the newest first. Needs the scope admin."""
    with make_client() as client:
        page = client.audit_log(query)
    if as_json:
        print_json(page)
        return
    table = Table()
    for name in ("when", "who", "did", "to", "request"):
        table.add_column(name, no_wrap=name in ("when", "did"))
    for entry in page.items:
        table.add_row(
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            plain_text(entry.actor),
            entry.action,
            plain_text(entry.target),
            entry.request_id,
        )
    out.print(table)
