"""What many checkpoints of one model cost in one pass, and in a pass each.

    python benchmarks/evaluate.py                   # a table
    python benchmarks/evaluate.py --json            # its last line holds the numbers
    python benchmarks/evaluate.py --models 2 4 8    # how the gain grows with the models

Both contenders judge the same finished runs on the same folder of JPEGs, in this process, in turn,
round after round, so that a busy machine slows both:

- **shared**: `evaluate_many`, as `calift evaluate RUN RUN …` calls it.
- **separate**: `evaluate_finished` for one run after the other.

Loading, decoding, forward passes, every number and the report are in both times. What sharing saves
is reading and decoding, so the gain depends on their share: `decode_share` is that of a pass of one
model. Predictions must be equal byte for byte; that is checked first.

With `--corrupted` it times something else: one model judged on corruptions of these photographs,
computed (`CALIFT_CACHE_BYTES=0`) and read from what an earlier run kept, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calift_core.data.loader import Normalise, eval_batches
from calift_core.data.preprocess import Preprocess
from calift_core.data.suites.load import load_suite
from calift_core.jobs.environment import environment
from calift_core.jobs.evaluate import Evaluated, evaluate_finished, evaluate_many
from calift_core.jobs.folder import run_in_folder
from calift_core.models.loading import TINY_CONFIG
from calift_core.models.precision import resolve_device, resolve_precision
from calift_core.schema.spec import RunSpec, parse_spec

CLASSES = ("one", "two", "three", "four")


def write_photos(root: Path, n: int, *, width: int, height: int, seed: int) -> None:
    """Class folders of JPEGs with a 1/f spectrum, which compress about as photographs do."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / width)
    for index in range(n):
        folder = root / CLASSES[index % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.fft.rfft2(rng.standard_normal((3, height, width)), axes=(1, 2))
        field = np.fft.irfft2(noise * falloff, s=(height, width), axes=(1, 2))
        field = 127 + 50 * (field - field.mean()) / field.std()
        pixels = np.clip(field.transpose(1, 2, 0), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:05d}.jpg", quality=90)


def make_runs(root: Path, spec: RunSpec, n: int) -> list[Path]:
    """Finished runs of random weights of one architecture."""
    folders = []
    for seed in range(n):
        train = spec.train.model_copy(update={"seed": seed})
        folders.append(root / f"run{seed}")
        for _ in run_in_folder(spec.model_copy(update={"train": train}), folders[-1]):
            pass
    return folders


def with_shift(run: Path, photos: Path) -> RunSpec:
    """The run's spec, judged on the photographs too."""
    data = json.loads((run / "spec.json").read_text())
    data["suite"]["shifts"] = {"photos": f"folder:{photos}"}
    data["train"]["seed"] = 0
    return parse_spec(data)


def shared(runs: Sequence[Path], photos: Path, folder: Path) -> None:
    """One pass for all."""
    models = {run.name: Evaluated(run, with_shift(run, photos)) for run in runs}
    for _ in evaluate_many(models, folder):
        pass


def separate(runs: Sequence[Path], photos: Path, folder: Path) -> None:
    """A pass for each."""
    for run in runs:
        for _ in evaluate_finished(with_shift(run, photos), run, folder / run.name):
            pass


def timed(contender: Callable[..., None], runs: Sequence[Path], photos: Path, root: Path) -> float:
    """Seconds of one contender, into a folder that is removed."""
    folder = root / "out"
    began = time.perf_counter()
    contender(runs, photos, folder)
    elapsed = time.perf_counter() - began
    shutil.rmtree(folder)
    return elapsed


def require_equal(runs: Sequence[Path], photos: Path, root: Path) -> None:
    """Both contenders leave the same predictions, byte for byte."""
    shared(runs, photos, root / "a")
    separate(runs, photos, root / "b")
    files = sorted((root / "a").rglob("*.parquet"))
    assert files
    for file in files:
        other = root / "b" / file.relative_to(root / "a")
        if file.read_bytes() != other.read_bytes():
            raise SystemExit(f"the predictions {file.relative_to(root / 'a')} differ")
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b")


def decode_s(spec: RunSpec, preprocess: Preprocess, device: torch.device) -> float:
    """Seconds of loading and decoding alone."""
    images = load_suite(spec.suite).shifts["photos"]
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, device)
    began = time.perf_counter()
    for _ in eval_batches(
        images,
        preprocess=preprocess,
        batch_size=spec.evaluation.batch_size,
        workers=spec.train.workers or 0,
        normalise=normalise,
    ):
        pass
    return time.perf_counter() - began


def measure(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Medians over interleaved rounds, for each number of models."""
    width, height = args.pixels
    write_photos(root / "id", 40, width=64, height=64, seed=1)
    write_photos(root / "photos", args.images, width=width, height=height, seed=0)
    spec = parse_spec(
        {
            "name": "benchmark",
            "model": {"name": args.model, "pretrained": None},
            "method": {"kind": "zero_shot"},
            "suite": {"id": f"folder:{root / 'id'}", "templates": "plain"},
            "train": {"device": args.device, "workers": args.workers},
            "evaluation": {"n_resamples": 20, "batch_size": args.batch_size},
        }
    )
    runs = make_runs(root, spec, max(args.models))
    judged = with_shift(runs[0], root / "photos")
    device = resolve_device(args.device)
    require_equal(runs[:2], root / "photos", root)
    times: dict[int, dict[str, list[float]]] = {
        k: {"shared": [], "separate": []} for k in args.models
    }
    alone: list[float] = []
    decoding: list[float] = []
    described = json.loads((runs[0] / "checkpoint" / "model.json").read_text())
    preprocess = Preprocess.of(described["preprocess"])
    for _ in range(args.rounds):
        decoding.append(decode_s(judged, preprocess, device))
        alone.append(timed(separate, runs[:1], root / "photos", root))
        for k in args.models:
            for contender in (shared, separate):
                seconds = timed(contender, runs[:k], root / "photos", root)
                times[k][contender.__name__].append(seconds)
    rows = []
    for k, found in times.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        ratio = medians["separate"] / medians["shared"]
        rows.append(
            {
                "models": k,
                **{f"{name}_s": round(value, 3) for name, value in medians.items()},
                "separate_over_shared": round(ratio, 3),
            }
        )
    return {
        "benchmark": "evaluate",
        "model": Path(args.model).stem,
        "images": args.images,
        "pixels": [width, height],
        "batch_size": args.batch_size,
        "workers": args.workers,
        "rounds": args.rounds,
        "one_model_s": round(statistics.median(alone), 3),
        "decode_share": round(statistics.median(decoding) / statistics.median(alone), 3),
        "rows": rows,
        "separate_over_shared": rows[-1]["separate_over_shared"],
        "environment": environment(device, resolve_precision("auto", device)),
    }


#: One of each kind, of middling price.
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "elastic_transform", "jpeg_compression")


def judge_corrupted(run: Path, spec: RunSpec, folder: Path, *, kept: bool) -> float:
    """Seconds of judging one model, with corrupted images kept or computed."""
    os.environ["CALIFT_CACHE_BYTES"] = str(10 * 2**30 if kept else 0)
    began = time.perf_counter()
    for _ in evaluate_finished(spec, run, folder):
        pass
    return time.perf_counter() - began


def measure_kept(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Medians over interleaved rounds of corrupted images computed and kept."""
    width, height = args.pixels
    write_photos(root / "photos", args.images, width=width, height=height, seed=0)
    spec = parse_spec(
        {
            "name": "benchmark",
            "model": {"name": args.model, "pretrained": None},
            "method": {"kind": "zero_shot"},
            "suite": {"id": f"folder:{root / 'photos'}", "templates": "plain"},
            "train": {"device": args.device, "workers": args.workers},
            "evaluation": {"n_resamples": 20, "batch_size": args.batch_size},
        }
    )
    run = make_runs(root, spec, 1)[0]
    data = json.loads((run / "spec.json").read_text())
    data["suite"]["corruptions"] = {"names": list(CORRUPTIONS), "severities": [3]}
    judged = parse_spec(data)
    first = judge_corrupted(run, judged, root / "first", kept=True)
    times: dict[str, list[float]] = {"computed": [], "kept": []}
    for _ in range(args.rounds):
        for name, values in times.items():
            folder = root / name
            values.append(judge_corrupted(run, judged, folder, kept=name == "kept"))
            for file in sorted((root / "first").rglob("*.parquet")):
                other = folder / file.relative_to(root / "first")
                if file.read_bytes() != other.read_bytes():
                    raise SystemExit(f"the predictions {file.name} differ")
            shutil.rmtree(folder)
    medians = {name: statistics.median(values) for name, values in times.items()}
    n = json.loads((run / "report.json").read_text())["evaluations"][0]["n"]
    device = resolve_device(args.device)
    return {
        "benchmark": "evaluate corrupted",
        "model": Path(args.model).stem,
        "corruptions": list(CORRUPTIONS),
        "images": n,
        "pixels": [width, height],
        "rounds": args.rounds,
        "first_s": round(first, 3),
        **{f"{name}_s": round(value, 3) for name, value in medians.items()},
        "computed_over_kept": round(medians["computed"] / medians["kept"], 2),
        "environment": environment(device, resolve_precision("auto", device)),
    }


def show_kept(result: dict[str, Any]) -> None:
    """One line for people."""
    print(
        f"{result['model']}, {len(result['corruptions'])} corruptions of {result['images']} JPEGs "
        f"of {result['pixels'][0]} × {result['pixels'][1]}, medians of {result['rounds']} rounds: "
        f"computed {result['computed_s']:.2f} s, kept {result['kept_s']:.2f} s, ratio "
        f"{result['computed_over_kept']:.2f}; the first run, which keeps them, "
        f"{result['first_s']:.2f} s"
    )


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    print(
        f"{result['model']}, {result['images']} JPEGs of {result['pixels'][0]} × "
        f"{result['pixels'][1]}, {result['environment']['device_name']}, medians of "
        f"{result['rounds']} rounds; decoding is {100 * result['decode_share']:.0f} % of an "
        "evaluation of one model"
    )
    print(f"{'models':>8}{'a pass each':>14}{'one pass':>12}{'ratio':>8}")
    for row in result["rows"]:
        print(
            f"{row['models']:>8}{row['separate_s']:>12.2f} s{row['shared_s']:>10.2f} s"
            f"{row['separate_over_shared']:>8.2f}"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(TINY_CONFIG), help="open_clip name or config JSON")
    parser.add_argument("--models", type=int, nargs="+", default=[2, 5], help="how many at once")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--pixels", type=int, nargs=2, default=(500, 375))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--corrupted", action="store_true", help="corrupted images, kept or not")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calift-evaluate-") as folder:
        os.environ["CALIFT_HOME"] = str(Path(folder) / "home")
        result = (measure_kept if args.corrupted else measure)(args, Path(folder))
    (show_kept if args.corrupted else show)(result)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
