"""Export model, corrections and the browser of folders on a telephone, with the worst of names."""

import os
from urllib.parse import urlencode

import pytest

from tests.e2e.conftest import open_options, settle
from tests.e2e.test_browser import OVERFLOW
from tests.e2e.test_corrections import doubtful

pytestmark = pytest.mark.browser

STRIKE = "<img src=x onerror=window.struck=1>"
#: A run's name has letters and few signs: the longest, without a place to be broken at.
NAME = "n" * 120
CLASSES = (STRIKE, "w" * 200, "\u0642\u0637\u0629 \U0001f99c\u202e `x` *y*")
FOLDER = f"{STRIKE} \U0001f99c " + "f" * 150

#: What is cut off or sticks out of the screen, of what pops up.
OUTSIDE = """(selector) => [...document.querySelectorAll(selector)].flatMap((e) => {
  const {left, right} = e.getBoundingClientRect();
  return left < -1 || right > innerWidth + 1 ? [[Math.round(left), Math.round(right)]] : [];
})"""


@pytest.fixture
def worst(tmp_path, finished_run):
    with doubtful(
        tmp_path, finished_run, tree=FOLDER, classes=CLASSES, name=NAME, tags=[STRIKE]
    ) as made:
        yield made


def test_phone__ship_corrections_and_folders_bear_any_name(worst, chromium):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    context.set_default_timeout(60_000)
    tab = context.new_page()
    faults = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("dialog", lambda dialog: faults.append(dialog.message))

    def fits(what):
        settle(tab)
        if shots := os.environ.get("SHOTS"):
            tab.wait_for_timeout(1500)
            tab.screenshot(path=f"{shots}/{what}.png", full_page=True)
        assert tab.evaluate(OVERFLOW) <= 0, what
        assert tab.evaluate(OUTSIDE, "[data-testid=stPopoverBody]") == [], what
        assert tab.locator("[data-testid=stException]").count() == 0, what
        assert tab.evaluate("() => window.struck ?? 0") == 0, what
        assert not faults, what

    run = worst.dashboard.link("/run?" + urlencode({"id": worst.run}))
    tab.goto(run)
    settle(tab)
    assert "nnn" in tab.locator(".calift-head h1").inner_text()
    tab.get_by_role("button", name="Export model").click()
    tab.get_by_role("button", name="Make the model").wait_for()
    fits("ship")
    tab.keyboard.press("Escape")

    shown = urlencode({"evaluation": worst.evaluation})
    url = worst.dashboard.url
    tab.goto(f"{url}/calibration?" + urlencode({"run": worst.run, "images": shown}))
    tab.get_by_role("button", name="3 likely label errors in all").click()
    tab.get_by_role("heading", name="Correct labels").wait_for()
    table = tab.locator(f".st-key-corrections-{worst.evaluation}")
    table.locator("[role=row]", has_text=STRIKE).first.wait_for(state="attached")
    fits("corrections")

    tab.goto(f"{url}/new?intent=robust")
    settle(tab)
    tab.get_by_text("Choose a folder, or bring a zip").click()
    box = tab.get_by_role("combobox", name="Open a folder")
    open_options(tab, box)
    fits("folders listed")
    box.press("Enter")
    tab.get_by_role("button", name="Use this folder").wait_for()
    settle(tab)
    tab.get_by_role("button", name="Use this folder").click()
    tab.locator(".calift-stats", has_text="240").wait_for()
    tab.get_by_text("Images of each class (3)").click()
    fits("folder chosen")

    tab.goto(f"{url}/runs")
    tab.locator(".rows tbody a").first.wait_for()
    fits("runs")
    context.close()
