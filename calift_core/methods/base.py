"""What training asks of a method, and what methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from calift_core.clip import Captions, Clip
from calift_core.zeroshot import zero_shot_weights


@dataclass(frozen=True)
class Batch:
    """One optimiser step's samples, on the device.

    Attributes:
        images: (B, 3, S, S), normalised.
        labels: (B,) class of each image.
        captions: (B,) caption of each image, as a position in the method's `Captions`.
    """

    images: Tensor
    labels: Tensor
    captions: Tensor


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
    """

    total_steps: int


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

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss, un-weighted, by name: scalars."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after optimiser step `step` (from 1). Returns what is worth logging."""

    def classifier(self) -> Classifier:
        """The finished classifier, made from the current weights."""

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

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing to do."""
        return {}

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
        ids: (B,) positions in it.

    Returns:
        (B, D).
    """
    distinct, back = torch.unique(ids, return_inverse=True)
    tokens = captions.tokens.to(ids.device)[distinct]
    return clip.encode_text(tokens)[back]


def zero_shot_classifier(clip: Clip, captions: Captions) -> Classifier:
    """The prompt-ensemble classifier of the model as it stands."""
    return Classifier(zero_shot_weights(clip, captions), float(clip.logit_scale.detach()))
