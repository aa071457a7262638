"""The dashboard in a real Chromium: what only a browser shows, such as addresses and widths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port, unavailable, until
from tests.frontend.conftest import Service, service

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("", "runs", "run?id={CaRot}", "new", "data", "compare?ids={all}",
         "calibration?run={CaRot}", "shifts?run={all}&metric=ece", "spectra?run={all}",
         "frontier?run={all},{WiSE-FT}")  # fmt: skip

DESCRIPTION = """e => (e.closest('[aria-label]') || e.querySelector('[aria-label]'))
  ?.getAttribute('aria-label')"""
OVERFLOW = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  const page = document.documentElement;
  return Math.max(main.scrollWidth - main.clientWidth, page.scrollWidth - innerWidth);
}"""


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard on a seeded API."""

    url: str
    service: Service

    def at(self, place: str) -> str:
        """The address of a page; `{CaRot}` is that run's id, `{all}` those of three runs."""
        ids = self.service.ids
        three = ",".join(ids[name] for name in ("zero-shot", "FLYP", "CaRot"))
        return f"{self.url}/{place.format(**ids, all=three)}"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("browser")
    with service(folder / "home", filled=True) as api:
        port = free_port()
        environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("CALIFT_", "STREAMLIT_"))
        }
        environ |= {"CALIFT_API_URL": api.url, "CALIFT_HOME": str(api.home)}
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "frontend" / "app.py"),
                   "--server.address", "127.0.0.1", "--server.port", str(port)]  # fmt: skip
        with (folder / "streamlit.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            url = f"http://127.0.0.1:{port}"
            until(
                lambda: answers(f"{url}/_stcore/health") or process.poll() is not None,
                timeout_s=60,
                what="the dashboard to start",
            )
            assert process.poll() is None, (folder / "streamlit.log").read_text()
            yield Dashboard(url, api)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        unavailable("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(45_000)
    yield context.new_page()
    context.close()


def settle(tab: Any) -> None:
    """Wait until the page has drawn and nothing runs."""
    tab.wait_for_selector(".calift-head")
    tab.wait_for_function(
        "() => !document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')"
    )


def query(tab: Any) -> str:
    return str(tab.evaluate("() => decodeURIComponent(location.search)"))


def test_runs__a_click_opens_the_run_and_its_tab_is_in_the_address(
    dashboard: Dashboard, tab: Any
) -> None:
    tab.goto(dashboard.at("runs"))
    tab.get_by_role("link", name="CaRot on fashion-mnist").click()
    tab.wait_for_url(re.compile(rf"/run\?id={dashboard.service.ids['CaRot']}"))
    assert tab.locator(".calift-head h1").inner_text() == "CaRot on fashion-mnist"
    tab.get_by_role("tab", name="Spectrum").click()
    tab.get_by_text("Effective rank over training").wait_for()
    until(lambda: "tab=Spectrum" in query(tab), timeout_s=45, what="the tab in the address")
    tab.reload()
    tab.get_by_text("Effective rank over training").wait_for()
    assert tab.get_by_role("tab", name="Spectrum").get_attribute("aria-selected") == "true"


def test_calibration__reload_and_a_copied_address_keep_the_view(
    dashboard: Dashboard, tab: Any
) -> None:
    tab.goto(dashboard.at("calibration?run={FLYP}&dataset=sketch"))
    settle(tab)
    bins = tab.get_by_label("Bins", exact=True)
    assert bins.input_value() == "15"
    bins.fill("6")
    bins.press("Enter")
    tab.get_by_text("6 bins, equal mass").wait_for()
    until(lambda: "bins=6" in query(tab), timeout_s=45, what="the bins in the address")
    address = tab.evaluate("() => location.href")
    assert len(address) < 200
    tab.reload()
    tab.get_by_text("6 bins, equal mass").wait_for()
    other = tab.context.new_page()
    other.goto(address)
    other.get_by_text("6 bins, equal mass").wait_for()
    title = other.locator("[data-testid=stPlotlyChart] .gtitle").text_content()
    assert "on sketch" in title


def test_calibration__a_run_chosen_on_one_page_is_chosen_on_the_next(
    dashboard: Dashboard, tab: Any
) -> None:
    tab.goto(dashboard.at("calibration?run={FLYP}"))
    settle(tab)
    tab.get_by_role("link", name="Shifts").click()
    tab.wait_for_url(re.compile("/shifts"))
    until(
        lambda: f"run={dashboard.service.ids['FLYP']}" in query(tab), timeout_s=45, what="the run"
    )


def test_new__a_run_is_submitted_watched_and_cancelled(dashboard: Dashboard, tab: Any) -> None:
    tab.goto(dashboard.at("new?preset=quick&method=flyp"))
    settle(tab)
    name = tab.get_by_label("Name", exact=True)
    name.fill("from the browser")
    name.press("Enter")
    epochs = tab.get_by_label("Epochs", exact=True)
    epochs.fill("3")
    epochs.press("Enter")
    tab.get_by_text("name: from the browser").wait_for(state="attached")
    tab.get_by_role("button", name="Submit").click()
    tab.wait_for_url(re.compile(r"/run\?id="))
    tab.get_by_text("Waits for a worker").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    tab.locator(".calift-pill", has_text="Cancelled").wait_for()


def test_phone__pages_fit_and_charts_have_descriptions_and_tables(
    dashboard: Dashboard, chromium: Any
) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(45_000)
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    try:
        for place in PAGES:
            tab.goto(dashboard.at(place))
            settle(tab)
            plots = tab.locator("[data-testid=stPlotlyChart]")
            twins = tab.get_by_role("button", name="Table")
            until(
                lambda p=plots, t=twins: p.count() == t.count(),
                timeout_s=45,
                what=f"the charts of {place}",
            )
            for index in range(plots.count()):
                told = plots.nth(index).evaluate(DESCRIPTION)
                assert told, f"chart {index} of {place} has no description"
                assert len(told) > 20
            over = tab.evaluate(OVERFLOW)
            assert over <= 0, f"{place} is {over} px too wide"
            assert tab.locator("[data-testid=stException]").count() == 0
    finally:
        context.close()
    assert not faults


def test_chart__its_table_opens(dashboard: Dashboard, tab: Any) -> None:
    tab.goto(dashboard.at("calibration?run={CaRot}"))
    settle(tab)
    tab.get_by_role("button", name="Table").click()
    tab.get_by_role("region", name=re.compile("Reliability diagram")).wait_for()


def test_network__nothing_is_asked_of_another_machine(dashboard: Dashboard, tab: Any) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    for place in ("", "calibration?run={CaRot}"):
        tab.goto(dashboard.at(place))
        settle(tab)
    foreign = [u for u in asked if not u.startswith((dashboard.url, "data:", "blob:"))]
    assert asked
    assert not foreign
