"""What pages look like and how they are moved through: both colours, the keyboard, Back."""

import re
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from tests.conftest import until
from tests.e2e.conftest import open_options, query, settle

pytestmark = pytest.mark.browser

PAGES = ("", "runs", "run?id={CaRot}", "compare?ids={all}",
         "calibration?run={CaRot}&dataset=sketch",
         "new?intent=robust", "shifts?run={all}", "decide?run={CaRot}",
         "plan?run={all}&dataset=sketch", "bound", "picture?run={CaRot}", "data")  # fmt: skip
#: What opens on a page and is looked at as well, by the names of the buttons.
OPENED = {"run?id={CaRot}": "Export model", "calibration?run={CaRot}&dataset=sketch": "Change"}
#: Faults of Streamlit's own list of pages, whose items lie in a `div` and a `section` inside their
#: `ul`, and of the place that files are dropped on; docs/tour.md says what upstream would have to
#: change.
UPSTREAM = {"list", "listitem", "presentation-role-conflict"}
STREAMLITS = (
    '<ul data-testid="stSidebarNav',
    '<li class="st-emotion',
    '<section role="presentation" tabindex="-1" data-testid="stFileUploaderDropzone"',
)
AXE = """async (only) => (await axe.run(document, {
  resultTypes: ['violations'], ...(only && {runOnly: {type: 'rule', values: only}}),
})).violations.map(
  v => [v.id, v.nodes.map(n => [n.html.slice(0, 200), n.target.join(' '),
    (n.any[0] && n.any[0].data && n.any[0].data.contrastRatio) || 0])])"""
#: The rules of axe that look at colours.
OF_COLOURS = ["color-contrast", "link-in-text-block"]
GROUND = "() => getComputedStyle(document.querySelector('.stApp')).backgroundColor"
PAPER = "() => document.querySelector('.js-plotly-plot .main-svg').style.backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(17, 23, 29)"


@pytest.fixture
def in_scheme(chromium, logged_in):
    contexts = []

    def tab(scheme):
        context = chromium.new_context(
            viewport={"width": 1440, "height": 1400}, storage_state=logged_in,
            color_scheme=scheme, reduced_motion="reduce",
        )  # fmt: skip
        context.set_default_timeout(45_000)
        contexts.append(context)
        return context.new_page()

    yield tab
    for context in contexts:
        context.close()


@pytest.mark.parametrize("both", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_axe__finds_no_fault_of_ours_in_either_colours(dashboard, in_scheme, both):
    """Each page in the colours that the one before it had not; `make fuzz` looks at all in both."""
    axe = pytest.importorskip("axe_playwright_python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()
    schemes = ["light", "dark"]
    tab = in_scheme(schemes[0])

    def look(what):
        for again in (False, True)[: 1 + both]:
            ground = LIGHT if schemes[0] == "light" else DARK
            until(lambda g=ground: tab.evaluate(GROUND) == g, what=f"{schemes[0]} colours")
            settle(tab)
            rules = OF_COLOURS if again else None
            assert _lasting_faults(tab, rules) == {}, f"{what} in {schemes[0]}"
            schemes.reverse()
            tab.emulate_media(color_scheme=schemes[0])

    for place in PAGES:
        tab.goto(dashboard.at(place))
        settle(tab)
        if "calibration" in place:
            tab.locator(".rail [role=option]").first.wait_for()
        tab.evaluate(script)
        look(place)
        if place in OPENED:
            tab.get_by_role("button", name=OPENED[place]).first.click()
            tab.locator("[data-testid=stPopoverBody]").first.wait_for()
            look(f"{OPENED[place]} of {place}")


def _lasting_faults(tab: Any, only: list[str] | None, timeout_s: float = 45) -> dict[str, Any]:
    """What axe finds of ours, by some rules only or all; what is paler for a moment passes."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = dict(tab.evaluate(AXE, only))
        for rule in UPSTREAM & set(found):
            found[rule] = [one for one in found[rule] if not one[0].startswith(STREAMLITS)]
        found = {rule: nodes for rule, nodes in found.items() if nodes}
        if not found or time.monotonic() > deadline:
            return found


def test_colours__chosen_in_the_menu_draw_the_charts_again(dashboard, in_scheme):
    tab = in_scheme("light")
    tab.goto(dashboard.at("shifts?run={CaRot}"))
    tab.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert tab.evaluate(PAPER) == LIGHT
    for chosen, paper in (("Dark", DARK), ("Light", LIGHT)):
        item = tab.get_by_test_id(f"stMainMenuItem-theme-{chosen}")
        if not item.is_visible():
            tab.locator("[data-testid=stMainMenu] button").click()
        item.click()
        until(lambda p=paper: tab.evaluate(PAPER) == p, timeout_s=45, what="charts in new colours")
        assert tab.evaluate(GROUND) == paper


def test_back__leaves_a_page_with_one_press_and_forward_comes_again(dashboard, tab):
    tab.goto(dashboard.at("shifts?run={FLYP}"))
    settle(tab)
    tab.locator(".js-plotly-plot").first.wait_for()
    been = []
    for page in ("Calibration", "Compare", "New run"):
        before = tab.evaluate("() => history.length")
        tab.get_by_role("link", name=page, exact=True).click()
        tab.locator(".calift-head h1", has_text=page).wait_for()
        settle(tab)
        if page != "New run":
            until(lambda: dashboard.service.ids["FLYP"] in query(tab), what="the run")
        assert tab.evaluate("() => history.length") == before + 1, page
        been.append(page)
    for page in ("Compare", "Calibration", "Shifts"):
        tab.go_back()
        tab.locator(".calift-head h1", has_text=page).wait_for()
        settle(tab)
    tab.go_forward()
    tab.locator(".calift-head h1", has_text="Calibration").wait_for()
    # What somebody changes is an entry of its own: Back takes the change back and stays.
    bins = tab.get_by_label("Bins", exact=True)
    until(lambda: bins.input_value() == "15", what="the bins")
    bins.fill("6")
    bins.press("Enter")
    until(lambda: "bins=6" in query(tab), timeout_s=45, what="the bins in the address")
    tab.go_back()
    until(lambda: "bins=6" not in query(tab), timeout_s=45, what="the address before")
    assert tab.locator(".calift-head h1").inner_text() == "Calibration"


def test_chart__is_drawn_when_it_is_near_and_a_click_opens_what_its_mark_stands_for(dashboard, tab):
    requested = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(dashboard.at("compare?ids={all}"))
    settle(tab)
    tab.get_by_role("heading", name="Paired differences").wait_for()
    last = tab.locator(".calift-chart").last
    assert last.get_attribute("data-state") == "waits"
    assert last.bounding_box()["height"] > 100  # its room is there, and nothing jumps
    last.scroll_into_view_if_needed()
    tab.locator(".calift-chart[data-state=drawn]").last.wait_for()
    until(lambda: last.get_attribute("data-state") == "drawn", timeout_s=45, what="the chart")
    assert sum("/scripts/plotly-cartesian" in url for url in requested) == 1

    tab.goto(dashboard.at("shifts?run={CaRot}&metric=accuracy"))
    settle(tab)
    tab.locator(".calift-chart[data-state=drawn]").first.wait_for()
    cell = tab.evaluate("""() => {
      const plot = document.querySelector('.js-plotly-plot');
      const marks = plot._fullData.find((one) => one.customdata);
      const at = marks.customdata.findIndex((one) => one[1] === 'sketch');
      const {xaxis, yaxis} = plot._fullLayout;
      const place = plot.getBoundingClientRect();
      return [place.left + xaxis._offset + xaxis.d2p(marks.x[at]),
              place.top + yaxis._offset + yaxis.d2p(marks.y[at])];
    }""")
    assert re.match(r"[\d.]+\xa0%$", tab.locator(".cbaxis text").first.text_content())
    tab.mouse.move(*cell)
    tab.locator(".js-plotly-plot .hoverlayer").first.get_by_text("sketch").wait_for()
    tab.mouse.click(*cell)
    until(lambda: "images=" in query(tab), timeout_s=45, what="the images in the address")
    tab.locator(".st-key-gallery").get_by_text(re.compile("sketch")).first.wait_for()


@pytest.mark.parametrize(
    ("place", "role", "name"),
    [("compare?ids={all}", "radio", "ECE"), ("shifts?run={all}", "radio", "ECE"),
     ("run?id={CaRot}", "tab", "Config")],
)  # fmt: skip
def test_change__of_a_part_of_a_page_does_not_run_all_of_it(dashboard, tab, place, role, name):
    ends = []

    def received(frame):
        message = ForwardMsg.FromString(frame)
        if message.WhichOneof("type") == "script_finished":
            ends.append(message.script_finished)

    tab.on("websocket", lambda socket: socket.on("framereceived", received))
    tab.goto(dashboard.at(place))
    button = tab.get_by_role(role, name=name, exact=True).last
    button.wait_for()
    until(lambda: query(tab) and ends, timeout_s=45, what="the whole page")
    settle(tab)
    before = len(ends)
    button.click()
    until(
        lambda: f"={name.lower()}" in query(tab).lower() and len(ends) > before,
        timeout_s=45, what="the address and the end of the script",
    )  # fmt: skip
    assert set(ends[before:]) == {ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY}


def test_cell__of_corruption_and_severity_is_opened_by_keys_alone(dashboard, tab):
    tab.goto(dashboard.at("run?id={CaRot}&tab=Shifts"))
    settle(tab)
    tab.locator(".calift-chart").nth(1).scroll_into_view_if_needed()
    tab.locator(".calift-chart[data-state=drawn]").nth(1).wait_for()
    tab.get_by_role("button", name="Choose").last.focus()
    tab.keyboard.press("Enter")
    box = tab.get_by_role("combobox", name="A mark of the chart").last
    box.wait_for()
    open_options(tab, box)
    tab.keyboard.type("jpeg")
    tab.get_by_role("option", name=re.compile("jpeg")).first.wait_for()
    tab.keyboard.press("Enter")
    until(lambda: "images=" in query(tab), timeout_s=45, what="the images in the address")
    tab.locator(".st-key-gallery").get_by_text(re.compile("jpeg")).first.wait_for()


def test_new__a_dropped_zip_is_scanned_and_named(dashboard, tab, tmp_path):
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "red birds.zip", "w") as made:
        for index in range(60):
            made.writestr(f"birds/{'cat' if index % 2 else 'dog'}/{index}.png", file.getvalue())
    tab.goto(dashboard.at("new?preset=quick&method=flyp"))
    settle(tab)
    tab.get_by_text("Choose a folder, or bring a zip").click()
    tab.locator("[data-testid=stFileUploaderDropzoneInput]").set_input_files(
        str(tmp_path / "red birds.zip")
    )
    tab.get_by_text("red-birds.zip: 60 images of 2 classes.").wait_for()
    tab.get_by_text("30 per class").wait_for()
    name = tab.get_by_label("Name", exact=True)
    until(lambda: name.input_value() == "flyp on red-birds", what="the name to follow")
    until(lambda: tab.get_by_role("button", name="Submit").is_enabled(), what="the button")


class SlowLine:
    """What the server says to a tab, kept back for as long as a test wants."""

    def __init__(self, tab: Any) -> None:
        self.tab, self.is_slow = tab, False
        self.kept: list[tuple[Any, Any]] = []
        tab.route_web_socket("**/_stcore/stream", self._opened)

    def _opened(self, page_side: Any) -> None:
        server = page_side.connect_to_server()
        server.on_message(
            lambda said: (
                self.kept.append((page_side, said)) if self.is_slow else page_side.send(said)
            )
        )

    def wait_for(self, words: bytes) -> None:
        """Until the server has said something; it is kept back."""
        until(
            lambda: self.tab.evaluate("1") and any(words in output for _, output in self.kept),
            timeout_s=45, what=f"the server to say {words!r}",
        )  # fmt: skip

    def release(self) -> None:
        """Let all of it arrive."""
        self.is_slow = False
        while self.kept:
            page_side, output = self.kept.pop(0)
            page_side.send(output)


def test_change__is_kept_when_the_next_comes_before_the_address_has_arrived(dashboard, tab):
    line = SlowLine(tab)
    tab.goto(dashboard.at("calibration?run={FLYP}&dataset=sketch"))
    settle(tab)
    bins = tab.get_by_label("Bins", exact=True)
    until(lambda: bins.input_value() == "15", what="the bins that were evaluated with")
    slider = tab.get_by_role("slider", name="Temperature")

    line.is_slow = True
    bins.fill("6")
    bins.press("Enter")
    line.wait_for(b"bins=6")
    slider.focus()
    tab.keyboard.press("ArrowRight")
    line.wait_for(b"temperature=1.05")
    line.release()
    tab.get_by_text("T = 1.05").wait_for()
    until(lambda: "temperature=1.05" in query(tab), timeout_s=45, what="the second change")
    settle(tab)
    assert "bins=6" in query(tab)
    assert bins.input_value() == "6"
    tab.get_by_text("6 bins, equal mass").wait_for()

    # Back still takes changes back, one after the other, and Forward brings them again.
    for press, held, heated in (
        (tab.go_back, "6", False),
        (tab.go_back, "15", False),
        (tab.go_forward, "6", False),
        (tab.go_forward, "6", True),
    ):
        press()
        until(lambda held=held: bins.input_value() == held, timeout_s=45, what=f"{held} bins")
        settle(tab)
        assert ("temperature=1.05" in query(tab)) is heated


def test_actions__buttons_and_links_of_a_row_stand_on_one_line(dashboard, tab):
    tab.goto(dashboard.at("overview"))
    settle(tab)
    parts = [
        tab.get_by_role("button", name="Retry").first,
        tab.get_by_role("link", name="Change and run again").first,
    ]
    for part in parts:
        part.wait_for()
    boxes = [part.bounding_box() for part in parts]
    middles = [box["y"] + box["height"] / 2 for box in boxes]
    assert abs(middles[0] - middles[1]) < 3
