"""The dashboard in a real Chromium: what only a browser shows, such as addresses and widths."""

import re
from typing import Any

import pytest

from frontend.components import PLOTLY
from tests.conftest import until
from tests.e2e.conftest import Dashboard, query, settle

pytestmark = pytest.mark.browser

OVERFLOW = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  const page = document.documentElement;
  return Math.max(main.scrollWidth - main.clientWidth, page.scrollWidth - innerWidth);
}"""


def test_runs__a_click_opens_the_run_and_its_tab_is_in_the_address(dashboard, tab):
    tab.goto(dashboard.at("runs"))
    settle(tab)
    tab.evaluate("() => { window.loadedOnce = true }")
    # Anywhere in its row: here, where its status stands.
    row_of(tab, "CaRot on fashion-mnist").get_by_text("Succeeded").click()
    tab.wait_for_url(re.compile(rf"/run\?id={dashboard.service.ids['CaRot']}"))
    assert tab.evaluate("() => window.loadedOnce"), "the page was loaded anew"
    assert tab.locator(".calift-head h1").inner_text() == "CaRot on fashion-mnist"
    chart = tab.locator(".st-key-chart-over-steps-effective_rank .calift-chart")
    title = chart.get_by_text("Effective rank over training")
    tab.get_by_role("tab", name="Spectrum").click()
    chart.scroll_into_view_if_needed()  # it is drawn once it can be seen
    title.wait_for()
    until(lambda: "tab=Spectrum" in query(tab), timeout_s=45, what="the tab in the address")
    tab.reload()
    chart.scroll_into_view_if_needed()
    title.wait_for()
    assert tab.get_by_role("tab", name="Spectrum").get_attribute("aria-selected") == "true"


def row_of(tab: Any, name: str) -> Any:
    """The row of the list of runs that has this name."""
    return tab.locator(".rows tbody tr").filter(has=tab.get_by_role("link", name=name, exact=True))


def test_runs__rows_are_chosen_and_opened_by_keys_and_nothing_opens_by_the_way(dashboard, tab):
    tab.goto(dashboard.at("runs"))
    settle(tab)
    ticks = tab.locator(".rows tbody input")
    tab.get_by_role("checkbox", name="Choose FLYP on fashion-mnist").focus()
    for key in ("Space", "ArrowDown", "ArrowRight"):
        tab.keyboard.press(key)
    tab.get_by_text("With the chosen run:").wait_for()
    # The place beside a box belongs to it: who misses it by a little opens no run.
    row_of(tab, "CaRot on fashion-mnist").locator("td.tick").click(position={"x": 4, "y": 4})
    tab.get_by_text("With the 2 chosen:").wait_for()
    until(lambda: tab.get_by_role("button", name="Compare").is_enabled(), what="the button")
    assert ticks.evaluate_all("boxes => boxes.filter((box) => box.checked).length") == 2
    every = tab.get_by_role("checkbox", name="Choose all rows")
    assert every.evaluate("box => box.indeterminate")
    assert "/runs" in tab.url
    # What is marked to be copied opens nothing, and a link opens in a tab of its own.
    tab.evaluate("""() => {
      const roots = [...document.querySelectorAll('*')].map((e) => e.shadowRoot);
      const cell = roots.find((e) => e?.querySelector('.rows')).querySelector('tbody td.text');
      getSelection().selectAllChildren(cell);
      cell.click();
      getSelection().removeAllRanges();
    }""")
    link = tab.get_by_role("link", name="FLYP on fashion-mnist", exact=True)
    with tab.context.expect_page() as other:
        link.click(modifiers=["Control"])
    other.value.wait_for_url(re.compile(rf"/run\?id={dashboard.service.ids['FLYP']}"))
    other.value.close()
    assert "/runs" in tab.url
    # Back from a run, it opens by the keyboard.
    link.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_url(re.compile(rf"/run\?id={dashboard.service.ids['FLYP']}"))
    tab.go_back()
    tab.wait_for_url(re.compile("/runs"))
    row_of(tab, "CaRot (second seed)").wait_for()


def test_new__a_run_is_submitted_watched_and_cancelled(dashboard, tab):
    tab.goto(dashboard.at("new?preset=quick&method=flyp"))
    settle(tab)
    name = tab.get_by_label("Name", exact=True)
    name.fill("from the browser")
    name.press("Enter")
    tab.locator("summary").filter(has_text="Training").first.click()  # settings are folded away
    epochs = tab.get_by_label("Epochs", exact=True)
    epochs.fill("3")
    epochs.press("Enter")
    tab.get_by_text("name: from the browser").wait_for(state="attached")
    tab.get_by_role("button", name="Submit").click()
    tab.wait_for_url(re.compile(r"/run\?id="))
    tab.locator(".calift-pill", has_text="Queued").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    tab.locator(".calift-pill", has_text="Cancelled").wait_for()


def evaluation_of(dashboard: Dashboard, run: str, dataset: str) -> Any:
    from calift_core.client import Client

    with Client(dashboard.service.url, dashboard.admin_token) as calift:
        return next(
            e for e in calift.run_evaluations(dashboard.service.ids[run]) if e.dataset == dataset
        )


def samples_in(dashboard: Dashboard, evaluation: Any, first: int, last: int) -> int:
    """How many samples lie in bins of the diagram, from the first to the last."""
    from calift_core.client import Client

    requested = {"n_bins": 15, "scheme": "equal_mass", "norm": "l1"}
    with Client(dashboard.service.url, dashboard.admin_token) as calift:
        bins = calift.reliability(evaluation.id, **requested, temperature=1.0).bins
    return sum(b.count for b in bins[first : last + 1])


def gallery_caption(tab: Any) -> str:
    """What the gallery says of how many samples it shows."""
    line = tab.locator(".st-key-gallery [data-testid=stCaptionContainer]").first
    return str(line.text_content()) if line.count() else ""


def test_diagram__bins_are_chosen_by_keys_pointer_and_touch(dashboard, chromium, logged_in):
    evaluation = evaluation_of(dashboard, "FLYP", "sketch")
    context = chromium.new_context(
        viewport={"width": 1440, "height": 1600}, storage_state=logged_in, has_touch=True,
        reduced_motion="reduce",
    )  # fmt: skip
    context.set_default_timeout(45_000)
    tab = context.new_page()
    faults = []
    tab.on("pageerror", lambda error: faults.append(str(error)))

    def shows(first, last):
        n = samples_in(dashboard, evaluation, first, last)
        until(
            lambda: f" of {n:,} samples" in gallery_caption(tab), timeout_s=45, what=f"{n} samples"
        )
        chosen = tab.locator(".rail [aria-selected=true]")
        until(lambda: chosen.count() == last - first + 1, what="the bins to be marked")

    try:
        tab.goto(dashboard.at("calibration?run={FLYP}&dataset=sketch"))
        settle(tab)
        cells = tab.locator(".rail [role=option]")
        until(lambda: cells.count() == 15, timeout_s=45, what="the bins")
        assert cells.first.evaluate("e => getComputedStyle(e).transitionDuration") == "0s"
        # Keys, and what has them keeps them while the page is drawn anew.
        cells.first.focus()
        tab.keyboard.press("End")
        tab.keyboard.press("Enter")
        shows(14, 14)
        tab.keyboard.press("Shift+ArrowLeft")
        tab.keyboard.press("Shift+ArrowLeft")
        shows(12, 14)
        tab.keyboard.press("Escape")
        until(lambda: "images=" not in query(tab), timeout_s=45, what="nothing to be chosen")
        settle(tab)
        # A pointer over the row of bins, and over the square.
        rail = tab.locator(".rail").bounding_box()
        at = rail["y"] + rail["height"] / 2
        tab.mouse.move(rail["x"] + rail["width"] * 2.5 / 15, at)
        tab.mouse.down()
        tab.mouse.move(rail["x"] + rail["width"] * 5.5 / 15, at, steps=3)
        assert "n = " in str(tab.locator(".hoverlayer").first.text_content())
        tab.mouse.up()
        shows(2, 5)
        rail = tab.locator(".rail").bounding_box()  # it is as wide as the square above it
        tab.mouse.click(rail["x"] + 8, rail["y"] - 300)
        shows(0, 0)
        tab.touchscreen.tap(rail["x"] + rail["width"] * 9.5 / 15, at)
        shows(9, 9)
        # The address holds it all.
        tab.reload()
        settle(tab)
        shows(9, 9)
        # No image is there: the reason stands once below.
        tab.get_by_text(re.compile("no image|No image")).first.wait_for()
        tab.locator(".why").filter(has_text="image").wait_for()
    finally:
        context.close()
    assert not faults


def test_gallery__an_image_opens_its_page_and_back_leads_back(dashboard, tab):
    evaluation = evaluation_of(dashboard, "FLYP", "sketch")
    tab.goto(
        dashboard.at("calibration?run={FLYP}&dataset=sketch&images=")
        + f"evaluation%3D{evaluation.id}%26where%3Dnot%2Bcorrect"
    )
    settle(tab)
    tab.evaluate("() => { window.loadedOnce = true }")
    first = tab.locator(".gallery a.picture").first
    sample = re.search("sample=([^&]+)", str(first.get_attribute("href")))
    assert sample is not None
    first.click()
    tab.wait_for_url(re.compile("/sample\\?evaluation="))
    tab.locator(".calift-head h1", has_text="Image of").wait_for()
    assert tab.evaluate("() => window.loadedOnce"), "the page was loaded anew"
    tab.get_by_role("region", name="Every run's answer").wait_for()
    tab.get_by_role("link", name="All taken for").click()
    tab.wait_for_url(re.compile("/calibration"))
    tab.locator(".gallery a.picture").first.wait_for()


def test_components__make_text_of_whatever_a_name_is(dashboard, tab):
    tab.goto(dashboard.at("calibration?run={CaRot}"))
    settle(tab)
    found = tab.evaluate(
        """async (hostile) => {
        const made = {};
        const bin = {lower: 0, upper: 1, clear: 0, words: hostile};
        const item = {href: '/sample?x=1', src: '/nowhere', alt: hostile, label: hostile,
                      answers: [{by: hostile, words: hostile, correct: true}], marks: [hostile],
                      top: [{words: hostile, share: 0.5, own: true}]};
        const figure = JSON.stringify({
          data: [{type: 'scatter', x: [hostile], y: [1], name: hostile, mode: 'markers',
                  customdata: [[hostile]]}],
          layout: {height: 300, title: {text: hostile}, legend: {y: -0.2},
                   margin: {t: 30, b: 30, l: 30, r: 30}, yaxis: {domain: [0.3, 1]},
                   yaxis2: {domain: [0, 0.2]}}});
        const data = {
          chart: {figure, config: {}, script: '/scripts/SCRIPT', alt: hostile, selects: true,
                  of: hostile, away: hostile,
                  bins: {bins: [bin], chosen: null, label: hostile}},
          gallery: {items: [item], missing: hostile},
          rows: {of: hostile, caption: hostile, several: true, chosen: [], dash: '-',
                 sorted: hostile,
                 columns: [{name: 'a', label: hostile, kind: 'open', sort: ''},
                           {name: 'b', label: hostile, kind: 'mark', sort: hostile}],
                 rows: [{href: '/run?id=x', cells: {
                   a: hostile, b: {symbol: hostile, word: hostile, colour: hostile}}}]},
        };
        for (const name of ['gallery', 'rows', 'chart']) {
          const at = `/_stcore/bidi-components/calift.${name}/${name}.js`;
          const {default: component} = await import(at);
          const host = document.createElement('div');
          host.style.width = '400px';
          document.body.append(host);
          // Plotly's styles are for a document.
          const root = name === 'chart' ? host : host.attachShadow({mode: 'open'});
          const close = component({data: data[name], parentElement: root, setTriggerValue() {}});
          await new Promise((done) => setTimeout(done, 300));
          const box = root.querySelector('.calift-chart');
          while (box && !['drawn', 'fault'].includes(box.dataset.state))
            await new Promise((done) => setTimeout(done, 50));
          made[name] = [root.textContent.split(hostile).length - 1,
                        root.querySelectorAll('script, iframe, b').length];
          close();
          host.remove();
        }
        return [made, window.struck ?? 0];
      }""".replace("SCRIPT", PLOTLY),
        "<img src=x onerror='window.struck=1'><b>\u202eevil</b><script>window.struck=1</script>",
    )
    texts, struck = found
    assert struck == 0
    assert texts["gallery"][0] > 3
    assert texts["rows"][0] == 6
    assert {name: found[1] for name, found in texts.items()} == dict.fromkeys(texts, 0)


def test_chart__its_table_opens_and_nothing_is_asked_of_another_machine(dashboard, tab):
    requested = []
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(dashboard.at("calibration?run={CaRot}"))
    settle(tab)
    tab.get_by_role("button", name="Table").click()
    tab.get_by_role("region", name=re.compile("Reliability diagram")).wait_for()
    assert requested
    assert not [u for u in requested if not u.startswith((dashboard.url, "data:", "blob:"))]
