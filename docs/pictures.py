"""Take the pictures of docs/img from a running dashboard: `make pictures`.

It uses the stack that is up on `CALIFT_HOME`, or starts one, and the runs of `calift demo`; the
path of the Trade-offs page is a WiSE-FT run that it submits if there is none. A page that shows a
dialog, an error, a warning, an empty state, nothing, or that says something to the browser's
console, ends it with status 1, and no picture is replaced. So does one that does not show the
numbers that the API gives for it (`numbers`): accuracies, errors, thresholds, counts.

`--theme dark` takes `NAME-WIDTH-dark.png` as a browser that prefers dark colours shows it, `--theme
both` takes either; `--check` looks at every page and replaces no picture. `--runs ID …` and
`--sweep ID` take the pages of other runs than the demo's, those that are fit to be shown into
`--out`, the others into `--faulty`. It is one file, for it is run by its path.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode, urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Response

    from calift_core.client import Client

HERE = Path(__file__).parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
#: Width and height of the window, and the height that a picture is cut at.
SIZES = {1440: (900, 2400), 390: (844, 3000)}
PATIENCE_MS = 120_000
#: Between two looks at whether a page has settled.
_PAUSE_MS = 750

#: Streamlit asks below a page's own address first whether it is served from there.
_PROBE = re.compile(r"^/[^/]+/_stcore/(health|host-config)$")

#: What must not be seen, by what it is called in the fault.
UNWANTED = {
    "a dialog": "[role=dialog], [data-testid=stDialog], [data-testid=stModal]",
    "an exception": "[data-testid=stException]",
    "an error": "[data-testid=stAlertContentError]",
    "a warning": "[data-testid=stAlertContentWarning]",
    "an empty state": ".calift-empty",
    "a chart that this browser cannot draw": ".no-webgl",
    "an empty chart": "[data-testid=stPlotlyChart]:not(:has(.main-svg)), "
    ".calift-chart:not([data-state=drawn])",
}


class PictureError(Exception):
    """A page that must not be shown to anybody, with all that is wrong with it.

    Attributes:
        picture: of it, as PNG; empty where there is none.
    """

    picture = b""


@dataclass(frozen=True)
class Shot:
    """One page.

    Attributes:
        name: of the files: `NAME-WIDTH.png`.
        path: of the page.
        title: its heading, which tells it from any other page.
        query: its parameters; `{CaRot}` is that run's id.
        charts: how many charts it has at least.
        asks: whether it is given a picture to say something of.
    """

    name: str
    path: str
    title: str
    query: Mapping[str, str]
    charts: int = 0
    asks: bool = False

    def address(self, ids: Mapping[str, str]) -> str:
        """Path and query."""
        query = urlencode({k: v.format(**ids) for k, v in self.query.items()}, safe=",/")
        return f"/{self.path}" + (f"?{query}" if query else "")


_THREE = "{Zero-shot},{FLYP},{CaRot}"
SHOTS = (
    Shot("overview", "", "Overview", {}),
    Shot("runs", "runs", "Runs", {}),
    Shot("run", "run", "CaRot", {"id": "{CaRot}"}, charts=1),
    Shot("new", "new", "New run", {}),
    Shot("data", "data", "Data and models", {}),
    Shot("compare", "compare", "Compare", {"ids": _THREE, "baseline": "{Zero-shot}"}, charts=2),
    Shot(
        "calibration",
        "calibration",
        "Calibration",
        {"run": _THREE, "dataset": "display"},
        charts=3,
    ),
    Shot(
        "slices",
        "calibration",
        "Calibration",
        {"run": "{CaRot}", "view": "slices", "dataset": "typefaces/test"},
        charts=1,
    ),
    Shot(
        "calibrators",
        "calibration",
        "Calibration",
        {
            "run": "{CaRot}",
            "view": "calibrators",
            "dataset": "display",
            "with": "serif,mono,handwriting,blackletter,display",
        },
        charts=2,
    ),
    Shot(
        "audit",
        "calibration",
        "Calibration",
        {"run": "{FLYP},{CaRot}", "view": "audit", "dataset": "typefaces/test"},
        charts=1,
    ),
    Shot("frontier", "frontier", "Trade-offs", {"run": _THREE + ",{WiSE-FT}"}, charts=2),
    Shot("shifts", "shifts", "Shifts", {"run": _THREE, "metric": "ece"}, charts=2),
    Shot("spectra", "spectra", "Spectra", {"run": _THREE}, charts=2),
    # Of docs/tour.md alone.
    Shot(
        "tour-images",
        "calibration",
        "Calibration",
        {
            "run": "{CaRot}",
            "dataset": "display",
            "images": "evaluation={CaRot on display}&lower=0.8&upper=1.0",
        },
        charts=1,
    ),
    Shot("tour-decide", "decide", "Selective prediction", {"run": _THREE, "risk": "0.2"}, charts=1),
    Shot("tour-plan", "plan", "Sample size", {"run": _THREE, "dataset": "display"}, charts=1),
    Shot("tour-bound", "bound", "Theory bound", {}, charts=1),
    Shot("tour-curves", "curves", "Curves", {"ids": "{FLYP},{CaRot}", "smooth": "0.8"}, charts=3),
)

#: Of any runs; `{all}` are their ids, `{first}` is one, `{name}` its name, `{own}` its ID data,
#: `{of}` its evaluation on them, `{sample}` an image of it and `{label}` that image's class.
SHOTS_OF_RUNS = (
    Shot("overview", "", "Overview", {}),
    Shot("runs", "runs", "Runs", {}),
    Shot("run", "run", "{name}", {"id": "{first}"}, charts=1),
    Shot("run-shifts", "run", "{name}", {"id": "{first}", "tab": "Shifts"}, charts=1),
    Shot("run-calibration", "run", "{name}", {"id": "{first}", "tab": "Calibration"}),
    Shot("run-spectrum", "run", "{name}", {"id": "{first}", "tab": "Spectrum"}),
    Shot("run-config", "run", "{name}", {"id": "{first}", "tab": "Config"}),
    Shot("run-files", "run", "{name}", {"id": "{first}", "tab": "Artifacts"}),
    Shot("run-logs", "run", "{name}", {"id": "{first}", "tab": "Logs"}),
    Shot("compare", "compare", "Compare", {"ids": "{all}"}, charts=2),
    Shot("calibration", "calibration", "Calibration", {"run": "{all}", "dataset": "{own}"}, 2),
    Shot("slices", "calibration", "Calibration", {"run": "{first}", "view": "slices"}, 1),
    Shot("calibrators", "calibration", "Calibration", {"run": "{first}", "view": "calibrators"}, 1),
    Shot("prompts", "calibration", "Calibration", {"run": "{first}", "view": "prompts"}),
    Shot("audit", "calibration", "Calibration", {"run": "{all}", "view": "audit"}, 1),
    Shot("sample", "sample", "Image of {label}", {"evaluation": "{of}", "sample": "{sample}"}),
    Shot("picture", "picture", "Try a picture", {"run": "{all}"}, asks=True),
    Shot("decide", "decide", "Selective prediction", {"run": "{all}", "risk": "0.2"}, 1),
    Shot("frontier", "frontier", "Trade-offs", {"run": "{all}"}, 1),
    Shot("shifts", "shifts", "Shifts", {"run": "{all}", "metric": "ece"}, 1),
    Shot("curves", "curves", "Curves", {"ids": "{all}", "smooth": "0.8"}, 1),
    Shot("spectra", "spectra", "Spectra", {"run": "{all}"}),
    Shot("plan", "plan", "Sample size", {"run": "{all}", "dataset": "{own}"}, 1),
    Shot("bound", "bound", "Theory bound", {}),
    Shot("new", "new", "New run", {"clone": "{first}"}),
    Shot("data", "data", "Data and models", {}),
)
SHOTS_OF_SWEEP = (
    Shot("sweeps", "sweeps", "Sweeps", {}),
    Shot("sweep", "sweep", "{sweep name}", {"id": "{sweep}"}, charts=1),
)

#: Our own components, whose parts stand in shadow roots.
_OWN = "[data-testid^=stBidiComponent], [data-testid^=stBidiComponent] *"
#: All words of a page: of its own components too, which stand in shadow roots; of tables that are
#: painted, whose cells are there for screen readers; and where the lines of charts end.
_WORDS = """() => {
  const parts = [document.querySelector('[data-testid=stMain]').innerText];
  for (const e of document.querySelectorAll(OWN))
    if (e.shadowRoot) parts.push(e.shadowRoot.textContent);
  for (const e of document.querySelectorAll('[role=gridcell], [data-testid=stMain] input'))
    parts.push(e.textContent || e.value || '');
  for (const e of document.querySelectorAll('.js-plotly-plot'))
    for (const line of e._fullData ?? [])
      if (line.y?.length) parts.push(Number(line.y[line.y.length - 1]).toPrecision(6));
  return parts.join(' ');
}""".replace("OWN", repr(_OWN))
_SETTLED = """() => document.querySelector('.calift-head h1')
  && !document.querySelector(
    '[data-testid=stStatusWidget], [data-stale=true], [data-testid=stSkeleton]')
  && document.fonts.status === 'loaded'
  && [...document.querySelectorAll(OWN)].every((e) =>
    [...(e.shadowRoot?.querySelectorAll('img') ?? [])].every((i) =>
      i.naturalWidth > 0 || i.getBoundingClientRect().top > innerHeight))""".replace(
    "OWN", repr(_OWN)
)
_CHARTS = "() => document.querySelectorAll('.js-plotly-plot:has(.main-svg)').length"
_HEIGHT = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  const last = document.querySelector('[data-testid=stMainBlockContainer]');
  return Math.ceil(Math.max(main.clientHeight, last ? last.scrollHeight : 0, main.scrollHeight));
}"""
_OVER = """() => {
  const main = document.querySelector('[data-testid=stMain]');
  return Math.max(main.scrollWidth - main.clientWidth,
                  document.documentElement.scrollWidth - innerWidth);
}"""


def take(
    browser: Browser,
    base: str,
    shot: Shot,
    ids: Mapping[str, str],
    width: int,
    *,
    cookies: Any,
    says: Sequence[str] = (),
    theme: Literal["light", "dark"] = "light",
    given: bytes = b"",
) -> bytes:
    """A picture of a page, as PNG.

    Args:
        browser: a Chromium of playwright's.
        base: the dashboard's address.
        shot: the page.
        ids: of the runs by their names.
        width: of the window in pixels; one of `SIZES`.
        cookies: of somebody who is logged in.
        says: what must stand on it.
        theme: that the browser prefers.
        given: a picture, PNG or JPEG, for the page that asks for one.

    Raises:
        PictureError: the page is not fit to be shown.
    """
    height, most = SIZES[width]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.set_default_timeout(PATIENCE_MS)
    context.add_cookies(cookies)
    try:
        tab = context.new_page()
        said = _listen(tab)
        tab.goto(base + shot.address(ids))
        try:
            if shot.asks:
                tab.wait_for_selector(".calift-empty")  # it waits for a picture
                box = tab.locator("[data-testid=stMain] input[type=file]")
                box.set_input_files(
                    {"name": "picture.png", "mimeType": "image/png", "buffer": given}
                )
                tab.wait_for_selector(".calift-tried, [data-testid^=stAlertContent]")
            _settle(tab, shot)
            # Streamlit scrolls inside the page: a window as high as its content shows it all.
            content = int(tab.evaluate(_HEIGHT))
            tab.set_viewport_size({"width": width, "height": min(max(content, height), most)})
            _settle(tab, shot)
        except Exception as error:
            # Whatever kept it from being drawn is the better explanation.
            found = faults(tab, shot, said, ids)
            if not found and "Timeout" not in type(error).__name__:
                raise
            found = found or [f"it was not drawn in {PATIENCE_MS // 1000} s"]
        else:
            found = [*faults(tab, shot, said, ids), *missing(tab, says)]
        if found:
            lines = "".join(f"\n  - {fault}" for fault in found)
            unfit = PictureError(f"{shot.name} at {width} px ({shot.address(ids)}):{lines}")
            unfit.picture = tab.screenshot()
            raise unfit
        return tab.screenshot()
    finally:
        context.close()


def _listen(tab: Page) -> list[str]:
    said: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        place = urlsplit(str(message.location.get("url", ""))).path
        if message.type in ("error", "warning") and not _PROBE.match(place):
            said.append(f"the console says: {message.text[:300]}")

    def on_response(response: Response) -> None:
        if response.status >= 400 and not _PROBE.match(urlsplit(response.url).path):
            said.append(f"{response.url} answered {response.status}")

    tab.on("console", on_console)
    tab.on("response", on_response)
    tab.on("pageerror", lambda error: said.append(f"a script failed: {str(error)[:300]}"))
    return said


def _settle(tab: Page, shot: Shot) -> None:
    """Wait until the page has drawn what it has, or shows what it must not."""
    unwanted = ", ".join(s for n, s in UNWANTED.items() if n != "an empty chart")
    for _ in range(2):  # widgets are loaded when they are first drawn: settled twice is settled
        tab.wait_for_function(
            # Charts are drawn when they are near what can be seen, and all of them before printing.
            "([unwanted, charts]) => dispatchEvent(new Event('beforeprint')) && "
            "document.querySelector(unwanted) || (("
            + _SETTLED
            + ")() && ("
            + _CHARTS
            + ")() >= charts)",
            arg=[unwanted, shot.charts],
            polling=100,  # at each frame, as it would be else, asking costs more than drawing
        )
        tab.wait_for_timeout(_PAUSE_MS)


def faults(
    tab: Page, shot: Shot, said: Sequence[str], ids: Mapping[str, str] | None = None
) -> list[str]:
    """All that is wrong with a page that was drawn, in sentences."""
    found = []
    for name, selector in UNWANTED.items():
        for element in tab.locator(selector).all():
            if element.is_visible():
                words = " ".join((element.inner_text() or "").split())
                found.append(f"it shows {name}: {words[:200]}")
    heading = tab.locator(".calift-head h1")
    title = heading.first.inner_text() if heading.count() else ""
    if title != (wanted := shot.title.format(**ids or {})):
        found.append(f"its heading is {title!r} instead of {wanted!r}")
    drawn = tab.locator(".js-plotly-plot:has(.main-svg)").count()
    if drawn < shot.charts:
        found.append(f"it has {drawn} charts, and at least {shot.charts} were expected")
    if heading.count() and (over := int(tab.evaluate(_OVER))) > 0:
        found.append(f"it is {over} px too wide")
    return found + list(dict.fromkeys(said))


def missing(tab: Page, says: Sequence[str]) -> list[str]:
    """What a page does not say and should, in sentences."""
    words = _plain(str(tab.evaluate(_WORDS)))
    return [f"it does not say {one!r}, which the API answers" for one in says if one not in words]


def _plain(words: str) -> str:
    """With spaces that are all alike, and the hyphen for a minus."""
    return " ".join(words.replace("\u2212", "-").split())


#: The names of the pictures of a report.
REPORT = "tour-report"


def take_report(browser: Browser, client: Client, ids: Mapping[str, str], width: int) -> bytes:
    """The upper part of a report of the demo's runs, opened from a disk.

    Raises:
        PictureError: it asks for anything, says something to the console, or is too wide.
    """
    from frontend.reports.contents import contents
    from frontend.reports.document import to_html
    from frontend.reports.gathered import from_service

    runs = [ids[name] for name in ("Zero-shot", "FLYP", "CaRot")]
    page = to_html(contents(from_service(client, runs)))
    context = browser.new_context(viewport={"width": width, "height": SIZES[width][0] * 2})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(page, encoding="utf-8")
        try:
            tab = context.new_page()
            said = _listen(tab)
            asked: list[str] = []
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(path.as_uri())
            tab.wait_for_function("document.querySelectorAll('.main-svg').length > 6")
            tab.wait_for_timeout(_PAUSE_MS)
            said += [f"it asks for {url}" for url in asked if url != path.as_uri()]
            over = int(tab.evaluate("document.documentElement.scrollWidth - innerWidth"))
            said += [f"it is {over} px too wide"] if over > 0 else []
            if said:
                raise PictureError("the report:" + "".join(f"\n  - {fault}" for fault in said))
            return tab.screenshot()
        finally:
            context.close()


def log_in(browser: Browser, link: str) -> Any:
    """The cookies that a link of `calift link` gives."""
    context = browser.new_context()
    try:
        answer = context.request.get(link, max_redirects=0)
        if answer.status != 303:
            raise PictureError(f"the link does not log in: status {answer.status}")
        return context.cookies()
    finally:
        context.close()


# ------------------------------------------------------------------------------ what is shown


def demo_runs(client: Client) -> dict[str, str]:
    """The ids of the demo's runs by their names, and of a path between two of them.

    Raises:
        PictureError: the demo has not been run.
    """
    from calift.commands.demo import demo_specs

    ids = {}
    for spec in demo_specs():
        found = client.runs(tag=["demo"], phase=["SUCCEEDED"], q=spec.name, limit=50).items
        named = [run for run in found if run.name == spec.name]
        if not named:
            raise PictureError(f"there is no finished run {spec.name!r} of the demo: `make demo`")
        ids[spec.name] = named[0].id
        for evaluation in client.run_evaluations(named[0].id):
            ids[f"{spec.name} on {evaluation.dataset}"] = evaluation.id
    ids["WiSE-FT"] = _path_of(client, ids["FLYP"])
    return ids


def _path_of(client: Client, tuned: str) -> str:
    spec = dict(client.run(tuned).spec)
    for run in client.all_runs(method=["wise_ft"], phase=["SUCCEEDED"]):
        method = client.run(run.id).spec["method"]
        if method.get("run") == tuned and method.get("sweep", True):
            return run.id
    spec |= {"name": "WiSE-FT", "method": {"kind": "wise_ft", "run": tuned}, "tags": ["demo"]}
    sys.stderr.write("Measuring the path between Zero-shot and FLYP; this takes some minutes.\n")
    done = client.wait(client.submit(spec).id)
    if done.phase != "SUCCEEDED":
        raise PictureError(f"the path's run ended {done.phase}: {done.message}")
    return done.id


def _points(value: float | None, digits: int = 1) -> str:
    return "nothing" if value is None else f"{100 * value:.{digits}f} %"


def _small(value: float | None) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if value else "nothing"


def any_runs(client: Client, runs: Sequence[str], sweep: str) -> tuple[dict[str, str], list[str]]:
    """What the addresses of `SHOTS_OF_RUNS` and of a sweep's hold, and the accuracies on ID data.

    Args:
        client: of the service.
        runs: their ids; none: the first seed of each contender of the sweep.
        sweep: its id; empty: none.
    """
    ids = {}
    if sweep:
        found = client.get_sweep(sweep)
        ids = {"sweep": sweep, "sweep name": found.name}
        runs = runs or [run for arm in found.arms for run in arm.run_ids[:1]]
    own = [next(e for e in client.run_evaluations(run) if e.role == "id") for run in runs]
    image = client.samples(own[0].id, limit=1).items[0]
    ids |= {"all": ",".join(runs), "first": runs[0], "name": client.run(runs[0]).name}
    ids |= {"of": own[0].id, "sample": image.id, "label": image.label_name}
    return ids | {"own": own[0].dataset}, [_points(e.accuracy) for e in own]


def _image(client: Client, ids: Mapping[str, str]) -> bytes:
    """The image to ask about; nothing where predictions were imported without images."""
    from calift_core.errors import CaliftError

    try:
        return client.thumbnail(ids["of"], ids["sample"], size=512)
    except CaliftError:
        return b""


def numbers(client: Client, ids: Mapping[str, str]) -> dict[str, list[str]]:
    """What each picture must show, made of the API's answers and not of the pages' code."""
    three = {name: client.run(ids[name]) for name in ("Zero-shot", "FLYP", "CaRot")}
    sets = {n: {e.dataset: e for e in client.run_evaluations(r.id)} for n, r in three.items()}
    display = {name: found["display"] for name, found in sets.items()}
    own = {name: found["typefaces/test"] for name, found in sets.items()}
    newest = next(
        run
        for run in client.runs(phase=["SUCCEEDED"], sort="-created", limit=20).items
        if run.summary is not None and run.method != "zero_shot"
    )
    accuracies = [_points(e.accuracy) for e in own.values()]
    errors = [_points(e.ece.value) for e in display.values()]
    headline = three["CaRot"].summary
    threshold = client.decision(ids["CaRot"], risk=0.2, level=0.95).threshold
    scan = client.scan(suite="typefaces")
    plan = client.budget(display["CaRot"].id, difference=0.01, metric="accuracy")
    path = client.frontier(ids["WiSE-FT"]).points
    ends = path[0], path[-1]
    by_class = client.slices(own["CaRot"].id).items[0]
    curve = next(s for s in client.metrics(ids["CaRot"]).series if s.name == "val_accuracy")
    return {
        "overview": [_points(newest.summary and newest.summary.id_accuracy)],
        "runs": accuracies,
        "run": [_points(headline and headline.id_accuracy), _points(headline and headline.ood_ece)],
        "new": [f"{sum(scan.parts.values()):,}"],
        "data": [f"{scan.n_classes}"],
        "compare": accuracies,
        "calibration": [*errors, *(_points(e.accuracy) for e in display.values())],
        "slices": [f"{100 * by_class.accuracy:.1f}"],
        "calibrators": [_points(display["CaRot"].ece.value)],
        "audit": [_points(own[name].ece.value) for name in ("FLYP", "CaRot")],
        "frontier": [_points(v) for one in ends for v in (one.id_accuracy, one.ood_ece)],
        "shifts": [words.removesuffix(" %") for words in errors],
        "spectra": [_small(headline and headline.sigma_min)],
        "tour-images": [_points(display["CaRot"].ece.value)],
        "tour-decide": [_points(threshold, 2)],
        "tour-plan": [f"{plan.needed:,}"],
        "tour-bound": [_points(run.summary and run.summary.ood_ece) for run in three.values()],
        "tour-curves": [f"{curve.values[-1]:#.6g}"],
    }


@contextmanager
def _stack() -> Iterator[tuple[Client, str]]:
    """The stack that is up on this home, else one of our own, and the dashboard's address."""
    from backend.stack import EmbeddedStack
    from calift_core.client import Client
    from calift_core.home import calift_home

    running = EmbeddedStack.running(calift_home())
    if running is not None:
        with Client(running["api"]) as client:
            yield client, running["dashboard"]
        return
    with EmbeddedStack(calift_home(), api_port=0, dashboard_port=0) as stack:
        stack.wait_ready()
        with Client(stack.urls["api"]) as client:
            yield client, stack.urls["dashboard"]


def main() -> int:
    """Take them all, then replace the old ones."""
    from playwright.sync_api import sync_playwright

    from calift.commands.stack import dashboard_link

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "img")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--runs", nargs="*", default=[], help="ids, for pages of these runs")
    parser.add_argument("--sweep", default="", help="an id, for the pages of its runs")
    parser.add_argument("--faulty", type=Path, help="keep what is not fit to be shown here")
    parser.add_argument("--theme", choices=["light", "dark", "both"], default="light")
    parser.add_argument("--check", action="store_true", help="replace no picture")
    options = parser.parse_args()
    themes = ["light", "dark"] if options.theme == "both" else [options.theme]
    others = bool(options.runs or options.sweep)
    offered = SHOTS_OF_RUNS + SHOTS_OF_SWEEP * bool(options.sweep) if others else SHOTS
    names = [*(shot.name for shot in offered), REPORT]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    chosen = [shot for shot in offered if not options.only or shot.name in options.only]
    chrome = os.environ.get("BROWSER_PATH") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    failed = 0
    with (
        _stack() as (client, base),
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chrome, args=FLAGS)
        try:
            cookies = log_in(browser, dashboard_link(client, base))
            given = b""
            if others:
                ids, accuracies = any_runs(client, options.runs, options.sweep)
                given = _image(client, ids) if any(shot.asks for shot in chosen) else b""
                chosen = [shot for shot in chosen if given or not shot.asks]
                expected = {"compare": accuracies, "calibration": accuracies}
            else:
                ids = demo_runs(client)
                expected = numbers(client, ids)
            for shot, width, theme in itertools.product(chosen, SIZES, themes):
                file = f"{shot.name}-{width}{'-dark' * (theme == 'dark')}.png"
                says = expected.get(shot.name, [])
                try:
                    picture = take(
                        browser, base, shot, ids, width,
                        cookies=cookies, says=says, theme=theme, given=given,
                    )  # fmt: skip
                except PictureError as error:
                    failed += 1
                    sys.stderr.write(f"{theme}: {error}\n")
                    if options.faulty and error.picture:
                        options.faulty.mkdir(parents=True, exist_ok=True)
                        (options.faulty / file).write_bytes(error.picture)
                    continue
                (Path(folder) / file).write_bytes(picture)
                sys.stdout.write(f"{file}: {', '.join(says)}\n")
                sys.stdout.flush()
            reports = not others and (not options.only or REPORT in options.only)
            for width in SIZES if reports else ():
                picture = take_report(browser, client, ids, width)
                (Path(folder) / f"{REPORT}-{width}.png").write_bytes(picture)
        except PictureError as error:
            failed += 1
            sys.stderr.write(f"{error}\n")
        finally:
            browser.close()
        if not options.check and (others or not failed):
            options.out.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(folder).iterdir()):
                shutil.copyfile(file, options.out / file.name)
    return 1 if failed else 0


if __name__ == "__main__":
    from calift_core.errors import CaliftError

    try:
        sys.exit(main())
    except CaliftError as error:
        sys.exit(str(error))
