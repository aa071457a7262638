"""What training asks of a method, and what methods share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from calift_core.clip import Captions, Clip
from calift_core.errors import ModelError
from calift_core.schema.records import Record
from calift_core.zeroshot import zero_shot_weights


@dataclass(frozen=True)
class Batch:
    """One optimiser step's samples, on the device but for the captions.

    Attributes:
        images: (B, 3, S, S), normalised; or (B, D) features where a method trains on those.
        labels: (B,) class of each image.
        captions: (B,) caption of each image, as a position in the method's `Captions`. They stay
            on the CPU, where finding the distinct ones waits for no device.
        mixed_with: (B,) class of the other image, where images are mixtures of two.
        share: λ, the weight of the image that `labels` names.
    """

    images: Tensor
    labels: Tensor
    captions: Tensor
    mixed_with: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Classifier:
    """A linear classifier on L2-normalised image features: `scale * f @ weightsᵀ + bias`.

    Attributes:
        weights: (C, D).
        scale: the logit scale `s`.
        bias: (C,) or None.
    """

    weights: Tensor
    scale: float
    bias: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) → (B, C), float32."""
        out = self.scale * features.float() @ self.weights.float().T
        return out if self.bias is None else out + self.bias.float()


@dataclass(frozen=True)
class RunLength:
    """How long the run is; schedules are fractions of it.

    Attributes:
        total_steps: optimiser steps.
        seed: of the run, for methods that draw at random themselves.
    """

    total_steps: int
    seed: int = 0


class Features(Protocol):
    """The initial image tower's features of a part of the ID data, encoded once."""

    def __call__(self, part: Literal["train", "validation"]) -> tuple[Tensor, Tensor]:
        """(N, D) L2-normalised, and (N,) labels, on the model's device."""


class Method(Protocol):
    """A way to train.

    Attributes:
        clip: the student.
        weights: term name → coefficient in the loss. A term with coefficient 0 is not computed.
    """

    clip: Clip
    weights: dict[str, float]

    def trainable(self) -> dict[str, nn.Module]:
        """Modules whose parameters the optimiser owns, by name."""

    def prepare(self, features: Features) -> Iterator[Record]:
        """Called once before a run's first step, not when it is gone on with."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss, un-weighted, by name: scalars."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after optimiser step `step` (from 1). Returns what is worth logging."""

    def finish(self) -> None:
        """Called once after the last step, before the model is judged."""

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
    weights: dict[str, float]

    def trainable(self) -> dict[str, nn.Module]:
        """Both towers and the logit scale."""
        return {"clip": self.clip.net}

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
        clip: the model.
        captions: the finite caption set.
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
    def __call__(self, images: Tensor) -> Tensor:
        """L2-normalised features (B, D) of images (B, 3, S, S)."""
        features: Tensor = self.visual(images)
        return F.normalize(features.float(), dim=-1)


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
