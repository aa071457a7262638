"""Does CaRot lower OOD calibration error, does L_OC raise σ_min? Methods side by side, in small.

    python benchmarks/method_study.py --seeds 3
    python benchmarks/method_study.py --seeds 3 --folder PATH/TO/cifar10   # has train/ and test/

First the learning rate of each method is chosen on the ID *validation* split, from one grid, on a
seed that is not used again. Then every method is run with the chosen rate on `--seeds` seeds and
judged on the ID test split and on corruptions of it. Nothing is chosen on a shift and no seed is
dropped.

A run that is finished is not run again: the study can be interrupted and started at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calift_core.calibration import ece_from_confidence
from calift_core.errors import CaliftError
from calift_core.predictions import read_predictions
from calift_core.run import run_in_folder
from calift_core.schema.records import ProgressRecord
from calift_core.schema.spec import RunSpec, load_spec, parse_spec

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GRID_SEED = 100
EPOCHS, BATCH_SIZE = 5, 256
CORRUPTIONS = [
    "gaussian_noise",
    "gaussian_blur",
    "contrast",
    "brightness",
    "pixelate",
    "jpeg_compression",
]
SEVERITIES = [1, 3, 5]
CORRUPTION_LIMIT = 4000


@dataclass(frozen=True)
class Contender:
    """A row of the table; `rate_of` names the contender whose learning rate it shares."""

    label: str
    method: dict[str, Any]
    rate_of: str


CONTENDERS = (
    Contender("zero-shot", {"kind": "zero_shot"}, ""),
    Contender("FT", {"kind": "finetune"}, "FT"),
    Contender("FLYP", {"kind": "flyp"}, "FLYP"),
    Contender("FLYP + L_OC", {"kind": "carot", "lambda_sd": 0.0}, "FLYP"),
    Contender("FLYP + L_SD", {"kind": "carot", "lambda_oc": 0.0}, "FLYP"),
    Contender("CaRot", {"kind": "carot"}, "CaRot"),
    # The rates that validation chooses may differ: this row tells the method from the rate.
    Contender("FLYP at CaRot's rate", {"kind": "flyp"}, "CaRot"),
)
MATCHED = CONTENDERS[-1].label
PAIRS = (
    ("CaRot", "FLYP"),
    ("CaRot", "FT"),
    ("CaRot", "FLYP at CaRot's rate"),
    ("FLYP + L_OC", "FLYP"),
    ("FLYP + L_SD", "FLYP"),
)


@dataclass(frozen=True)
class Bench:
    """A suite and the model that is fine-tuned on it."""

    name: str
    suite: dict[str, Any]
    model: dict[str, Any]


def fashion() -> Bench:
    """Fashion-MNIST with the embedded model."""
    return Bench(
        "fashion-mnist",
        {"id": "fashion-mnist", "templates": "plain"},
        {"name": "calift-tiny", "pretrained": "fashion-mnist"},
    )


def folder_bench(folder: Path, out: Path, epochs: int) -> Bench:
    """A folder suite; the embedded architecture is pre-trained on 70 % of its training images."""
    suite = {
        "id": f"folder:{folder.absolute()}",
        "templates": "plain",
        "fractions": {"pretrain": 0.7, "validation": 0.05, "calibration": 0.05, "test": 0.0},
        "limits": {"train": 10_000},
    }
    spec = parse_spec(
        {
            "name": f"calift-tiny on {folder.name}",
            "model": {"name": "calift-tiny", "pretrained": None},
            "method": {"kind": "pretrain"},
            "suite": suite,
            "train": {
                "epochs": epochs,
                "batch_size": 256,
                "lr": 2e-3,
                "weight_decay": 0.05,
                "crop_scale": [0.8, 1.0],
                "horizontal_flip": True,
                "spectrum_every_epochs": 0,
            },
        }
    )
    work = out / "pretrain"
    finish(spec, work)
    weights = work / "checkpoint" / "model.safetensors"
    return Bench(folder.name, suite, {"name": "calift-tiny", "pretrained": str(weights)})


def make_spec(
    bench: Bench, contender: Contender, lr: float | None, seed: int, *, judged: bool
) -> RunSpec:
    """One run; `judged` adds the corruptions."""
    suite = dict(bench.suite)
    if judged:
        suite["corruptions"] = {
            "names": CORRUPTIONS,
            "severities": SEVERITIES,
            "limit": CORRUPTION_LIMIT,
        }
    return parse_spec(
        {
            "name": f"{slug(contender.label)} lr {lr} seed {seed}",
            "model": bench.model,
            "method": contender.method,
            "suite": suite,
            "train": {
                "epochs": EPOCHS,
                "batch_size": BATCH_SIZE,
                "lr": lr,
                "seed": seed,
                "crop_scale": [0.9, 1.0],
            },
        }
    )


def finish(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Run a spec unless its report is there; returns the report."""
    report = folder / "report.json"
    if report.is_file():
        stored: dict[str, Any] = json.loads(report.read_text())
        if stored["spec_sha256"] == spec.content_hash():
            return stored
    if (folder / "spec.json").is_file():
        unfinished = load_spec(folder / "spec.json").content_hash() == spec.content_hash()
        if report.is_file() or not unfinished:
            shutil.rmtree(folder)  # of other settings
    began = time.monotonic()
    for record in run_in_folder(spec, folder):
        if isinstance(record, ProgressRecord) and sys.stderr.isatty():
            text = f"\r{spec.name}: {record.phase} {record.step}/{record.total_steps}   "
            print(text, end="", file=sys.stderr)
    print(f"{spec.name}: {time.monotonic() - began:.0f} s", flush=True)
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def slug(text: str) -> str:
    """A folder name."""
    return text.lower().replace(" + ", "-").replace("_", "").replace("'", "").replace(" ", "-")


def choose_rates(bench: Bench, out: Path) -> dict[str, dict[str, Any]]:
    """The rate of each method with the best ID validation accuracy, and the grid as far as it went.

    The grid is walked upwards until the accuracy falls: the best rate has a worse one above it.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for contender in CONTENDERS:
        if contender.label != contender.rate_of:
            continue
        grid = {}
        for lr in GRID:
            spec = make_spec(bench, contender, lr, GRID_SEED, judged=False)
            report = finish(spec, out / "grid" / f"{slug(contender.label)}-{lr:g}")
            validation = report["selection"]["validation"]
            grid[lr] = {k: validation[k] for k in ("val_accuracy", "val_nll", "val_ece")}
            if grid[lr]["val_accuracy"] < max(g["val_accuracy"] for g in grid.values()):
                break
        best = max(grid, key=lambda lr: grid[lr]["val_accuracy"])
        chosen[contender.label] = {"lr": best, "grid": grid}
    return chosen


@dataclass
class Judged:
    """Confidence and correctness on each OOD set, rows aligned by source image."""

    confidences: NDArray[np.float64]  # (S, n)
    correct: NDArray[np.bool_]  # (S, n)


def load_ood(folder: Path) -> Judged:
    """Predictions on every corruption of a run."""
    confidences, correct = [], []
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            p = read_predictions(folder / "predictions" / f"{name}_{severity}.parquet")
            order = np.argsort(p.ids)
            probs = p.probs()[order].astype(np.float64)
            confidences.append(probs.max(axis=1))
            correct.append(probs.argmax(axis=1) == p.labels[order])
    return Judged(np.array(confidences), np.array(correct))


def mean_ece(judged: Judged, rows: NDArray[np.int64]) -> float:
    """Mean over OOD sets of the 15-bin equal-mass ECE of the images `rows`."""
    return float(
        np.mean(
            [
                ece_from_confidence(c[rows], r[rows], n_bins=15, scheme="equal_mass")
                for c, r in zip(judged.confidences, judged.correct, strict=True)
            ]
        )
    )


def mean_accuracy(judged: Judged, rows: NDArray[np.int64]) -> float:
    """Mean OOD accuracy of the images `rows`."""
    return float(judged.correct[:, rows].mean())


def paired(
    a: Sequence[Judged],
    b: Sequence[Judged],
    statistic: Callable[[Judged, NDArray[np.int64]], float],
    *,
    n_resamples: int = 100,
) -> dict[str, Any]:
    """A − b, mean over seeds, with a bootstrap over source images and seeds together.

    Each resample draws source images (each with all its corruptions: a cluster) and seeds, with
    replacement, and uses the same draw for both methods.
    """
    n = a[0].correct.shape[1]
    everything = np.arange(n)
    per_seed = [
        statistic(x, everything) - statistic(y, everything) for x, y in zip(a, b, strict=True)
    ]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(n_resamples):
        rows = rng.integers(n, size=n)
        seeds = rng.integers(len(a), size=len(a))
        cache: dict[int, float] = {}
        for s in set(seeds.tolist()):
            cache[s] = statistic(a[s], rows) - statistic(b[s], rows)
        draws.append(np.mean([cache[s] for s in seeds.tolist()]))
    low, high = np.quantile(draws, [0.025, 0.975])
    # The resampled statistic is shifted by the bootstrap's own bias, which is measured and removed.
    point = float(np.mean(per_seed))
    bias = float(np.mean(draws)) - point
    return {
        "difference": point,
        "interval": [float(low - bias), float(high - bias)],
        "per_seed": per_seed,
    }


def study(bench: Bench, out: Path, seeds: int) -> dict[str, Any]:
    """Run everything on one suite and put the numbers together."""
    rates = choose_rates(bench, out)
    rows: dict[str, Any] = {}
    ood: dict[str, list[Judged]] = {}
    for contender in CONTENDERS:
        trains = contender.rate_of != ""
        lr = rates[contender.rate_of]["lr"] if trains else None
        if contender.label == MATCHED and lr == rates["FLYP"]["lr"]:
            continue  # the same runs as FLYP's
        reports = []
        for seed in range(seeds if trains else 1):
            folder = out / "runs" / f"{slug(contender.label)}-seed{seed}"
            spec = make_spec(bench, contender, lr, seed, judged=True)
            reports.append(finish(spec, folder))
            ood.setdefault(contender.label, []).append(load_ood(folder))
        summaries = [r["summary"] for r in reports]
        rows[contender.label] = {
            "lr": lr,
            "seeds": len(reports),
            **{
                key: {
                    "mean": float(np.mean([s[key] for s in summaries])),
                    "values": [s[key] for s in summaries],
                }
                for key in summaries[0]
                if isinstance(summaries[0][key], float)
            },
            "minutes": float(np.mean([r["timings_s"]["total_s"] for r in reports])) / 60,
            "val_accuracy": [r["selection"]["validation"]["val_accuracy"] for r in reports],
        }
    differences = {
        f"{a} − {b}": {
            "ood_ece": paired(ood[a], ood[b], mean_ece),
            "ood_accuracy": paired(ood[a], ood[b], mean_accuracy),
            "sigma_min_ratio": [
                x / y
                for x, y in zip(
                    rows[a]["sigma_min"]["values"], rows[b]["sigma_min"]["values"], strict=True
                )
            ],
        }
        for a, b in PAIRS
        if a in rows and b in rows
    }
    result = {
        "suite": bench.name,
        "grid": rates,
        "methods": rows,
        "differences": differences,
        "settings": {
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "grid": GRID,
            "grid_seed": GRID_SEED,
            "selected_on": "id_val accuracy",
            "corruptions": CORRUPTIONS,
            "severities": SEVERITIES,
            "images_per_corruption": CORRUPTION_LIMIT,
        },
        "environment": reports[0]["environment"],
    }
    (out / "study.json").write_text(json.dumps(result, indent=2))
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown for people; percent."""
    lines = [
        f"### {result['suite']}",
        "",
        "| method | lr | ID acc | ID ECE (floor) | OOD acc | OOD ECE (floor) | OOD NLL | σ_min "
        "| minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def spread(row: dict[str, Any], key: str, scale: float = 100, digits: int = 1) -> str:
        values = np.array(row[key]["values"]) * scale
        if len(values) == 1:
            return f"{values[0]:.{digits}f}"
        return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"

    for label, row in result["methods"].items():
        lr = f"{row['lr']:g}" if row["lr"] else "–"
        lines.append(
            f"| {label} | {lr} | {spread(row, 'id_accuracy')} | {spread(row, 'id_ece')} "
            f"({row['id_ece_floor']['mean'] * 100:.1f}) | {spread(row, 'ood_accuracy')} | "
            f"{spread(row, 'ood_ece')} ({row['ood_ece_floor']['mean'] * 100:.1f}) | "
            f"{spread(row, 'ood_nll', 1, 2)} | {spread(row, 'sigma_min', 1e4, 2)}e-4 | "
            f"{row['minutes']:.1f} |"
        )
    lines += [
        "",
        "| paired difference | OOD ECE, points | OOD accuracy, points | σ_min ratio |",
        "|---|---|---|---|",
    ]
    for label, d in result["differences"].items():
        cells = []
        for key in ("ood_ece", "ood_accuracy"):
            low, high = d[key]["interval"]
            clear = "" if low > 0 or high < 0 else ", not distinguishable"
            cells.append(
                f"{d[key]['difference'] * 100:+.2f} [{low * 100:+.2f}, {high * 100:+.2f}]{clear}"
            )
        ratios = ", ".join(f"{r:.2f}" for r in d["sigma_min_ratio"])
        lines.append(f"| {label} | {cells[0]} | {cells[1]} | {ratios} |")
    return "\n".join(lines)


def main() -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a folder suite instead of Fashion-MNIST")
    parser.add_argument("--pretrain-epochs", type=int, default=10, help="with --folder")
    parser.add_argument("--out", type=Path, default=Path("method-study"))
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds must be at least 2 for an interval, got {arguments.seeds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        if arguments.folder:
            out = arguments.out / arguments.folder.name
            bench = folder_bench(arguments.folder, out, arguments.pretrain_epochs)
        else:
            out = arguments.out / "fashion-mnist"
            bench = fashion()
        result = study(bench, out, arguments.seeds)
    except CaliftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
