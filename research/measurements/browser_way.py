"""From a zip of one's own pictures to a model that answers, by browser alone: clicks and seconds.

    python -m research.measurements.browser_way  # a table of the steps
    python -m research.measurements.browser_way --pictures FOLDER --json  # and screens

A zip of printed letters, 20 class folders with 60 images each and no parts, is dropped on New run
of a `calift up` whose home is new. Three methods are compared in a sweep with one seed, the model
of one of its runs is taken away with a calibrator (Export model), and a handwritten letter is
shown to it (Try a picture). Somebody at a Chromium does it with clicks and keys along what the
pages offer; no address is typed but the link that `calift up` prints. What comes out is held
against the API: the sweep's verdict, and the hash of every file in the zip.

Seconds are from the first click of a step until its last answer is on the screen, a person's own
time for looking and deciding left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gallery import FLAGS
from PIL import Image

from calift_core.client import Client
from calift_core.data.images import ImageSet
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError
from calift_core.schema.suite import SuiteSpec
from research.measurements.tasks import Person, TaskError

CLASSES, EACH = 20, 60
#: For a page on a machine that others use too.
_PATIENCE_MS = 300_000
_SWEEP_S = 1500.0
_IDLE = """() => document.querySelector('.calift-head h1')
  && !document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')"""


def picture(images: ImageSet, at: int) -> bytes:
    """An image of a suite as PNG."""
    out = io.BytesIO()
    Image.fromarray(images.image(at)).save(out, "PNG")
    return out.getvalue()


def write_letters(folder: Path) -> tuple[Path, Path, str]:
    """A zip of printed letters, a picture of a handwritten one, and which that is."""
    suite = load_suite(SuiteSpec(id="typefaces"))
    train, hand = suite.parts["train"], suite.shifts["handwriting"]
    zipped, shown = folder / "letters.zip", folder / "handwritten.png"
    with zipfile.ZipFile(zipped, "w") as archive:
        for k in range(CLASSES):
            own = [i for i in range(len(train)) if train.labels[i] == k][:EACH]
            for i in own:
                name = suite.classes[k].replace(" ", "_")
                archive.writestr(f"letters/{name}/{i}.png", picture(train, i))
    at = next(i for i in range(len(hand)) if hand.labels[i] == 1)
    shown.write_bytes(picture(hand, at))
    return zipped, shown, suite.classes[1]


@dataclass(frozen=True)
class World:
    """What the steps are about."""

    client: Client
    zipped: Path
    shown: Path
    label: str
    folder: Path


def bring(me: Person, world: World) -> str:
    """Drop the zip on New run and see what is in it."""
    me.link("New run")
    me.click(
        me.tab.get_by_text("Choose a folder, or bring a zip"), "*Choose a folder, or bring a zip*"
    )
    box = me.tab.locator("[data-testid=stFileUploader]", has_text="A zip of class folders")
    box.locator("input[type=file]").set_input_files(world.zipped)
    me.clicks += 1
    me.path.append("drop `letters.zip`")
    said = me.see(me.tab.get_by_text(f"{CLASSES * EACH:,} images of {CLASSES} classes"))
    me.see(me.tab.locator(".calift-stats", has_text="per class").first)
    me.see(me.tab.locator(".calift-examples img").first.locator(".."))
    return said.strip()


def compare(me: Person, world: World) -> str:
    """Compare three methods and wait for the verdict."""
    tab = me.tab
    me.click(tab.get_by_text("Sweep this: several methods"), "*Sweep this*")
    for name in ("FLYP", "Fine-tuning"):
        me.click(tab.get_by_role("combobox", name="Methods"), "*Methods*")
        me.click(tab.get_by_role("option", name=re.compile(f"^{name}")).first, name)
        tab.keyboard.press("Escape")
    seeds = tab.get_by_role("textbox", name="Seeds")
    me.click(seeds, "*Seeds*")
    tab.keyboard.press("Control+A")
    me.type(seeds, "0")
    me.click(tab.get_by_text("Choose each method's rate"), "*Choose each method's rate* (off)")
    tab.wait_for_function(_IDLE)
    me.button("Start the sweep", "*Start the sweep*")
    me.see(tab.locator(".calift-head h1", has_text="sweep of"))
    (sweep,) = world.client.sweeps().items
    until = time.monotonic() + _SWEEP_S
    while (phase := world.client.get_sweep(sweep.id).phase) not in ("SUCCEEDED", "FAILED"):
        if time.monotonic() > until:
            raise TaskError(f"the sweep is {phase} after {_SWEEP_S:g} s")
        tab.wait_for_timeout(1000)
    said = world.client.sweep_verdict(sweep.id)
    me.see(tab.get_by_role("heading", name="Each at its own rate"))
    tab.wait_for_function(_IDLE)
    shown = " ".join(tab.locator("body").inner_text().split())
    if not said.complete or " ".join(said.sentence.split())[:60] not in shown:
        raise TaskError(f"expected the verdict {said.sentence!r} on the screen")
    return said.sentence


def ship(me: Person, world: World) -> str:
    """Open a run of it, choose a calibrator and take the model away."""
    runs = world.client.runs(phase=["SUCCEEDED"], limit=50).items
    name = next(run for run in runs if run.method == "flyp").name
    me.tab.wait_for_function(_IDLE)
    me.tab.wait_for_timeout(3000)  # charts above the table find their heights
    me.click(me.tab.locator(".rows tbody a", has_text=name).first, name)
    me.see(me.tab.locator(".calift-head h1", has_text=name))
    me.button("Export model", "*Export model*")
    me.button("Make the model", "*Make the model*")
    made = me._wait(me.tab.get_by_role("button", name="Model, ZIP"))
    with me.tab.expect_download(timeout=600_000) as waiting:
        me.click(made, "*Model, ZIP*")
    packed = world.folder / "model.zip"
    waiting.value.save_as(packed)
    with zipfile.ZipFile(packed) as archive:
        about = json.loads(archive.read("model/calift.json"))
        for file, digest in about["files"].items():
            if hashlib.sha256(archive.read(f"model/{file}")).hexdigest() != digest:
                raise TaskError(f"{file} is not what calift.json says")
    kind = about["calibrator"]["kind"] if about.get("calibrator") else "none"
    return f"{packed.stat().st_size / 2**20:.1f} MiB, calibrator {kind}"


def answer(me: Person, world: World) -> str:
    """Show it a handwritten letter."""
    me.link("Try a picture", within=me.tab.get_by_test_id("stSidebarNav"))
    box = me.tab.locator("[data-testid=stFileUploader]").first
    box.locator("input[type=file]").set_input_files(world.shown)
    me.clicks += 1
    me.path.append("drop the picture")
    seen = me.see(me.tab.locator(".calift-stats", has_text="Probability").first)
    me.see(me.tab.get_by_role("heading", name="Evaluated images that it resembles"))
    me.tab.wait_for_function(_IDLE)
    words = " ".join(seen.split())
    return f"{words}; it is {world.label}"


STEPS: tuple[Callable[[Person, World], str], ...] = (bring, compare, ship, answer)


def go(world: World, link: str, pictures: Path | None) -> list[dict[str, Any]]:
    """Go the way; a row for each step."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    rows: list[dict[str, Any]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        context = browser.new_context(
            viewport={"width": 1440, "height": 1000}, accept_downloads=True
        )
        context.set_default_timeout(_PATIENCE_MS)
        tab = context.new_page()
        tab.goto(link)
        tab.wait_for_function(_IDLE)
        for step in STEPS:
            me, began, fault, said = Person(tab, patience_ms=_PATIENCE_MS), time.monotonic(), "", ""
            try:
                said = step(me, world)
            except Exception as error:  # told with the screen that it ended on
                fault = f"{type(error).__name__}: {str(error)[:600]}"
            rows.append({
                "step": (step.__doc__ or "").rstrip("."), "clicks": me.clicks,
                "typed": me.fields, "path": me.path,
                "seconds": time.monotonic() - began, "answer": said, "fault": fault,
                "load": os.getloadavg()[0],
            })  # fmt: skip
            print(f"{step.__name__}: {fault or said}", file=sys.stderr, flush=True)
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                tab.screenshot(path=pictures / f"way-{step.__name__}.png", full_page=True)
            if fault:
                break
        browser.close()
    return rows


def main() -> int:
    """Start `calift up` on a new home, go the way, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="a folder for the screen after each step")
    parser.add_argument("--port", type=int, default=8869)
    parser.add_argument("--calift", help="the command of another installation, such as a wheel's")
    parser.add_argument("--json", action="store_true", help="the last line holds the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calift-way-") as name:
        folder = Path(name)
        zipped, shown, label = write_letters(folder)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")}
        environ["CALIFT_HOME"] = str(folder / "home")
        command = [sys.executable, "-m", "calift"]
        if options.calift:
            command = [options.calift]
            environ.pop("PYTHONPATH", None)
        argv = [*command, "up", "--api-port", str(options.port),
                "--dashboard-port", str(options.port + 1)]  # fmt: skip
        began = time.monotonic()
        with (folder / "up.log").open("w+") as log:
            up = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)
            try:
                while not (
                    found := re.search(r"http\S+/enter\S+", (folder / "up.log").read_text())
                ):
                    if up.poll() is not None or time.monotonic() - began > 180:
                        raise CaliftError((folder / "up.log").read_text())
                    time.sleep(0.2)
                up_s = time.monotonic() - began
                token = (folder / "home" / "token").read_text().strip()
                with Client(f"http://127.0.0.1:{options.port}", token, timeout_s=600) as client:
                    rows = go(
                        World(client, zipped, shown, label, folder), found[0], options.pictures
                    )
            finally:
                up.terminate()
                up.wait(60)
    print("| step | way | clicks | typed | seconds |\n|---|---|---|---|---|")
    print(f"| Start it | `calift up`, and the link that it prints | 1 | 0 | {up_s:.0f} |")
    for row in rows:
        print(f"| {row['step']} | {' › '.join(row['path'])} | {row['clicks']} | {row['typed']} "
              f"| {row['seconds']:.0f} |")  # fmt: skip
    low, high = (f(row["load"] for row in rows) for f in (min, max))
    print(f"\n{os.cpu_count()} cores; load meanwhile {low:.1f} to {high:.1f}.")
    if options.json:
        print(json.dumps(rows))
    return 1 if any(row["fault"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
