"""How long images take in the dashboard's gallery, in a real Chromium: 50 at once, cold and warm.

    python benchmarks/gallery.py                      # a table; 20 rounds of 50 images
    python benchmarks/gallery.py --rounds 5 --corruption frost
    python benchmarks/gallery.py --photos DIR         # own photographs, DIR/CLASS/*.jpg

A run is stored on a folder of made photographs (JPEGs of 500 × 375 pixels, about 60 kB). API and
dashboard are processes of their own, the browser asks the dashboard, and the dashboard the API:

- **cold**: images that nobody asked for before: found, decoded, drawn, sent, shown.
- **kept**: the same in a browser that has not seen them: what the service has drawn is sent again.
- **warm**: the same in the browser that has.
- **bin**: from a key that chooses a bin of the diagram until its first 12 images are shown, most of
  them drawn before.

Milliseconds are the browser's, from asking for all of a round until the last is decoded; quantiles
are over rounds. `cpu_ms` is the processor time of API, dashboard and drawing processes per image.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from api import served
from PIL import Image, ImageFilter

from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore, publish_artifact
from backend.store.engine import open_engine
from backend.store.migrations import upgrade
from backend.store.stores import Stores
from calift_core.calibration import evaluate_all
from calift_core.predictions.types import Predictions, PredictionsMetadata
from calift_core.predictions.write import write_predictions
from calift_core.schema import records as r
from calift_core.schema.report import EvaluationReport, Report, Summary
from calift_core.schema.spec import parse_spec

CLASSES = ("bird", "boat", "bridge", "cup", "tree")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip

_ALL_SHOWN = """async (addresses) => {
  const began = performance.now();
  await Promise.all(addresses.map((address) => {
    const image = new Image();
    image.src = address;
    return image.decode();
  }));
  return performance.now() - began;
}"""
_GALLERY_SHOWN = """() => {
  const place = document.querySelector('.st-key-gallery-images');
  const root = [...(place?.querySelectorAll('*') ?? [])].find((e) => e.shadowRoot)?.shadowRoot;
  const images = [...(root?.querySelectorAll('img') ?? [])].slice(0, 12);
  return images.length > 0 && images.every((i) => i.complete && i.naturalWidth > 0);
}"""


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG with large shapes and fine grain, as photographs have."""
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    large = small.resize((500, 375), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    grain = rng.normal(0, 9, (375, 500, 3))
    pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=85)
    return written.getvalue()


def make_photos(root: Path, n: int) -> None:
    """Write so many test images, and a few to train on."""
    rng = np.random.default_rng(0)
    kinds = [photograph(rng) for _ in range(min(n, 60))]  # files differ by their last bytes
    for k in range(n):
        folder = root / "test" / CLASSES[k % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k:05d}.jpg").write_bytes(kinds[k % len(kinds)] + b"%05d" % k)
    for name in CLASSES:
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "0.jpg").write_bytes(kinds[0])


def fill(settings: Settings, root: Path, folder: Path, corruption: str) -> tuple[str, list[str]]:
    """Store a finished run on the photographs; its evaluation's data set and the samples' ids."""
    classes = sorted(p.name for p in (root / "test").iterdir())
    ids = sorted(p.relative_to(root).as_posix() for p in (root / "test").glob("*/*"))
    labels = np.array([classes.index(name.split("/")[1]) for name in ids])
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(len(ids), len(classes))) * 2 + 3 * np.eye(len(classes))[labels]
    dataset, role = (f"{corruption}/3", "corruption") if corruption else (f"{root.name}/test", "id")
    made = Predictions(
        ids=np.array(ids), labels=labels, logits=logits.astype(np.float32),
        metadata=PredictionsMetadata(
            dataset=dataset, role=role, class_names=tuple(classes), logit_scale=1.0,  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    store = Stores.on(open_engine(settings.database_url))
    upgrade(store.engine)
    suite: dict[str, Any] = {"id": f"folder:{root}"}
    if corruption:
        suite["corruptions"] = {"names": [corruption], "severities": [3]}
    spec = parse_spec({"name": "simulated", "method": {"kind": "flyp"}, "suite": suite})
    run_id = store.runs.submit(spec)
    claim = store.claims.claim(run_id, worker_id="benchmark", ttl_s=3600)
    assert claim is not None
    path = folder / "test.parquet"
    digest = write_predictions(path, made)
    assert publish_artifact(
        store.files, ArtifactStore(settings.artifacts_dir), run_id, claim.attempt,
        name=f"predictions/{path.name}", kind="predictions", path=path,
    )  # fmt: skip
    report = EvaluationReport.model_validate(
        evaluate_all(made.probs(), made.labels)
        | {"dataset": dataset, "role": role, "n_classes": len(classes),
           "corruption": corruption or None, "severity": 3 if corruption else None,
           "predictions_sha256": digest}
    )  # fmt: skip
    said: list[Any] = [
        r.PhaseRecord(phase="evaluating"),
        r.EvaluationRecord(evaluation=report, predictions=f"predictions/{path.name}"),
        r.DoneRecord(summary=Summary(), steps=1),
    ]
    assert store.records.record(run_id, claim.attempt, said)
    whole = Report(
        run_id=run_id, name="simulated", spec=spec.model_dump(mode="json"), spec_sha256="",
        resolved={}, summary=Summary(), evaluations=[report], spectrum=None, selection={}, model={},
        data={}, timings_s={}, environment={},
    )  # fmt: skip
    assert store.claims.finish(
        run_id, claim.attempt, phase="SUCCEEDED", report=whole.model_dump(mode="json")
    )
    (evaluation,) = store.results.run_evaluations(run_id)
    store.close()
    return evaluation.id, ids


@contextmanager
def dashboard(home: Path, api_url: str, port: int) -> Iterator[tuple[str, int]]:
    """The dashboard as a process of its own: its address and the process id."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("CALIFT_", "STREAMLIT_"))}
    environ |= {"CALIFT_API_URL": api_url, "CALIFT_DASHBOARD_PORT": str(port)}
    address = f"http://127.0.0.1:{port}"
    with (home / "dashboard.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "frontend"], env=environ, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with suppress(OSError):
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=2)
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((home / "dashboard.log").read_text())
                time.sleep(0.1)
            yield address, process.pid
        finally:
            process.terminate()
            process.wait(30)


def processor_s(pids: Sequence[int]) -> float:
    """Processor time of processes and of the children that they have or have had, in seconds."""
    ticks = 0
    seen: list[int] = list(pids)
    for pid in seen:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
            for task in Path(f"/proc/{pid}/task").iterdir():
                seen += [int(child) for child in (task / "children").read_text().split()]
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    base: str, link: str, evaluation: str, ids: Sequence[str], options: argparse.Namespace,
    pids: Sequence[int],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Milliseconds by what was asked."""
    from playwright.sync_api import sync_playwright

    order = np.random.default_rng(2).permutation(len(ids))
    n = options.images
    rounds = [
        [
            f"{base}/thumbnail?"
            + urlencode({"evaluation": evaluation, "sample": ids[k], "size": options.size})
            for k in order[at : at + n]
        ]
        for at in range(0, n * (options.rounds + 1), n)
    ]
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    times: dict[str, list[float]] = {}
    processor: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        first = browser.new_context()
        tab = first.new_page()
        tab.goto(link)
        tab.wait_for_selector(".calift-head")
        tab.evaluate(_ALL_SHOWN, rounds[0])  # the folders are listed, both processes are there
        cookies: Any = first.cookies()

        def ask(name: str, page: Any, addresses: Sequence[str]) -> None:
            before = processor_s(pids)
            times.setdefault(name, []).append(page.evaluate(_ALL_SHOWN, addresses))
            processor[name] = processor.get(name, 0.0) + processor_s(pids) - before

        for addresses in rounds[1:]:
            ask("cold", tab, addresses)
            ask("warm", tab, addresses)
        for addresses in rounds[1:]:
            other = browser.new_context()
            other.add_cookies(cookies)
            page = other.new_page()
            page.goto(f"{base}/login")
            ask("kept", page, addresses)
            other.close()
        _bins(tab, base, evaluation, options, times)
        browser.close()
    return {
        name: {
            "median_ms": statistics.median(values),
            "p95_ms": float(np.quantile(values, 0.95)),
            **({"cpu_ms": 1e3 * processor[name] / n / len(values)} if name in processor else {}),
        }
        for name, values in times.items()
    }


def _bins(
    tab: Any, base: str, evaluation: str, options: argparse.Namespace,
    times: Mapping[str, list[float]],
) -> None:  # fmt: skip
    """Choose a bin after another by keys, each with images that were not shown before."""
    run = evaluation.partition("-")[0]
    tab.goto(f"{base}/calibration?" + urlencode({"run": run, "bins": 40}))
    tab.locator(".rail .cell").first.wait_for()
    found: list[float] = []
    for at in range(min(options.rounds, 20)):
        tab.locator(".rail .cell").nth(at).focus()
        began = time.perf_counter()
        tab.keyboard.press("Enter")
        tab.wait_for_function(_GALLERY_SHOWN)
        found.append(1e3 * (time.perf_counter() - began))
        tab.keyboard.press("Escape")
        tab.wait_for_function("() => !location.search.includes('images=')")
        tab.wait_for_function("() => !document.querySelector('.st-key-gallery-images')")
    times["bin"] = found  # type: ignore[index]


def main() -> None:
    """Fill, serve, look, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="of a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--corruption", default="", help="at severity 3")
    parser.add_argument("--photos", type=Path, help="a folder of class folders")
    parser.add_argument("--port", type=int, default=8767)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calift-gallery-") as name:
        folder = Path(name)
        home, root = folder / "home", folder / "photos"
        if options.photos:
            shutil.copytree(options.photos, root / "test")
            shutil.copytree(options.photos, root / "train")
        else:
            make_photos(root, options.images * (options.rounds + 1))
        settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0)
        settings.admin_token()
        evaluation, ids = fill(settings, root, folder, options.corruption)
        variables = {"CALIFT_DATA_ROOTS": str(root), "CALIFT_REQUESTS_PER_MINUTE": "1000000"}
        with (
            served(settings, options.port, variables) as (client, api),
            dashboard(home, client.base_url, options.port + 1) as (base, page),
        ):
            code = client.make_link().token
            link = f"{base}/enter?" + urlencode({"code": code, "next": "/data"})
            found = measure(base, link, evaluation, ids, options, [api, page])
    print(f"{options.images} thumbnails of {options.size} px, {options.rounds} rounds")
    for name, values in found.items():
        print(f"{name:6} " + "  ".join(f"{key} {value:8.1f}" for key, value in values.items()))
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
