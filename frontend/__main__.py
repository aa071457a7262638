"""`python -m frontend` serves the dashboard behind its log-in.

Settings: `CALIFT_API_URL`, `CALIFT_DASHBOARD_HOST` (127.0.0.1), `CALIFT_DASHBOARD_PORT` (8501) and
`CALIFT_ALLOWED_HOSTS`, the names people reach it by, which an address that other machines reach
cannot do without. With `CALIFT_OIDC_ISSUER`, `_CLIENT_ID`, `_CLIENT_SECRET` and
`CALIFT_DASHBOARD_URL`, people may log in with their organisation. `CALIFT_MAX_UPLOAD_BYTES`
(512 MiB) is the API's: a zip is held in memory here until the API has it.
"""

import gc
import hashlib
import importlib
import importlib.util
import ipaddress
import os
import pkgutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from calift_core.errors import CaliftError, SpecError
from calift_core.installed import install_extra
from frontend.authentication import AuthMiddleware, Sessions, names
from frontend.faults import unexpected
from frontend.login import Organisation, routes

HERE = Path(__file__).parent
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def allowed_hosts(address: str) -> tuple[str, ...]:
    """Names that requests may give.

    Raises:
        SpecError: other machines reach the address, and no name was given.
    """
    given = os.environ.get("CALIFT_ALLOWED_HOSTS", "")
    hosts = tuple(host.strip() for host in given.split(",") if host.strip())
    if hosts:
        return hosts
    try:
        loopback = address == "localhost" or ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SpecError(
            f"the dashboard at {address!r} can be reached from other machines, and that needs "
            "CALIFT_ALLOWED_HOSTS (the names people reach it by).",
            hint="Set it, or bind to 127.0.0.1.",
        )
    return LOOPBACK_HOSTS


def port() -> int:
    """The port to listen on.

    Raises:
        SpecError: it is not a port.
    """
    given = os.environ.get("CALIFT_DASHBOARD_PORT", "8501")
    if not given.isdecimal() or not 0 <= int(given) <= 65_535:
        raise SpecError(f"CALIFT_DASHBOARD_PORT must be a port, got {given!r}")
    return int(given)


def upload_mb() -> int:
    """The largest zip that is taken from a browser, as the API takes it, in MiB.

    Raises:
        SpecError: it is no number.
    """
    given = os.environ.get("CALIFT_MAX_UPLOAD_BYTES", str(512 << 20))
    if not given.isdecimal():
        raise SpecError(f"CALIFT_MAX_UPLOAD_BYTES must be a number, got {given!r}")
    return max(1, int(given) >> 20)


def organisation() -> Organisation | None:
    """The OpenID provider of the settings, if there is one.

    Raises:
        SpecError: half of it is set, or its library is missing.
    """
    if not os.environ.get("CALIFT_OIDC_ISSUER"):
        return None
    named = ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET", "DASHBOARD_URL")
    given = [os.environ.get(f"CALIFT_{name}", "") for name in named]
    missing = [f"CALIFT_{name}" for name, value in zip(named, given, strict=True) if not value]
    if missing:
        raise SpecError(f"CALIFT_OIDC_ISSUER needs {' and '.join(missing)}.")
    if importlib.util.find_spec("authlib") is None or importlib.util.find_spec("httpx") is None:
        raise SpecError(
            "CALIFT_OIDC_ISSUER needs authlib and httpx, not installed.", hint=install_extra("oidc")
        )
    return Organisation(*given)


@asynccontextmanager
async def prepared(_app: st.App) -> AsyncIterator[None]:
    """Have what pages are made of in memory, and out of the search for garbage.

    Streamlit makes that search after each run of a page, and nothing else is done meanwhile: 80 ms
    for the modules alone.
    """
    # A page draws itself when it is imported.
    scripts = ("frontend.views", "frontend.app", "frontend.__main__")
    ours = [found.name for found in pkgutil.walk_packages([str(HERE)], "frontend.")]
    # Streamlit imports pandas when it draws the first table.
    for name in ("pandas", *(name for name in ours if not name.startswith(scripts))):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    yield


def main() -> int:
    """Serve until a signal comes."""
    address = os.environ.get("CALIFT_DASHBOARD_HOST", "127.0.0.1")
    # What asks for a visitor acts with the visitor's session; nothing here may fall back to more.
    os.environ.pop("CALIFT_TOKEN", None)
    try:
        hosts, at, known = allowed_hosts(address), port(), organisation()
        largest = upload_mb()
    except CaliftError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    # A log-in that began at one dashboard may end at another: all of them know this secret.
    if known is not None:
        secret = hashlib.sha256(f"cookie {known.client_secret}".encode()).hexdigest()
        os.environ["STREAMLIT_SERVER_COOKIE_SECRET"] = secret
    sessions = Sessions()
    index = Path(st.__file__).parent / "static" / "index.html"
    app = st.App(
        HERE / "app.py",
        lifespan=prepared,
        on_script_error=unexpected,
        routes=routes(sessions, known),
        middleware=[
            Middleware(
                AuthMiddleware, hosts=hosts, sessions=sessions, index=index.read_text("utf-8")
            )
        ],
    )
    app.run(
        config={
            "server.address": address,
            "server.port": at,
            "server.headless": True,
            "server.fileWatcherType": "none",
            "server.maxUploadSize": largest,
            "server.allowedHosts": names(hosts),
            "server.enableCORS": True,
            "server.enableXsrfProtection": True,
            "server.xsrfCookieSameSite": "strict",
            "browser.gatherUsageStats": False,
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
