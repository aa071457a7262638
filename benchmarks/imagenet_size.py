"""What a training set of ImageNet's size costs before and beside the model: memory and seconds.

    python benchmarks/imagenet_size.py              # 1,281,167 images, an epoch's sampling
    python benchmarks/imagenet_size.py --images 20000

The set is a folder of 1,000 classes whose images are hard links to one small JPEG a class (an image
of its own each would take hours to write, and change nothing that is measured here). It is listed,
split and hashed as any suite, then sampled as training samples it. Resident memory is that of this
process alone, read from the kernel; `--first-rules` samples as calift did before, with a list of
all keys of a run and a string object for each path and id, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from calift_core.data.loader import Normalise, Steps, TrainView, epoch_order, train_batches
from calift_core.data.preprocess import Preprocess
from calift_core.data.suites.load import load_suite
from calift_core.schema.suite import FractionSpec, SuiteSpec

T = TypeVar("T")
MIB = 2**20


def resident() -> float:
    """MiB that this process has in memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def write_tree(root: Path, n: int, classes: int) -> None:
    """Class folders with n images in all, hard links to one small JPEG a class."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        first = folder / f"{folder.name}_00000000.JPEG"
        Image.fromarray(pixels).save(first, format="JPEG")
        for i in range(1, n * (label + 1) // classes - n * label // classes):
            os.link(first, folder / f"{folder.name}_{i:08d}.JPEG")


def measure(root: Path, *, batch_size: int, epochs: int, first_rules: bool) -> dict[str, Any]:
    """Seconds and MiB of each stage, in order."""
    stages: list[dict[str, Any]] = []

    def stage(name: str, work: Callable[[], T]) -> T:
        began, before = time.monotonic(), resident()
        value = work()
        stages.append(
            {
                "stage": name,
                "seconds": time.monotonic() - began,
                "resident_mib": resident(),
                "more_mib": resident() - before,
            }
        )
        return value

    # All for training, so that the count is the whole one.
    fractions = FractionSpec(validation=0.0001, calibration=0.0, test=0.0001)
    spec = SuiteSpec(id=f"folder:{root}", fractions=fractions, templates="photo")
    suite = stage("list and split", lambda: load_suite(spec))
    images = suite.part("train")
    stage("hash (content key)", lambda: images.sha256)
    stage("hash again (kept)", lambda: images.source.fingerprint(images.indices))
    if first_rules:
        kept = stage("a string for each path and id", lambda: (tuple(images.ids), list(images.ids)))
    total = epochs * (len(images) // batch_size)
    view = TrainView(images, Preprocess(32), 80, 0, (0.9, 1.0), False)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))  # type: ignore[arg-type]

    def first_batch(start: int) -> None:
        next(
            iter(
                train_batches(
                    view,
                    batch_size=batch_size,
                    start_step=start,
                    total_steps=total,
                    workers=0,
                    normalise=normalise,
                )
            )
        )

    stage("first batch of the run", lambda: first_batch(0))
    stage("first batch after a resume in the last epoch", lambda: first_batch(total - 10))
    seen: list[float] = []

    def sample() -> None:
        for step, (epoch, rows) in enumerate(Steps(len(images), 0, batch_size, 0, total)):
            keys = [(epoch, int(index)) for index in rows]
            if step % max(1, total // 20) == 0:
                seen.append(resident())
        assert keys

    def sample_first() -> list[list[tuple[int, int]]]:
        keys = []
        for epoch in range(epochs):
            order = epoch_order(len(images), seed=0, epoch=epoch).tolist()
            for at in range(0, len(order) - batch_size + 1, batch_size):
                keys.append([(epoch, index) for index in order[at : at + batch_size]])
        seen.append(resident())
        return keys

    name = f"keys of {epochs} epochs"
    held = stage(name, sample_first if first_rules else sample)
    del held
    if first_rules:
        del kept
    return {
        "images": len(images),
        "batch_size": batch_size,
        "epochs": epochs,
        "stages": stages,
        "resident_while_sampling_mib": [min(seen), max(seen)],
    }


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--first-rules", action="store_true", help="sample as calift did before")
    parser.add_argument("--tree", type=Path, help="folder for the images; kept, and used again")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.tree or Path(temporary) / "photos"
        os.environ.setdefault("CALIFT_HOME", str(Path(temporary) / "home"))
        if not root.is_dir():
            began = time.monotonic()
            write_tree(root, options.images, options.classes)
            print(f"{options.images:,} links made in {time.monotonic() - began:.0f} s")
        before = resident()
        result = measure(
            root,
            batch_size=options.batch_size,
            epochs=options.epochs,
            first_rules=options.first_rules,
        )
    print(f"\n{result['images']:,} images; {before:.0f} MiB with torch loaded")
    print(f"{'':46}{'seconds':>9}{'MiB':>8}{'more':>8}")
    for row in result["stages"]:
        print(
            f"{row['stage']:46}{row['seconds']:>9.2f}{row['resident_mib']:>8.0f}"
            f"{row['more_mib']:>+8.0f}"
        )
    low, high = result["resident_while_sampling_mib"]
    print(f"While the keys of {result['epochs']} epochs were made: {low:.0f} to {high:.0f} MiB.")
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
