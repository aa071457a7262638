"""A dashboard as a process of its own on a seeded API, and a Chromium that is logged in to it."""

import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port, group_of, unavailable, until
from tests.frontend import seed
from tests.frontend.conftest import Service, filled_home, service

ROOT = Path(__file__).parents[2]
#: What moves is painted sixty times a second.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--force-prefers-reduced-motion",
]  # fmt: skip


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard on a seeded API."""

    url: str
    service: Service

    def at(self, place: str) -> str:
        """The address of a page; `{CaRot}` is that run's id, `{all}` those of three runs."""
        ids = self.service.ids
        three = ",".join(ids[name] for name in ("zero-shot", "FLYP", "CaRot") if name in ids)
        return f"{self.url}/{place.format(**ids, all=three)}"

    def link(self, place: str = "/") -> str:
        """A link that logs in once and goes on to a place."""
        from urllib.parse import urlencode

        from calift_core.client import Client

        with Client(self.service.url, self.admin_token) as client:
            code = client.make_link().token
        return f"{self.url}/enter?{urlencode({'code': code, 'next': place})}"

    @property
    def admin_token(self) -> str:
        """The service's own token."""
        return (self.service.home / "token").read_text().strip()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def serving_dashboard(api, folder, *, port=0, variables=None, argv=("-m", "frontend")):
    """The dashboard as a process, which sees the service's home and token and must not use them."""
    port = port or free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("CALIFT_", "STREAMLIT_"))}
    environ |= {
        "CALIFT_API_URL": api.url,
        "CALIFT_HOME": str(api.home),
        "CALIFT_TOKEN": (api.home / "token").read_text().strip(),
        "CALIFT_DASHBOARD_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    } | dict(variables or {})
    log = folder / "dashboard.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *argv], stdout=output, stderr=output, env=environ, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        until(
            lambda: answers(f"{url}/_stcore/health") or process.poll() is not None,
            timeout_s=60,
            what="the dashboard to start",
        )
        assert process.poll() is None, log.read_text()
        yield Dashboard(url, api)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    with (
        service(folder / "home", filled=filled_home(tmp_path_factory)) as api,
        reporting_in(api),
        serving_dashboard(api, folder) as made,
    ):
        yield made


@contextmanager
def reporting_in(api: Service) -> Iterator[None]:
    """The worker of a seeded API goes on saying that it is there."""
    from backend.settings import Settings
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    store = Stores.on(open_engine(Settings(home=api.home).database_url))
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(5.0):
            seed.report_in(store, api.ids["running"])

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        store.close()


@contextmanager
def launched(*more: str) -> Iterator[Any]:
    """A Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        unavailable("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *more])
        yield browser
        browser.close()


#: The Chromium of this process, and what closes it.
_open: list[tuple[Any, ExitStack]] = []


@pytest.fixture(scope="module")
def chromium():
    """One Chromium for files that run after each other."""
    if not _open:
        stack = ExitStack()
        resolver = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        _open.append((stack.enter_context(launched(resolver)), stack))
    return _open[0][0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Close Chromium before files of other groups: while it is open this thread has a loop."""
    if nextitem is None or group_of(nextitem.nodeid) != group_of(item.nodeid):
        while _open:
            _open.pop()[1].close()


@pytest.fixture(scope="module")
def logged_in(dashboard, chromium):
    """The cookies of somebody who is logged in as admin."""
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(dashboard.link("/login"))
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def tab(chromium, logged_in):
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, storage_state=logged_in)
    context.set_default_timeout(45_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def stranger(chromium):
    """A tab of somebody who is not logged in."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(45_000)
    yield context.new_page()
    context.close()


def settle(tab: Any) -> None:
    """Wait until the page has drawn and nothing runs."""
    tab.wait_for_selector(".calift-head")
    tab.wait_for_function(
        "() => !document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')",
        polling=50,
    )


def open_options(tab: Any, box: Any) -> None:
    """Open the list of a select box; a redraw in that moment closes it, so it may take another."""

    from playwright.sync_api import TimeoutError as Late

    option = tab.get_by_role("option").first

    def opened() -> bool:
        settle(tab)
        if not option.is_visible():
            box.focus()
            box.press("ArrowDown")
        try:
            option.wait_for(timeout=5_000)
        except Late:
            return False
        return True

    until(opened, what="the options of the select box")


def query(tab: Any) -> str:
    return str(tab.evaluate("() => decodeURIComponent(location.search)"))
