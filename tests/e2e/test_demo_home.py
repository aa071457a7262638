"""Every page on a home as `make demo` leaves it: wide and light, narrow and dark, in one browser.

The home is recorded from a real demo by `tests/support/record_demo_home.py`.
"""

import ast
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import until
from tests.e2e.conftest import ROOT, Dashboard, serving_dashboard
from tests.frontend.conftest import service
from tests.frontend.driving import TABS

pytestmark = pytest.mark.browser

PACKED = ROOT / "tests" / "data" / "demo-home.tar.xz"
RUNS = ("Zero-shot", "FLYP", "CaRot", "FLYP path")
ALL = ",".join(f"{{{name}}}" for name in RUNS)
PLACES = (
    "", "runs", "new", "new?intent=robust", "new?clone={FLYP path}",
    "data", "tokens", "sweeps", "sweep",
    f"compare?ids={ALL}&baseline={{Zero-shot}}",
    f"calibration?run={ALL}&dataset=display",
    "calibration?run={CaRot}&dataset=display&view=images", f"calibration?run={ALL}&view=slices",
    f"calibration?run={ALL}&view=slices&by=confusion",
    "calibration?run={CaRot}&view=calibrators&dataset=display&with=serif,mono,display",
    "calibration?run={CaRot}&view=prompts", "calibration?run={CaRot}&dataset=display&view=map",
    f"calibration?run={ALL}&view=audit",
    "calibration?run={CaRot}&dataset=display"
    "&images=evaluation%3D{CaRot on display}%26lower%3D0.6%26upper%3D1.0",
    "calibration?run={CaRot}&dataset=display"
    "&images=evaluation%3D{CaRot on display}%26like%3D{sample}",
    f"decide?run={ALL}", f"decide?run={ALL}&view=ood",
    f"frontier?run={ALL}",
    f"shifts?run={ALL}",
    "sample?evaluation={CaRot on display}&sample={sample}",
    f"picture?run={ALL}",
    f"curves?ids={ALL}&smooth=0.8", f"spectra?run={ALL}", "bound",
    f"plan?run={ALL}&dataset=display",
)  # fmt: skip
#: Scheme and window of the two looks at each page.
LOOKS = (("light", 1440, 900), ("dark", 390, 844))
GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 23, 29)"}

#: Streamlit asks below a page's own address first whether it is served from there.
_PROBE = re.compile(r"^/[^/]+/_stcore/(health|host-config)$")
#: A part of the dashboard that raises where an address says so.
_BROKEN = """
import sys
import streamlit as st
from frontend import __main__ as dashboard
from frontend.panels.run import config
drawn = config.draw

def draw(run):
    if "broken" in st.query_params:
        raise RuntimeError("the sky has fallen")
    drawn(run)

config.draw = draw
sys.argv[0] = dashboard.__file__  # beside which Streamlit looks for its settings
sys.exit(dashboard.main())
"""

#: Our own components, whose parts stand in shadow roots.
OWN = "'[data-testid^=stBidiComponent], [data-testid^=stBidiComponent] *'"
#: Whether all is drawn, in the colours of a ground.
DRAWN = """(ground) => {
  dispatchEvent(new Event('beforeprint'));  // charts are drawn near what is seen, and for printing
  const app = document.querySelector('.stApp');
  return document.querySelector('.calift-head h1')
    && getComputedStyle(app).backgroundColor === ground
    && app.dataset.testScriptState === 'notRunning'
    && !document.querySelector('[data-stale=true], [data-testid=stSkeleton], .calift-waiting')
    && [...document.querySelectorAll(OWN)].every((e) =>
      !e.shadowRoot || e.closest('.st-key-calift-browser')
      || e.shadowRoot.querySelector(':not(style, link) *'))
    && document.fonts.status === 'loaded'
    && [...document.querySelectorAll('.calift-chart')].every((e) => e.dataset.state === 'drawn'
      && e.querySelector('.main-svg')?.style.backgroundColor === ground);
}""".replace("OWN", OWN)
#: Tables that have more than they show and no bar that says so; some stand in shadow roots.
CUT = """() => {
  const roots = [document, ...[...document.querySelectorAll(OWN)]
    .map((e) => e.shadowRoot).filter(Boolean)];
  return roots.flatMap((root) => [...root.querySelectorAll('.calift-table, .rows')])
    .filter((e) => e.scrollWidth > e.clientWidth && !(getComputedStyle(e).overflowX === 'auto'
      && parseFloat(getComputedStyle(e, '::-webkit-scrollbar').height) >= 8))
    .map((e) => `a table is cut by ${e.scrollWidth - e.clientWidth} px: `
      + e.getAttribute('aria-label'));
}""".replace("OWN", OWN)
#: What is wrong with a page that is drawn, in sentences.
FAULTS = """() => {
  const found = [];
  const main = document.querySelector('[data-testid=stMain]');
  const words = (e) => (e.innerText || e.getAttribute('aria-label') || '').trim().slice(0, 200);
  for (const e of document.querySelectorAll('[data-testid=stException], [role=dialog], .no-webgl, '
      + '[data-testid=stAlertContentError]'))
    found.push('it shows ' + words(e));
  for (const e of document.querySelectorAll('.js-plotly-plot')) {
    const filled = e._fullData.some((t) => t.visible === true
      && [t.x, t.y, t.z, t.values, t.link?.value].some((v) => v?.length > 0));
    if (!filled) found.push('an empty chart: ' + e._fullLayout.meta?.alt);
    const title = e.querySelector('.gtitle')?.getBoundingClientRect().right ?? 0;
    if (title > e.getBoundingClientRect().right) found.push('a title is cut: ' + words(e));
  }
  const charts = [...document.querySelectorAll('.calift-chart')];
  for (const e of charts) {
    const said = (e.closest('[aria-label]') ?? e.querySelector('[aria-label]'))?.ariaLabel ?? '';
    if (said.length < 20) found.push('a chart without a description: ' + words(e));
  }
  const twins = document.querySelectorAll('[class*="st-key-tbl-"]').length;
  if (charts.length !== twins) found.push(`${charts.length} charts have ${twins} tables`);
  const over = Math.max(main.scrollWidth - main.clientWidth,
    document.documentElement.scrollWidth - innerWidth);
  if (over > 0) found.push(`it is ${over} px too wide`);
  return found.concat((CUT)());
}""".replace("CUT", CUT)
#: What is left above a square, and by how much it is not one.
SQUARE = """() => {
  const {xaxis, yaxis, _size} = document.querySelector('.js-plotly-plot')._fullLayout;
  return [Math.round(yaxis._offset - _size.t), Math.round(Math.abs(yaxis._length - xaxis._length))];
}"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The dashboard on the recorded home; its service's ids are those of runs and evaluations."""
    from calift_core.client import Client

    folder = tmp_path_factory.mktemp("demo")
    with tarfile.open(PACKED) as archive:
        archive.extractall(folder, filter="data")
    (folder / "broken.py").write_text(_BROKEN)
    with service(folder / "home") as api:
        with Client(api.url, (api.home / "token").read_text().strip()) as client:
            ids = {run.name: run.id for run in client.all_runs()}
            for name in RUNS:
                for one in client.run_evaluations(ids[name]):
                    ids[f"{name} on {one.dataset}"] = one.id
            display = ids["CaRot on display"]
            ids["sample"] = client.samples(display, limit=1).items[0].id
            assert client.make_feature_map(display).state != "failed"
            until(
                lambda: client.feature_map(display).state == "ready", timeout_s=120, what="the map"
            )
        with serving_dashboard(api, folder, argv=[str(folder / "broken.py")]) as made:
            yield replace(made, service=replace(api, ids=ids))


class Visitor:
    """A browser's tab that is looked at both ways, one after the other."""

    def __init__(self, tab: Any, demo: Dashboard) -> None:
        self.tab, self.demo = tab, demo
        self.looks = list(LOOKS)
        self.said: list[str] = []
        tab.on("console", self._on_console)
        tab.on("response", self._on_response)
        tab.on("pageerror", lambda error: self.said.append(f"a script failed: {error}"))
        self.wear(self.looks[0])

    def _on_console(self, message: Any) -> None:
        place = urlsplit(str(message.location.get("url", ""))).path
        if message.type in ("error", "warning") and not _PROBE.match(place):
            self.said.append(f"the console says: {message.text[:300]}")

    def _on_response(self, response: Any) -> None:
        if response.status >= 400 and not _PROBE.match(urlsplit(response.url).path):
            self.said.append(f"{response.url} answered {response.status}")

    def wear(self, look: tuple[str, int, int]) -> None:
        """Change colours and window."""
        scheme, width, height = look
        self.tab.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        self.tab.set_viewport_size({"width": width, "height": height})

    def open(self, place: str) -> None:
        """Load a page."""
        self.said.clear()
        self.tab.goto(self.demo.at(place))

    def faults(self, name: str, looks: Sequence[tuple[str, int, int]] = LOOKS) -> list[str]:
        """What is wrong with what is open, in either look or in one."""
        if self.looks[0] not in looks:
            self.looks.reverse()
            self.wear(self.looks[0])
        found = self._faults(name)
        if len(looks) < len(LOOKS):
            return found
        self.looks.reverse()
        self.wear(self.looks[0])
        return found + self._faults(name)

    def _waits(self, condition: str, scheme: str, **options: Any) -> bool:
        """Whether a condition holds in time."""
        try:
            # At each frame, as it would be else, asking all of a page costs more than drawing it.
            self.tab.wait_for_function(condition, arg=GROUNDS[scheme], polling=100, **options)
        except Exception as error:
            if "Timeout" not in type(error).__name__:
                raise
            return False
        return True

    def _faults(self, name: str) -> list[str]:
        scheme, width, _ = self.looks[0]
        # What is wrong for a moment only, while charts still come, is not.
        whole = f"(ground) => ({DRAWN})(ground) && !({FAULTS})().length"
        found = [] if self._waits(DRAWN, scheme) else ["it was not drawn"]
        if not self._waits(whole, scheme, timeout=15_000):
            found += self.tab.evaluate(FAULTS)
        if shots := os.environ.get("SHOTS"):
            _photograph(
                self.tab, Path(shots) / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{width}.png"
            )
        found += self.said
        self.said.clear()
        return [f"{name}, {scheme} at {width} px: {one}" for one in dict.fromkeys(found)]


def _photograph(tab: Any, path: Path) -> None:
    """All of a page: Streamlit scrolls inside of it."""
    size = tab.viewport_size
    height = tab.evaluate("() => document.querySelector('[data-testid=stMain]').scrollHeight")
    tab.set_viewport_size({**size, "height": min(max(height, size["height"]), 6000)})
    tab.wait_for_timeout(300)
    tab.screenshot(path=path)
    tab.set_viewport_size(size)


@pytest.fixture(scope="module")
def visitor(demo, chromium):
    context = chromium.new_context()
    context.set_default_timeout(45_000)
    tab = context.new_page()
    tab.goto(demo.link("/login"))
    yield Visitor(tab, demo)
    context.close()


@pytest.mark.parametrize("place", PLACES)
def test_page__has_no_fault_in_either_look(visitor, place):
    visitor.open(place)
    assert visitor.faults(place or "overview") == []
    if "view=map" in place:
        plot = "document.querySelector('.js-plotly-plot')._fullData"
        assert visitor.tab.evaluate(f"{plot}.reduce((n, t) => n + t.x.length, 0)") == 186
    if place in ("runs", "data") or "view=calibrators" in place:  # the widest tables
        scheme, _, height = visitor.looks[0]
        visitor.wear((scheme, 1024, height))
        visitor.tab.wait_for_function(DRAWN, arg=GROUNDS[scheme], polling=100)
        found = visitor.tab.evaluate(CUT)
        visitor.wear(visitor.looks[0])
        assert found == [], "on a small laptop"


def test_phone__a_square_is_one_with_nothing_above_it(visitor):
    visitor.wear(("dark", 390, 844))
    visitor.open("calibration?run={CaRot}&view=calibrators")
    # The page is whole for a moment before its charts come, which are below what is seen.
    there = f"(ground) => ({DRAWN})(ground) && document.querySelector('.js-plotly-plot .main-svg')"
    visitor.tab.wait_for_function(there, arg=GROUNDS["dark"], polling=100)
    above, off = visitor.tab.evaluate(SQUARE)
    visitor.wear(visitor.looks[0])
    assert above <= 4
    assert off <= 1


def test_phone__a_run_is_chosen_on_its_card(visitor):
    visitor.wear(("dark", 390, 844))
    visitor.open("runs")
    visitor.tab.locator(".rows.cards tbody input").first.check(timeout=20_000)
    visitor.wear(visitor.looks[0])


def test_report__its_tables_are_not_cut(visitor, demo, tmp_path):
    from calift_core.client import Client
    from frontend.reports.contents import contents
    from frontend.reports.document import to_html
    from frontend.reports.gathered import from_service

    with Client(demo.service.url, demo.admin_token) as client:
        runs = [demo.service.ids[name] for name in RUNS]
        made = contents(from_service(client, runs, paired=False))
    (tmp_path / "report.html").write_text(to_html(made), encoding="utf-8")
    visitor.tab.goto((tmp_path / "report.html").as_uri())
    visitor.tab.locator(".main-svg").first.wait_for()
    found = []
    for width in (1024, 390):
        visitor.tab.set_viewport_size({"width": width, "height": 844})
        found += visitor.tab.evaluate(CUT)
        over = visitor.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        found += [f"it is {over} px too wide"] if over > 0 else []
    visitor.wear(visitor.looks[0])
    assert found == []


# FLYP is trained, judged and shown as CaRot is. What the others share with it is seen in one look.
@pytest.mark.parametrize(
    ("run", "looks"),
    [("CaRot", LOOKS), ("Zero-shot", LOOKS[:1]), ("FLYP path", LOOKS[1:])],
    ids=lambda value: value if isinstance(value, str) else "-".join(look[0] for look in value),
)
def test_run__has_no_fault_under_any_tab(visitor, run, looks):
    visitor.open(f"run?id={{{run}}}")
    found = []
    tabs = visitor.tab.get_by_role("tab")
    tabs.first.wait_for()
    assert tabs.all_inner_texts() == list(TABS)
    for name in TABS:
        visitor.tab.get_by_role("tab", name=name, exact=True).click()
        found += visitor.faults(f"{run}, {name}", looks)
    assert found == []


def test_error__is_a_card_of_ours_with_the_id_that_the_log_has(visitor, demo):
    visitor.open("run?id={CaRot}&tab=Config&broken=1")
    card = visitor.tab.get_by_test_id("stAlertContentError")
    card.wait_for()
    found = re.search(r"request id ([0-9a-f]{16})", card.inner_text())
    assert found is not None
    shown = visitor.tab.get_by_test_id("stMain").inner_text()
    assert not re.search("sky has fallen|Google|ChatGPT|Streamlit|Traceback", shown)
    assert visitor.tab.get_by_test_id("stException").count() == 0
    log = (demo.service.home.parent / "dashboard.log").read_text()
    assert "the sky has fallen" in log.partition(f"request {found[1]}")[2]


def test_places__are_every_page_and_view():
    app = (ROOT / "frontend" / "app.py").read_text()
    calls = [node for node in ast.walk(ast.parse(app)) if isinstance(node, ast.Call)]
    named = {
        ast.literal_eval(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "view"
    }
    opened = {place.partition("?")[0] or "overview" for place in PLACES}
    assert opened == named - {"run"}
    offered = set()
    for name in ("calibration", "decide"):
        views = ast.parse((ROOT / "frontend" / "views" / f"{name}.py").read_text())
        found = next(
            ast.literal_eval(node.value)
            for node in views.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VIEWS"
        )
        offered |= set(list(found)[1:])  # the first is there without being named
    assert {f for place in PLACES for f in re.findall("view=([a-z]+)", place)} == offered
