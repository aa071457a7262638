"""What a run would cost and what it lacks here, found out without running it."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from huggingface_hub import constants

from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, TrainView, train_batches
from calift_core.data.sources import ArraySource, decode_all
from calift_core.data.suites import named_suite
from calift_core.data.suites.load import Suite, load_suite
from calift_core.data.workload import Pace, Workload, count_images, recorded_pace
from calift_core.errors import CaliftError
from calift_core.jobs.tiny import pretraining_spec, tiny_is_current
from calift_core.methods import RunLength, make_method
from calift_core.methods.confidence import mix
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.hub import hub_repository, in_hub_cache
from calift_core.models.loading import TINY, load_clip
from calift_core.models.precision import autocast, resolve_device, resolve_precision
from calift_core.models.zeroshot import resolve_templates
from calift_core.schema.places import expanded
from calift_core.schema.spec import ModelSpec, RunSpec
from calift_core.schema.wire.runs import Validation
from calift_core.training.loop import prepare_for_training
from calift_core.training.plan import make_plan
from calift_core.training.step import add_gradient, make_optimizer


def missing_weights(model: ModelSpec) -> list[str]:
    """Sentences on weights that are not on this machine, each with how to get them.

    Raises:
        CaliftError: the model cannot be named like this at all.
    """
    name, pretrained = model.name, model.pretrained
    if name.startswith("local-dir:"):
        folder = expanded(name.removeprefix("local-dir:"))
        return [] if folder.is_dir() else [f"weights: there is no folder {str(folder)!r}"]
    if name.startswith("hf-hub:"):
        pretrained = "its own"
    if pretrained is None or (name == TINY and "/" not in pretrained):
        return []
    if Path(pretrained).suffix in (".safetensors", ".pt", ".pth", ".bin"):
        found = Path(pretrained).is_file()
        return [] if found else [f"weights: there is no file {pretrained!r}"]
    repository = hub_repository(name, pretrained)
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config and not repository:
        return []  # an unknown name or tag: loading says so with what is known
    if repository and in_hub_cache(repository):
        return []
    where = f"hf-hub:{repository}" if repository else config.get("url", "")
    what = where if name.startswith("hf-hub:") else f"{name} {pretrained!r} ({where})"
    return [
        f"weights: {what} are not in the local cache. With a network the "
        "run downloads them by itself; without, copy the repository into "
        f"{_short(constants.HF_HUB_CACHE)} from a machine that has it, or its files into a folder, "
        "and name that: model: {name: local-dir:FOLDER, pretrained: null}."
    ]


def missing_inputs(spec: RunSpec) -> list[str]:
    """Sentences on finished runs that a spec names and that are not there."""
    return [
        f"run: {name!r} is no folder of a finished run (it has no report.json and "
        "checkpoint/model.json)"
        for name in spec.input_runs
        if not all(
            (expanded(name) / part).is_file() for part in ("report.json", "checkpoint/model.json")
        )
    ]


def _short(path: str) -> str:
    home = str(Path.home())
    return path.replace(home, "~", 1) if path.startswith(home) else path


def validate(
    spec: RunSpec, *, measure: bool = True, reports: Iterable[Mapping[str, Any]] = ()
) -> Validation:
    """Check a spec against this machine and estimate its cost.

    Args:
        measure: time a few training steps of the real model on random pixels, where no report
            tells a pace.
        reports: of finished runs on this machine, the newest first.

    Returns:
        `valid` is false when something in the spec is wrong; `missing` lists what this machine
        lacks. The estimate's `basis` says how it was made.
    """
    work = count_images(spec)
    inputs = missing_inputs(spec)
    errors = [{"pointer": pointer, "message": message} for pointer, message in work.problems]
    decoded = ""
    if not errors and not work.missing:
        try:
            suite = load_suite(spec.suite, fetch=False, check=False)
            unreadable, decoded = _decoded(suite)
            errors += unreadable
        except CaliftError as error:
            errors.append({"pointer": "#/suite", "message": str(error)})
    pace = recorded_pace(reports, spec, work)
    estimate = work.estimate(pace)
    began = time.monotonic()
    try:
        model = spec.model
        clip = load_clip(model.name, model.pretrained, weights=_weights_are_here(model))
        resolve_templates(spec.suite.templates)
        parameters = sum(p.numel() for p in clip.net.parameters())
        if measure and estimate.seconds is None:
            loading_s = time.monotonic() - began
            pace = replace(measure_pace(spec, clip, work), fixed_s=loading_s)
        estimate = work.estimate(pace, parameters=parameters)
    except CaliftError as error:
        pointer = "#/suite/templates" if "template" in error.message else "#/model"
        if "accumulation_steps" in error.message:
            pointer = "#/train/accumulation_steps"
        errors.append({"pointer": pointer, "message": str(error)})
    return Validation(
        valid=not errors,
        errors=errors,
        missing=[*(f"data: {s}" for s in work.missing), *missing_weights(spec.model), *inputs],
        blocking=[*(f"data: {s}" for s in work.blocking), *inputs],
        warnings=list(work.warnings),
        estimate=estimate.model_copy(update={"basis": f"{estimate.basis}{decoded}"}),
    )


def _decoded(suite: Suite) -> tuple[list[dict[str, str]], str]:
    """An error for each image that cannot be decoded, and how many were, for a basis."""
    errors, n, total = list[dict[str, str]](), 0, 0
    deadline = time.monotonic() + _DECODE_SECONDS
    for images in (*suite.parts.values(), *suite.shifts.values(), *suite.ood.values()):
        found = decode_all(images, seconds=deadline - time.monotonic())
        n, total = n + found.n, total + len(images)
        errors += [
            {"pointer": "#/suite", "file": name, "message": why}
            for name, why in found.unreadable.items()
        ]
    return errors, f"; {'all' if n == total else f'{n:,} of them'} decoded"


def _weights_are_here(model: ModelSpec) -> bool:
    """Whether weights load without a download; what a run costs does not depend on them."""
    if missing_weights(model):
        return False
    if model.name == TINY and model.pretrained and "/" not in model.pretrained:
        spec = pretraining_spec(model.pretrained)
        return tiny_is_current(spec, load_suite(spec.suite, fetch=False))
    return True


#: What decoding the images of a dry run may take.
_DECODE_SECONDS = 60.0
#: Micro-batch and seconds that the timing of a step may take.
_PROBE_BATCH, _PROBE_SECONDS = 8, 20.0
#: Steps of a head on features take next to no time beside the tower that made them.
_FEATURES_PER_S = 1e6


def measure_pace(spec: RunSpec, clip: Clip, work: Workload) -> Pace:
    """Time training and prediction on a few random images, on the device of the spec."""
    device = resolve_device(spec.train.device)
    precision = resolve_precision(spec.train.precision, device)
    parameters = sum(p.numel() for p in clip.net.parameters())
    clip.to(device)
    size = min(_PROBE_BATCH if parameters > 2e7 else 256, spec.train.batch_size)
    images = torch.randn(size, 3, clip.image_size, clip.image_size, device=device)
    clip.eval()
    began = time.monotonic()
    with torch.inference_mode(), autocast(device, precision):
        clip.encode_image(images)
        first = time.monotonic() - began
        began = time.monotonic()
        clip.encode_image(images)
    if device.type == "cuda":
        torch.cuda.synchronize()
    predicted_per_s = size / (time.monotonic() - began)
    trained_per_s = None
    if spec.method.on_features:
        trained_per_s = _FEATURES_PER_S
    elif spec.method.trains:
        n_train = work.train_images or spec.train.batch_size
        per_trained, per_update = _time_step(spec, clip, size, n_train)
        trained_per_s = 1 / (per_trained + per_update / spec.train.batch_size)
    return Pace(
        trained_per_s,
        predicted_per_s,
        f"timed on this machine ({device}, {precision}, {torch.get_num_threads()} threads), "
        f"a few steps in batches of {size} at {clip.image_size} px; loading the model counts, "
        "reading images does not" + ("" if first < _PROBE_SECONDS else "; the first pass was slow"),
    )


def _time_step(spec: RunSpec, clip: Clip, size: int, n_train: int) -> tuple[float, float]:
    """Seconds per image of the forward and backward pass, and per update of the weights."""
    device = resolve_device(spec.train.device)
    names = ("first class", "second class")
    templates = resolve_templates(
        named_suite(spec.suite)[0].learned
        if spec.method.kind == "pretrain"
        else spec.suite.templates
    )
    captions = Captions.make(names, templates, clip.tokenizer)
    plan = make_plan(spec, n_train, device, clip)
    method = make_method(
        spec.method,
        clip,
        captions,
        length=RunLength(total_steps=plan.total_steps),
        confidence=spec.train.confidence,
        train=spec.train,
    )
    optimizer = make_optimizer(method, plan)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    list(prepare_for_training(method, plan))
    side = clip.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    images = ImageSet(
        "probe",
        ArraySource(pixels, "probe"),
        tuple(map(str, range(size))),
        np.arange(size) % 2,
        np.arange(size),
    )
    view = TrainView(images, clip.preprocess, len(templates), 0, (1.0, 1.0), False)
    generator = torch.Generator().manual_seed(0)
    passes, updates = [], []
    for batch in train_batches(
        view,
        batch_size=size,
        start_step=0,
        total_steps=3,
        workers=0,
        normalise=Normalise(clip.mean, clip.std, device),
    ):
        began = time.monotonic()
        if spec.train.confidence.mixup_alpha:
            batch = mix(batch, spec.train.confidence.mixup_alpha, generator)
        float(add_gradient(method, batch, scaler, plan, device)["loss"])
        passes.append(time.monotonic() - began)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        updates.append(time.monotonic() - began - passes[-1])
        if sum(passes) > _PROBE_SECONDS:
            break
    return min(passes) / size, min(updates)
