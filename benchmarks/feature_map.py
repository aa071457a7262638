"""What drawing a map of 50,000 image features takes: figure, bytes, Chromium's picture.

python benchmarks/feature_map.py            # a line for each colour, medians after a first drawing

`draw` is from the figure's JSON in the page to the second frame after Plotly has drawn, by the
clock; `cpu` the processor time of all of Chromium for it, which other load does not disturb.
"""

import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import plotly
from gallery import FLAGS, processor_s
from playwright.sync_api import sync_playwright

from calift_core.schema.wire.results import Source
from calift_core.schema.wire.tags import FeatureMap
from frontend import figures

_N, _CLASSES, _REPEAT = 50_000, 26, 3
_DRAW = """async (figure) => {
  const began = performance.now(), { data, layout } = JSON.parse(figure);
  await Plotly.newPlot('place', data, layout);
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  return (performance.now() - began) / 1000;
}"""

rng = np.random.default_rng(0)
labels = rng.integers(_CLASSES, size=_N)
points = rng.uniform(-0.9, 0.9, (_CLASSES, 2))[labels] + rng.normal(0, 0.03, (_N, 2))
predicted = np.where(rng.random(_N) < 0.9, labels, rng.integers(_CLASSES, size=_N))
names = [f"class {k}" for k in range(_CLASSES)]
found = FeatureMap(
    source=Source(dataset="simulated"), state="ready", class_names=names, cluster_names=names,
    ids=[f"{k}.png" for k in range(_N)], x=points[:, 0].tolist(), y=points[:, 1].tolist(),
    labels=labels.tolist(), predicted=predicted.tolist(), clusters=labels.tolist(),
    confidences=rng.random(_N).tolist(),
)  # fmt: skip
with sync_playwright() as playwright:
    path = shutil.which("chromium") or shutil.which("chrome")
    tab = playwright.chromium.launch(executable_path=path, args=list(FLAGS)).new_page()
    tab.set_content("<div id='place' style='width:1000px'></div>")
    tab.add_script_tag(path=Path(plotly.__file__).parent / "package_data" / "plotly.min.js")
    print(f"{'colour':12s} figure s   JSON MB   draw s    cpu s")
    for colour in ("correct", "confidence", "label"):
        began = time.perf_counter()
        drawn = figures.feature_map.figure(found, colour, []).to_json()
        made_s, times, cpu = time.perf_counter() - began, [], []
        for _ in range(1 + _REPEAT):
            before = processor_s([os.getpid()])
            times.append(tab.evaluate(_DRAW, drawn))
            cpu.append(processor_s([os.getpid()]) - before)
        mid_s, mid_cpu = (statistics.median(values[1:]) for values in (times, cpu))
        print(f"{colour:12s} {made_s:8.2f} {len(drawn) / 1e6:9.2f} {mid_s:8.2f} {mid_cpu:8.2f}")
