"""The results study: every method on Fashion-MNIST and CIFAR-10, and the its tables.

    python benchmarks/results.py --out results             # everything that is not finished yet
    python benchmarks/results.py --out results --plan      # only say what that would be
    python benchmarks/results.py --out results --ablation  # the ablation of CaRot+ instead
    python benchmarks/results.py --out results --tables    # tables of what is finished

**Protocol.** A small model, pre-trained on a disjoint part of the same data. The learning rate of
each method is chosen on the accuracy on the ID *validation* split: the grid is walked upwards until
that falls, with a seed that is used for nothing else; a run that diverges counts as fallen. A rate
at the grid's edge is reported as such. Rows that ask about a part of a method share a rate (FLYP's,
or CaRot's), so that the rate does not answer for it. Then every row is run on `--seeds` seeds and
judged once on the ID test split and on corruptions of it. Nothing is chosen on a shift, no seed is
dropped. WiSE-FT starts from the FT run of its seed, Model Stock from those of its seed and the
next.

**CaRot+.** Its defaults come from `--ablation`, made before the study on ID validation alone: the
variants in `VARIANTS` at the rates in `ABLATION_GRID`, one seed; the lowest mean over suites of the
validation NLL wins, each variant at its rate with the lowest. NLL is a proper score: it asks for
accuracy and calibration together. Whether CaRot+ is any good is decided by the criterion in
`results_tables.verdict`.

A run is stored under a name made of its spec's hash. What is finished is not run again; a study
that was interrupted, or killed, goes on where it was. Runs are spread over `--jobs` processes of
one thread each, which do more than one process of several threads.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import results_tables as tables

from calift_core.errors import CaliftError, DataUnavailableError, reason_of
from calift_core.files import atomic_write_bytes, atomic_write_json
from calift_core.home import cache_dir
from calift_core.schema.records import EXIT_INTERRUPTED, JobFile, JobResult
from calift_core.schema.spec import RunSpec, parse_spec
from calift_core.studies.sweep.ladder import Rung, choose, climb

ROOT = Path(__file__).parent.parent

GRID = (3e-4, 1e-3, 3e-3, 1e-2)
ABLATION_GRID = (1e-3,)
CORRUPTIONS = (
    "gaussian_noise",
    "gaussian_blur",
    "contrast",
    "brightness",
    "pixelate",
    "jpeg_compression",
)


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    epochs: int = 3
    batch_size: int = 256
    n_seeds: int = 3
    grid: tuple[float, ...] = GRID
    grid_seed: int = 100
    ablation_grid: tuple[float, ...] = ABLATION_GRID
    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = (1, 3, 5)
    corruption_limit: int = 4000
    device: str = "auto"
    #: Runs that choose a rate need no more of the other splits than the spectrum does.
    grid_limits: Mapping[str, int] = field(
        default_factory=lambda: {"test": 2000, "calibration": 100}
    )

    @property
    def seeds(self) -> range:
        """Seeds of the runs that are judged."""
        return range(self.n_seeds)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: what it is called.
        method: options of the method; `wise_ft` and `model_stock` receive their inputs.
        rate_of: label of the row whose learning rate it takes, itself perhaps; empty: none.
        train: further training options.
    """

    label: str
    method: Mapping[str, Any]
    rate_of: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The method's kind."""
        return str(self.method["kind"])


def _chosen(label: str, kind: str) -> Row:
    return Row(label, {"kind": kind}, rate_of=label)


#: Rows at CaRot's rate of methods that may have chosen another one: they tell method from rate.
MATCHED = {f"{label} at CaRot's rate": label for label in ("FLYP", "TRACER", "CaRot+")}
ROWS = (
    Row("zero-shot", {"kind": "zero_shot"}),
    _chosen("LP", "linear_probe"),
    _chosen("FT", "finetune"),
    _chosen("LP-FT", "lp_ft"),
    _chosen("LipSum-FT", "lipsum_ft"),
    _chosen("CAR-FT", "car_ft"),
    Row("WiSE-FT", {"kind": "wise_ft", "alpha": 0.5}),
    Row("Model Stock", {"kind": "model_stock"}),
    _chosen("FLYP", "flyp"),
    Row("FLYP + L_OC", {"kind": "carot", "lambda_sd": 0.0, "lambda_x": 0.0}, rate_of="FLYP"),
    Row("FLYP + L_SD", {"kind": "carot", "lambda_oc": 0.0, "lambda_x": 0.0}, rate_of="FLYP"),
    _chosen("CaRot", "carot"),
    _chosen("TRACER", "tracer"),
    _chosen("CaRot+", "carot_plus"),
    Row("FLYP at CaRot's rate", {"kind": "flyp"}, rate_of="CaRot"),
    Row("TRACER at CaRot's rate", {"kind": "tracer"}, rate_of="CaRot"),
    Row("CaRot+ at CaRot's rate", {"kind": "carot_plus"}, rate_of="CaRot"),
    # With BatchNorm the student sees batch statistics and the teacher running ones; these rows tell
    # what distillation owes to that.
    Row("FLYP, BatchNorm frozen", {"kind": "flyp"}, "CaRot", {"batch_norm": "frozen"}),
    Row("CaRot, BatchNorm frozen", {"kind": "carot"}, "CaRot", {"batch_norm": "frozen"}),
    Row("TRACER, BatchNorm frozen", {"kind": "tracer"}, "CaRot", {"batch_norm": "frozen"}),
    Row("CaRot+, BatchNorm frozen", {"kind": "carot_plus"}, "CaRot", {"batch_norm": "frozen"}),
)
PAIRS = (
    ("CaRot", "FLYP at CaRot's rate"),
    ("CaRot, BatchNorm frozen", "FLYP, BatchNorm frozen"),
    ("CaRot+", "CaRot"),
    ("CaRot+", "TRACER"),
    ("CaRot+ at CaRot's rate", "CaRot"),
    ("CaRot+, BatchNorm frozen", "CaRot, BatchNorm frozen"),
    ("CaRot+, BatchNorm frozen", "TRACER, BatchNorm frozen"),
)

#: Variants of CaRot+ for the ablation: title and method. H is made from what E shows.
_A: dict[str, Any] = {"kind": "carot"}
_D: dict[str, Any] = {
    "kind": "carot_plus",
    "multi_positive": True,
    "teacher": "trajectory",
    "lambda_oc": 0.2,
    "lambda_sd": 1.5,
    "lambda_fd": 0.0,
    "final_average": 0.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "A": ("CaRot as published", _A),
    "B": ("A without L_X + multi-positive", {**_D, "teacher": "ema"}),
    "C": ("A without L_X, trajectory teacher", {**_D, "multi_positive": False}),
    "D": ("B and C", _D),
    "E100": ("D + λ_FD 100", {**_D, "lambda_fd": 100.0}),
    "E1000": ("D + λ_FD 1000", {**_D, "lambda_fd": 1000.0}),
    "F": ("D without L_OC", {**_D, "lambda_oc": 0.0}),
    "G": ("D + final average 0.5", {**_D, "final_average": 0.5}),
    "G1": ("D, finished as the teacher", {**_D, "final_average": 1.0}),
}
LAST_VARIANT = "H"


@dataclass(frozen=True)
class Bench:
    """A suite, the model that is fine-tuned on it, and how that model is made.

    Attributes:
        name: of the suite in results.
        suite: the spec's `suite`.
        model: the spec's `model`.
        train: training options that this suite wants.
        pretraining: the run that makes the model's weights; None where they are there.
        named: the suite whose weights `calift-tiny` finds by name once the run is done.
    """

    name: str
    suite: Mapping[str, Any]
    model: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    pretraining: RunSpec | None = None
    named: str = ""


# ------------------------------------------------------------------------------------- benches


def fashion_bench() -> Bench:
    """Fashion-MNIST with the embedded model."""
    from calift_core.jobs.tiny import pretraining_spec

    return Bench(
        "fashion-mnist",
        {"id": "fashion-mnist", "templates": "plain"},
        {"name": "calift-tiny", "pretrained": "fashion-mnist"},
        pretraining=pretraining_spec("fashion-mnist"),
        named="fashion-mnist",
    )


def cifar10_bench(folder: Path, out: Path) -> Bench:
    """CIFAR-10 in class folders; 70 % of its training images pre-train the embedded model."""
    suite = {
        "id": f"folder:{folder}",
        "templates": "plain",
        "fractions": {"pretrain": 0.7, "validation": 0.05, "calibration": 0.05, "test": 0.0},
        "limits": {"train": 10_000},
    }
    pretraining = parse_spec(
        {
            "name": "calift-tiny on cifar10",
            "model": {"name": "calift-tiny", "pretrained": None},
            "method": {"kind": "pretrain"},
            "suite": suite,
            "train": {
                "epochs": 10,
                "batch_size": 256,
                "lr": 2e-3,
                "weight_decay": 0.05,
                "crop_scale": [0.8, 1.0],
                "horizontal_flip": True,
                "spectrum_every_epochs": 0,
                "cache_images": True,
            },
        }
    )
    weights = out / "cifar10" / "pretrain" / "checkpoint" / "model.safetensors"
    return Bench(
        "cifar10",
        suite,
        {"name": "calift-tiny", "pretrained": str(weights)},
        {"cache_images": True},
        pretraining,
    )


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def write_class_folders(parts: Mapping[str, Iterable[tuple[Any, int]]], target: Path) -> None:
    """Write (picture, label) pairs of each part as PNGs in CIFAR-10's class folders, all at once.

    `target` appears when everything is there; a killed process leaves a folder of another name.
    """
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    for part, pictures in parts.items():
        for name in CIFAR10_CLASSES:
            (work / part / name).mkdir(parents=True)
        for i, (picture, label) in enumerate(pictures):
            picture.save(work / part / CIFAR10_CLASSES[label] / f"{i:05d}.png")
    work.rename(target)


def find_cifar10(named: str | None) -> Path:
    """The folder of CIFAR-10: the one named, else CALIFT_CIFAR10, else torchvision's download.

    Raises:
        DataUnavailableError: it is not here and cannot be downloaded.
    """
    named = named or os.environ.get("CALIFT_CIFAR10")
    how = "Name a folder with train/ and test/ class folders: --cifar10 FOLDER or CALIFT_CIFAR10."
    if named:
        folder = Path(named).expanduser().absolute()
        missing = [
            f"{part}/{name}"
            for part in ("train", "test")
            for name in CIFAR10_CLASSES
            if not (folder / part / name).is_dir()
        ]
        if missing:
            raise DataUnavailableError(
                f"{str(folder)!r} is not CIFAR-10 in class folders, it lacks {missing[:3]}",
                hint=how,
            )
        return folder
    target = cache_dir() / "cifar10"
    if not target.is_dir():
        from torchvision.datasets import CIFAR10

        root = cache_dir() / "torchvision"
        root.mkdir(parents=True, exist_ok=True)
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            parts = {
                part: CIFAR10(str(root), train=part == "train", download=True)
                for part in ("train", "test")
            }
        except Exception as error:  # network and checksum errors come as many types
            raise DataUnavailableError(
                "CIFAR-10 is not on this machine and could not be downloaded "
                f"({type(error).__name__}: {reason_of(error)})",
                hint=how,
            ) from None
        finally:
            socket.setdefaulttimeout(patience)
        write_class_folders(
            {part: ((s[i]) for i in range(len(s))) for part, s in parts.items()}, target
        )
    return target


# --------------------------------------------------------------------------------------- a study


@dataclass(frozen=True)
class Task:
    """A run that can be described: its spec, its folder, and the folders it is made from."""

    spec: RunSpec
    folder: Path
    after: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Need:
    """A run of the plan; `task` is None while its settings wait for other runs.

    Attributes:
        suite: name.
        kind: of the method.
        stage: `pretraining`, `grid`, `seeds` or `merges`.
        judged: with corruptions.
        task: None while unknown.
        certain: false for a point of the grid that the walk may not reach.
        points: evaluations of a WiSE-FT path.
        label: of the row or variant, for people.
    """

    suite: str
    kind: str
    stage: str
    judged: bool
    task: Task | None
    certain: bool = True
    points: int = 0
    label: str = ""


class Study:
    """One suite: which runs it needs, and the numbers of those that are finished.

    Nothing is remembered but what lies in the folder: `needs` looks at which runs are finished and
    says which follow.
    """

    def __init__(
        self, bench: Bench, out: Path, settings: Settings, rows: Sequence[Row] = ROWS
    ) -> None:
        self.bench, self.settings, self.rows = bench, settings, tuple(rows)
        self.folder = out / bench.name
        self._reports: dict[Path, dict[str, Any]] = {}
        self._named_is_current = False

    # ------------------------------------------------------------------ what is there

    def report(self, task: Task) -> dict[str, Any] | None:
        """The report of a finished run of this very spec, or None."""
        if task.folder not in self._reports:
            try:
                stored = json.loads((task.folder / "report.json").read_text())
            except (OSError, ValueError):
                return None
            if stored.get("spec_sha256") != task.spec.content_hash():
                return None
            self._reports[task.folder] = stored
        return self._reports[task.folder]

    def result(self, task: Task) -> JobResult | None:
        """How the last attempt at a run ended."""
        try:
            return JobResult.model_validate_json((task.folder / "result.json").read_bytes())
        except (OSError, ValueError):
            return None

    def diverged(self, task: Task) -> bool:
        """Whether a run ended because its numbers were not finite."""
        result = self.result(task)
        return result is not None and result.code == "NAN_LOSS"

    def settled(self, need: Need) -> bool:
        """Whether there is nothing left to do for a run."""
        if need.task is None:
            return False
        if need.stage == "pretraining" and self.bench.named:
            return self._is_current()
        if self.report(need.task) is not None:
            return True
        return need.stage == "grid" and self.diverged(need.task)

    def _is_current(self) -> bool:
        from calift_core.data.suites.load import load_suite
        from calift_core.jobs.tiny import tiny_is_current

        spec = self.bench.pretraining
        assert spec is not None
        if not self._named_is_current:
            self._named_is_current = tiny_is_current(spec, load_suite(spec.suite))
        return self._named_is_current

    # ------------------------------------------------------------------ what is needed

    def task(
        self,
        method: Mapping[str, Any],
        lr: float | None,
        seed: int,
        *,
        judged: bool,
        train: Mapping[str, Any] | None = None,
        after: Sequence[Path] = (),
    ) -> Task:
        """Describe a run; `judged` gives it the corruptions."""
        s, suite = self.settings, dict(self.bench.suite)
        if judged:
            suite["corruptions"] = {
                "names": list(s.corruptions),
                "severities": list(s.severities),
                "limit": s.corruption_limit,
            }
        else:
            limits = dict(suite.get("limits", {}))
            for part, limit in s.grid_limits.items():
                limits[part] = min(limit, limits.get(part, limit))
            suite["limits"] = limits
        kind = method["kind"]
        name = kind if lr is None else f"{kind} lr {lr:g}"
        spec = parse_spec(
            {
                "name": f"{name} seed {seed}",
                "model": self.bench.model,
                "method": dict(method),
                "suite": suite,
                "train": {
                    "epochs": s.epochs,
                    "batch_size": s.batch_size,
                    "lr": lr,
                    "seed": seed,
                    "device": s.device,
                    "crop_scale": [0.9, 1.0],
                    "spectrum_every_epochs": 0,
                    # A run of a minute saves a checkpoint when it is stopped, and not before.
                    "checkpoint_every_steps": 1_000_000,
                    **self.bench.train,
                    **(train or {}),
                },
            }
        )
        folder = f"{spec.name.replace(' ', '-')}-{spec.content_hash()[:10]}"
        return Task(spec, self.folder / "runs" / folder, tuple(after))

    def needs(self) -> Iterator[Need]:
        """Every run of the study, finished or not, in the order of the protocol."""
        yield from self.pretraining()
        for row in self.rows:
            if row.rate_of == row.label:
                yield from self.grid(row)
        for row in self.rows:
            if self.is_repeat(row):
                continue
            seeds = self.settings.seeds if row.kind != "zero_shot" else [0]
            for seed in seeds:
                yield self.judged(row, seed)

    def pretraining(self) -> Iterator[Need]:
        """The run that makes the weights, if there is one."""
        if self.bench.pretraining is not None:
            task = Task(self.bench.pretraining, self.folder / "pretrain")
            yield Need(self.bench.name, "pretrain", "pretraining", False, task)

    def grid(self, row: Row) -> Iterator[Need]:
        """The walk upwards: up to where the accuracy has fallen, as far as is known."""
        grid = self.settings.grid
        runs = {
            lr: Need(
                self.bench.name,
                row.kind,
                "grid",
                False,
                self.task(row.method, lr, self.settings.grid_seed, judged=False, train=row.train),
                lr in grid[:2],  # the second may be the one that is lower
                label=row.label,
            )
            for lr in grid
        }

        def rung(lr: float) -> Rung | None:
            task = runs[lr].task
            if task is None or not self.settled(runs[lr]):
                return None
            report = self.report(task)
            return Rung(None if report is None else _validation(report)["val_accuracy"])

        climbed = climb(grid, rung)
        yield from (runs[lr] for lr in grid[: climbed.reached])
        if not climbed.over:
            yield from (replace(runs[lr], task=None) for lr in grid[climbed.reached :])

    def rate(self, label: str) -> dict[str, Any] | None:
        """The rate that validation chooses for a row, with the grid as far as it was walked.

        Returns:
            lr, grid (rate → values, or None where the run diverged) and at_edge (`lower`, `upper`
            or empty); None while the walk is not at its end.
        """
        row = next((row for row in self.rows if row.label == label), None)
        if row is None:
            return None
        needs = list(self.grid(row))
        if not all(self.settled(need) for need in needs):
            return None
        found: dict[float, dict[str, float] | None] = {}
        for need, lr in zip(needs, self.settings.grid, strict=False):
            assert need.task is not None
            report = self.report(need.task)
            found[lr] = None if report is None else _validation(report)
        return _choose(found, self.settings.grid, "val_accuracy", highest=True)

    def is_repeat(self, row: Row) -> bool:
        """Whether a row's runs are its method's own, because the rates agree."""
        if row.label not in MATCHED:
            return False
        rates = [self.rate(MATCHED[row.label]), self.rate("CaRot")]
        return rates[0] is not None and rates[1] is not None and rates[0]["lr"] == rates[1]["lr"]

    def judged(self, row: Row, seed: int) -> Need:
        """A run of a row on a seed, with corruptions."""
        method, after, points = dict(row.method), [], 0
        task: Task | None = None
        if row.kind in ("wise_ft", "model_stock"):
            tuned = next((r for r in self.rows if r.label == "FT"), None)
            stage = "merges"
            n = self.settings.n_seeds
            others = [seed] if row.kind == "wise_ft" else [seed, (seed + 1) % n]
            inputs = [self.judged(tuned, s).task for s in others] if tuned else [None]
            folders = [i.folder for i in inputs if i is not None]
            if row.kind == "wise_ft":
                points = 11 if seed == self.settings.seeds[0] else 0
            if len(folders) == len(inputs):
                if row.kind == "wise_ft":
                    method["run"] = str(folders[0])
                    if not points:
                        method["sweep"] = []
                else:
                    method["runs"] = [str(f) for f in folders]
                after = folders
                task = self.task(method, None, seed, judged=True, after=after)
        else:
            stage = "seeds"
            rate = self.rate(row.rate_of) if row.rate_of else {"lr": None}
            if rate is not None:
                task = self.task(method, rate["lr"], seed, judged=True, train=row.train)
        return Need(self.bench.name, row.kind, stage, True, task, points=points, label=row.label)

    # ------------------------------------------------------------------ what came out

    def collect(self) -> dict[str, Any] | None:
        """Everything about the suite: what `study.json` holds; rows that lack a run are left out.

        None where no row is complete.
        """
        rows: dict[str, Any] = {}
        folders: dict[str, list[Path]] = {}
        reports: list[dict[str, Any]] = []
        frontier = None
        for row in self.rows:
            if self.is_repeat(row):
                continue
            seeds = list(self.settings.seeds) if row.kind != "zero_shot" else [0]
            tasks = [self.judged(row, seed).task for seed in seeds]
            found = [self.report(task) if task else None for task in tasks]
            done = [report for report in found if report is not None]
            if len(done) < len(seeds):
                continue
            reports += done
            folders[row.label] = [task.folder for task in tasks if task]
            rate = self.rate(row.rate_of) if row.rate_of else None
            if row.kind == "wise_ft":
                frontier = done[0].get("frontier")
            rows[row.label] = {
                "method": dict(row.method),
                "lr": rate["lr"] if rate else None,
                "seeds": seeds,
                "runs": [f.name for f in folders[row.label]],
                "values": {key: [report["summary"][key] for report in done] for key in _VALUES},
                "validation": [_validation(report) for report in done],
                "training_minutes": _minutes(done, folders[row.label]),
            }
        if not rows:
            return None
        sets = [
            f"{name}_{severity}"
            for name in self.settings.corruptions
            for severity in self.settings.severities
        ]
        rates = {row.label: self.rate(row.label) for row in self.rows if row.rate_of == row.label}
        return {
            "suite": self.bench.name,
            "rows": rows,
            "pairs": PAIRS,
            "rates": {label: rate for label, rate in rates.items() if rate is not None},
            "frontier": frontier,
            "settings": self._settings(),
            **_made_with(reports),
            **tables.compare(folders, sets, PAIRS),
        }

    def _settings(self) -> dict[str, Any]:
        s = self.settings
        return {
            "epochs": s.epochs,
            "batch_size": s.batch_size,
            "seeds": list(s.seeds),
            "grid": list(s.grid),
            "grid_seed": s.grid_seed,
            "selected_on": "id_val accuracy",
            "corruptions": list(s.corruptions),
            "severities": list(s.severities),
            "corruption_limit": s.corruption_limit,
        }


_VALUES = (
    "id_accuracy",
    "ood_accuracy",
    "id_ece",
    "id_ece_floor",
    "ood_ece",
    "ood_ece_floor",
    "id_nll",
    "ood_nll",
    "sigma_min",
)


def _validation(report: Mapping[str, Any]) -> dict[str, float]:
    values = report["selection"]["validation"]
    return {
        **{key: float(values[key]) for key in ("val_accuracy", "val_nll", "val_ece")},
        "sigma_min": report["summary"]["sigma_min"],
    }


def _choose(
    found: Mapping[float, Mapping[str, float] | None],
    grid: Sequence[float],
    key: str,
    *,
    highest: bool,
) -> dict[str, Any]:
    """The best rate of a grid; of equal ones the lower."""
    scores = {lr: None if values is None else values[key] for lr, values in found.items()}
    choice = choose(scores, grid, highest=highest)
    return {
        "lr": choice.lr,
        "grid": {f"{rate:g}": values for rate, values in found.items()},
        "at_edge": choice.at_edge,
    }


def _was_resumed(folder: Path) -> bool:
    try:
        return '"kind":"resumed"' in (folder / "records.jsonl").read_text()
    except OSError:
        return True


def _work_s(report: Mapping[str, Any]) -> float:
    """Seconds of a run that went into the model: neither loading nor evaluation."""
    t = report["timings_s"]
    return float(t["total_s"] - t.get("loading_s", 0) - t.get("evaluation_s", 0))


def _minutes(reports: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[float]:
    """Training minutes of the runs that were made in one go, where there is training.

    On a CPU a run has one thread, and its processor time is what counts: what else the machine did
    meanwhile does not.
    """

    def seconds(report: Mapping[str, Any]) -> float:
        timings = report["timings_s"]
        on_cpu = report["environment"].get("device") == "cpu"
        return float(timings["training_cpu_s" if on_cpu else "training_s"])

    return [
        seconds(report) / 60
        for report, folder in zip(reports, folders, strict=True)
        if "training_s" in report["timings_s"] and not _was_resumed(folder)
    ]


def _made_with(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Environment of the runs, and every revision of the code that made one of them."""
    revisions = {json.dumps(report["environment"].get("git")) for report in reports}
    return {
        "environment": reports[0]["environment"],
        "revisions": [json.loads(r) for r in sorted(revisions) if r != "null"],
    }


# ------------------------------------------------------------------------------------- ablation


class Ablation:
    """The variants of CaRot+ on all suites, by ID validation alone."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = tuple(studies)
        self.settings = studies[0].settings

    def needs(self) -> Iterator[Need]:
        """Every run, finished or not."""
        for study in self.studies:
            yield from study.pretraining()
        for name, (_, method) in self.variants().items():
            for study in self.studies:
                for lr in self.settings.ablation_grid:
                    yield self._need(study, method, lr, label=name)

    def variants(self) -> dict[str, tuple[str, dict[str, Any] | None]]:
        """All variants; the last one's method is None while λ_FD is not known."""
        found: dict[str, tuple[str, dict[str, Any] | None]] = dict(VARIANTS)
        weight = self.lambda_fd()
        title = "D + λ_FD as E has it + final average 0.5"
        method = None if weight is None else {**_D, "lambda_fd": weight, "final_average": 0.5}
        if weight is not None:
            title = f"D + λ_FD {weight:g} + final average 0.5"
        found[LAST_VARIANT] = (title, method)
        return found

    def _need(
        self, study: Study, method: dict[str, Any] | None, lr: float, *, label: str = ""
    ) -> Need:
        task = None
        if method is not None:
            task = study.task(method, lr, self.settings.grid_seed, judged=False)
        kind = method["kind"] if method else "carot_plus"
        return Need(study.bench.name, kind, "grid", False, task, label=label)

    def _rates(self, study: Study, method: dict[str, Any]) -> dict[str, Any] | None:
        """The rate with the lowest validation NLL, or None while a run is missing."""
        found: dict[float, dict[str, float] | None] = {}
        for lr in self.settings.ablation_grid:
            need = self._need(study, method, lr)
            if not study.settled(need) or need.task is None:
                return None
            report = study.report(need.task)
            found[lr] = None if report is None else _validation(report)
        return _choose(found, self.settings.ablation_grid, "val_nll", highest=False)

    def _score(self, method: dict[str, Any]) -> tuple[float, dict[str, Any]] | None:
        """Mean over suites of the lowest validation NLL, and the rates of each suite."""
        suites = {study.bench.name: self._rates(study, method) for study in self.studies}
        if None in suites.values():
            return None
        lowest = [
            found["grid"][f"{found['lr']:g}"]["val_nll"] for found in suites.values() if found
        ]
        return statistics.fmean(lowest), suites

    def lambda_fd(self) -> float | None:
        """The λ_FD of the best E, or None while one is missing."""
        scores = {}
        for name, (_, method) in VARIANTS.items():
            if name.startswith("E"):
                found = self._score(method)
                if found is None:
                    return None
                scores[float(method["lambda_fd"])] = found[0]
        return min(scores, key=lambda weight: scores[weight])

    def collect(self) -> dict[str, Any] | None:
        """What `ablation.json` holds, or None while a run is missing."""
        variants: dict[str, Any] = {}
        for name, (title, method) in self.variants().items():
            found = self._score(method) if method else None
            if found is None:
                return None
            variants[name] = {
                "title": title,
                "method": method,
                "mean_val_nll": found[0],
                "suites": found[1],
            }
        reports = [
            report
            for study in self.studies
            for need in self.needs()
            if need.task and need.stage == "grid" and need.suite == study.bench.name
            if (report := study.report(need.task)) is not None
        ]
        return {
            "suites": [study.bench.name for study in self.studies],
            "variants": variants,
            "best": min(variants, key=lambda name: variants[name]["mean_val_nll"]),
            "lambda_fd": self.lambda_fd(),
            "rates": list(self.settings.ablation_grid),
            "settings": self.studies[0]._settings(),
            **_made_with(reports),
        }


# ----------------------------------------------------------------------------------------- cost

#: Processor seconds on one thread where a step of FLYP took `_REFERENCE_STEP_S`, for 5 epochs of 39
#: steps: what a kind of method takes beside loading and evaluation.
_PRIOR_WORK_S = {
    "zero_shot": 0.0,
    "linear_probe": 4.0,
    "finetune": 43.0,
    "lp_ft": 46.0,
    "lipsum_ft": 60.0,
    "car_ft": 54.0,
    "wise_ft": 1.0,
    "model_stock": 2.0,
    "flyp": 56.0,
    "carot": 70.0,
    "tracer": 69.0,
    "carot_plus": 69.0,
}
_REFERENCE_STEP_S = 0.225
_PRIOR_PRETRAINING_S = {"fashion-mnist": 140.0, "cifar10": 410.0}
_PRIOR_LOAD_S = 2.0
_PRIOR_JUDGE_S = 25.0
_PRIOR_VALIDATE_S = 2.0


class Costs:
    """Seconds of a run, from finished runs of its kind where there are some."""

    def __init__(self, needs: Iterable[tuple[Study, Need]], settings: Settings) -> None:
        self.settings = settings
        self.work: dict[tuple[str, str], list[float]] = {}
        self.rest: dict[tuple[str, bool], list[float]] = {}
        for study, need in needs:
            if need.task is None or (report := study.report(need.task)) is None:
                continue
            if _was_resumed(need.task.folder):
                continue
            self.add(need, report)

    def add(self, need: Need, report: Mapping[str, Any]) -> None:
        """Learn from a finished run."""
        if need.points:
            return
        t = report["timings_s"]
        work = _work_s(report)
        self.work.setdefault((need.suite, need.kind), []).append(work)
        if need.kind != "pretrain":
            rest = float(t["total_s"]) - work
            self.rest.setdefault((need.suite, need.judged), []).append(rest)

    @cached_property
    def speed(self) -> float:
        """How much longer than on the reference machine things take here."""
        ratios = [
            statistics.median(seconds) / (_PRIOR_WORK_S[kind] * self.settings.epochs / 5)
            for (_, kind), seconds in self.work.items()
            if _PRIOR_WORK_S.get(kind, 0.0) >= 20
        ]
        if ratios:
            return statistics.median(ratios)
        return measure_step_s(self.settings.batch_size) / _REFERENCE_STEP_S

    def seconds(self, need: Need) -> float:
        """Expected seconds of a run on one thread."""
        known = self.work.get((need.suite, need.kind))
        if known:
            work = statistics.median(known)
        else:
            share = self.settings.epochs / 5
            work = _PRIOR_WORK_S.get(need.kind, 0.0) * self.speed * share
        if need.kind == "pretrain":
            return work or _PRIOR_PRETRAINING_S.get(need.suite, 300.0) * self.speed
        prior = _PRIOR_LOAD_S + (_PRIOR_JUDGE_S if need.judged else _PRIOR_VALIDATE_S)
        seen = self.rest.get((need.suite, need.judged))
        rest = statistics.median(seen) if seen else prior * self.speed
        return work + rest * (1 + need.points)


def measure_step_s(batch_size: int) -> float:
    """Seconds of a step of FLYP with the embedded model, on one thread: the median of three.

    Processor time, so that what else the machine does at the moment is not counted.
    """
    import torch

    from calift_core.methods import Batch, RunLength, make_method
    from calift_core.models.captions import Captions
    from calift_core.models.loading import load_clip
    from calift_core.schema.methods import Flyp

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        clip = load_clip("calift-tiny", None, generator=generator)
        captions = Captions.make(CIFAR10_CLASSES, ["a photo of a {}."], clip.tokenizer)
        method = make_method(Flyp(), clip, captions, length=RunLength(total_steps=10))
        optimizer = torch.optim.AdamW(clip.net.parameters(), lr=1e-4)
        labels = torch.randint(10, (batch_size,), generator=generator)
        side = clip.image_size
        images = torch.randn(batch_size, 3, side, side, generator=generator)
        seconds = []
        clip.train()
        for _ in range(4):
            began = time.process_time()
            loss = sum(method.terms(Batch(images, labels, labels)).values(), torch.zeros(()))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(seconds[1:])


# ------------------------------------------------------------------------------------- the runs

#: Seconds that a stopped run gets to save its checkpoint.
_PATIENCE_S = 90


def work() -> int:
    """Run the folders that come in, line by line; answer each with its exit status."""
    import torch

    from calift_core.jobs.__main__ import main as run

    torch.set_num_threads(1)
    while line := sys.stdin.readline():
        status = run([line.strip()])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the run's own handler would wait for a run
        print(status, flush=True)
        if status == EXIT_INTERRUPTED:
            break
    return 0


class Worker:
    """A process of one thread that makes one run after the other."""

    def __init__(self, log: IO[bytes]) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).absolute()), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **one},
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops them
        )
        self.need: Need | None = None
        self.began = 0.0

    def start(self, need: Need) -> None:
        """Begin a run."""
        assert need.task is not None
        assert self.process.stdin is not None
        self.need, self.began = need, time.monotonic()
        self.process.stdin.write(f"{need.task.folder}\n")
        self.process.stdin.flush()

    def answer(self) -> int | None:
        """The exit status of the run that has ended, or None if the process died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        return int(line) if line else None


def stop(workers: Sequence[Worker]) -> None:
    """End all workers; a run that is under way saves its checkpoint first."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE_S
    for worker in workers:
        try:
            worker.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe is not None:
                pipe.close()


class Plan:
    """All needs of one or more studies: what is ready, how much is left."""

    def __init__(self, studies: Sequence[Study], ablation: Ablation | None = None) -> None:
        self.studies = {study.bench.name: study for study in studies}
        self.ablation = ablation
        self.failed: dict[Path, str] = {}

    def needs(self) -> list[Need]:
        """Every run once, also where two rows share it."""
        if self.ablation is not None:
            found = list(self.ablation.needs())
        else:
            found = [need for study in self.studies.values() for need in study.needs()]
        seen: set[Path] = set()
        needs = []
        for need in found:
            if need.task is not None:
                if need.task.folder in seen:
                    continue
                seen.add(need.task.folder)
            needs.append(need)
        return needs

    def settled(self, need: Need) -> bool:
        """Whether there is nothing left to do for a run."""
        return self.studies[need.suite].settled(need)

    def ready(self, needs: Sequence[Need], busy: set[Path], costs: Costs) -> list[Need]:
        """Runs that can begin, the most urgent first."""
        raw = {
            need.suite for need in needs if need.stage == "pretraining" and not self.settled(need)
        }
        found = []
        for need in needs:
            task = need.task
            if task is None or task.folder in busy or task.folder in self.failed:
                continue
            if need.stage != "pretraining" and need.suite in raw:
                continue
            if any(not (folder / "report.json").is_file() for folder in task.after):
                continue
            if not self.settled(need):
                found.append(need)

        def urgency(need: Need) -> tuple[int, float]:
            # Rates first, then what merges wait for, then the longest.
            order = {"pretraining": 0, "grid": 1, "seeds": 3, "merges": 3}[need.stage]
            if need.stage == "seeds" and need.kind == "finetune":
                order = 2
            return order, -costs.seconds(need)

        return sorted(found, key=urgency)

    def left(self, needs: Sequence[Need]) -> tuple[list[Need], list[Need]]:
        """Runs that are done and those to do."""
        done = [need for need in needs if self.settled(need)]
        return done, [need for need in needs if not self.settled(need)]


def describe(plan: Plan, costs: Costs, jobs: int) -> str:
    """What is to do and how long that will take."""
    needs = plan.needs()
    done, todo = plan.left(needs)
    lines = []
    for name in plan.studies:
        mine = [need for need in needs if need.suite == name]
        parts = []
        for stage in ("pretraining", "grid", "seeds", "merges"):
            of_stage = [need for need in mine if need.stage == stage]
            if of_stage:
                left = [need for need in of_stage if not plan.settled(need)]
                minutes = sum(map(costs.seconds, left)) / 60
                parts.append(f"{stage} {len(left)} of {len(of_stage)} ({minutes:.0f} min)")
        lines.append(f"{name}: {'; '.join(parts)}")
    total = sum(map(costs.seconds, todo))
    sure = sum(costs.seconds(need) for need in todo if need.certain)
    lines.append(
        f"{len(needs)} runs at most, {len(done)} done, {len(todo)} to do: about "
        f"{sure / 60 / jobs:.0f} to {total / 60 / jobs:.0f} minutes with {jobs} "
        f"process{'es' if jobs > 1 else ''} of one thread ({sum(not n.certain for n in todo)} "
        "points of the grid are run only where the accuracy has not fallen before)."
    )
    return "\n".join(lines)


def carry_out(plan: Plan, costs: Costs, *, jobs: int, out: Path, keep_models: bool) -> None:
    """Make every run that is not there.

    Raises:
        CaliftError: a run failed, or a worker died; the others are finished first.
        KeyboardInterrupt: as it comes; no process is left.
    """
    needs = plan.needs()
    if not plan.left(needs)[1]:
        return
    out.mkdir(parents=True, exist_ok=True)
    workers: list[Worker] = []
    with (out / "workers.log").open("ab") as log, selectors.DefaultSelector() as selector:
        try:
            for _ in range(jobs):
                worker = Worker(log)
                workers.append(worker)
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            while True:
                busy = {w.need.task.folder for w in workers if w.need and w.need.task}
                idle = [w for w in workers if w.need is None]
                for worker, need in zip(idle, plan.ready(needs, busy, costs), strict=False):
                    _prepare(need)
                    worker.start(need)
                if not any(w.need for w in workers):
                    break
                for key, _ in selector.select():
                    _ended(key.data, plan, costs, keep_models)
                needs = plan.needs()
                _report_progress(plan, needs, costs, jobs)
        finally:
            stop(workers)
    if plan.failed:
        raise CaliftError(
            "these runs failed: "
            + "; ".join(f"{folder}: {why}" for folder, why in plan.failed.items()),
            hint="Mend the cause and start again; finished runs are kept.",
        )


def _prepare(need: Need) -> None:
    """Write what the runner reads; a folder of other settings is removed first."""
    task = need.task
    assert task is not None
    stored = task.folder / "spec.json"
    if stored.is_file():
        try:
            same = parse_spec(json.loads(stored.read_text())).content_hash()
        except (CaliftError, ValueError):
            same = ""
        if same != task.spec.content_hash():
            shutil.rmtree(task.folder)
    atomic_write_json(stored, task.spec.model_dump(mode="json"))
    job = JobFile(run_id=task.folder.name)
    atomic_write_json(task.folder / "job.json", job.model_dump(mode="json"))


def _ended(worker: Worker, plan: Plan, costs: Costs, keep_models: bool) -> None:
    """Take note of how a worker's run ended."""
    need, status = worker.need, worker.answer()
    if status is None:
        what = need.task.folder.name if need and need.task else "waiting"
        raise CaliftError(
            f"a worker process ended with status {worker.process.wait()} while {what}",
            hint="workers.log holds what it said.",
        )
    assert need is not None
    assert need.task is not None
    worker.need = None
    study, folder = plan.studies[need.suite], need.task.folder
    report = study.report(need.task)
    result = study.result(need.task)
    seconds = time.monotonic() - worker.began
    how = f"{seconds:.0f} s"
    if report is not None:
        costs.add(need, report)
        wanted = need.stage == "pretraining" or (need.kind == "finetune" and need.judged)
        if not keep_models and not wanted:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    elif study.settled(need):
        how += ", diverged"
    else:
        plan.failed[folder] = result.message if result else f"status {status}"
        how += f", FAILED: {plan.failed[folder]}"
    train = need.task.spec.train
    rate = "" if train.lr is None else f", lr {train.lr:g}"
    name = f"{need.label or need.kind}{rate}, seed {train.seed}"
    print(f"{need.suite}  {name}: {how}", end="", flush=True)


def _report_progress(plan: Plan, needs: Sequence[Need], costs: Costs, jobs: int) -> None:
    done, todo = plan.left(needs)
    sure = sum(costs.seconds(need) for need in todo if need.certain) / jobs / 60
    most = sum(map(costs.seconds, todo)) / jobs / 60
    print(f"  [{len(done)} of at most {len(needs)}, {sure:.0f} to {most:.0f} min left]", flush=True)


# ------------------------------------------------------------------------------------ all of it


def make_benches(names: Sequence[str], out: Path, cifar10: str | None) -> list[Bench]:
    """The suites that are here; says which is not, and why.

    Raises:
        CaliftError: none is here.
    """
    benches, problem = [], None
    for name in names:
        try:
            if name == "fashion-mnist":
                from calift_core.data.suites.load import load_suite

                bench = fashion_bench()
                load_suite(parse_spec(_probe(bench)).suite)
            else:
                bench = cifar10_bench(find_cifar10(cifar10), out)
        except DataUnavailableError as error:
            problem = error
            print(f"{name} is left out: {error}", flush=True)
            continue
        benches.append(bench)
    if not benches:
        raise problem or CaliftError("no suite was named")
    return benches


def _probe(bench: Bench) -> dict[str, Any]:
    return {"name": "probe", "method": {"kind": "zero_shot"}, "suite": dict(bench.suite)}


def write_blocks(docs: Path, blocks: Mapping[str, str]) -> None:
    """Put blocks into a Markdown file; say which it has no place for."""
    text = docs.read_text(encoding="utf-8")
    new, missing = tables.inject(text, blocks)
    if new != text:
        atomic_write_bytes(docs, new.encode())
    for name in missing:
        print(f"{docs.name} has no block results:{name}; it stands in the output folder only")


def publish(plan: Plan, out: Path, docs: Path | None) -> bool:
    """Write study.json or ablation.json, tables beside them, and the blocks of `docs`.

    Returns:
        Whether there was anything to write.
    """
    blocks: dict[str, str] = {}
    if plan.ablation is not None:
        found = plan.ablation.collect()
        if found is not None:
            atomic_write_json(out / "ablation.json", found)
            blocks["ablation"] = tables.ablation_block(found)
    else:
        studies = {}
        for name, study in plan.studies.items():
            collected = study.collect()
            if collected is None:
                continue
            studies[name] = collected
            atomic_write_json(out / name / "study.json", collected)
            blocks[name] = tables.suite_block(collected)
        rivals = [r for s in studies.values() for r in s["differences"].get("CaRot+", {})]
        if any(rival in tables.RIVALS for rival in rivals):
            atomic_write_json(out / "verdict.json", tables.verdict(studies))
            blocks["carot-plus"] = tables.verdict_block(studies)
    for name, block in blocks.items():
        atomic_write_bytes(out / f"{name}.md", (block + "\n").encode())
        print(f"\n### {name}\n\n{block}")
    if docs is not None and blocks:
        write_blocks(docs, blocks)
    return bool(blocks)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of all runs")
    parser.add_argument(
        "--suites", default="fashion-mnist,cifar10", help="which, separated by commas"
    )
    parser.add_argument("--cifar10", metavar="FOLDER", help="CIFAR-10 in class folders")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="processes")
    parser.add_argument("--seeds", type=int, default=Settings.n_seeds)
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--device", default=Settings.device, help="of the runs: auto, cpu, cuda")
    parser.add_argument("--rows", help="labels of rows, separated by semicolons; all by default")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results" / "first-study.md")
    parser.add_argument("--no-docs", action="store_true", help="leave the docs as they are")
    parser.add_argument("--keep-models", action="store_true", help="of every run, 28 MB each")
    parser.add_argument("--plan", action="store_true", help="only say what is to do")
    parser.add_argument("--ablation", action="store_true", help="the ablation of CaRot+ instead")
    parser.add_argument("--tables", action="store_true", help="only tables of finished runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.seeds < 2:
        parser.error(f"--seeds must be at least 2 for an interval, got {found.seeds}")
    if found.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {found.jobs}")
    names = found.suites.split(",")
    unknown = sorted(set(names) - {"fashion-mnist", "cifar10"})
    if unknown:
        parser.error(f"--suites knows fashion-mnist and cifar10, got {', '.join(unknown)}")
    labels = [row.label for row in ROWS]
    wanted = found.rows.split(";") if found.rows else labels
    if set(wanted) - set(labels):
        parser.error(f"--rows knows {'; '.join(labels)}, got {found.rows}")
    found.rows = tuple(row for row in ROWS if row.label in wanted)
    return found


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> int:
    """Run the study."""
    arguments = parse_arguments()
    if arguments.worker:
        return work()

    def on_sigterm(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_sigterm)
    out: Path = arguments.out
    settings = Settings(epochs=arguments.epochs, n_seeds=arguments.seeds, device=arguments.device)
    try:
        benches = make_benches(arguments.suites.split(","), out, arguments.cifar10)
        studies = [Study(bench, out, settings, arguments.rows) for bench in benches]
        plan = Plan(studies, Ablation(studies) if arguments.ablation else None)
        if not arguments.tables:
            pairs = [(plan.studies[need.suite], need) for need in plan.needs()]
            costs = Costs(pairs, settings)
            print(describe(plan, costs, arguments.jobs), flush=True)
            if arguments.plan:
                return 0
            carry_out(plan, costs, jobs=arguments.jobs, out=out, keep_models=arguments.keep_models)
        if not publish(plan, out, None if arguments.no_docs else arguments.docs):
            print("no row is complete yet: there are no tables")
            return 1
    except CaliftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
