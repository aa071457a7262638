"""What each page takes in a real Chromium on a large database: 2,000 runs, 50,000 × 1,000 logits.

    python benchmarks/dashboard.py --keep FOLDER             # about 10 minutes, the first time
    python benchmarks/dashboard.py --keep FOLDER --write     # and put the table into docs/scale.md
    python benchmarks/dashboard.py --keep FOLDER --only runs compare --visits 5
    python benchmarks/dashboard.py --runs 200 --samples 2000 --classes 50    # a quick look

The database has `--runs` finished runs with an ID data set and 50 shifts each, as rows alone, and
two runs whose predictions are stored: ID data of `--samples` × `--classes`, and 50 shifts of a
hundredth of that. API and dashboard are processes of their own. Each page is opened by its address
in a new tab of a browser that has loaded the dashboard's scripts before; the first visit is the
first that anybody makes since the service was started. What is measured:

- **first**: milliseconds from asking for the page until its heading and the first of its contents
  (a card, a table, a chart, a field) are drawn.
- **whole**: until nothing is awaited any more.
- **cpu**: processor time of the page's process until nothing more happens, as Chromium's DevTools
  count it (`ProcessTime`; their `TaskDuration` is the clock's, in which others are): scripts,
  layout, style. Of visits of their own, at which nobody looks: to ask a page every few
  milliseconds what it shows was a fifth of this on the longest pages.
- **sent**: bytes to the browser for that page, scripts and fonts that it keeps left out; **cold**
  is what a browser gets that has never been here.
- **change**: milliseconds from a change that somebody makes on it until the page shows it, the
  median of several; which, is in the table, with the processor time of API and dashboard for it.

Milliseconds are the clock's, so what else the machine does is in them: its load stands beside them,
and `service` is the processor time of API and dashboard for a visit, which is not disturbed by it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from api import peak_mb, served, simulated
from filled import add_runs
from gallery import FLAGS, dashboard, processor_s
from scale import put
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore, publish_artifact
from backend.store.engine import open_engine
from backend.store.migrations import upgrade
from backend.store.stores import Stores
from calift_core.analysis.report import summarise
from calift_core.calibration import evaluate_all
from calift_core.predictions.write import write_predictions
from calift_core.schema import records as r
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.spec import parse_spec

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"
MARKS = "<!-- dashboard.py: begin -->", "<!-- dashboard.py: end -->"
SHIFTS = 50
_PATIENCE_MS = 120_000
#: Between two looks at a page that is left alone, and what it may take then and still rest.
_LOOK_MS, _LITTLE_MS = 1500, 20

#: Something of a page besides its heading.
_FIRST = """() => document.querySelector('.calift-head h1') && [...document.querySelectorAll(`
    .calift-stats, [data-testid=stDataFrame], [data-testid=stTable], table, .calift-empty,
    .js-plotly-plot .main-svg, [data-testid=stSelectbox], [data-testid=stMultiSelect],
    [data-testid=stTextInput], [data-testid=stMarkdown], [data-testid^=stBidiComponent]`)]
  .some((e) => e.closest('[data-testid=stMain]') && e.getClientRects().length)"""
_WHOLE = """() => document.querySelector('.calift-head h1') && !document.querySelector(
  '[data-testid=stStatusWidget], [data-stale=true], [data-testid=stSkeleton], .calift-waiting')
  && !document.querySelector('[data-testid=stPlotlyChart]:not(:has(.main-svg)), '
    + '.calift-chart[data-state=loading]')"""
#: Whether the page's script runs, here or on the server.
_RUNS = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'running'"
_STILL = f"() => !({_RUNS}) && ({_WHOLE})()"
#: The same for a while: scripts run one after another.
_HELD_MS = 300
_SETTLED = f"""() => {{
  if (!({_STILL})()) {{ window.stillSince = undefined; return false; }}
  window.stillSince ??= performance.now();
  return performance.now() - window.stillSince > {_HELD_MS};
}}"""
_FAULT = "[data-testid=stException], [data-testid=stAlertContentError], [role=dialog]"


# ------------------------------------------------------------------------------- what there is


def _judge(
    store: Stores, home: Path, name: str, kind: str, *, seed: int, sizes: Mapping[str, int],
    n_classes: int,
) -> str:  # fmt: skip
    """Store a finished run with the predictions of a simulated model; its id."""
    spec = parse_spec({"name": name, "method": {"kind": kind}})
    run_id = store.runs.submit(spec)
    claim = store.claims.claim(run_id, worker_id="benchmark", ttl_s=3600)
    assert claim is not None
    artifacts = ArtifactStore(home / "artifacts")
    said: list[Any] = [r.PhaseRecord(phase="evaluating")]
    reports = []
    for at, (dataset, size) in enumerate(sizes.items()):
        role = "id" if at == 0 else "calibration" if dataset == "calibration" else "shift"
        made = simulated(dataset, role, n=size, n_classes=n_classes, seed=at)
        if seed:
            # The same images, another model: what it says differs, and it is wrong more often.
            noise = np.random.default_rng([seed, at]).standard_normal(made.logits.shape, np.float32)
            made.logits[...] += 2 * noise
        path = home / f"{dataset}.parquet"
        digest = write_predictions(path, made)
        assert publish_artifact(
            store.files, artifacts, run_id, claim.attempt,
            name=f"predictions/{path.name}", kind="predictions", path=path,
        )  # fmt: skip
        path.unlink()
        if role == "calibration":
            continue
        reports.append(
            EvaluationReport.model_validate(
                evaluate_all(made.probs(), made.labels, n_resamples=100)
                | {"dataset": dataset, "role": role, "n_classes": n_classes,
                   "predictions_sha256": digest}
            )
        )  # fmt: skip
        said.append(
            r.EvaluationRecord(evaluation=reports[-1], predictions=f"predictions/{dataset}.parquet")
        )
    for step in range(0, 20_000, 50):
        terms = {"loss": 5.0 * 0.9998**step, "contrastive": 4.0 * 0.9997**step}
        said.append(r.MetricsRecord(step=step + 1, epoch=step / 2000, values=terms))
    summary = summarise(reports, 0.01 * (1 + seed))
    said.append(r.DoneRecord(summary=summary, steps=20_000))
    for start in range(0, len(said), 100):
        assert store.records.record(run_id, claim.attempt, said[start : start + 100])
    report = Report(
        run_id=run_id, name=name, spec=spec.model_dump(mode="json"), spec_sha256="", resolved={},
        summary=summary, evaluations=reports, spectrum=None, selection={}, model={}, data={},
        timings_s={}, environment={},
    ).model_dump(mode="json")  # fmt: skip
    assert store.claims.finish(run_id, claim.attempt, phase="SUCCEEDED", report=report)
    return run_id


def fill(settings: Settings, home: Path, options: argparse.Namespace) -> dict[str, str]:
    """The large database; ids of what pages are opened on."""
    mark = home / "filled.json"
    wanted = {"runs": options.runs, "samples": options.samples, "classes": options.classes}
    if mark.is_file():
        found: dict[str, Any] = json.loads(mark.read_text())
        if found.pop("wanted") == wanted:
            return found
        raise SystemExit(f"{home} was filled with other sizes; name another folder")
    store = Stores.on(open_engine(settings.database_url))
    upgrade(store.engine)
    add_runs(store.engine, 0, options.runs, evaluations=1 + SHIFTS, summaries=True)
    print("rows are there", file=sys.stderr, flush=True)
    small = max(200, options.samples // 100)
    sizes = {"test": options.samples, "calibration": max(200, options.samples // 10)}
    sizes |= {f"shift-{k:02d}": small for k in range(SHIFTS)}
    ids = {
        key: _judge(store, home, name, kind, seed=seed, sizes=sizes, n_classes=options.classes)
        for seed, (key, name, kind) in enumerate(
            (("a", "large FLYP", "flyp"), ("b", "large CaRot", "carot"))
        )
    }
    ids["evaluation"] = store.results.run_evaluations(ids["a"])[0].id
    ids["many"] = ",".join(f"{options.runs - 1 - k:012x}" for k in range(min(8, options.runs)))
    store.close()
    mark.write_text(json.dumps(ids | {"wanted": wanted}))
    return ids


# ------------------------------------------------------------------------------ what is changed

Change = Callable[[Any, int], float]


def _until(tab: Any, act: Callable[[], Any], words: str = "") -> float:
    """Milliseconds from an act until the page says these words, or has drawn what it brings."""
    cdp, ends = tab.context.new_cdp_session(tab), []

    def received(event: Mapping[str, Any]) -> None:
        message = ForwardMsg.FromString(base64.b64decode(event["response"]["payloadData"]))
        ends.extend([message] * (message.WhichOneof("type") == "script_finished"))

    cdp.on("Network.webSocketFrameReceived", received)
    cdp.send("Network.enable")
    began = time.perf_counter()
    act()
    if words:
        tab.wait_for_function(_SAYS, arg=words, timeout=_PATIENCE_MS, polling=10)
        held = 0
    else:
        # A short run of a script is over before the page shows that it runs.
        while not ends:
            tab.wait_for_timeout(2)
            if 1e3 * (time.perf_counter() - began) > _PATIENCE_MS:
                raise TimeoutError("nothing came of it")
        tab.evaluate("() => { window.stillSince = undefined; }")
        tab.wait_for_function(_SETTLED, timeout=_PATIENCE_MS, polling=10)
        held = _HELD_MS
    found = 1e3 * (time.perf_counter() - began) - held
    cdp.detach()
    return found


#: Whether a page says something, in our own components, which are shadow roots, or around them.
#: It is asked every few milliseconds, so nothing here makes the page lay itself out.
_SAYS = """(words) => {
  const said = (text) => text.replaceAll('\\u00a0', ' ').includes(words);
  const own = [...document.querySelectorAll('[data-testid^=stBidiComponent]')];
  const roots = own.flatMap((e) => [e, ...e.querySelectorAll('*')]).map((e) => e.shadowRoot);
  return roots.some((root) => root && said(root.textContent))
    || said(document.querySelector('[data-testid=stMain]').textContent);
}"""


def _temperature(tab: Any, k: int) -> float:
    thumb = tab.get_by_role("slider", name="Temperature")
    thumb.focus()
    words = f"T = {1 + 0.05 * (k + 1):g}"
    return _until(tab, lambda: tab.keyboard.press("ArrowRight"), words)


def _bins(tab: Any, k: int) -> float:
    box = tab.get_by_label("Bins", exact=True)
    box.fill(str(20 + k))
    return _until(tab, lambda: box.press("Enter"), f"{20 + k} bins")


def _radio(group: str, names: Sequence[str]) -> Change:
    """Choose one of a row of answers after another; the page shows it when it is whole again."""

    def change(tab: Any, k: int) -> float:
        buttons = tab.get_by_test_id("stButtonGroup").filter(has_text=group)
        button = buttons.get_by_role("radio", name=names[k % len(names)], exact=True)
        return _until(tab, button.click)

    return change


def _search(tab: Any, k: int) -> float:
    box = tab.get_by_label("Search", exact=True)
    box.fill(f"{17 * k + 3}")
    return _until(tab, lambda: box.press("Enter"))


def _find(tab: Any, k: int) -> float:
    box = tab.get_by_label("Search runs", exact=True)
    if not box.is_visible():
        tab.get_by_role("button", name="Change").click()
    box.fill(f"{17 * k + 3}")
    return _until(tab, lambda: box.press("Enter"))


def _slide(label: str) -> Change:
    def change(tab: Any, k: int) -> float:
        tab.get_by_role("slider", name=label).first.focus()
        key = "ArrowRight" if k % 2 == 0 else "ArrowLeft"
        return _until(tab, lambda: tab.keyboard.press(key))

    return change


def _tab(names: Sequence[str]) -> Change:
    def change(tab: Any, k: int) -> float:
        name = names[k % len(names)]
        return _until(tab, tab.get_by_role("tab", name=name).click)

    return change


@dataclass(frozen=True)
class Place:
    """A page, and what is changed on it.

    Attributes:
        path: with `{a}`, `{b}`, `{many}` for runs.
        what: is changed, in words.
        change: does it the k-th time.
        says: what the first answer must match, for pages that answer bit by bit.
        last: words that such a page ends with.
    """

    path: str
    what: str = ""
    change: Change | None = None
    says: str = ""
    last: str = ""


PLACES = {
    "overview": Place("overview"),
    "runs": Place("runs", "search", _search),
    "run": Place("run?id={a}", "another tab", _tab(["Config", "Curves", "Shifts"])),
    "new": Place("new", "purpose", _radio("Goal", ["Evaluate only", "Robust fine-tune"])),
    "data": Place("data"),
    "sweeps": Place("sweeps"),
    "compare": Place(
        "compare?ids={a},{b}&baseline={a}", "another metric", _radio("Metric", ["ECE", "Accuracy"]),
        says="/error is .* points (lower|higher)|cannot be told apart/", last="Paired differences",
    ),
    "calibration": Place("calibration?run={a}&dataset=test", "temperature", _temperature),
    "diagrams of two": Place("calibration?run={a},{b}&dataset=test", "bins", _bins),
    "decide": Place("decide?run={a}", "errors borne", _slide("Maximum error rate")),
    "frontier": Place("frontier?run={a},{b}", "find", _find),
    "shifts": Place("shifts?run={many}", "another metric", _radio("Metric", ["ECE", "Accuracy"])),
    "curves": Place("curves?ids={a},{b}", "find", _find),
    "spectra": Place("spectra?run={a},{b}", "find", _find),
    "bound": Place("bound"),
    "plan": Place("plan?run={a},{b}&dataset=test"),
}  # fmt: skip


# ------------------------------------------------------------------------------------ measuring


class Sent:
    """Bytes that came to a tab: answers to requests, and messages of the socket."""

    def __init__(self, cdp: Any) -> None:
        self.bytes = 0
        cdp.on("Network.loadingFinished", self._loaded)
        cdp.on("Network.webSocketFrameReceived", self._framed)
        cdp.send("Network.enable")

    def _loaded(self, event: Mapping[str, Any]) -> None:
        self.bytes += int(event["encodedDataLength"])

    def _framed(self, event: Mapping[str, Any]) -> None:
        frame = event["response"]
        data = frame["payloadData"]
        self.bytes += len(base64.b64decode(data)) if frame["opcode"] == 2 else len(data)


def visit(
    context: Any, address: str, place: Place, pids: Sequence[int]
) -> tuple[Any, dict[str, float]]:
    """Open a page in a new tab; the tab and what it took."""
    tab = context.new_page()
    cdp = context.new_cdp_session(tab)
    sent = Sent(cdp)
    before, began = processor_s(pids), time.perf_counter()
    tab.goto(address, wait_until="commit")
    tab.wait_for_function(_FIRST, timeout=_PATIENCE_MS, polling=20)
    found = {"first": 1e3 * (time.perf_counter() - began)}
    if place.says:
        tab.wait_for_function(
            f"() => {place.says}.test(document.querySelector('[data-testid=stMain]').innerText)",
            timeout=_PATIENCE_MS, polling=20,
        )  # fmt: skip
        found["sentence"] = 1e3 * (time.perf_counter() - began)
        tab.wait_for_function(_SAYS, arg=place.last, timeout=_PATIENCE_MS)
    tab.wait_for_function(_SETTLED, timeout=_PATIENCE_MS, polling=20)
    found["whole"] = 1e3 * (time.perf_counter() - began) - _HELD_MS
    found["service"] = 1e3 * (processor_s(pids) - before)
    found["sent"] = sent.bytes
    fault = tab.locator(_FAULT)
    if fault.count():
        raise RuntimeError(f"{address} shows: {fault.first.inner_text()[:300]}")
    return tab, found


def unwatched(context: Any, address: str) -> float:
    """Processor milliseconds of a page's process until it is still; it is hardly looked at."""
    tab = context.new_page()
    cdp = context.new_cdp_session(tab)
    cdp.send("Performance.enable")
    tab.goto(address, wait_until="commit")
    spent, calm = 0.0, 0
    deadline = time.monotonic() + _PATIENCE_MS / 1e3
    while calm < 2:
        tab.wait_for_timeout(_LOOK_MS)
        metrics = {m["name"]: m["value"] for m in cdp.send("Performance.getMetrics")["metrics"]}
        now = 1e3 * metrics["ProcessTime"]
        rests = now - spent < _LITTLE_MS and tab.evaluate(f"({_STILL})()")
        spent, calm = now, calm + 1 if rests else 0
        if time.monotonic() > deadline:
            raise TimeoutError(f"{address} is not still")
    tab.close()
    return spent


@contextmanager
def _browsing() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.set_default_timeout(_PATIENCE_MS)
        yield context
        browser.close()


def measure(
    base: str, link: str, ids: Mapping[str, str], options: argparse.Namespace, pids: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each page."""
    rows = []
    with _browsing() as context:
        login = context.new_page()
        cold = Sent(context.new_cdp_session(login))
        login.goto(link)
        login.wait_for_function(_SETTLED)
        scripts = cold.bytes
        login.close()
        for name in options.only or PLACES:
            place = PLACES[name]
            address = f"{base}/{place.path.format(**ids)}"
            row: dict[str, Any] = {"page": name, "what": place.what, "load": os.getloadavg()[0]}
            try:
                visits, changes, spent = [], [], []
                for at in range(options.visits):
                    tab, found = visit(context, address, place, pids)
                    visits.append(found)
                    if at == options.visits - 1 and place.change is not None:
                        for k in range(options.changes):
                            before = processor_s(pids)
                            changes.append(place.change(tab, k))
                            tab.wait_for_function(_SETTLED)
                            spent.append(1e3 * (processor_s(pids) - before))
                    if options.pictures is not None:
                        tab.screenshot(path=options.pictures / f"{name}.png")
                    tab.close()
                row["cpu"] = statistics.median(
                    unwatched(context, address) for _ in range(max(1, options.visits - 1))
                )
                row |= {
                    "began": visits[0],
                    "visits": visits[1:],
                    "changes": changes,
                    "spent": spent,
                }
            except Exception as error:  # the other pages are measured whatever became of one
                row["fault"] = f"{type(error).__name__}: {str(error)[:500]}"
            rows.append(row)
            print(f"{name}: {row.get('fault') or _line(row)}", file=sys.stderr, flush=True)
    return [*rows, {"page": "", "cold": scripts}]


def _mid(row: Mapping[str, Any], what: str) -> float | None:
    values = [visit[what] for visit in row["visits"] or [row["began"]] if what in visit]
    return statistics.median(values) if values else None


def _line(row: Mapping[str, Any]) -> str:
    began, changes = row["began"], row["changes"]
    cells = [
        f"{began['first']:,.0f} / {_mid(row, 'first'):,.0f}",
        f"{began['whole']:,.0f} / {_mid(row, 'whole'):,.0f}",
        f"{row['cpu']:,.0f}",
        f"{began['service']:,.0f} / {_mid(row, 'service'):,.0f}",
        f"{_mid(row, 'sent') / 1024:,.0f} KiB",  # type: ignore[operator]
        f"{row['what']}: {statistics.median(changes):,.0f} ({statistics.median(row['spent']):,.0f})"
        if changes
        else "",
        f"{row['load']:.1f}",
    ]
    return " | ".join(cells)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| page | first, ms | whole, ms | browser cpu, ms | service cpu, ms | sent "
        "| change, ms (service cpu) | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["page"]:
            lines.append(f"| {row['page']} | {row.get('fault') or _line(row)} |")
    return lines


def main() -> int:
    """Fill, serve, look, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--visits", type=int, default=3, help="of each page, the first one included"
    )
    parser.add_argument("--changes", type=int, default=5, help="on each page")
    parser.add_argument("--only", nargs="*", choices=list(PLACES))
    parser.add_argument("--keep", type=Path, help="a folder for the database, used again")
    parser.add_argument("--pictures", type=Path, help="a folder for what was seen")
    parser.add_argument("--port", type=int, default=8773)
    parser.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    parser.add_argument("--json", action="store_true", help="the last line holds the numbers")
    options = parser.parse_args()
    # Who stops it stops API and dashboard with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    kept = nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory()
    with kept as name:
        home = Path(name)
        home.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            shutil.rmtree(home / "cache")  # answers that were kept: the first visit is the first
        settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0)
        settings.admin_token()
        ids = fill(settings, home, options)
        variables = {"CALIFT_REQUESTS_PER_MINUTE": "1000000"}
        with (
            served(settings, options.port, variables) as (client, api),
            dashboard(home, client.base_url, options.port + 1) as (base, page),
        ):
            code = client.make_link().token
            link = f"{base}/enter?" + urlencode({"code": code, "next": "/data"})
            rows = measure(base, link, ids, options, [api, page])
            memory = peak_mb(api), peak_mb(page)
    lines = [
        *table(rows),
        "",
        f"{options.runs:,} runs, {SHIFTS} shifts, {options.samples:,} × {options.classes:,}; "
        f"{os.cpu_count()} cores. A browser that has never been here gets "
        f"{rows[-1]['cold'] / 2**20:.1f} MiB more once. Largest resident memory: API "
        f"{memory[0]:,.0f} MiB, dashboard {memory[1]:,.0f} MiB.",
    ]
    sentence = next((row for row in rows if row["page"] == "compare" and "began" in row), None)
    if sentence is not None:
        lines.append(
            f"First sentence of Compare: {sentence['began']['sentence']:,.0f} ms at first, "
            f"{_mid(sentence, 'sentence'):,.0f} ms afterwards."
        )
    print("\n".join(lines))
    if options.write:
        put(lines, DOCUMENT, marks=MARKS)
    if options.json:
        print(json.dumps([*rows, {"page": "", "api_mib": memory[0], "dashboard_mib": memory[1]}]))
    return 1 if any("fault" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
