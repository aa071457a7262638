"""What training asks of a method, and what methods share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calift_core.data.batch import Batch
from calift_core.errors import ModelError
from calift_core.models.adapters import Adapter, low_rank
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.zeroshot import zero_shot_weights
from calift_core.schema.records import Record
from calift_core.schema.train import ConfidenceSpec, TrainSpec


@dataclass(frozen=True)
class Embedded:
    """What the trained towers make of a batch.

    Attributes:
        images: I, (B, D), L2-normalised.
        texts: T of the captions, (B, D), L2-normalised; None where no text tower takes part.
    """

    images: Tensor
    texts: Tensor | None = None

    def pairs(self) -> tuple[Tensor, Tensor]:
        """I and T, of a method whose `encode` makes both."""
        assert self.texts is not None
        return self.images, self.texts


@dataclass(frozen=True)
class KeyCache:
    """What images that are kept add to logits: `α·exp(−β(1 − f @ keysᵀ))`, summed by class.

    Zhang et al. 2022, section 3.1.

    Attributes:
        keys: F, (N, D).
        classes: (N,), long.
    """

    keys: Tensor
    classes: Tensor
    alpha: float
    beta: float

    def logits(self, features: Tensor, n_classes: int) -> Tensor:
        """(B, D) → (B, C), float32."""
        alike = torch.exp(-self.beta * (1 - features.float() @ self.keys.float().T))  # (B, N)
        values = F.one_hot(self.classes, n_classes).to(alike.dtype)  # L, (N, C)
        return self.alpha * alike @ values


@dataclass(frozen=True)
class Classifier:
    """A classifier on L2-normalised image features: `scale * f @ weightsᵀ + bias`, and a cache.

    Attributes:
        weights: (C, D).
        scale: the logit scale `s`.
        bias: (C,) or None.
        cache: images that are kept; None for a linear classifier.
    """

    weights: Tensor
    scale: float
    bias: Tensor | None = None
    cache: KeyCache | None = None

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) → (B, C), float32."""
        out = self.scale * features.float() @ self.weights.float().T
        if self.cache is not None:
            out = out + self.cache.logits(features, len(self.weights))
        return out if self.bias is None else out + self.bias.float()

    def tensors(self) -> dict[str, Tensor]:
        """All but the scale, for `classifier.safetensors`."""
        found = {"weights": self.weights}
        if self.bias is not None:
            found["bias"] = self.bias
        if self.cache is not None:
            shape = torch.tensor([self.cache.alpha, self.cache.beta], dtype=torch.float64)
            found |= {"cache.keys": self.cache.keys, "cache.classes": self.cache.classes}
            found["cache.shape"] = shape
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], scale: float, device: torch.device) -> Classifier:
        """What `tensors` took apart, on a device."""
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        cache = None
        if "cache.keys" in here:
            alpha, beta = tensors["cache.shape"].tolist()
            cache = KeyCache(here["cache.keys"], here["cache.classes"], alpha, beta)
        return cls(here["weights"], scale, here.get("bias"), cache)


@dataclass(frozen=True)
class RunLength:
    """How long the run is; schedules are fractions of it.

    Attributes:
        seed: of the run, for methods that draw at random themselves.
    """

    total_steps: int
    seed: int = 0


_Spec = TypeVar("_Spec", covariant=True)


@dataclass(frozen=True)
class Setup(Generic[_Spec]):
    """What a method is made of.

    Attributes:
        clip: the student, on its device; it is trained in place.
        spec: the method's options.
        confidence: training-time calibration.
    """

    clip: Clip
    captions: Captions
    spec: _Spec
    length: RunLength
    confidence: ConfidenceSpec


class Features(Protocol):
    """The initial image tower's features of a part of the ID data, encoded once."""

    def __call__(self, part: Literal["train", "validation"]) -> tuple[Tensor, Tensor]:
        """(N, D) L2-normalised, and (N,) labels, on the model's device."""


class Method(Protocol):
    """A way to train.

    Attributes:
        weights: term name → coefficient in the loss. A term with coefficient 0 is not computed.
        adapter: what is trained in the towers' place; None: they are.
    """

    clip: Clip
    captions: Captions
    weights: dict[str, float]
    adapter: Adapter | None

    @property
    def couples_samples(self) -> bool:
        """Whether a term looks at a batch's samples together: its parts' do not add up to it."""

    def trainable(self) -> dict[str, nn.Module]:
        """Modules whose parameters the optimiser owns, by name."""

    def begin_with(self, net: Mapping[str, Tensor], classifier: Classifier) -> None:
        """Take the weights of a finished run of this kind. What is held of the initial model stays.

        Called before `adapt`, if at all.
        """

    def adapt(self, train: TrainSpec) -> None:
        """Train as little of the towers as `train.adapt` says. Called once, before the rest."""

    def prepare(self, features: Features) -> Iterator[Record]:
        """Called once before a run's first step, not when it is gone on with."""

    def encode(self, batch: Batch) -> Embedded:
        """The batch through the towers that are trained."""

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss, un-weighted, by name: scalars."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """`terms_of` what `encode` gives."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after optimiser step `step` (from 1). Returns what is worth logging."""

    def finish(self) -> None:
        """Called once after the last step, before the model is evaluated."""

    def classifier(self) -> Classifier:
        """The classifier, made from the current weights."""

    def state(self) -> dict[str, Tensor]:
        """Everything beside the trainable modules that a resumed run needs."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take `state` back."""

    def resolved(self) -> dict[str, object]:
        """Settings that the spec left open and the method chose."""


class Stateless:
    """Default parts of `Method` for those that keep nothing but their modules."""

    clip: Clip
    captions: Captions
    weights: dict[str, float]
    adapter: Adapter | None = None

    def __init__(self, setup: Setup[Any]) -> None:
        self.clip, self.captions = setup.clip, setup.captions

    @property
    def couples_samples(self) -> bool:
        """Each sample stands for itself."""
        return False

    def trainable(self) -> dict[str, nn.Module]:
        """Both towers and the logit scale, or what stands for them."""
        return {"clip": self.clip.net} if self.adapter is None else {"adapter": self.adapter}

    def begin_with(self, net: Mapping[str, Tensor], classifier: Classifier) -> None:
        """Take the towers."""
        self.clip.net.load_state_dict(net)

    def adapt(self, train: TrainSpec) -> None:
        """Put an adapter in the towers' place, unless all of them is trained."""
        if train.adapt == "full":
            return
        net, factors = self.clip.net, {}
        if train.adapt == "lora":
            factors = low_rank(
                net,
                self.adapted_tower(),
                rank=train.lora_rank,
                alpha=train.lora_alpha,
                generator=torch.Generator().manual_seed(train.seed),
            )
        self.adapter = Adapter(net, factors, self.trained_with(train.adapt))

    def adapted_tower(self) -> nn.Module:
        """What LoRA is laid over: both towers."""
        net: nn.Module = self.clip.net
        return net

    def trained_with(self, adapt: Literal["lora", "head"]) -> dict[str, nn.Parameter]:
        """Parameters of the model, by name, that are trained as they are beside an adapter."""
        return {}

    def encode(self, batch: Batch) -> Embedded:
        """The images alone."""
        return Embedded(self.clip.encode_image(batch.images))

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """No loss."""
        return {}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """`terms_of` what `encode` gives."""
        return self.terms_of(self.encode(batch), batch)

    def prepare(self, features: Features) -> Iterator[Record]:
        """Nothing to do."""
        return iter(())

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing to do."""
        return {}

    def finish(self) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to take back."""

    def resolved(self) -> dict[str, object]:
        """Nothing was left open."""
        return {}


def encode_captions(clip: Clip, captions: Captions, ids: Tensor) -> Tensor:
    """Text embeddings of captions, each distinct one encoded once.

    Args:
        ids: (B,) positions in it, best on the CPU.

    Returns:
        (B, D), on the model's device.
    """
    distinct, back = torch.unique(ids.cpu(), return_inverse=True)
    texts = clip.encode_text(captions.tokens[distinct])
    return texts[back.to(texts.device, non_blocking=True)]


def zero_shot_classifier(clip: Clip, captions: Captions) -> Classifier:
    """The prompt-ensemble classifier of the model as it stands."""
    return Classifier(zero_shot_weights(clip, captions), float(clip.logit_scale.detach()))


class InitialTower:
    """A frozen copy of the image tower as it is now, in eval mode."""

    def __init__(self, clip: Clip) -> None:
        self.visual = copy.deepcopy(clip.net.visual).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """L2-normalised features (B, D) of a batch's images."""
        return batch.frozen(lambda images: F.normalize(self.visual(images).float(), dim=-1))


def refuse_sigmoid(clip: Clip, method: str) -> None:
    """A model with a logit bias was trained with a pairwise sigmoid: no softmax over pairs.

    Raises:
        ModelError: the model has a logit bias.
    """
    if clip.is_sigmoid:
        raise ModelError(
            f"{method} is defined by softmax probabilities over the pairs of a batch, and "
            f"{clip.name} was pre-trained with a pairwise sigmoid loss (it has a logit bias).",
            hint="With this model take flyp (its sigmoid form) or a method with a linear head.",
        )
