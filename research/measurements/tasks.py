"""Ten tasks as somebody new would do them, in a real Chromium: clicks, typed fields, seconds.

    python -m research.measurements.tasks --home HOME    # a home with the runs of `make demo`
    python -m research.measurements.tasks --home HOME --write  # and put the table into docs/tour.md
    python -m research.measurements.tasks --home HOME --only worst export --pictures FOLDER

The home is copied, API and dashboard are processes of their own, and each task begins on the
Overview page in a browser that has seen nothing before. It goes on by clicks and keys alone, along
what the pages offer; no address is typed. The answer that it finds on the screen is held against
the API's, and a task whose answer is not that ends the script with status 1.

`machine` is what a person waits for: seconds from each click until the page has what is clicked or
read next; `work` are those in which a model is loaded or a job done, which no limit counts.
`person` is an estimate of the whole by the keystroke-level model (Card, Moran and Newell
1980): the machine's seconds, and for each click 1.35 s to decide, 1.1 s to point and 0.2 s to
press, for each field 0.4 s to move to the keyboard and 0.28 s for each of its keys, and 1.35 s to
see the answer. It is no measurement of people, and knows no reading.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from backend.settings import Settings
from calift_core.calibration.squared import rms_difference
from calift_core.client import Client
from calift_core.recommendation import RECOMMENDED
from calift_core.schema.wire.results import Evaluation
from worker.service import WorkerService

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from api import served  # noqa: E402
from gallery import FLAGS, dashboard, make_photos  # noqa: E402
from scale import put  # noqa: E402

DOCUMENT = Path(__file__).parents[2] / "docs" / "tour.md"
MARKS = "<!-- tasks.py: begin -->", "<!-- tasks.py: end -->"
#: None may take more.
MOST_CLICKS, MOST_S = 6, 45.0
_DECIDE_S, _POINT_S, _PRESS_S, _HOME_S, _KEY_S = 1.35, 1.1, 0.2, 0.4, 0.28
_PATIENCE_MS, _WORK_MS = 30_000, 300_000

_IDLE = """() => document.querySelector('.calift-head h1')
  && !document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')"""


class TaskError(Exception):
    """The screen has not the answer that the API gives."""


@dataclass
class Person:
    """Somebody at a browser, whose hands are counted.

    Attributes:
        tab: the page that they see.
        clicks: buttons, links, options and marks that were clicked.
        fields: that were typed into.
        keys: that were pressed.
        waited_s: between what they did and what they looked at next.
        work_s: until a model was loaded, or a job was done.
        patience_ms: how long they wait for anything.
    """

    tab: Any
    clicks: int = 0
    fields: int = 0
    keys: int = 0
    waited_s: float = 0.0
    work_s: float = 0.0
    path: list[str] = field(default_factory=list)
    patience_ms: int = _PATIENCE_MS

    def _wait(self, place: Any) -> Any:
        began = time.perf_counter()
        place.wait_for(state="visible", timeout=self.patience_ms)
        self.waited_s += time.perf_counter() - began
        return place

    def click(self, place: Any, words: str) -> None:
        """Click on what there is, once it is there."""
        place = self._wait(place)
        began = time.perf_counter()
        place.click()
        self.waited_s += time.perf_counter() - began
        self.clicks += 1
        self.path.append(words)

    def link(self, name: str, *, within: Any = None) -> None:
        """Click on a link by its words."""
        place = (within or self.tab).get_by_role("link", name=name, exact=True).first
        self.click(place, f"*{name}*")

    def button(self, name: str | re.Pattern[str], words: str) -> None:
        """Click on a button by its words."""
        self.click(self.tab.get_by_role("button", name=name).first, words)

    def choose(self, label: str, option: str) -> None:
        """Open a select box and take what it offers."""
        self.click(self.tab.get_by_role("combobox", name=label, exact=True), f"*{label}*")
        offered = self.tab.get_by_role("option", name=re.compile(f"^{re.escape(option)}(?! path)"))
        self.click(offered.first, option)

    def type(self, place: Any, given: str) -> None:
        """Write into the field that was clicked, and press Enter."""
        place.press_sequentially(given)
        place.press("Enter")
        self.fields += 1
        self.keys += len(given) + 1
        self.path.append("type it")

    def see(self, place: Any) -> str:
        """What stands there, once it does."""
        return str(self._wait(place).inner_text())

    def see_after_work(self, place: Any, work: Callable[[], object] = lambda: None) -> str:
        """What stands there, once a model is loaded or the work is done that it waits for."""
        began = time.perf_counter()
        work()
        place.wait_for(state="visible", timeout=_WORK_MS)
        self.work_s += time.perf_counter() - began
        return str(place.inner_text())

    def look(self, gallery: Any) -> None:
        """The first images of a gallery, once they are drawn."""
        began = time.perf_counter()
        images = gallery.locator(".gallery img")
        images.nth(5).wait_for(timeout=self.patience_ms)
        images.nth(5).evaluate("image => image.decode()")
        self.waited_s += time.perf_counter() - began

    def cell(self, caption: str, row: str, column: int) -> str:
        """A cell of a table that is painted, by what screen readers are given of it."""
        table = self.tab.locator(f"[data-testid=stDataFrame]:has([aria-label*='{caption}'])").first
        began = time.perf_counter()
        line = table.locator("[role=row]", has_text=re.compile(rf"^\s*{re.escape(row)}")).first
        line.wait_for(state="attached", timeout=self.patience_ms)
        self.waited_s += time.perf_counter() - began
        return str(line.locator("[role=gridcell]").nth(column).text_content())

    @property
    def person_s(self) -> float:
        """Seconds of the whole, by the keystroke-level model."""
        by_click = _DECIDE_S + _POINT_S + _PRESS_S
        by_field = self.fields * _HOME_S + self.keys * _KEY_S
        return self.waited_s + self.clicks * by_click + by_field + _DECIDE_S


@dataclass(frozen=True)
class World:
    """What the tasks are about: the demo's runs, a folder, and the API that knows the answers.

    `work` does the jobs that wait, as a worker does.
    """

    client: Client
    folder: Path
    work: Callable[[], object]

    def run(self, name: str) -> str:
        """The id of a run of the demo."""
        found = self.client.runs(q=name, phase=["SUCCEEDED"], limit=50).items
        return next(run.id for run in found if run.name == name)

    def sets(self, name: str) -> list[Evaluation]:
        """What a run was judged on."""
        return self.client.run_evaluations(self.run(name))

    def on(self, name: str, dataset: str) -> Evaluation:
        """One of these."""
        return next(e for e in self.sets(name) if e.dataset == dataset)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def _says(seen: str, *expected: str) -> str:
    """What was seen, if the API's answers are in it.

    Raises:
        TaskError: one is not.
    """
    plain = " ".join(seen.replace("\u00a0", " ").replace("\u2212", "-").split())
    for words in expected:
        if words not in plain:
            raise TaskError(f"expected {words!r} on the screen, got {plain[:400]!r}")
    return plain


# ------------------------------------------------------------------------------------ the tasks


def launch(me: Person, world: World) -> str:
    """Launch the suggested fine-tune on a folder of one's own images."""
    me.link("New run")
    data = me.tab.get_by_role("combobox", name="ID data")
    me.click(data, "*ID data*")
    me.type(data, str(world.folder))
    me.see(me.tab.locator(".calift-stats", has_text="per class").first)
    before = {run.id for run in world.client.all_runs()}
    me.click(me.tab.get_by_role("button", name="Submit", exact=True), "*Submit*")
    pill = me.see(me.tab.locator(".calift-pill", has_text="Queued").first)
    _says(pill, "Queued")
    (made,) = [run for run in world.client.all_runs() if run.id not in before]
    if (made.method, made.suite) != (RECOMMENDED.method, f"folder:{world.folder}"):
        raise TaskError(f"got {made.method} on {made.suite}, expected {world.folder}")
    name = me.tab.locator(".calift-head h1").inner_text()
    _says(name, made.name)
    world.client.cancel(made.id)
    return f"“{made.name}” is queued"


def worst(me: Person, world: World) -> str:
    """Find the lowest accuracy of a run."""
    me.link("Runs", within=me.tab.get_by_test_id("stSidebarNav"))
    me.click(me.tab.locator(".rows tbody a", has_text=re.compile("^CaRot")).first, "CaRot")
    low = min(world.sets("CaRot"), key=lambda e: e.accuracy)
    card = me.tab.locator(".calift-stats > div", has_text="Lowest accuracy")
    _says(me.see(card.first), _percent(low.accuracy), low.dataset)
    return f"{low.dataset}, {_percent(low.accuracy)} % right"


def better(me: Person, world: World) -> str:
    """Say whether CaRot is better calibrated than FLYP under shift, and how sure that is."""
    me.link("Compare", within=me.tab.get_by_test_id("stSidebarNav"))
    me.choose("Baseline", "FLYP")
    ids = [world.run(name) for name in ("CaRot", "FLYP")]
    shown = [run.id for run in world.client.runs(phase=["SUCCEEDED"], limit=50).items][:4]
    boards = world.client.leaders(run_id=shown).boards
    board = next(b for b in boards if (b.role, b.metric) == ("shift", "ece"))
    own, base = (next(s for s in board.standings if s.run_id == one) for one in ids)
    apart, reach = own.decided - base.decided, own.reach[base.run_id]
    ends = rms_difference(own.decided, base.decided, (apart - reach, apart + reach))[1:]
    place = me.tab.get_by_test_id("stMarkdown").filter(
        has_text=re.compile("^Over the .*CaRot.* FLYP( |'s)")
    )
    word = "cannot be told apart"
    if abs(apart) > reach:
        word = "higher than" if apart > 0 else "lower than"
    said = place.filter(has_text="L2 calibration error").first
    seen = _says(me.see(said), word, _percent(own.value), _percent(base.value),
                 *(f"{abs(100 * end):.1f}" for end in ends))  # fmt: skip
    return seen.partition("; on ID")[0]


def images(me: Person, world: World) -> str:
    """See the images of the most over-confident bin of a run on a data set, and what they share."""
    me.link("Calibration", within=me.tab.get_by_test_id("stSidebarNav"))
    me.choose("Data", "display")
    evaluation = world.on("CaRot", "display")
    diagram = world.client.reliability(evaluation.id)
    bins = [b for b in diagram.bins if b.count]
    at = max(range(len(bins)), key=lambda k: bins[k].mean_confidence - bins[k].accuracy)
    box = me.tab.locator(".has-bins", has_text=f"ECE {_percent(diagram.ece)}")
    me.click(box.locator(".rail .cell").nth(at), "the bin with the largest gap")
    page = world.client.samples(evaluation.id, lower=bins[at].lower, upper=bins[at].upper)
    gallery = me.tab.locator(".st-key-gallery")
    _says(me.see(gallery.get_by_text(re.compile(r"samples, of")).first), f"{page.n_matching:,}")
    me.look(gallery)
    traits = world.client.sample_traits(evaluation.id, lower=bins[at].lower, upper=bins[at].upper)
    told = [t for t in traits.items if t.p <= 0.05]
    me.see(gallery.get_by_text("What they share").first)
    if not told:
        me.see(gallery.get_by_text("No class or cluster is more frequent").first)
        return f"{page.n_matching:,} images; no class is more frequent among them"
    seen = me.see(gallery.locator("table").first)
    _says(seen, told[0].title, _percent(told[0].share))
    return f"{page.n_matching:,} images; {told[0].title} is more frequent among them"


def forgotten(me: Person, world: World) -> str:
    """Find images that fine-tuning has forgotten."""
    me.link("Ledger and images")
    ledger = world.client.ledger(world.run("FLYP path"), against=world.run("Zero-shot"))
    one = max(ledger.sets, key=lambda s: s.forgotten or 0.0)
    me.button(re.compile("Images that were forgotten"), "*Images that were forgotten*")
    gallery = me.tab.locator(".st-key-gallery")
    me.look(gallery)
    _says(me.see(gallery.get_by_text(re.compile(r"samples, of")).first), f"of {one.lost:,} samples")
    return f"{one.lost:,} of {one.dataset}"


def threshold(me: Person, world: World) -> str:
    """Choose a threshold for at most 5 % errors, and read what it gives under shift."""
    me.link("Selective prediction", within=me.tab.get_by_test_id("stSidebarNav"))
    found = world.client.decision(world.run("CaRot"), risk=0.05, level=0.95)
    low = max((s for s in found.sets if s.role != "id"), key=lambda s: s.risk or 0.0)
    if found.threshold is None or low.risk is None:
        place = me.tab.get_by_text(re.compile("^CaRot: no threshold can promise")).last
        _says(me.see(place), f"{found.chosen_on.n:,} samples")
        return f"cannot be promised from {found.chosen_on.n:,} images"
    place = me.tab.get_by_test_id("stVerticalBlock").filter(has_text=re.compile("^CaRot: keep"))
    _says(me.see(place.last), _percent(found.threshold, 2), _percent(low.risk), low.dataset)
    return (
        f"{_percent(found.threshold, 2)} %; on {low.dataset} {_percent(low.risk)} % of what is "
        "kept is wrong"
    )


def export(me: Person, world: World) -> str:
    """Export a figure that stands alone."""
    me.link("Calibration", within=me.tab.get_by_test_id("stSidebarNav"))
    me.see(me.tab.locator(".has-bins").first)
    kept = me._wait(me.tab.get_by_role("button", name="HTML", exact=True).first)
    with me.tab.expect_download() as waiting:
        me.click(kept, "*HTML*")
    body = Path(waiting.value.path()).read_text(encoding="utf-8")
    run = world.client.run(re.findall(r"reliability-([0-9a-f]{12})-", body)[0])
    one = next(e for e in world.client.run_evaluations(run.id) if e.role == "id")
    diagram = world.client.reliability(one.id)
    shown = body.replace("\\u00a0", " ").replace("\u00a0", " ")
    error = f"{_percent(diagram.ece)} %", f"floor {_percent(diagram.null_mean)} %"
    for words in (run.name, one.dataset, f"{one.n:,}", f"{diagram.n_bins} bins", *error):
        if words not in shown:
            raise TaskError(f"the figure does not say {words!r}")
    if re.search(r'src="https?:', body):
        raise TaskError("the figure needs a network")
    return f"{run.name} on {one.dataset}, {len(body) / 2**20:.1f} MiB"


def judge(me: Person, world: World) -> str:
    """Judge a file of predictions that one has."""
    one = next(e for e in world.sets("CaRot") if e.role == "id")
    file = world.client.download_predictions(one.id, world.folder.parent / "mine.parquet")
    card = me.tab.locator(".st-key-judge")
    with me.tab.expect_file_chooser() as waiting:
        me.click(card.get_by_text("Upload", exact=True).first, "*Upload*")
    waiting.value.set_files(file)
    me.clicks += 1
    me.path.append("the file")
    seen = me.see(card.get_by_text("On mine it is right on").first)
    _says(seen, world.client.judge([file]).sentences[0])
    return f"{_percent(one.accuracy)} % right of {one.n:,}, ECE {_percent(one.ece.value)} %"


def find(me: Person, world: World) -> str:
    """Find images by words."""
    me.link("Search its images")
    field = me.tab.get_by_role("textbox", name="Search images by text")
    me.click(field, "*Search images by text*")
    me.type(field, "the letter g")
    gallery = me.tab.locator(".st-key-gallery")
    me.see_after_work(gallery.get_by_text(re.compile(r"^cosine ")).first)
    me.look(gallery)
    run = re.search(r"run=([0-9a-f]{12})", me.tab.url)
    one = next(e for e in world.client.run_evaluations(run[1] if run else "") if e.role == "id")
    found = world.client.samples(one.id, text="the letter g", sort="similarity", descending=True)
    src = gallery.locator(".gallery img").first.get_attribute("src") or ""
    if urlencode({"sample": found.items[0].id}) not in src:
        raise TaskError(f"expected {found.items[0].id} first, got {src}")
    return f"{found.items[0].id} first, of “the letter g”"


def alarm(me: Person, world: World) -> str:
    """Get an alarm on a folder of images without labels."""
    done = world.client.runs(phase=["SUCCEEDED"], sort="-created", limit=20).items
    run = next(run for run in done if run.method != "zero_shot")
    me.link(run.name)
    me.click(me.tab.get_by_role("tab", name="Without labels"), "*Without labels*")
    field = me.tab.get_by_role("textbox", name="Folder of images without labels")
    me.click(field, "*Folder of images*")
    me.type(field, str(world.folder / "test"))
    me.see(me.tab.locator(".calift-pill", has_text="Queued").first)
    answer = me.tab.get_by_text(re.compile("ALARM|No alarm")).first
    seen = me.see_after_work(answer, world.work)
    (job,) = world.client.evaluation_jobs(run_id=[run.id], limit=1).items
    (record,) = world.client.unlabelled(job.id)
    _says(seen, record.sentence)
    return record.sentence


TASKS: dict[str, Callable[[Person, World], str]] = {
    task.__name__: task
    for task in (
        launch,
        worst,
        better,
        images,
        forgotten,
        threshold,
        export,
        judge,
        find,
        alarm,
    )
}


# ------------------------------------------------------------------------------------ all of it


def play(
    base: str, world: World, link: Callable[[], str], names: Sequence[str], pictures: Path | None
) -> list[dict[str, Any]]:
    """Do the tasks; a row for each."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    rows: list[dict[str, Any]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        for name in names:
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            context.set_default_timeout(_PATIENCE_MS)
            tab = context.new_page()
            tab.goto(link())
            tab.wait_for_function(_IDLE)
            me, fault, answer = Person(tab), "", ""
            try:
                answer = TASKS[name](me, world)
            except Exception as error:  # every task is told, whatever became of the one before
                fault = f"{type(error).__name__}: {str(error)[:600]}"
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                tab.screenshot(path=pictures / f"task-{name}.png")
            rows.append({
                "task": name, "what": (TASKS[name].__doc__ or "").rstrip("."), "clicks": me.clicks,
                "fields": me.fields, "machine_s": me.waited_s, "work_s": me.work_s,
                "person_s": me.person_s,
                "path": me.path, "answer": answer, "fault": fault, "load": os.getloadavg()[0],
            })  # fmt: skip
            print(f"{name}: {fault or answer}", file=sys.stderr, flush=True)
            context.close()
        browser.close()
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "| task | way | clicks | typed | machine, s | work, s | person, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['what']} | {' › '.join(row['path'])} | {row['clicks']} | {row['fields']} "
            f"| {row['machine_s']:.1f} | {row['work_s']:.1f} | {row['person_s']:.0f} |"
        )
    return lines


def main() -> int:
    """Copy the home, serve it, do the tasks, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, required=True, help="with the runs of `make demo`")
    parser.add_argument("--only", nargs="*", choices=list(TASKS))
    parser.add_argument("--pictures", type=Path, help="a folder for the screen at each task's end")
    parser.add_argument("--port", type=int, default=8769)
    parser.add_argument("--write", action="store_true", help="put the table into docs/tour.md")
    parser.add_argument("--json", action="store_true", help="the last line holds the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calift-tasks-") as name:
        home, photos = Path(name) / "home", Path(name) / "photos"
        shutil.copytree(options.home, home, ignore=shutil.ignore_patterns("run", "logs"))
        make_photos(photos, 100)
        settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0)
        variables = {"CALIFT_REQUESTS_PER_MINUTE": "1000000"}
        with (
            served(settings, options.port, variables) as (client, _),
            dashboard(home, client.base_url, options.port + 1) as (base, _),
        ):

            def link() -> str:
                return f"{base}/enter?" + urlencode({"code": client.make_link().token, "next": "/"})

            worker = WorkerService(settings)
            world = World(client, photos, lambda: worker.answer(""))
            rows = play(base, world, link, options.only or list(TASKS), options.pictures)
            worker.stop()
    low, high = (f(row["load"] for row in rows) for f in (min, max))
    lines = [*table(rows), "", f"{os.cpu_count()} cores; load meanwhile {low:.1f} to {high:.1f}."]
    print("\n".join(lines))
    if options.json:
        print(json.dumps(rows))
    faults = [f"{r['task']}: {r['fault']}" for r in rows if r["fault"]]
    faults += [
        f"{r['task']}: {r['clicks']} clicks, {r['person_s']:.0f} s; at most {MOST_CLICKS} and "
        f"{MOST_S:g} s are wanted"
        for r in rows
        if r["clicks"] > MOST_CLICKS or r["person_s"] > MOST_S
    ]
    if options.write and not faults:
        put(lines, DOCUMENT, marks=MARKS)
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
