"""What a calibrator that reads the initial model costs where a model is used: two towers over one.

    python benchmarks/two_towers.py [--config ViT-B-32] [--images 256] [--rounds 7]

The model is a randomly initialised one of open_clip (no weights are needed), fine-tuned for a step.
One export has a temperature, the other disagreement temperature and with it the initial model. Both
answer the same images in one process, in turns; memory is the peak of a process of its own for
each. Ratios are of two over one, medians with quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from serve import write_images

from calift_core.jobs.folder import run_in_folder
from calift_core.schema.spec import parse_spec
from calift_core.shipping.choosing import choose_calibrator, save_choice
from calift_core.shipping.classifier import CalibratedClassifier
from calift_core.shipping.export import export_run

PEAK = """
import re, sys
from calift_core.shipping.classifier import CalibratedClassifier
CalibratedClassifier.load(sys.argv[1], device="cpu").predict(sys.argv[2:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def make_exports(config: str, photos: Path, folder: Path) -> dict[str, Path]:
    """Two exports of one run: with a temperature, and with disagreement temperature."""
    runs = {}
    for kind in ("zero_shot", "flyp"):
        spec = {
            "name": kind,
            "model": {"name": config, "pretrained": None},
            "method": {"kind": kind},
            "suite": {"id": f"folder:{photos}"},
            "train": {"epochs": 1, "batch_size": 32, "lr": 1e-6, "seed": 0},
        }
        runs[kind] = folder / kind
        for _ in run_in_folder(parse_spec(spec), runs[kind]):
            pass
    exports = {}
    for name, kind, initial in (
        ("one tower", "temperature", None),
        ("two towers", "disagreement", runs["zero_shot"]),
    ):
        run = shutil.copytree(runs["flyp"], folder / f"run {kind}")
        save_choice(run, choose_calibrator(run, kind, initial=initial), initial=initial)
        exports[name] = export_run(run, folder / kind).folder
    return exports


def peak_mib(export: Path, paths: list[Path]) -> float:
    """Of a process that answers for these images and nothing else."""
    said = subprocess.run(
        [sys.executable, "-c", PEAK, str(export), *map(str, paths)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(said.stdout) / 1024


def main() -> None:
    """Measure, print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = write_images(folder / "photos", options.images)
        exports = make_exports(options.config, folder / "photos", folder)
        models = {name: CalibratedClassifier.load(e, device="cpu") for name, e in exports.items()}
        pixels = np.stack([models["one tower"].fit(path) for path in paths[:64]])
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(options.rounds + 1):  # the first one warms up
            for name, model in models.items():
                began = time.process_time()
                model.answer(pixels)
                seconds[name].append(time.process_time() - began)
        ratios = np.array(seconds["two towers"][1:]) / np.array(seconds["one tower"][1:])
        peaks = {name: peak_mib(export, paths[:64]) for name, export in exports.items()}
        size = {name: sum(f.stat().st_size for f in e.rglob("*") if f.is_file()) / 2**20
                for name, e in exports.items()}  # fmt: skip
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(
        json.dumps(
            {
                "config": options.config,
                "processor_s_64_images": {k: float(np.median(v[1:])) for k, v in seconds.items()},
                "ratio": [float(middle), float(low), float(high)],
                "peak_mib": peaks,
                "folder_mib": size,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
