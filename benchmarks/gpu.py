"""What a GPU makes of the runs that the papers describe, and whether the loader keeps up.

    python benchmarks/gpu.py                        # on a machine with CUDA: tables
    python benchmarks/gpu.py --json gpu.json        # and all numbers in a file
    python benchmarks/gpu.py --device cpu --models ViT-S-32 --batch-size 8 --photos 32
                                                    # the same paths without a GPU, as a trial

1. ViT-B/32 and ViT-B/16 at batch 512 in bf16: images/s, share of the device's peak, peak memory,
   CaRot against FLYP and the published loop (`benchmarks/train_step.py` has the contenders).
2. The loader on JPEGs of ImageNet's size and on photographs of 12 megapixels: images/s by number
   of workers, at full size and with `train.draft_decoding`, as a share of what the fastest step
   of 1 consumes.

Without a CUDA device it says so and ends with status 0, unless `--device` names another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # to be run from anywhere, and loaded by tests

from train_step import Setting, build_clip, clocked, exhaust, measure, show  # noqa: E402

from calift_core.data.crops import smallest_side  # noqa: E402
from calift_core.data.images import ImageSet  # noqa: E402
from calift_core.data.loader import Normalise, TrainView, train_batches  # noqa: E402
from calift_core.data.sources import FileSource, with_draft_decoding  # noqa: E402
from calift_core.jobs.environment import environment  # noqa: E402
from calift_core.models.precision import resolve_precision  # noqa: E402
from calift_core.threads import loader_workers  # noqa: E402

SIZES = {"ImageNet's, 500 × 375": (500, 375), "12 megapixels": (4000, 3000)}
CROP = (0.9, 1.0)


def photos_in(folder: Path, n: int, size: tuple[int, int]) -> ImageSet:
    """A JPEG of a size, smooth so that it compresses like a photograph, listed n times."""
    small = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = folder / f"{size[0]}.jpg"
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    positions = np.arange(n, dtype=np.int64)
    names = tuple(map(str, range(n)))
    return ImageSet("photos", FileSource((str(path),) * n), names, positions % 10, positions)


def loader_rates(setting: Setting, *, photos: int, workers: Sequence[int]) -> list[dict[str, Any]]:
    """Images per second that the loader delivers to nobody who computes."""
    device = torch.device(setting.device)
    clip = build_clip(setting)
    normalise = Normalise(clip.mean, clip.std, device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for (name, size), n_workers, draft in itertools.product(
            SIZES.items(), workers, (False, True)
        ):
            images = photos_in(Path(folder), photos, size)
            if draft:
                images = with_draft_decoding(images, smallest_side(clip.preprocess, CROP))
            loaded = train_batches(
                TrainView(images, clip.preprocess, setting.templates, 0, CROP, False),
                batch_size=setting.batch_size,
                start_step=0,
                total_steps=3 * max(1, photos // setting.batch_size),
                workers=n_workers,
                normalise=normalise,
            )
            first = len(next(loaded))  # workers have started
            seconds = clocked(device, partial(exhaust, loaded))
            n = 3 * max(1, photos // setting.batch_size) * first - first
            rows.append(
                {"files": name, "workers": n_workers, "draft": draft, "images_per_s": n / seconds}
            )
    return rows


def show_rates(rows: Sequence[dict[str, Any]], consumed: float) -> None:
    """What is delivered beside what the fastest step consumes."""
    print(f"\n{'files':24}{'workers':>8}{'draft':>7}{'images/s':>11}{'of a step':>11}")
    for row in rows:
        print(
            f"{row['files']:24}{row['workers']:>8}{'yes' if row['draft'] else 'no':>7}"
            f"{row['images_per_s']:>11.0f}{row['images_per_s'] / consumed:>10.2f}×"
        )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each contender in a round")
    parser.add_argument("--photos", type=int, default=2048, help="images that the loader reads")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers to try")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing is measured. --device cpu tries the paths.")
        return 0
    logging.disable(logging.WARNING)  # open_clip: the weights are random
    device = torch.device(options.device)
    setting = Setting(
        model=options.models[0],
        batch_size=options.batch_size,
        classes=1000 if device.type == "cuda" else 10,
        templates=80,
        teacher_every=500,
        precision=resolve_precision("auto", device),
        device=str(device),
    )
    result: dict[str, Any] = {"environment": environment(device, setting.precision), "steps": []}
    for model in options.models:
        measured = measure(
            replace(setting, model=model),
            rounds=options.rounds,
            steps=options.steps,
            memory=not options.no_memory,
        )
        show(measured)
        result["steps"].append(measured)
    default = loader_workers(None, "cuda")
    tried = options.workers or sorted({0, 2, default, 2 * default})
    result["loader"] = loader_rates(setting, photos=options.photos, workers=tried)
    consumed = max(row["images_per_s"] for m in result["steps"] for row in m["contenders"].values())
    show_rates(result["loader"], consumed)
    print(f"\nBy default {default} workers would decode here beside one GPU.")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
