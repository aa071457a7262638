"""RunSpec: one file that says everything about a run.

The models are torch-free, frozen and refuse unknown keys, so a typing mistake is an error and not a
silently ignored setting. `RunSpec.model_json_schema()` carries a title, a description, bounds and
defaults for every field: the dashboard builds its form from it and nothing else.

Long, because it is one document with a sentence on each of its fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from calift_core.errors import SpecError, UnknownNameError
from calift_core.schema.base import Frozen
from calift_core.schema.methods import METHOD_SPECS, LinearProbe, MethodSpec, Pretrain
from calift_core.schema.methods.base import Adapt
from calift_core.schema.places import expanded
from calift_core.schema.suggest import unknown_field
from calift_core.untrusted import TOO_DEEP, check_depth

#: Suites that `calift-tiny` has weights for by their name, the embedded default first.
TINY_SUITES = ("typefaces", "fashion-mnist")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+()/-]{0,119}")
_SHIFT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ModelSpec(Frozen):
    """Which CLIP-like model to start from.

    `name` is an open_clip architecture (`ViT-B-16`), `hf-hub:org/model`, `local-dir:FOLDER` with
    the same files, a path to an open_clip config JSON, or `calift-tiny`. `pretrained` is an
    open_clip tag, a path to weights (safetensors or a plain state dict), for `calift-tiny` the
    suite it was pre-trained on, and null for a hub repository or a folder, which bring their own.
    """

    name: str = Field(
        default="calift-tiny",
        min_length=1,
        title="Model",
        description="open_clip architecture, hf-hub:org/model, local-dir:FOLDER, a config JSON "
        "path, or calift-tiny",
    )
    pretrained: str | None = Field(
        default=TINY_SUITES[0],
        title="Weights",
        description="open_clip tag, a .safetensors or .pt path, or none for random weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _brings_its_own(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "pretrained" not in value:
            name = value.get("name")
            if isinstance(name, str) and name.startswith(("hf-hub:", "local-dir:")):
                return {**value, "pretrained": None}
        return value


def plain_name(name: str) -> str:
    """Return the name of a run if it is one, else raise ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a name has 1 to 120 letters, digits, spaces or . _ : + ( ) / - and starts with a "
            f"letter or digit, got {name!r}"
        )
    return name


_BARE_PATH = re.compile(r"^(/|~|\.{1,2}/|[A-Za-z]:[\\/])")


#: What a path is behind, and the endings of files by which a bare path is told.
_PLACES = ("folder:", "manifest:", "wds:", "zip:", "hf:")
_MANIFEST = re.compile(r"\.(csv|jsonl|ndjson|parquet)(#[^/]*)?$", re.IGNORECASE)


def as_uri(value: str) -> str:
    """A bare path with its kind: what begins with `/`, `~`, `./`, `../` or a drive's letter.

    A table's is `manifest:FILE`, a zip's `zip:FILE`, any other `folder:PATH`.
    """
    if not _BARE_PATH.match(value):
        return value
    if value.lower().endswith(".zip"):
        return f"zip:{value}"
    return f"manifest:{value}" if _MANIFEST.search(value) else f"folder:{value}"


def absolute_uri(value: str) -> str:
    """The same data, named so that it is found from any folder."""
    uri = as_uri(value)
    kind, _, path = uri.partition(":")
    if kind == "torchvision":
        name, _, root = path.partition(":")
        return f"{kind}:{name}:{expanded(root).absolute()}" if root else uri
    if f"{kind}:" not in _PLACES or not path:
        return uri  # a named suite
    is_folder = _BARE_PATH.match(path) or Path(path.partition("#")[0]).is_dir()
    if kind == "hf" and not is_folder:
        return uri  # a name of the hub
    return f"{kind}:{expanded(path).absolute()}"


def name_of_uri(uri: str) -> str:
    """What a shift is called where only its place is said: its domain, or its folder or file."""
    kind, _, path = uri.partition(":")
    if kind == "torchvision":
        return path.partition(":")[0].lower()
    if f"{kind}:" not in _PLACES:
        return PurePath(uri).name
    place, _, domain = path.partition("#") if kind in ("manifest", "hf") else (path, "", "")
    if kind == "hf":  # behind `#` are columns, and perhaps a split
        chosen = dict(one.partition("=")[::2] for one in domain.split(","))
        domain = chosen.get("split", "")
    return domain or (PurePath(place).stem if kind in ("manifest", "zip") else PurePath(place).name)


def shift_names(shifts: dict[str, str]) -> dict[str, str]:
    """Return shifts by name with their sources as URIs, else raise ValueError."""
    for name in shifts:
        if not _SHIFT_NAME.fullmatch(name):
            raise ValueError(
                f"a shift's name has 1 to 64 letters, digits, '.', '_' or '-', got {name!r}"
            )
        if name in ("id", "train", "validation", "calibration", "test"):
            raise ValueError(f"{name!r} names an ID split and cannot name a shift")
    return {name: as_uri(uri) for name, uri in shifts.items()}


#: The 15 corruptions that ImageNet-C and CIFAR-C are averaged over, and the 4 that came with them.
BENCHMARK_CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


class CorruptionSpec(Frozen):
    """Synthetic shifts of the ID test images, seeded per image."""

    names: Literal["all", "benchmark"] | tuple[str, ...] = Field(
        default=(),
        title="Corruptions",
        description="'all' (19), 'benchmark' (the 15 of ImageNet-C) or a list of names",
    )
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
        default=(1, 3, 5), title="Severities", description="1 (mild) to 5 (harsh)"
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        title="Images per corruption",
        description="Use at most this many test images (a fixed, seeded subset); none: all",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, title="Corruption seed")

    @field_validator("names")
    @classmethod
    def _known(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        known = (*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS)
        for name in names if isinstance(names, tuple) else ():
            if name in ("all", "benchmark"):
                raise ValueError(f"{name!r} stands for several corruptions and goes without others")
            if name not in known:
                raise ValueError(UnknownNameError("corruption", name, known).message)
        return names

    @property
    def chosen(self) -> tuple[str, ...]:
        """The corruptions by name, each once; a set's in the order of the paper."""
        if self.names == "benchmark":
            return BENCHMARK_CORRUPTIONS
        if self.names == "all":
            return (*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS)
        return tuple(dict.fromkeys(self.names))

    @field_validator("severities")
    @classmethod
    def _distinct(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        if not severities or len(set(severities)) != len(severities):
            raise ValueError(f"severities must be distinct and not empty, got {list(severities)}")
        return tuple(sorted(severities))


class FractionSpec(Frozen):
    """How parts that a suite lacks on disk are split off, by a hash of each image's path.

    `train` receives what is left. The fractions are of the images of the part that is split:
    `pretrain`, `validation` and `calibration` come off the training images; `test` too when the
    suite has no test folder.
    """

    pretrain: float = Field(default=0.0, ge=0.0, lt=1.0, title="Pre-training share")
    validation: float = Field(default=0.1, ge=0.0, lt=1.0, title="Validation share")
    calibration: float = Field(default=0.1, ge=0.0, lt=1.0, title="Calibration share")
    test: float = Field(default=0.2, ge=0.0, lt=1.0, title="Test share")

    @model_validator(mode="after")
    def _leave_some(self) -> FractionSpec:
        total = self.pretrain + self.validation + self.calibration + self.test
        if total >= 1:
            raise ValueError(f"the fractions must leave training images, they sum to {total:g}")
        return self


class SuiteSpec(Frozen):
    """The ID data, its shifts, and how classes are named to the text tower."""

    id: Annotated[str, AfterValidator(as_uri)] = Field(
        default=TINY_SUITES[0],
        min_length=1,
        title="ID data",
        description="A named suite (typefaces, imagenet, pacs:photo, …), NAME:PATH where it "
        "lies elsewhere, folder:PATH with class folders, manifest:FILE (CSV, Parquet or JSON "
        "lines), wds:FOLDER with shards, zip:FILE, hf:FOLDER or hf:NAME (Hugging Face), "
        "torchvision:NAME:ROOT, or domains:PATH#DOMAIN",
    )
    shifts: Annotated[dict[str, str], AfterValidator(shift_names)] = Field(
        default_factory=dict,
        title="Shifts",
        description="name → folder:PATH, manifest:FILE, wds:FOLDER, zip:FILE, hf:FOLDER or "
        "torchvision:NAME:ROOT of the same classes under another distribution; none: do without a "
        "shift that the suite has itself",
    )
    corruptions: CorruptionSpec = Field(default_factory=CorruptionSpec, title="Corruptions")
    class_names: dict[str, str] = Field(
        default_factory=dict,
        title="Class names",
        description="Folder name → the words the text tower should read; * → a named set for all "
        "(suite, folder, openai_imagenet, wordnet)",
    )
    templates: str | tuple[str, ...] = Field(
        default="openai_imagenet",
        title="Prompt templates",
        description="A named set (openai_imagenet, simple, cifar, photo, plain, letters, styles, "
        "genres) or sentences with {}; where nothing is said, typefaces has letters",
    )
    fractions: FractionSpec = Field(default_factory=FractionSpec, title="Splits")
    group_by: str | None = Field(
        default=None,
        min_length=2,
        max_length=200,
        pattern=r"^[^{}]*\{\}[^{}]*$",
        title="Group by path",
        description="What belongs together and is not torn apart by splits, found in the path of "
        "each image: patient{}_* looks at file names, */scene{}/* at whole paths; * is any text, "
        "{} the group. For folder: and manifest: without a column of groups",
    )
    limits: dict[
        Literal["pretrain", "train", "validation", "calibration", "test"],
        Annotated[int, Field(ge=1)],
    ] = Field(
        default_factory=dict,
        title="Limits",
        description="At most this many images of a part, a fixed subset by path hash",
    )
    n_shot: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        title="Training images per class",
        description="Train on at most this many images of each class, the same ones for every "
        "method; none: all",
    )
    n_shot_seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        title="Seed of those images",
        description="Another seed takes other images",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_as_learned(cls, value: Any) -> Any:
        is_open = isinstance(value, Mapping) and "templates" not in value
        if is_open and value.get("id", TINY_SUITES[0]) == "typefaces":
            return {**value, "templates": "letters"}
        return value

    @field_validator("group_by", mode="before")
    @classmethod
    def _one_group(cls, pattern: object) -> object:
        # In words, before the pattern of the schema says the same as a regular expression.
        if isinstance(pattern, str) and (
            pattern.count("{}") != 1 or set(pattern.replace("{}", "")) & set("{}")
        ):
            raise ValueError(
                "group_by must have {} once, where the group stands in a path, as patient{}_* has, "
                f"got {pattern!r}"
            )
        return pattern

    @field_validator("class_names", mode="before")
    @classmethod
    def _named_set(cls, names: Any) -> Any:
        return {"*": names} if isinstance(names, str) else names

    @field_validator("templates")
    @classmethod
    def _has_slot(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(templates, tuple):
            if not templates:
                raise ValueError("templates must name a set or list at least one sentence")
            for template in templates:
                if template.count("{}") != 1:
                    raise ValueError(f"a template holds exactly one {{}}, got {template!r}")
        return templates


class ConfidenceSpec(Frozen):
    """Training-time calibration: what is added to a method's loss against over-confidence.

    All off by default. Which of them go with which method is a matter of the method
    (`MethodBase.accepts`).
    """

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Label smoothing ε",
        description="(1 − ε)·NLL + ε·mean(−log p); 0 turns it off. In a contrastive loss the "
        "classes are the batch's other pairs [Szegedy et al. 2016]",
    )
    focal: Literal["off", "constant", "flsd53"] = Field(
        default="off",
        title="Focal loss",
        description="constant: −(1 − p)^γ log p with one γ [Lin et al. 2017]; flsd53: γ = 5 where "
        "p < 0.2, else 3 [Mukhoti et al. 2020]",
    )
    focal_gamma: float = Field(
        default=3.0, gt=0, le=20, title="Focal γ", description="γ of the constant focal loss"
    )
    mixup_alpha: float = Field(
        default=0.0,
        ge=0,
        le=10,
        title="Mixup α",
        description="Images and labels mixed with weight λ ~ Beta(α, α) in each batch; 0 turns it "
        "off [Zhang et al. 2018]",
    )
    zero_shot_kd: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        title="Distillation from zero-shot",
        description="Weight of the divergence of the model's class probabilities from the "
        "zero-shot model's (of its similarities, in a contrastive method); 0 turns it off",
    )
    zero_shot_kd_temperature: float = Field(
        default=1.0,
        gt=0,
        le=100,
        title="Temperature of that distillation",
        description="Both sides' logits are divided by it and the divergence multiplied by its "
        "square [Hinton et al. 2015]",
    )
    mmce: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        title="MMCE weight",
        description="Weight of the kernel calibration error of a batch; 0 turns it off "
        "[Kumar et al. 2018]",
    )

    entropy: float = Field(
        default=0.0,
        ge=0,
        le=100,
        title="Entropy weight β",
        description="Weight of −H(p), which pays for confidence: cross-entropy − β·H(p); 0 turns "
        "it off [Pereyra et al. 2017]",
    )

    def active(self) -> set[str]:
        """Names of the options that are on, as in `MethodBase.accepts`."""
        return {
            name
            for name, is_on in (
                ("label_smoothing", self.label_smoothing > 0),
                ("focal", self.focal != "off"),
                ("mixup", self.mixup_alpha > 0),
                ("zero_shot_kd", self.zero_shot_kd > 0),
                ("mmce", self.mmce > 0),
                ("entropy", self.entropy > 0),
            )
            if is_on
        }

    @model_validator(mode="after")
    def _go_together(self) -> ConfidenceSpec:
        on = self.active()
        if "focal" in on and on & {"label_smoothing", "mixup"}:
            raise ValueError(
                "the focal loss is defined by the probability of one true class, and "
                f"{' and '.join(sorted(on & {'label_smoothing', 'mixup'}))} spread the target over "
                "several"
            )
        if {"mmce", "mixup"} <= on:
            raise ValueError(
                "mmce asks whether a prediction is correct; a mixed image has no answer"
            )
        return self


class TrainSpec(Frozen):
    """Optimisation; fields left out take the method's default, which the report records."""

    epochs: int = Field(default=10, ge=1, le=10_000, title="Epochs")
    batch_size: int = Field(
        default=512,
        ge=2,
        le=65_536,
        title="Batch size",
        description="Samples per optimiser step, all accumulation steps together",
    )
    accumulation_steps: int = Field(
        default=1,
        ge=1,
        title="Gradient accumulation",
        description="Take each batch in this many parts, which saves memory. The loss and its "
        "gradient stay those of the whole batch: contrastive methods, and mmce, encode twice for "
        "that (GradCache), and need batch_norm: frozen where the tower has BatchNorm [Gao et al. "
        "2021]",
    )
    lr: float | None = Field(
        default=None,
        gt=0,
        le=1,
        title="Learning rate",
        description="The highest, after the warm-up; none: the method's default",
    )
    weight_decay: float | None = Field(
        default=None, ge=0, le=10, title="Weight decay", description="none: the method's default"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), title="AdamW betas"
    )
    eps: float = Field(default=1e-8, gt=0, title="AdamW epsilon")
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        title="Warm-up steps",
        description="none: 500, or a tenth of the run where that is fewer",
    )
    min_lr: float = Field(default=0.0, ge=0, title="Final learning rate")
    clip_grad_norm: float | None = Field(
        default=None,
        gt=0,
        title="Gradient clip",
        description="L2 norm, applied after un-scaling; none: the method's default",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto",
        title="Precision",
        description="auto: bf16 or fp16 where the device has fast units for it, else fp32",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
        title="Device",
        description="auto, cpu, cuda, cuda:1, mps",
    )
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        Field(
            default=(0.9, 1.0),
            title="Random crop scale",
            description="Area range of RandomResizedCrop; (1, 1) turns it off",
        )
    )
    horizontal_flip: bool = Field(default=False, title="Random horizontal flip")
    workers: int | None = Field(
        default=None,
        ge=0,
        le=128,
        title="Loader workers",
        description="Processes that decode images, for each GPU; none: up to 8 of the cores that "
        "there are for one, and none beside a model on the CPU",
    )
    draft_decoding: bool = Field(
        default=False,
        title="Draft decoding",
        description="Decode training JPEGs that are at least twice as large as the model's input "
        "at 1/2, 1/4 or 1/8 of their size: many times faster for photographs, with slightly other "
        "pixels. Images are judged at full size always",
    )
    cache_images: bool = Field(
        default=False,
        title="Cache decoded images",
        description="Keep decoded training images in memory after the first epoch, for sets that "
        "fit; the result is the same",
    )
    compile: bool = Field(
        default=False,
        title="torch.compile",
        description="Compile both towers; takes a minute at the start, and sums may be taken in "
        "another order",
    )
    activation_checkpointing: bool = Field(
        default=False,
        title="Activation checkpointing",
        description="Forget activations and compute them again for the gradient: a third more "
        "time, far less memory, the same gradient",
    )
    adapt: Adapt = Field(
        default="full",
        title="What is trained",
        description="full: all that the method trains; lora: a low-rank term W + (α/r)·BA for "
        "every linear map of the towers that it trains, whose own weights stay [Hu et al. 2022]; "
        "head: the classifier alone, or in a contrastive method the projections W_v and W_t and "
        "the logit scale",
    )
    lora_rank: int = Field(
        default=8,
        ge=1,
        le=1024,
        title="LoRA rank r",
        description="Of each low-rank term; at most what its matrix has",
    )
    lora_alpha: float = Field(
        default=8.0,
        gt=0,
        le=10_000,
        title="LoRA α",
        description="A term counts α/r times: at α = r it is BA itself",
    )
    batch_norm: Literal["train", "frozen"] = Field(
        default="train",
        title="BatchNorm",
        description="train: batch statistics while training, as published (of all GPUs' images "
        "where several share the batch); frozen: the pre-trained running ones, so that student and "
        "teacher see the same. Towers without BatchNorm (ViT) do not differ [calift]",
    )
    confidence: ConfidenceSpec = Field(
        default_factory=ConfidenceSpec, title="Training-time calibration"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, title="Seed")
    log_every_steps: int = Field(default=10, ge=1, title="Log every (steps)")
    checkpoint_every_steps: int | None = Field(
        default=None,
        ge=1,
        title="Checkpoint every (steps)",
        description="none: once an epoch",
    )
    keep_checkpoints: int = Field(default=1, ge=1, le=100, title="Checkpoints kept")
    spectrum_every_epochs: int = Field(
        default=1,
        ge=0,
        title="Spectrum every (epochs)",
        description="Measure σ_min on validation features during training; 0: only at the end",
    )
    watch_shifts: int = Field(
        default=0,
        ge=0,
        title="Watch shifts (images)",
        description="Diagnostic: whenever σ_min is measured, so many images of each shift are "
        "predicted too, as curves of their own. Nothing is chosen on them; 0: shifts are not "
        "looked at before the end",
    )
    keep_features: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000,
        title="Training images to compare with",
        description="Image features of so many training images are kept beside the model, so that "
        "a picture can be shown with those that the model finds most alike; where there are more, "
        "those whose ids hash lowest. One pass over them without gradients; 0: none",
    )

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether BatchNorm keeps its statistics: they are weights of a tower that stays, too."""
        return self.batch_norm == "frozen" or self.adapt != "full"

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale must be (low, high), got {self.crop_scale}")
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size must be a multiple of accumulation_steps, got {self.batch_size} and "
                f"{self.accumulation_steps}"
            )
        if self.lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr must be ≤ lr, got {self.min_lr} and {self.lr}")
        return self


class EvaluationSpec(Frozen):
    """How the finished model is judged; all of it can be asked again of stored predictions."""

    n_bins: int = Field(default=15, ge=1, le=1000, title="Bins")
    scheme: Literal["equal_mass", "equal_width"] = Field(default="equal_mass", title="Binning")
    n_resamples: int = Field(
        default=200, ge=20, le=20_000, title="Resamples for floor and interval"
    )
    batch_size: int = Field(default=500, ge=1, le=65_536, title="Evaluation batch size")
    seed: int = Field(default=0, ge=0, lt=2**32, title="Resampling seed")
    precision: Literal["tf32", "fp32", "train", "auto", "fp16", "bf16"] = Field(
        default="tf32",
        title="Precision",
        description="Precision of the forward passes; logits are float32 always. tf32: float32 "
        "with the fast products of a CUDA device, fp32 elsewhere; train: that of training; "
        "auto: bf16 or fp16 where the device has fast units for it, else fp32",
    )
    perturbed_calibration: bool = Field(
        default=False,
        title="Perturbed calibration copies",
        description="Also predict copies of the ID calibration split under Gaussian noise, at "
        "levels where accuracy falls in equal steps down to chance: what the calibrator tsp is "
        "fitted on. The levels are searched on at most 512 images, in about 100 passes",
    )


class ResourcesSpec(Frozen):
    """What one run works on. The result does not depend on it, but for rounding."""

    gpus: int = Field(
        default=1,
        ge=1,
        le=1024,
        title="GPUs",
        description="Share each batch among so many GPUs, one process each; the loss stays that of "
        "the whole batch",
    )
    cpu_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        title="CPU processes",
        description="The same on the CPU (train.device: cpu), to try a run on several processes "
        "without GPUs",
    )

    @property
    def processes(self) -> int:
        """How many processes share the run."""
        return max(self.gpus, self.cpu_processes)


#: Fields that came after runs had been stored: at these values a spec's hash is as it was before.
#: By their place; a method's are left out of the forms of methods that have them.
_ADDED_LATER: dict[str, dict[str, Any]] = {
    "suite": {"n_shot": None, "n_shot_seed": 0, "group_by": None},
    "evaluation": {"precision": "train", "perturbed_calibration": False},
    "train": {
        "activation_checkpointing": False,
        "draft_decoding": False,
        "watch_shifts": 0,
        "keep_features": 10_000,
        "adapt": "full",
        "lora_rank": 8,
        "lora_alpha": 8.0,
    },
    "train.confidence": {"entropy": 0.0},
    "method": {
        "vague_captions": 0.0,
        "coarse_captions": 0.0,
        "wrong_captions": 0.0,
        "coarse_names": {},
    },
}


class RunSpec(Frozen):
    """A run: model, method, data, optimisation, evaluation."""

    name: str = Field(min_length=1, max_length=120, title="Name")
    model: ModelSpec = Field(default_factory=ModelSpec, title="Model")
    method: MethodSpec = Field(title="Method")
    suite: SuiteSpec = Field(default_factory=SuiteSpec, title="Data")
    train: TrainSpec = Field(default_factory=TrainSpec, title="Training")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, title="Evaluation")
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, title="Resources")
    tags: tuple[Annotated[str, Field(min_length=1, max_length=40)], ...] = Field(
        default=(), max_length=20, title="Tags"
    )
    notes: str = Field(default="", max_length=10_000, title="Notes")

    @model_validator(mode="before")
    @classmethod
    def _weights_of_its_suite(cls, value: Any) -> Any:
        """Where a spec does not say which weights of `calift-tiny`, those of its own suite."""
        if not isinstance(value, Mapping):
            return value
        model, suite = value.get("model", {}), value.get("suite", {})
        if not isinstance(model, Mapping) or not isinstance(suite, Mapping):
            return value
        is_open = model.get("name", "calift-tiny") == "calift-tiny" and "pretrained" not in model
        if is_open and suite.get("id") in TINY_SUITES:
            return {**value, "model": {**model, "pretrained": suite["id"]}}
        return value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return plain_name(name)

    @model_validator(mode="after")
    def _makes_sense(self) -> RunSpec:
        if isinstance(self.method, Pretrain) and self.suite.shifts:
            raise ValueError("pretrain uses the ID data alone; shifts belong to fine-tuning runs")
        self._require_adaptable()
        self._require_sense()
        self._require_shareable()
        return self

    def _require_shareable(self) -> None:
        """Several processes only where each has something to do, and a device for it."""
        n, device = self.resources.processes, self.train.device
        if n == 1:
            return
        if self.resources.gpus > 1 and self.resources.cpu_processes > 1:
            raise ValueError("resources: a run is on GPUs or on CPU processes, not on both")
        if self.method.family == "merge":
            raise ValueError(
                f"resources: {self.method.kind} merges finished runs in one process; leave "
                "resources out"
            )
        if self.resources.gpus > 1 and device not in ("auto", "cuda"):
            raise ValueError(
                f"resources.gpus: {n} needs train.device: cuda (or auto), got {device}: each "
                "process takes a GPU of its own"
            )
        if self.resources.cpu_processes > 1 and device != "cpu":
            raise ValueError(f"resources.cpu_processes: {n} needs train.device: cpu, got {device}")
        if self.train.batch_size < n * self.train.accumulation_steps:
            raise ValueError(
                f"train.batch_size must be at least {n} processes × "
                f"{self.train.accumulation_steps} accumulation steps, got {self.train.batch_size}"
            )

    def _require_adaptable(self) -> None:
        """A part of the towers only where a method trains them."""
        adapt, method = self.train.adapt, self.method
        if adapt in method.adapts:
            return
        reason = {
            "none": "it trains nothing",
            "merge": "it merges finished runs and trains nothing",
        }.get(method.family, "it trains a classifier on towers that stay as they are already")
        if isinstance(method, Pretrain):
            reason = "it begins with random weights, and all of them have to be trained"
        raise ValueError(f"train.adapt: {method.kind} does not go with {adapt}: {reason}")

    def _require_sense(self) -> None:
        """Training-time calibration only where the method has a place for it."""
        method, on = self.method, self.train.confidence.active()
        if isinstance(method, LinearProbe) and method.solver == "lbfgs" and on:
            raise ValueError(
                f"train.confidence ({', '.join(sorted(on))}) needs the training loop, and the "
                "linear probe's lbfgs solver minimises plain cross-entropy; take solver: adamw"
            )
        refused = sorted(on - method.accepts)
        if not refused:
            return
        reason = {
            "none": "it has no loss that this could change",
            "merge": "it trains nothing; give the option to the runs that it merges",
            "supervised": "its features are computed once, before any image could be mixed",
            "contrastive": "its loss compares images with captions and has no class probabilities",
        }[method.family]
        if isinstance(method, Pretrain):
            reason = "it makes the model that others are compared with"
        raise ValueError(
            f"train.confidence: {method.kind} does not go with {', '.join(refused)}: {reason}; "
            f"it goes with {', '.join(sorted(method.accepts)) or 'none of these options'}"
        )

    def content_hash(self) -> str:
        """SHA-256 (hex) of what determines the result: without name, tags, notes and resources."""
        return self._hash_with(self._method_form())

    def earlier_hashes(self) -> list[str]:
        """What `content_hash` was where an earlier version wrote the spec otherwise."""
        forms = self.method.earlier_forms()
        hashes = [self._hash_with(form) for form in forms]
        if self.evaluation.precision == EvaluationSpec().precision:
            # Left open it was once the precision of training.
            evaluation = self.evaluation.model_copy(update={"precision": "train"})
            earlier = self.model_copy(update={"evaluation": evaluation})
            hashes += [earlier._hash_with(form) for form in (*forms, self._method_form())]
        return hashes

    def as_begun(self, begun: RunSpec) -> tuple[RunSpec, str]:
        """What this spec asks of a folder whose run has begun.

        An option of method or evaluation that is left open stays as it was: another version may
        have begun the run, with other defaults.

        Returns:
            The spec, and a sentence on what differs from today's defaults; this one and nothing
            where it asks for another run, or for the very same.
        """
        if begun.method.kind != self.method.kind:
            return self, ""
        kept: dict[str, MethodSpec | EvaluationSpec] = {}
        differs = []
        for group in ("method", "evaluation"):
            asked = getattr(self, group)
            then, now = getattr(begun, group).model_dump(), asked.model_dump()
            values = then | asked.model_dump(exclude_unset=True)
            kept[group] = type(asked)(**values)
            differs += [
                f"{name} {then[name]} ({'open' if now[name] is None else now[name]} today)"
                for name in now
                if now[name] != values[name]
            ]
        so = self.model_copy(update=kept)
        if not differs or so.content_hash() != begun.content_hash():
            return self, ""
        named = ", ".join(differs)
        return so, (
            f"The run in this folder was begun with {named}, which the RunSpec leaves open. "
            "It goes on as it was begun; --overwrite starts anew."
        )

    def _method_form(self) -> dict[str, Any]:
        return self.method.model_dump(mode="json")

    def _hash_with(self, method: dict[str, Any]) -> str:
        body = self.model_dump(mode="json", exclude={"name", "tags", "notes", "resources"})
        body["method"] = method
        # Open once meant none; what decodes an image does not change it.
        body["train"]["workers"] = body["train"]["workers"] or 0
        for place, fields in _ADDED_LATER.items():
            group = body
            for name in place.split("."):
                group = group[name]
            for field, default in fields.items():
                if field in group and group[field] == default:
                    del group[field]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """Validation problems as `{"pointer": "#/train/lr", "message": …}`, one per fault.

    A union's tag is left out of the pointer, so that it names the place in the file.
    """
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        parts = [str(part) for part in item["loc"] if str(part) not in METHOD_SPECS]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] not in ("value_error", "missing") and not isinstance(item["input"], dict):
            message += f", got {item['input']!r}"
        if item["type"] == "extra_forbidden" and error.title == RunSpec.__name__:
            message = unknown_field(RunSpec, item["loc"], METHOD_SPECS)
        if item["type"] == "union_tag_invalid":
            given = item["input"].get("kind") if isinstance(item["input"], dict) else item["input"]
            message = (
                "imported predictions are not a job: `calift import-predictions FILE` brings them "
                "in, and there is nothing to run"
                if given == "imported"
                else UnknownNameError("method", str(given), METHOD_SPECS).message
            )
        problems.append({"pointer": "#/" + "/".join(parts), "message": message})
    return problems


def parse_spec(data: Any) -> RunSpec:
    """Validate a decoded YAML or JSON document.

    Raises:
        SpecError: with every problem and the place it stands at.
    """
    if not isinstance(data, dict):
        raise SpecError(f"a RunSpec is a mapping of fields, got {type(data).__name__}")
    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        lines = [f"{p['pointer']}: {p['message']}" for p in problems_of(error)]
        raise SpecError("the RunSpec is not valid:\n  " + "\n  ".join(lines)) from error


def load_spec(path: str | Path) -> RunSpec:
    """Read a RunSpec from a YAML or JSON file.

    Raises:
        SpecError: the file is missing, is not YAML or JSON, or is not a valid RunSpec.
    """
    return parse_spec(load_document(path, "RunSpec"))


def load_document(path: str | Path, what: str) -> Any:
    """Read a YAML or JSON file.

    Args:
        path: of the file.
        what: it is to be, for errors.

    Raises:
        SpecError: the file is missing, or is neither.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the {what} {str(path)!r}: {error}") from error
    return read_document(text, repr(str(path)))


def read_document(text: str, what: str) -> Any:
    """Decode YAML or JSON.

    Args:
        text: of the document.
        what: it is, for errors.

    Raises:
        SpecError: it is neither.
    """
    try:
        return check_depth(yaml.load(text, Loader=_Loader))  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise SpecError(f"{what} is neither YAML nor JSON: {error}") from error
    except RecursionError:
        raise SpecError(f"{what}: {TOO_DEEP}") from None
    except ValueError as error:
        raise SpecError(f"{what}: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-5` as a number, as YAML 1.2 and everybody's intuition do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
