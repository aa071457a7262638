"""RunSpec: one file that says everything about a run.

The models are torch-free, frozen and refuse unknown keys, so a typing mistake is an error and not a
silently ignored setting. `RunSpec.model_json_schema()` carries a title, a description, bounds and
defaults for every field: the dashboard builds its form from it and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from calift_core.errors import SpecError, UnknownNameError
from calift_core.schema.base import Frozen, option
from calift_core.schema.documents import load_document
from calift_core.schema.methods import METHOD_SPECS, LinearProbe, MethodSpec, Pretrain
from calift_core.schema.suggest import unknown_field
from calift_core.schema.suite import TINY_SUITES, SuiteSpec
from calift_core.schema.train import TrainSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+()/-]{0,119}")


class ModelSpec(Frozen):
    """Which CLIP-like model to start from.

    `name` is an open_clip architecture (`ViT-B-16`), `hf-hub:org/model`, `local-dir:FOLDER` with
    the same files, a path to an open_clip config JSON, or `calift-tiny`. `pretrained` is an
    open_clip tag, a path to weights (safetensors or a plain state dict), for `calift-tiny` the
    suite it was pre-trained on, and null for a hub repository or a folder, which bring their own.
    """

    name: str = option(
        "calift-tiny",
        "Model",
        "open_clip architecture, hf-hub:org/model, local-dir:FOLDER, a config JSON "
        "path, or calift-tiny",
        min_length=1,
    )
    pretrained: str | None = option(
        TINY_SUITES[0],
        "Weights",
        "open_clip tag, a .safetensors or .pt path, or none for random weights",
    )

    @property
    def label(self) -> str:
        """`ViT-B-16/openai`: the model as one word."""
        return f"{self.name}/{self.pretrained}" if self.pretrained else self.name

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


class EvaluationSpec(Frozen):
    """How the finished model is judged; all of it can be asked again of stored predictions."""

    n_bins: int = Field(default=15, ge=1, le=1000, title="Bins")
    scheme: Literal["equal_mass", "equal_width"] = Field(default="equal_mass", title="Binning")
    n_resamples: int = Field(
        default=200, ge=20, le=20_000, title="Resamples for floor and interval"
    )
    batch_size: int = Field(default=500, ge=1, le=65_536, title="Evaluation batch size")
    seed: int = Field(default=0, ge=0, lt=2**32, title="Resampling seed")
    precision: Literal["tf32", "fp32", "train", "auto", "fp16", "bf16"] = option(
        "tf32",
        "Precision",
        "Precision of the forward passes; logits are float32 always. tf32: float32 "
        "with the fast products of a CUDA device, fp32 elsewhere; train: that of training; "
        "auto: bf16 or fp16 where the device has fast units for it, else fp32",
    )
    perturbed_calibration: bool = option(
        False,
        "Perturbed calibration copies",
        "Also predict copies of the ID calibration split under Gaussian noise, at "
        "levels where accuracy falls in equal steps down to chance: what the calibrator tsp is "
        "fitted on. The levels are searched on at most 512 images, in about 100 passes",
    )


class ResourcesSpec(Frozen):
    """What one run works on. The result does not depend on it, but for rounding."""

    gpus: int = option(
        1,
        "GPUs",
        "Share each batch among so many GPUs, one process each; the loss stays that of "
        "the whole batch",
        ge=1,
        le=1024,
    )
    cpu_processes: int = option(
        1,
        "CPU processes",
        "The same on the CPU (train.device: cpu), to try a run on several processes without GPUs",
        ge=1,
        le=64,
    )

    @property
    def processes(self) -> int:
        """How many processes share the run."""
        return max(self.gpus, self.cpu_processes)


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
        if isinstance(self.method, Pretrain) and (self.suite.shifts or self.suite.ood):
            raise ValueError(
                "pretrain uses the ID data alone; shifts and far sets belong to fine-tuning runs"
            )
        self._require_adaptable()
        if self.train.initial_run is not None and not self.method.trains_on:
            raise ValueError(
                f"train.initial_run: {self.method.kind} cannot go on from a finished run's model, "
                "which holds nothing that it would train on"
            )
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

    @property
    def input_runs(self) -> tuple[str, ...]:
        """Finished runs that this one is made from: ids of a service's runs, or their folders."""
        begin = self.train.initial_run
        return self.method.input_runs if begin is None else (*self.method.input_runs, begin)

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
        """SHA-256 (hex) of what determines the result: without name, tags, notes, resources."""
        left_out = dict.fromkeys(("name", "tags", "notes", "resources"), True)
        # Processes that decode images do not change them, nor does who hears of it.
        hidden = {"train": {"workers", "trackers"}}
        body = self.model_dump(mode="json", exclude={**left_out, **hidden})
        if self.train.initial_run is None:
            del body["train"]["initial_run"]
        if not self.suite.ood:
            del body["suite"]["ood"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def without_seed(spec: Mapping[str, Any]) -> str:
    """What runs share that differ in their seed alone, as text."""
    left_out = ("name", "tags", "notes", "resources")
    body = {key: value for key, value in spec.items() if key not in left_out}
    body["train"] = {k: v for k, v in spec.get("train", {}).items() if k != "seed"}
    return json.dumps(body, sort_keys=True)


def with_more_epochs(spec: Mapping[str, Any], run: str, epochs: int) -> dict[str, Any]:
    """The RunSpec of a run that goes on from a finished one, for so many epochs more.

    Args:
        spec: of the finished run.
        run: its id, or its folder.
    """
    more = f" ({epochs} more epoch{'' if epochs == 1 else 's'})"
    # A warm-up of the whole run's length could be longer than what is added.
    train = {"initial_run": run, "epochs": epochs, "warmup_steps": None}
    name = f"{spec['name'][: 120 - len(more)]}{more}"
    return {**spec, "name": name, "train": {**spec.get("train", {}), **train}}


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
