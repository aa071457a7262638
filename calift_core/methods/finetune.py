"""FT: cross-entropy on the image tower and a head that starts from the zero-shot classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calift_core.clip import Captions, Clip
from calift_core.methods.base import Batch, Classifier, RunLength, Stateless, zero_shot_classifier
from calift_core.methods.terms import cross_entropy, matmul
from calift_core.schema.methods import FineTune as FineTuneSpec


class Head(nn.Module):
    """A linear layer on L2-normalised features, with a scale that is learned or folded in."""

    def __init__(self, start: Classifier, *, learn_scale: bool) -> None:
        super().__init__()
        factor = 1.0 if learn_scale else start.scale
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


class FineTune(Stateless):
    """L = CE(head(I), y); the text tower takes no part.

    Wortsman et al. 2022, section 2. Differs from the reference code: gradients are clipped after
    un-scaling under mixed precision.
    """

    def __init__(
        self, clip: Clip, captions: Captions, spec: FineTuneSpec, length: RunLength
    ) -> None:
        self.clip = clip
        self.weights = {"cross_entropy": 1.0}
        self.head = Head(
            zero_shot_classifier(clip, captions), learn_scale=spec.head_scale == "learned"
        )

    def trainable(self) -> dict[str, nn.Module]:
        """The image tower and the head."""
        return {"visual": self.clip.net.visual, "head": self.head}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy."""
        logits = self.head(self.clip.encode_image(batch.images))
        return {"cross_entropy": cross_entropy(logits, batch.labels)}

    def classifier(self) -> Classifier:
        """The trained head."""
        scale = 1.0 if self.head.log_scale is None else float(self.head.log_scale.detach().exp())
        return Classifier(self.head.weight.detach(), scale, self.head.bias.detach())
