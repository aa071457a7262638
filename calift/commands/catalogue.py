"""`calift list`: what can be named in a RunSpec."""

from typing import Annotated, Any

import typer
from rich.table import Table

from calift.commands.console import JsonFlag, out, print_json
from calift_core.errors import ServiceUnavailableError, UnknownNameError
from calift_core.home import calift_home


def list_things(
    what: Annotated[str, typer.Argument(help="methods, models or datasets.")],
    as_json: JsonFlag = False,
) -> None:
    """List what can be named in a RunSpec. Asks the service, else this installation."""
    kinds = ("methods", "models", "datasets")
    if what not in kinds:
        raise UnknownNameError("list", what, kinds)
    items = _catalogue(what)
    if as_json:
        print_json(items)
        return
    table = Table()
    if what == "methods":
        for name in ("kind", "method", "what it does", "source"):
            table.add_column(name)
        for m in items:
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
        from calift_core import catalogue

        if what == "methods":
            return list(catalogue.methods())
        return list(catalogue.models(calift_home()) if what == "models" else catalogue.datasets())
