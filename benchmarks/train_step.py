"""What a training step of CaRot costs: calift's, the published loop's, and FLYP's as the floor.

    python benchmarks/train_step.py                 # a table
    python benchmarks/train_step.py --json          # its last line holds the numbers
    python benchmarks/train_step.py --scaling       # how the costs grow
    python benchmarks/train_step.py --data          # what the loader delivers beside it

Three contenders train the same model on the same batches in one process, in turn, round after
round, so that a busy machine slows all of them:

- **calift**: the step of `calift_core.training` with the CaRot method, as a run takes it.
- **published**: the loop as the paper's released code runs it, written anew here from its
  description. The teacher encodes images and texts at every step, equal captions are encoded as
  often as they occur, each over the full context; the distillation is the cross-entropy of
  softmax and log; ‖W_v W_tᵀ‖_F is added as in its scripts, with the weight of calift's default;
  AdamW in PyTorch's default implementation; the teacher's average is a Python loop over parameters.
- **FLYP**: calift's step with the contrastive loss alone. CaRot adds at least one forward pass of
  the image tower to it.

The teacher moves once in `--teacher-every` steps. What that costs (the average, and in calift the
captions that must be encoded again afterwards) is measured in every round and spread over the
interval. Both CaRot loops must give the same losses, with that penalty and without it as in the
paper's equation; that is checked first.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from calift_core.data.cache import cached_in_memory
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, TrainView, train_batches
from calift_core.data.sources import FileSource
from calift_core.jobs.environment import environment
from calift_core.methods import Batch, RunLength, make_method
from calift_core.methods.base import encode_captions
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip
from calift_core.models.precision import Precision, autocast, resolve_device, resolve_precision
from calift_core.models.zeroshot import resolve_templates
from calift_core.schema.methods import CaRot, Flyp
from calift_core.training.plan import TrainingPlan
from calift_core.training.step import make_optimizer, optimiser_step

CONTENDERS = ("ours", "published", "flyp")
LABELS = {"ours": "CaRot, calift", "published": "CaRot, published", "flyp": "FLYP, calift"}
#: The run that the schedules belong to: 10 epochs of ImageNet in batches of 512.
RUN_STEPS = 25_030
LAMBDA_OC, LAMBDA_SD, LAMBDA_X = 0.2, 1.5, 0.05
MOMENTUM_START, MOMENTUM_END, RAMP = 0.05, 0.9, 0.2
#: Dense FLOP/s of the matrix units without sparsity, by a part of the device's name (data sheets).
PEAK_FLOPS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989e12, "fp16": 989e12},
    "H100 PCIe": {"bf16": 756e12, "fp16": 756e12},
    "H100": {"bf16": 989e12, "fp16": 989e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
    "A10G": {"bf16": 70e12, "fp16": 70e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12},
    "L4": {"bf16": 121e12, "fp16": 121e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12},
}


@dataclass(frozen=True)
class Setting:
    """What is timed.

    Attributes:
        model: an open_clip architecture or a config JSON; its weights are random.
        width: of both towers instead of the model's own; null for the model's own.
        batch_size: B.
        classes: C, the first of ImageNet's.
        templates: P, the first of OpenAI's 80.
        teacher_every: steps between two updates of the teacher.
        batches: different batches that are gone through in turn.
        lambda_x: weight of L_X in both CaRot loops.
    """

    model: str
    batch_size: int
    classes: int
    templates: int
    teacher_every: int
    precision: Precision
    device: str
    width: int | None = None
    batches: int = 4
    seed: int = 0
    lambda_x: float = LAMBDA_X


# ------------------------------------------------------------------------------- the contenders


class Ours:
    """A method in the step of `calift_core.training`."""

    def __init__(self, kind: str, clip: Clip, captions: Captions, setting: Setting) -> None:
        self.setting = setting
        self.device = torch.device(setting.device)
        self.clip = copy.deepcopy(clip).train()
        spec = (
            CaRot(
                lambda_oc=LAMBDA_OC,
                lambda_sd=LAMBDA_SD,
                lambda_x=setting.lambda_x,
                teacher_momentum_start=MOMENTUM_START,
                teacher_momentum_end=MOMENTUM_END,
                teacher_ramp_fraction=RAMP,
                teacher_update_every=setting.teacher_every,
            )
            if kind == "ours"
            else Flyp()
        )
        self.has_teacher = kind == "ours"
        self.plan = plan_of(spec.default_lr, spec.default_weight_decay, setting)
        length = RunLength(total_steps=self.plan.total_steps)
        self.method = make_method(spec, self.clip, captions, length=length)
        self.optimizer = make_optimizer(self.method, self.plan)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=setting.precision == "fp16")
        self.steps = 0

    def step(self, batch: Batch) -> Tensor:
        """One step that does not move the teacher; returns the loss."""
        values, _ = optimiser_step(
            self.method, batch, self.optimizer, self.scaler, self.plan, self.device
        )
        self.steps += 1
        if self.setting.teacher_every == 1 or self.steps % self.setting.teacher_every:
            self.method.after_step(self.steps)
        return values["loss"]

    def move_teacher(self) -> None:
        """What a step in `teacher_every` does beside."""
        if self.has_teacher:
            self.method.after_step(self.setting.teacher_every)

    @torch.no_grad()
    def encode_again(self, ids: Tensor) -> None:
        """What the first step that sees these captions after an update does beside."""
        teacher = self.method.teacher  # type: ignore[attr-defined]
        with autocast(self.device, self.plan.precision):
            encode_captions(teacher.clip, teacher.captions, ids)

    def warm(self, batches: Sequence[Batch]) -> None:
        """Let the teacher know the captions of these batches, as in the middle of an interval."""
        if self.has_teacher:
            for batch in batches:
                with autocast(self.device, self.plan.precision):
                    one = replace(batch, images=batch.images[:1])
                    self.method.teacher.embed(one)  # type: ignore[attr-defined]


class Published:
    """CaRot as its released code runs it, from the description of that code."""

    def __init__(self, clip: Clip, captions: Captions, setting: Setting) -> None:
        self.device = torch.device(setting.device)
        self.precision = setting.precision
        self.every = setting.teacher_every
        self.lambda_x = setting.lambda_x
        self.net: Any = copy.deepcopy(clip.net).train()
        self.teacher: Any = copy.deepcopy(clip.net).eval().requires_grad_(False)
        self.tokens = captions.tokens.to(self.device)
        spec = CaRot()
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=spec.default_lr, weight_decay=spec.default_weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=setting.precision == "fp16")
        self.steps = 0
        self.divergence_offset = torch.zeros(())

    @staticmethod
    def _similarity(net: Any, images: Tensor, tokens: Tensor) -> Tensor:
        image_features = F.normalize(net.encode_image(images), dim=-1)
        text_features = F.normalize(net.encode_text(tokens), dim=-1)
        return net.logit_scale.exp() * image_features.float() @ text_features.float().T

    def step(self, batch: Batch) -> Tensor:
        """One step that does not move the teacher; returns the loss."""
        tokens = self.tokens[batch.captions.to(self.device)]
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            z = self._similarity(self.net, batch.images, tokens)
            with torch.no_grad():
                z_teacher = self._similarity(self.teacher, batch.images, tokens)
        targets = torch.arange(len(z), device=self.device)
        contrastive = (F.cross_entropy(z, targets) + F.cross_entropy(z.T, targets)) / 2
        weight = self.net.visual.proj  # (width, D)
        gram = weight.T @ weight
        orthogonality = torch.norm(gram - torch.eye(len(gram), device=self.device), p="fro")
        distillation = torch.zeros((), device=self.device)
        self.divergence_offset = torch.zeros((), device=self.device)
        for student, teacher in ((z, z_teacher), (z.T, z_teacher.T)):
            target = torch.softmax(teacher, dim=1)
            distillation = distillation - (target * F.log_softmax(student, dim=1)).sum(1).mean()
            self.divergence_offset += torch.special.entr(target).sum(1).mean()
        loss = contrastive + LAMBDA_OC * orthogonality + LAMBDA_SD * distillation
        if self.lambda_x:
            loss = loss + self.lambda_x * torch.norm(weight @ self.net.text_projection.T, p="fro")
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        if self.every == 1:
            self.move_teacher(self.steps)
        return loss.detach()

    def divergence_loss(self, batch: Batch) -> float:
        """A step's loss with the Kullback-Leibler divergence in place of the cross-entropy.

        They differ by the entropy of the teacher, which has no gradient.
        """
        loss = self.step(batch)
        return float(loss - LAMBDA_SD * self.divergence_offset)

    @torch.no_grad()
    def move_teacher(self, step: int | None = None) -> None:
        """The moving average, parameter by parameter."""
        share = min(1.0, (self.every if step is None else step) / (RAMP * RUN_STEPS))
        momentum = MOMENTUM_START + (MOMENTUM_END - MOMENTUM_START) * share
        for mine, theirs in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            mine.mul_(momentum).add_(theirs, alpha=1 - momentum)

    def warm(self, batches: Sequence[Batch]) -> None:
        """Nothing is remembered."""


Contender = Ours | Published


def plan_of(lr: float, weight_decay: float, setting: Setting) -> TrainingPlan:
    """The plan of the published run."""
    return TrainingPlan(
        total_steps=RUN_STEPS,
        steps_per_epoch=RUN_STEPS // 10,
        lr=lr,
        min_lr=0.0,
        weight_decay=weight_decay,
        betas=(0.9, 0.999),
        eps=1e-8,
        warmup_steps=500,
        clip_grad_norm=None,
        accumulation_steps=1,
        precision=setting.precision,
        log_every_steps=10,
        checkpoint_every_steps=RUN_STEPS,
        keep_checkpoints=1,
        spec_sha256="0" * 64,
    )


def build_clip(setting: Setting) -> Clip:
    """The model with random weights, on the device."""
    generator = torch.Generator().manual_seed(setting.seed)
    path = Path(setting.model)
    if setting.width is None:
        clip = load_clip(setting.model, None, generator=generator)
    else:
        config = (
            json.loads(path.read_text())
            if path.suffix == ".json"
            else open_clip.get_model_config(setting.model)
        )
        for part in ("vision_cfg", "text_cfg"):
            config[part]["width"] = setting.width
        config["text_cfg"]["heads"] = max(1, setting.width // 64)
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder) / "model.json"
            changed.write_text(json.dumps(config))
            clip = load_clip(str(changed), None, generator=generator)
    return clip.to(setting.device)


def captions_of(setting: Setting, clip: Clip) -> Captions:
    """C classes × P templates."""
    templates = resolve_templates("openai_imagenet")[: setting.templates]
    return Captions.make(IMAGENET_CLASSNAMES[: setting.classes], templates, clip.tokenizer)


def batches_of(setting: Setting, clip: Clip) -> list[Batch]:
    """Batches of random pixels, where a loader leaves them."""
    generator = torch.Generator().manual_seed(setting.seed + 1)
    batches = []
    for _ in range(setting.batches):
        shape = (setting.batch_size, 3, clip.image_size, clip.image_size)
        labels = torch.randint(setting.classes, shape[:1], generator=generator)
        templates = torch.randint(setting.templates, shape[:1], generator=generator)
        images = torch.randn(shape, generator=generator).to(setting.device)
        batches.append(Batch(images, labels, labels * setting.templates + templates))
    return batches


def contender(name: str, clip: Clip, captions: Captions, setting: Setting) -> Contender:
    """By its name in `CONTENDERS`."""
    if name == "published":
        return Published(clip, captions, setting)
    return Ours(name, clip, captions, setting)


# ----------------------------------------------------------------------------------- measuring


def clocked(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds that work takes, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@dataclass
class Timings:
    """Seconds.

    Attributes:
        step: steps in the middle of an interval, in order.
        update: averages of the student into the teacher, one a round.
        captions: to encode once more, over an interval, what the teacher has forgotten.
        teacher_every: steps in an interval.
    """

    step: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    captions: float = 0.0
    teacher_every: int = 1

    @property
    def per_update(self) -> float:
        """What an update costs in all."""
        return (statistics.median(self.update) if self.update else 0.0) + self.captions

    @property
    def amortised(self) -> list[float]:
        """Steps, each with its share of an update."""
        return [step + self.per_update / self.teacher_every for step in self.step]


def expected_distinct(captions: int, draws: float) -> float:
    """How many of some captions are drawn at least once in so many uniform draws."""
    return captions * (1 - (1 - 1 / captions) ** draws)


def time_contenders(
    setting: Setting, names: Sequence[str], *, rounds: int, steps: int
) -> dict[str, Timings]:
    """Time contenders in turn; who goes first changes from round to round."""
    device = torch.device(setting.device)
    clip = build_clip(setting)
    captions = captions_of(setting, clip)
    batches = batches_of(setting, clip)
    made = {name: contender(name, clip, captions, setting) for name in names}
    turns = {name: itertools.cycle(batches) for name in names}
    for runner in made.values():  # memory is reserved, kernels are chosen
        runner.warm(batches)
        runner.step(batches[0])
    timings = {name: Timings() for name in names}
    per_caption = []
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            runner, timing = made[name], timings[name]
            for _ in range(steps):
                batch = next(turns[name])
                timing.step.append(clocked(device, partial(runner.step, batch)))
            if name == "ours":
                assert isinstance(runner, Ours)
                distinct = torch.unique(batch.captions)
                seconds = clocked(device, partial(runner.encode_again, distinct))
                per_caption.append(seconds / len(distinct))
                timing.update.append(clocked(device, runner.move_teacher))
                runner.warm(batches)
            elif name == "published":
                timing.update.append(clocked(device, runner.move_teacher))
    if per_caption:
        again = expected_distinct(len(captions), setting.batch_size * setting.teacher_every)
        timings["ours"].captions = again * statistics.median(per_caption)
    for timing in timings.values():
        timing.teacher_every = setting.teacher_every
    return timings


def check_equal(setting: Setting, *, steps: int = 4, tolerance: float = 1e-4) -> list[float]:
    """Train both CaRot loops in float32 with a teacher that moves at every step.

    Returns:
        The difference of the losses, step by step.

    Raises:
        SystemExit: they differ by more than the tolerance.
    """
    small = replace(
        setting, batch_size=min(8, setting.batch_size), precision="fp32", teacher_every=1
    )
    clip = build_clip(small)
    captions = captions_of(small, clip)
    ours = contender("ours", clip, captions, small)
    published = Published(clip, captions, small)
    differences = []
    for batch in itertools.islice(itertools.cycle(batches_of(small, clip)), steps):
        a, b = float(ours.step(batch)), published.divergence_loss(batch)
        differences.append(abs(a - b))
        if not differences[-1] <= tolerance * max(1.0, abs(b)):
            where = f"step {len(differences)}, λ_X = {small.lambda_x:g}"
            sys.exit(f"the loops differ at {where}: {a} and {b}")
    return differences


def count_flops(setting: Setting, name: str) -> int:
    """Floating-point operations of a step's matrix products and convolutions, both passes."""
    clip = build_clip(setting)
    captions = captions_of(setting, clip)
    batches = batches_of(replace(setting, batches=1), clip)
    runner = contender(name, clip, captions, setting)
    runner.warm(batches)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused kernel, which is not counted
    try:
        with FlopCounterMode(display=False) as counter:
            runner.step(batches[0])
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak by its data sheet, or None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, peaks in PEAK_FLOPS.items():
        if part in name:
            return peaks.get(precision)
    return None


def peak_memory(setting: Setting, name: str) -> int:
    """Bytes that a contender needs at most, alone in this process.

    On a CUDA device what PyTorch allocates there; on a CPU by how much the process grows.
    """
    device = torch.device(setting.device)
    before = 0 if device.type == "cuda" else _resident()
    clip = build_clip(setting)
    captions = captions_of(setting, clip)
    batches = batches_of(replace(setting, batches=2), clip)
    runner = contender(name, clip, captions, setting)
    del clip
    for batch in batches:
        runner.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM") - before


def _resident(line: str = "VmRSS") -> int:
    """Bytes of memory that this process has, or with `VmHWM` had at most (Linux)."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(line):
            return int(entry.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {line}")


def peak_memory_apart(setting: Setting, name: str) -> int | None:
    """`peak_memory` in a process of its own, or None where that fails."""
    asked = json.dumps({"name": name, "threads": torch.get_num_threads(), **asdict(setting)})
    command = [sys.executable, __file__, "--peak-memory", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return int(lines[-1]) if done.returncode == 0 and lines else None


def fitting(setting: Setting) -> Setting:
    """The setting with its batch halved until all contenders fit the device together."""
    device = torch.device(setting.device)
    while device.type == "cuda":
        try:
            time_contenders(setting, CONTENDERS, rounds=1, steps=1)
            break
        except torch.OutOfMemoryError:
            if setting.batch_size <= 2:
                raise
            setting = replace(setting, batch_size=setting.batch_size // 2)
        torch.cuda.empty_cache()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return setting


# ----------------------------------------------------------------------------------- reporting


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def ratio(one: Timings, other: Timings) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios: what slows a round slows both."""
    low, middle, high = quartiles(
        [a / b for a, b in zip(one.amortised, other.amortised, strict=True)]
    )
    return {"median": middle, "q1": low, "q3": high}


def measure(setting: Setting, *, rounds: int, steps: int, memory: bool) -> dict[str, Any]:
    """Every number of one setting."""
    device = torch.device(setting.device)
    setting = fitting(setting)
    timings = time_contenders(setting, CONTENDERS, rounds=rounds, steps=steps)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes that measure memory
    peak = peak_flops(device, setting.precision)
    rows = {}
    for name, timing in timings.items():
        low, middle, high = quartiles(timing.amortised)
        flops = count_flops(setting, name)
        rows[name] = {
            "step_s": middle,
            "step_s_q1": low,
            "step_s_q3": high,
            "steady_step_s": statistics.median(timing.step),
            "teacher_update_s": timing.per_update,
            "images_per_s": setting.batch_size / middle,
            "flops_per_step": flops,
            "achieved_flops_per_s": flops / middle,
            "share_of_peak": flops / middle / peak if peak else None,
            "peak_memory_bytes": peak_memory_apart(setting, name) if memory else None,
        }
    carot_over_published = ratio(timings["ours"], timings["published"])
    carot_over_flyp = ratio(timings["ours"], timings["flyp"])
    return {
        "ours_over_published": carot_over_published["median"],
        "carot_over_flyp": carot_over_flyp["median"],
        "ours_over_published_quartiles": carot_over_published,
        "carot_over_flyp_quartiles": carot_over_flyp,
        "contenders": rows,
        "setting": asdict(setting),
        "rounds": rounds,
        "steps_per_round": steps,
        "peak_flops_per_s": peak,
    }


def show(result: dict[str, Any]) -> None:
    """A measured setting as a table."""
    s = result["setting"]
    width = f", width {s['width']}" if s["width"] else ""
    print(
        f"\n{s['model']}{width}, batch {s['batch_size']}, {s['classes']} classes × "
        f"{s['templates']} templates, teacher every {s['teacher_every']} steps, "
        f"{s['precision']} on {s['device']}; {result['rounds']} rounds"
    )
    print(
        f"{'':18}{'step':>10}{'quartiles':>20}{'images/s':>10}{'update':>10}"
        f"{'GFLOP':>9}{'GFLOP/s':>10}{'of peak':>9}{'memory':>11}"
    )
    for name, row in result["contenders"].items():
        spread = f"{1000 * row['step_s_q1']:.1f}–{1000 * row['step_s_q3']:.1f} ms"
        share = "–" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"
        memory = row["peak_memory_bytes"]
        print(
            f"{LABELS[name]:18}{1000 * row['step_s']:>7.1f} ms{spread:>20}"
            f"{row['images_per_s']:>10.1f}{1000 * row['teacher_update_s']:>7.0f} ms"
            f"{row['flops_per_step'] / 1e9:>9.1f}{row['achieved_flops_per_s'] / 1e9:>10.1f}"
            f"{share:>9}{'–' if memory is None else f'{memory / 2**20:.0f} MiB':>11}"
        )
    for key, words in (
        ("ours_over_published", "calift / published"),
        ("carot_over_flyp", "CaRot / FLYP"),
    ):
        q = result[f"{key}_quartiles"]
        print(f"{words:20} {q['median']:.3f}  (quartiles {q['q1']:.3f}–{q['q3']:.3f})")


def scaling_settings(setting: Setting) -> dict[str, list[Setting]]:
    """One dimension varied at a time."""
    base = setting.batch_size
    widths = (192, 384, 576) if setting.width is None else (setting.width,)
    return {
        "batch size": [
            replace(setting, batch_size=size) for size in (base // 4, base // 2, base, base * 2)
        ],
        "captions": [
            replace(setting, classes=classes, templates=templates)
            for classes, templates in ((10, 1), (10, 80), (100, 80), (1000, 80))
        ],
        "model width": [replace(setting, width=width) for width in widths],
    }


def measure_scaling(setting: Setting, *, rounds: int, quiet: bool) -> dict[str, Any]:
    """The three contenders over batch size, number of captions and model width."""
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, settings in scaling_settings(setting).items():
        if not quiet:
            print(
                f"\n{axis:>14}{'calift':>12}{'published':>12}{'FLYP':>12}"
                f"{'calift/publ.':>14}{'CaRot/FLYP':>12}"
            )
        for one in settings:
            timings = time_contenders(one, CONTENDERS, rounds=rounds, steps=1)
            value = {
                "batch size": one.batch_size,
                "captions": one.classes * one.templates,
                "model width": one.width,
            }[axis]
            row: dict[str, Any] = {
                "value": value,
                **{f"{k}_step_s": statistics.median(t.amortised) for k, t in timings.items()},
                "ours_over_published": ratio(timings["ours"], timings["published"])["median"],
                "carot_over_flyp": ratio(timings["ours"], timings["flyp"])["median"],
            }
            found.setdefault(axis, []).append(row)
            if not quiet:
                times = "".join(f"{1000 * row[f'{k}_step_s']:>9.1f} ms" for k in CONTENDERS)
                print(
                    f"{value!s:>14}{times}{row['ours_over_published']:>14.3f}"
                    f"{row['carot_over_flyp']:>12.3f}"
                )
    return found


# ---------------------------------------------------------------------------------- the loader


def write_photos(folder: Path, n: int, *, seed: int = 0) -> ImageSet:
    """JPEG files of about the size of ImageNet's, smooth so that they compress like photographs."""
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(n):
        small: NDArray[np.uint8] = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        paths.append(folder / f"{index:04d}.jpg")
        image.save(paths[-1], quality=90)
    labels = np.arange(n, dtype=np.int64) % 10
    positions = np.arange(n, dtype=np.int64)
    return ImageSet(
        "photos", FileSource(tuple(paths)), tuple(map(str, range(n))), labels, positions
    )


def exhaust(batches: Iterator[Batch]) -> None:
    """Take every batch and do nothing with it."""
    for _ in batches:
        pass


def measure_data(setting: Setting, *, n: int, epochs: int = 3) -> list[dict[str, Any]]:
    """Images per second that the loader delivers after its first epoch, to nobody who computes."""
    device = torch.device(setting.device)
    clip = build_clip(setting)
    normalise = Normalise(clip.mean, clip.std, device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = write_photos(Path(folder), n)
        for workers, is_cached in itertools.product((0, 1, 2), (False, True)):
            used = cached_in_memory(images) if is_cached else images
            view = TrainView(used, clip.preprocess, setting.templates, 0, (0.9, 1.0), False)
            per_epoch = n // setting.batch_size
            loaded: Iterator[Batch] = train_batches(
                view,
                batch_size=setting.batch_size,
                start_step=0,
                total_steps=epochs * per_epoch,
                workers=workers,
                normalise=normalise,
            )
            for _ in range(per_epoch):
                next(loaded)
            steps = (epochs - 1) * per_epoch
            seconds = clocked(device, partial(exhaust, loaded))
            rows.append(
                {
                    "workers": workers,
                    "cached": is_cached,
                    "images_per_s": steps * setting.batch_size / seconds,
                }
            )
    return rows


def show_data(rows: Sequence[dict[str, Any]], consumed: float) -> None:
    """What is delivered beside what a step consumes."""
    print(f"\n{'workers':>8}{'decoded images':>18}{'images/s':>10}{'of what a step takes':>22}")
    for row in rows:
        kept = "kept" if row["cached"] else "decoded anew"
        print(
            f"{row['workers']:>8}{kept:>18}{row['images_per_s']:>10.0f}"
            f"{row['images_per_s'] / consumed:>21.1f}×"
        )


# ---------------------------------------------------------------------------------- the command


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="ViT-S-32", help="open_clip name or config JSON")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--templates", type=int, default=80)
    parser.add_argument("--teacher-every", type=int, default=500, help="steps between updates")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice if left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps of each contender in a round")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--scaling", action="store_true", help="vary batch, captions and width")
    parser.add_argument("--data", action="store_true", help="time the loader too")
    parser.add_argument("--data-images", type=int, default=256, help="files that --data reads")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--peak-memory", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    options = parse_arguments(arguments)
    logging.disable(logging.WARNING)  # open_clip: the weights are random
    if options.peak_memory:
        asked = json.loads(options.peak_memory)
        torch.set_num_threads(asked.pop("threads"))
        print(peak_memory(name=asked.pop("name"), setting=Setting(**asked)))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    setting = Setting(
        model=options.model,
        batch_size=options.batch_size,
        classes=options.classes,
        templates=options.templates,
        teacher_every=options.teacher_every,
        precision=precision,
        device=str(device),
    )
    differences = {}
    for weight in (LAMBDA_X, 0.0):
        found = check_equal(replace(setting, lambda_x=weight))
        differences[f"lambda_x={weight}"] = found
        print(
            f"Both CaRot loops give the same losses over {len(found)} steps in float32, λ_X = "
            f"{weight:g}: the largest difference is {max(found):.1e}."
        )
    result = measure(
        setting, rounds=options.rounds, steps=options.steps, memory=not options.no_memory
    )
    show(result)
    result |= {
        "loss_differences": differences,
        "environment": environment(device, precision),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        large = replace(setting, model="ViT-B-16", batch_size=512)
        result["gpu"] = measure(
            large, rounds=options.rounds, steps=options.steps, memory=not options.no_memory
        )
        show(result["gpu"])
    if options.scaling:
        result["scaling"] = measure_scaling(setting, rounds=3, quiet=False)
    if options.data:
        consumed = result["contenders"]["ours"]["images_per_s"]
        result["data"] = measure_data(setting, n=options.data_images)
        show_data(result["data"], consumed)
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
