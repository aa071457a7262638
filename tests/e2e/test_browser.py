"""The dashboard in a real Chromium: what only a browser shows, such as addresses and widths."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import until
from tests.e2e.conftest import Dashboard, query, settle

pytestmark = pytest.mark.browser

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


def open_row(tab: Any, caption: str, name: str) -> None:
    """Click on a name in a table: it is painted, and its cells are there for screen readers alone.

    The heading's row is as high as any other.
    """
    table = tab.locator(f"[data-testid=stDataFrame]:has([aria-label*='{caption}'])").first
    cells = table.locator("[role=gridcell]", has_text=re.compile(f"^{re.escape(name)}$"))
    cells.wait_for(state="attached")
    names = table.locator("[role=row]").evaluate_all("rows => rows.map(row => row.textContent)")
    place = next(i for i, row in enumerate(names) if name in row)
    box = table.locator("canvas").first.bounding_box()
    tab.mouse.click(box["x"] + 120, box["y"] + box["height"] * (place + 0.5) / len(names))


def test_runs__a_click_opens_the_run_and_its_tab_is_in_the_address(
    dashboard: Dashboard, tab: Any
) -> None:
    tab.goto(dashboard.at("runs"))
    settle(tab)
    tab.evaluate("() => { window.loadedOnce = true }")
    open_row(tab, "Runs", "CaRot on fashion-mnist")
    tab.wait_for_url(re.compile(rf"/run\?id={dashboard.service.ids['CaRot']}"))
    assert tab.evaluate("() => window.loadedOnce"), "the page was loaded anew"
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
    until(lambda: bins.input_value() == "15", what="the bins that were evaluated with")
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
    tab.locator(".calift-pill", has_text="Queued").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    tab.locator(".calift-pill", has_text="Cancelled").wait_for()


def only(ask: Callable[[], bool]) -> bool:
    """An answer about the one element of its kind; false while a page that changes shows two."""
    from playwright.sync_api import Error

    with suppress(Error):
        return ask()
    return False


def test_new__a_typed_folder_names_the_run_and_one_that_is_not_there_cannot_be_submitted(
    dashboard: Dashboard, tab: Any, tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for index in range(30):
            (tmp_path / "birds" / name / f"{index}.png").touch()
    tab.goto(dashboard.at("new?preset=quick&method=flyp"))
    settle(tab)
    name = tab.get_by_label("Name", exact=True)
    submit = tab.get_by_role("button", name="Submit")
    data = tab.get_by_role("combobox", name="ID data")

    def type_data(folder: Path) -> None:
        data.click()
        data.fill(str(folder))
        data.press("Enter")
        until(lambda: name.input_value() == f"flyp on {folder.name}", what="the name to follow")

    type_data(tmp_path / "nowhere")
    tab.get_by_text(f"there is no folder '{tmp_path / 'nowhere'}'").wait_for()
    until(lambda: only(submit.is_disabled), what="the button to be disabled")
    type_data(tmp_path / "birds")
    tab.get_by_text(re.compile("Only . steps? of training")).wait_for()
    until(lambda: only(submit.is_enabled), what="the button to be enabled")
    box = tab.get_by_role("combobox", name="Corruptions")
    box.click()
    box.fill("gausian_noise")
    box.press("Enter")
    box.press("Escape")  # an open list hides the rest of the page from roles
    tab.get_by_text("Did you mean 'gaussian_noise'").first.wait_for()
    until(lambda: only(submit.is_disabled), what="the button to be disabled")


def test_phone__pages_fit_and_charts_have_descriptions_and_tables(
    dashboard: Dashboard, chromium: Any, logged_in: Any
) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, storage_state=logged_in)
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
