"""A page whose web socket drops, and one whose dashboard is killed, go on as they were."""

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port, unavailable, until
from tests.e2e.conftest import ROOT, answers, serving_dashboard, settle

pytestmark = pytest.mark.browser


def half_filled(tab: Any, url: str) -> None:
    """Type into New run what no address holds."""
    tab.goto(url)
    settle(tab)
    tab.evaluate("() => { window.loadedOnce = true }")
    name = tab.get_by_label("Name", exact=True)
    name.fill("half a form")
    name.press("Enter")
    tab.get_by_text("name: half a form").wait_for(state="attached")


def require_as_it_was(tab: Any) -> None:
    settle(tab)
    assert tab.evaluate("() => window.loadedOnce"), "the page was loaded anew"
    assert tab.get_by_label("Name", exact=True).input_value() == "half a form"
    tab.get_by_text("name: half a form").wait_for(state="attached")


def test_socket__that_drops_costs_the_page_nothing(dashboard, tab):
    sockets = []

    def between(socket):
        socket.connect_to_server()
        sockets.append(socket)

    tab.route_web_socket(re.compile("/_stcore/stream"), between)
    half_filled(tab, dashboard.at("new?preset=quick&method=flyp"))
    sockets[-1].close(code=1001)
    until(lambda: len(sockets) == 2 or tab.wait_for_timeout(50), what="another socket")
    require_as_it_was(tab)


@contextmanager
def balanced(folder: Path, *ports: int) -> Iterator[str]:
    """HAProxy as compose has it, in front of these ports of this machine."""
    command = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or unavailable("no haproxy")
    front = free_port()
    servers = "".join(f"    server at{port} 127.0.0.1:{port}\n" for port in ports)
    text = (ROOT / "deploy/haproxy.cfg").read_text().replace(":8501\n", f"127.0.0.1:{front}\n", 1)
    file = folder / "haproxy.cfg"
    file.write_text(re.sub(r" +server-template .*\n", servers, text))
    process = subprocess.Popen([str(command), "-db", "-f", str(file)])
    try:
        yield f"http://127.0.0.1:{front}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.thorough
def test_dashboard__that_ends_is_replaced_by_another_under_its_visitor(
    dashboard, stranger, tmp_path
):
    first, second = free_port(), free_port()
    tab = stranger
    with ExitStack() as over, ExitStack() as gone:
        url = over.enter_context(balanced(tmp_path, first, second))
        gone.enter_context(serving_dashboard(dashboard.service, tmp_path, port=first))
        until(lambda: answers(f"{url}/_stcore/health"), what="the proxy to see the first")
        tab.goto(dashboard.link().replace(dashboard.url, url))
        settle(tab)

        def replica():
            (found,) = [c["value"] for c in tab.context.cookies() if c["name"] == "calift_replica"]
            return str(found)

        of_first = replica()
        over.enter_context(serving_dashboard(dashboard.service, tmp_path, port=second))
        until(lambda: another(url, of_first), what="the proxy to see the second")
        half_filled(tab, f"{url}/new?preset=quick&method=flyp")
        assert replica() == of_first, "a visitor stays with one dashboard"
        gone.close()
        until(lambda: replica() != of_first or tab.wait_for_timeout(50), what="the other one")
        require_as_it_was(tab)


def another(url: str, than: str) -> bool:
    """Whether somebody new may come to another dashboard than this."""
    with urllib.request.urlopen(f"{url}/login", timeout=5) as response:
        return than not in str(response.headers["set-cookie"])
