"""Models of finished runs and of checkpoints, loaded for evaluation, one or many in a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calift_core.data.preprocess import Preprocess
from calift_core.data.suites.load import Suite
from calift_core.data.weak_captions import WeakCaptions
from calift_core.errors import CheckpointError, DataError, ModelError
from calift_core.evaluation.forward import PlacedModel
from calift_core.methods import Classifier, Method, RunLength, finish_training, make_method
from calift_core.methods.base import zero_shot_classifier
from calift_core.methods.pretrain import Pretrain as Pretraining
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip, ModelConfig, Tokenizer
from calift_core.models.finished import (
    differences,
    load_finished,
    model_config_of,
    read_finished,
    weights_of,
)
from calift_core.models.loading import load_clip, tensors_sha256, weights_sha256
from calift_core.models.zeroshot import resolve_templates
from calift_core.models.zeroshot_cache import heads_dir
from calift_core.schema.methods import Pretrain
from calift_core.schema.spec import ModelSpec, load_spec
from calift_core.training.checkpoint import TrainState, load_state

#: Share of an accelerator's free memory that waiting image towers may take.
_RESIDENT_SHARE = 0.5


@dataclass(frozen=True)
class ForwardConfig:
    """What models must share to be evaluated in one pass."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int
    activation: str
    architecture: str

    @classmethod
    def of(cls, model_config: ModelConfig) -> ForwardConfig:
        """What a model must share with others to be evaluated in one pass with them."""
        config = {key: value for key, value in model_config.config.items() if key != "quick_gelu"}
        p = model_config.preprocess
        return cls(
            p.size,
            p.mean,
            p.std,
            p.interpolation,
            p.resize_mode,
            p.fill_color,
            model_config.activation,
            json.dumps(config, sort_keys=True),
        )


@dataclass(frozen=True)
class TrainedModel:
    """A model as it was trained.

    Attributes:
        clip: the model on its device, or, of `load_like`, another one of the same make.
        classifier: C classes on its features, on the device.
        make: what it must share with others that are evaluated with it.
        weights: file that holds the weights, or None where no file has all of them.
    """

    clip: Clip
    classifier: Classifier
    sha256: str
    forward_config: ForwardConfig
    name: str
    pretrained: str | None
    weights: Path | None = None


def run_folder_of(path: Path) -> Path:
    """The run that a path belongs to: itself, or of `RUN/checkpoint/steps/STEP` the RUN."""
    is_step = path.parent.name == "steps" and path.parent.parent.name == "checkpoint"
    return path.parents[2] if is_step else path


def name_of(path: Path) -> str:
    """What the model at a path is called: `RUN`, or `RUN-step-120`."""
    run = run_folder_of(path)
    return run.name if run == path else f"{run.name}-step-{int(path.name)}"


def load_trained(path: Path, suite: Suite, device: torch.device) -> TrainedModel:
    """The model at a path.

    Args:
        path: folder of a finished run, or a checkpoint of one under way: `RUN/checkpoint/steps/…`.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        DataError: the suite has other classes than the model.
    """
    if run_folder_of(path) != path:
        return _of_checkpoint(path, suite, device)
    clip, tensors, description = load_finished(path)
    clip.to(device)
    return _evaluated(
        path, clip, tensors, description, suite, device, sha256=weights_sha256(clip.net)
    )


def load_like(
    path: Path, first: TrainedModel, names: tuple[str, str], suite: Suite
) -> TrainedModel:
    """The model at a path, which is of the make of another one; no network is built for it.

    Raises:
        ModelError: it is of another make.
        CheckpointError, DataError: as for `load_trained`.
    """
    device = first.clip.net.logit_scale.device
    if run_folder_of(path) != path:
        model = load_trained(path, suite, device)
        require_alike(first.forward_config, names[0], model.forward_config, names[1])
        return model
    tensors, description = read_finished(path)
    require_alike(
        first.forward_config, names[0], ForwardConfig.of(model_config_of(description)), names[1]
    )
    try:
        state = load_file(weights_of(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the model in {str(path)!r} is damaged: {error}") from None
    expected = {name: t.shape for name, t in first.clip.net.state_dict().items()}
    if {name: t.shape for name, t in state.items()} != expected:
        raise CheckpointError(
            f"the model in {str(path)!r} is damaged: its weights must have the names and shapes of "
            "its architecture, they have others"
        )
    return _evaluated(
        path, first.clip, tensors, description, suite, device, sha256=tensors_sha256(state)
    )


def _evaluated(
    path: Path,
    clip: Clip,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
    suite: Suite,
    device: torch.device,
    *,
    sha256: str,
) -> TrainedModel:
    if list(suite.classes) != description["classes"]:
        raise DataError(
            f"the model was trained on the classes {description['classes']}, the suite "
            f"{suite.name!r} has {list(suite.classes)}",
            hint="A classifier can only be evaluated on the classes that it has.",
        )
    classifier = Classifier.of(tensors, float(description["logit_scale"]), device)
    config, name = model_config_of(description), description["name"]
    pretrained = description["pretrained"]
    return TrainedModel(
        clip, classifier, sha256, ForwardConfig.of(config), name, pretrained, weights_of(path)
    )


def _of_checkpoint(path: Path, suite: Suite, device: torch.device) -> TrainedModel:
    """The model as if the run had ended at the checkpoint, with the classifier of that moment."""
    run = run_folder_of(path)
    state = load_state(path)
    spec = load_spec(run / "spec.json")
    if state.spec_sha256 != spec.content_hash():
        raise CheckpointError(
            f"{str(path)!r} must belong to the RunSpec in {str(run)!r}, it does not"
        )
    generator = torch.Generator().manual_seed(spec.train.seed)
    clip = load_begun(spec.model, state, generator).to(device)
    captions = learned = Captions.make(
        suite.class_names,
        resolve_templates(spec.suite.templates),
        clip.tokenizer,
        cache=heads_dir(),
    )
    if isinstance(spec.method, Pretrain):
        learned = learned_captions(spec.method, suite, clip.tokenizer)
    method = make_method(
        spec.method,
        clip,
        learned,
        length=RunLength(total_steps=max(1, state.step), seed=spec.train.seed),
        confidence=spec.train.confidence,
        train=spec.train,
    )
    try:
        for module_name, module in method.trainable().items():
            module.load_state_dict(state.modules[module_name])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{str(path)!r} holds other weights than {spec.method.kind} trains, or a head of "
            f"other classes than the {len(suite.classes)} of {suite.name}: {error}"
        ) from None
    method.load_state(state.method)
    finish_training(method)
    classifier = classifier_of(method, captions)
    forward_config = ForwardConfig.of(clip.model_config)
    sha256 = weights_sha256(clip.net)
    return TrainedModel(clip, classifier, sha256, forward_config, clip.name, clip.pretrained)


def classifier_of(method: Method, captions: Captions) -> Classifier:
    """What the model of a method is evaluated with, at any point of its training.

    Args:
        captions: of the suite's templates. Pre-training learns on captions in styles and is
            evaluated with these, as any model is.
    """
    if isinstance(method, Pretraining):
        return zero_shot_classifier(method.clip, captions)
    return method.classifier()


def weak_captions(spec: Pretrain, suite: Suite) -> WeakCaptions:
    """What pre-training's captions call the images of a suite.

    Raises:
        SpecError: coarse names are of other classes, or wanted where there are none.
    """
    return WeakCaptions.make(
        suite.classes,
        suite.class_names,
        spec.coarse_names or suite.coarse_names,
        suite.vague_names,
        vague=spec.vague_captions,
        coarse=spec.coarse_captions,
        wrong=spec.wrong_captions,
    )


def learned_captions(spec: Pretrain, suite: Suite, tokenizer: Tokenizer) -> Captions:
    """Every caption that pre-training reads."""
    names = weak_captions(spec, suite).names
    return Captions.make(names, resolve_templates(suite.learned), tokenizer)


def load_begun(model: ModelSpec, state: TrainState | None, generator: torch.Generator) -> Clip:
    """The model that a run starts from, or that it started from if it is gone on with.

    Args:
        state: what the run is gone on from, if it is.

    Raises:
        CheckpointError: the model's name stands for something else than when the run began.
        ModelError: as `load_clip`.
    """
    clip = load_clip(model.name, model.pretrained, generator=generator)
    if state is None or state.model_config == clip.model_config.described():
        return clip
    then = ModelConfig(
        {"quick_gelu": state.model_config["activation"] == "quick_gelu"},
        Preprocess.of(state.model_config["preprocess"]),
    )
    raise CheckpointError(
        f"the checkpoint of step {state.step} is of another model than {model.name} "
        f"({model.pretrained}) stands for today: {differences(then, clip.model_config)}",
        hint="Bring back what the model was then, or start the run anew (--overwrite).",
    )


class TowerSwitcher:
    """Image towers of one architecture that take turns in one network.

    Towers wait on an accelerator while they fit, else on the CPU, where those of finished runs are
    mapped from their files: memory holds one network, however many models there are.

    Args:
        clip: the network; its own weights take part only if it is added.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip.eval()
        self.slots: list[Tensor] = list(clip.net.visual.state_dict().values())
        self.names = list(clip.net.visual.state_dict())
        self.current = -1
        self.towers: list[list[Tensor]] = []
        device = self.slots[0].device
        self.room = 0
        if device.type == "cuda":
            self.room = int(torch.cuda.mem_get_info(device)[0] * _RESIDENT_SHARE)

    def add(self, model: TrainedModel) -> Callable[[], Clip]:
        """Let a model take part; returns what puts its tower in place."""
        visual: Mapping[str, Tensor]
        if model.weights is not None:
            stored = load_file(model.weights)  # mapped: read when it is copied
            visual = {name: stored[f"visual.{name}"] for name in self.names}
        else:
            visual = {n: t.cpu().clone() for n, t in model.clip.net.visual.state_dict().items()}
        tower = [visual[name] for name in self.names]
        size = sum(t.nbytes for t in tower)
        if size <= self.room:
            self.room -= size
            tower = [t.to(self.slots[0].device) for t in tower]
        self.towers.append(tower)
        index = len(self.towers) - 1
        return lambda: self._place(index)

    @torch.no_grad()
    def _place(self, index: int) -> Clip:
        if index != self.current:
            for slot, tensor in zip(self.slots, self.towers[index], strict=True):
                slot.copy_(tensor, non_blocking=True)
            self.current = index
        return self.clip


def require_alike(one: ForwardConfig, one_name: str, other: ForwardConfig, other_name: str) -> None:
    """Two models can share a pass if architecture and preprocessing are the same.

    Raises:
        ModelError: they are not; says in what they differ.
    """
    differs = [
        f"{field.name.replace('_', ' ')} ({a} and {b})"
        for field in fields(ForwardConfig)
        if (a := getattr(one, field.name)) != (b := getattr(other, field.name))
    ]
    if differs:
        raise ModelError(
            f"{one_name} and {other_name} cannot be evaluated in one pass, they differ in "
            + ", ".join(differs),
            hint="Evaluate them by a command each.",
        )


@dataclass(frozen=True)
class EvaluationSubject:
    """A model that is evaluated.

    Attributes:
        folder: receives `predictions/`, and shards meanwhile.
        name: folder that predictions are told under, where several models are evaluated.
        run: the stored run that the results belong to, where one that is stored is evaluated.
    """

    placed: PlacedModel
    sha256: str
    folder: Path
    name: str = ""
    run: str | None = None
