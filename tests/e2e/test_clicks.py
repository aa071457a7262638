"""From a mark, a row and a bin to its images by a pointer, also where answers are late."""

import io
import re
from typing import Any

import pytest
from PIL import Image

from tests.conftest import until
from tests.e2e.conftest import query, settle

pytestmark = pytest.mark.browser

#: Where the own mark of a run lies on the screen, in the n-th chart.
MARK = """([n, run]) => {
  const plot = document.querySelectorAll('.js-plotly-plot')[n];
  const marks = plot._fullData.find((one) => one.customdata?.[0]?.[0] === run);
  const {xaxis, yaxis} = plot._fullLayout;
  const place = plot.getBoundingClientRect();
  return [place.left + xaxis._offset + xaxis.d2p(marks.x[0]),
          place.top + yaxis._offset + yaxis.d2p(marks.y[0])];
}"""


def shows(tab: Any, words: str) -> None:
    """Wait until the gallery shows images that fit these words."""
    until(lambda: "images=" in query(tab), timeout_s=45, what="the images in the address")
    tab.locator(".st-key-gallery").get_by_text(re.compile(words)).first.wait_for()
    tab.locator(".gallery li").first.wait_for()


def open_row(tab: Any, caption: str, place: int) -> str:
    """Click on the name in a row of a table that is painted; the first is 1."""
    table = tab.locator(f"[data-testid=stDataFrame]:has([aria-label*='{caption}'])").first
    rows = table.locator("[role=row]")
    rows.nth(place).locator("[role=gridcell]").first.wait_for(state="attached")
    table.evaluate("e => e.scrollIntoView({block: 'center'})")
    name = rows.nth(place).locator("[role=gridcell]").first.text_content()
    settle(tab)
    box = table.locator("canvas").first.bounding_box()
    tab.mouse.click(box["x"] + 40, box["y"] + box["height"] * (place + 0.5) / rows.count())
    return str(name)


def test_frontier__a_point_opens_the_images_of_its_run_where_it_is_worst(dashboard, tab):
    tab.goto(dashboard.at("frontier?run={all}"))
    settle(tab)
    tab.locator(".calift-chart[data-state=drawn]").first.wait_for()
    tab.mouse.click(*tab.evaluate(MARK, [0, dashboard.service.ids["FLYP"]]))
    shows(tab, "FLYP on fashion-mnist.*on-texture")


def test_runs__are_put_in_order_by_a_heading_and_columns_stay_with_the_browser(
    dashboard, tab, chromium
):
    tab.goto(dashboard.at("runs"))
    tab.locator(".rows thead button").first.wait_for()
    settle(tab)

    def column(place):
        cells = tab.locator(".rows tbody tr").filter(has_text="%").locator(f"td:nth-child({place})")
        return [str(cell) for cell in cells.all_inner_texts()]

    headings = [str(h) for h in tab.locator(".rows thead th").all_inner_texts()]
    at = headings.index("ID accuracy") + 1
    for asked, down in (("-id_accuracy", True), ("id_accuracy", False)):
        tab.locator(".rows thead button", has_text="ID accuracy").click()
        until(lambda asked=asked: f"sort={asked}" in query(tab), timeout_s=45, what="the order")
        until(
            lambda down=down: column(at) == sorted(column(at), key=_number, reverse=down),
            timeout_s=45, what="the rows in order",
        )  # fmt: skip
    tab.get_by_role("button", name="Columns").click()
    tab.get_by_role("button", name="Tags", exact=True).click()
    tab.get_by_role("button", name="Seed", exact=True).click()
    until(lambda: "seed" in query(tab), timeout_s=45, what="the columns in the address")
    heading = tab.locator(".rows thead th", has_text="Seed")
    heading.wait_for()
    context = chromium.new_context(storage_state=tab.context.storage_state())
    later = context.new_page()
    later.goto(dashboard.at("runs"))
    later.locator(".rows thead th", has_text="Seed").wait_for(timeout=45_000)
    assert later.locator(".rows thead th", has_text="Tags").count() == 0
    until(lambda: "seed" in query(later), timeout_s=45, what="the columns in the address")
    context.close()


def _number(cell: str) -> float:
    return float(cell.split("\xa0")[0])


def test_slices__a_row_opens_its_images(dashboard, tab):
    tab.goto(dashboard.at("calibration?run={CaRot}&dataset=sketch&view=slices&by=class"))
    settle(tab)
    name = open_row(tab, "open one to see its images", 1)
    until(lambda: "images=" in query(tab), timeout_s=45, what="the images in the address")
    tab.locator(".gallery li").first.wait_for()
    classes = re.split(" (?:as|→|›|taken for) ", name)
    labels = tab.locator(".gallery .label").all_text_contents()
    assert labels
    assert set(labels) == {classes[0]}, name


def test_diagram__a_click_on_a_bin_that_has_gone_does_no_harm(dashboard, tab):
    """The new diagram is held up on its way, so that the old one is still there to be clicked."""
    held = []
    armed = False

    def between(page_side):
        server = page_side.connect_to_server()

        def from_server(message):
            if held or (armed and b"reliability" in message):
                held.append((page_side, message))
            else:
                page_side.send(message)

        server.on_message(from_server)

    tab.route_web_socket(re.compile("/_stcore/stream"), between)
    tab.goto(dashboard.at("calibration?run={FLYP}&dataset=sketch"))
    settle(tab)
    cells = tab.locator(".rail [role=option]")
    until(lambda: cells.count() == 15, timeout_s=45, what="the bins")
    box = tab.get_by_label("Bins", exact=True)
    box.fill("6")
    armed = True
    box.press("Enter")
    # A look at the page lets what comes from the server be handled as well.
    until(lambda: "bins=6" in query(tab) and bool(held), timeout_s=45, what="the new diagram")
    assert cells.count() == 15
    before = len(held)
    cells.nth(12).click(force=True)
    until(
        lambda: cells.count() == 15 and len(held) > before + 2,
        timeout_s=45,
        what="answers to the click",
    )
    armed = False
    while held:  # in their order, also before what comes meanwhile
        page_side, message = held[0]
        page_side.send(message)
        held.pop(0)
    until(lambda: cells.count() == 6, timeout_s=45, what="the new bins")
    settle(tab)
    assert "images=" not in query(tab)
    assert tab.locator(".rail [aria-selected=true]").count() == 0
    assert tab.locator("[data-testid=stException]").count() == 0
    cells.nth(3).click()  # and those that are there are chosen as ever
    until(lambda: "images=" in query(tab), timeout_s=45, what="the images in the address")


def test_gallery__asks_again_for_an_image_that_a_busy_service_has_not_drawn(dashboard, tab):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (20, 160, 90)).save(file, "PNG")
    requested = []

    def answer(route):
        url = route.request.url
        requested.append(url)
        if requested.count(url) < 3:
            route.fulfill(status=503, headers={"Retry-After": "1"}, body="too much to do")
        else:
            route.fulfill(status=200, content_type="image/png", body=file.getvalue())

    tab.route("**/thumbnail?*", answer)
    tab.goto(dashboard.at("calibration?run={FLYP}&dataset=sketch"))
    settle(tab)
    cells = tab.locator(".rail [role=option]")
    until(lambda: cells.count() == 15, timeout_s=45, what="the bins")
    cells.last.click()
    first = tab.locator(".gallery img").first
    first.wait_for()
    until(lambda: first.evaluate("image => image.naturalWidth") == 8, timeout_s=45, what="images")
    assert requested.count(str(first.evaluate("image => image.src"))) >= 3
    assert tab.locator(".gallery .missing").count() == 0
    assert tab.locator(".why").filter(has_text="too much").count() == 0
