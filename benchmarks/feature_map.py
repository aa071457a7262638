"""What drawing a map of 50,000 image features takes: figure, bytes, and Chromium's first picture.

    python benchmarks/feature_map.py            # a line for each colour, seconds
    python benchmarks/feature_map.py --images 10000 --repeat 5

`draw` is from the figure's JSON in the page to the frame after Plotly's `afterplot`, the median of
some drawings after a first one. Without a GPU Chromium's WebGL is in software.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import plotly
from gallery import FLAGS

from calift_core.schema.wire.results import Source
from calift_core.schema.wire.tags import FeatureMap
from frontend import figures

_DRAW = """async (figure) => {
  const began = performance.now(), place = document.getElementById('place');
  const { data, layout } = JSON.parse(figure);
  await Plotly.newPlot(place, data, layout);
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  return (performance.now() - began) / 1000;
}"""


def simulated(n: int, n_classes: int = 26) -> FeatureMap:
    """Clusters in a plane, nine in ten of them right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(n_classes, size=n)
    points = np.clip(
        rng.uniform(-0.9, 0.9, (n_classes, 2))[labels] + rng.normal(0, 0.04, (n, 2)), -1, 1
    )
    predicted = np.where(rng.random(n) < 0.9, labels, rng.integers(n_classes, size=n))
    names = [f"class {k}" for k in range(n_classes)]
    return FeatureMap(
        source=Source(dataset="simulated"), state="ready", class_names=names, cluster_names=names,
        ids=[f"{k}.png" for k in range(n)], x=points[:, 0].tolist(), y=points[:, 1].tolist(),
        labels=labels.tolist(), predicted=predicted.tolist(), clusters=labels.tolist(),
        confidences=rng.random(n).tolist(),
    )  # fmt: skip


def main() -> None:
    """Draw."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    found = simulated(options.images)
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    print(f"{'colour':12s} figure s   JSON MB   draw s")
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chrome")
        tab = playwright.chromium.launch(executable_path=path, args=list(FLAGS)).new_page()
        tab.set_content("<div id='place' style='width:1000px'></div>")
        tab.add_script_tag(path=script)
        for colour in ("correct", "confidence", "label"):
            began = time.perf_counter()
            drawn = figures.feature_map.figure(found, colour, []).to_json()
            made_s = time.perf_counter() - began
            times = [tab.evaluate(_DRAW, drawn) for _ in range(1 + options.repeat)][1:]
            median = statistics.median(times)
            print(f"{colour:12s} {made_s:8.2f} {len(drawn) / 1e6:9.2f} {median:8.2f}")


if __name__ == "__main__":
    main()
