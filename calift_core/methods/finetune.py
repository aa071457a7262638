"""FT: cross-entropy on the image tower and a head that starts from the zero-shot classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calift_core.clip import Captions, Clip
from calift_core.methods.base import (
    Batch,
    Classifier,
    InitialTower,
    RunLength,
    Stateless,
    zero_shot_classifier,
)
from calift_core.methods.confidence import ClassLoss
from calift_core.methods.terms import matmul
from calift_core.schema.methods import FineTune as FineTuneSpec
from calift_core.schema.spec import ConfidenceSpec


class Head(nn.Module):
    """A linear layer on L2-normalised features, with a scale that is learned or folded in.

    Args:
        start: the classifier it begins as.
        learn_scale: make the scale a parameter of its own.
        zeros: begin with zero weights instead.
    """

    def __init__(
        self, start: Classifier, *, learn_scale: bool = False, zeros: bool = False
    ) -> None:
        super().__init__()
        factor = 0.0 if zeros else 1.0 if learn_scale else start.scale
        self.weight = nn.Parameter(start.weights.clone() * factor)  # (C, D)
        self.bias = nn.Parameter(torch.zeros(len(start.weights), device=start.weights.device))
        self.log_scale = (
            nn.Parameter(torch.tensor(start.scale, device=start.weights.device).log())
            if learn_scale
            else None
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) → (B, C)."""
        logits = matmul(features, self.weight.T)
        if self.log_scale is not None:
            logits = self.log_scale.exp() * logits
        return logits + self.bias


class Supervised(Stateless):
    """What methods with a linear head share: the head, its loss, the tower that is trained.

    Args:
        clip: the student.
        captions: class names × templates.
        confidence: training-time calibration.
        learn_scale: see `Head`.
        zeros: see `Head`.
        keep_initial: keep the initial image tower even if nothing in `confidence` asks for it.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        confidence: ConfidenceSpec,
        *,
        learn_scale: bool = False,
        zeros: bool = False,
        keep_initial: bool = False,
    ) -> None:
        self.clip, self.captions = clip, captions
        zero_shot = zero_shot_classifier(clip, captions)
        self.head = Head(zero_shot, learn_scale=learn_scale, zeros=zeros)
        self.initial = InitialTower(clip) if keep_initial or confidence.zero_shot_kd else None
        self.loss = ClassLoss(confidence, initial=self.initial, zero_shot=zero_shot)
        self.weights = dict(self.loss.weights)

    def trainable(self) -> dict[str, nn.Module]:
        """The image tower and the head."""
        return {"visual": self.clip.net.visual, "head": self.head}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the head's logits."""
        return self.loss.terms(self.head(self.clip.encode_image(batch.images)), batch)

    def classifier(self) -> Classifier:
        """The trained head."""
        scale = 1.0 if self.head.log_scale is None else float(self.head.log_scale.detach().exp())
        return Classifier(self.head.weight.detach(), scale, self.head.bias.detach())


class FineTune(Supervised):
    """L = CE(head(I), y); the text tower takes no part.

    Wortsman et al. 2022, section 2. Differs from the reference code: gradients are clipped after
    un-scaling under mixed precision.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        spec: FineTuneSpec,
        length: RunLength,
        confidence: ConfidenceSpec,
    ) -> None:
        super().__init__(clip, captions, confidence, learn_scale=spec.head_scale == "learned")
