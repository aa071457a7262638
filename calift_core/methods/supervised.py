"""What methods that train a head on the image tower share."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calift_core.data.batch import Batch
from calift_core.methods.base import (
    Classifier,
    Embedded,
    InitialTower,
    Setup,
    Stateless,
    zero_shot_classifier,
)
from calift_core.methods.confidence import ClassLoss
from calift_core.methods.terms import matmul

#: Where a head's logit scale is: folded into its weights, a parameter of its own, or a constant.
HeadScale = Literal["folded", "learned", "outside"]


class Head(nn.Module):
    """A linear layer on L2-normalised features.

    Where the scale is folded into the weights, an optimiser whose steps have a size of their own,
    like Adam's, moves the logits s times less than where it stands outside.

    Args:
        scale: where the scale is; see `HeadScale`.
        bias: whether there is a bias, which begins as 0.
    """

    def __init__(
        self,
        start: Classifier,
        *,
        scale: HeadScale = "folded",
        bias: bool = True,
        zeros: bool = False,
    ) -> None:
        super().__init__()
        device = start.weights.device
        factor = 0.0 if zeros else start.scale if scale == "folded" else 1.0
        self.weight = nn.Parameter(start.weights.clone() * factor)  # (C, D)
        self.bias = nn.Parameter(torch.zeros(len(start.weights), device=device)) if bias else None
        self.log_scale = (
            nn.Parameter(torch.tensor(start.scale, device=device).log())
            if scale == "learned"
            else None
        )
        self.constant = start.scale if scale == "outside" else 1.0

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) → (B, C)."""
        logits = matmul(features, self.weight.T)
        if self.log_scale is not None:
            logits = self.log_scale.exp() * logits
        elif self.constant != 1:
            logits = self.constant * logits
        return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def load(self, given: Classifier) -> None:
        """Become a linear classifier, wherever that has its scale."""
        scale = self.constant
        if self.log_scale is not None:
            scale = given.scale
            self.log_scale.fill_(math.log(scale))
        self.weight.copy_(
            given.weights if given.scale == scale else given.weights * (given.scale / scale)
        )
        if self.bias is not None and given.bias is not None:
            self.bias.copy_(given.bias)

    def classifier(self) -> Classifier:
        """The head as it stands."""
        scale = self.constant
        if self.log_scale is not None:
            scale = float(self.log_scale.detach().exp())
        bias = None if self.bias is None else self.bias.detach()
        return Classifier(self.weight.detach(), scale, bias)


class Supervised(Stateless):
    """What methods with a linear head share: the head, its loss, the tower that is trained.

    Args:
        keep_initial: keep the initial image tower even if nothing in `confidence` asks for it.
    """

    def __init__(
        self,
        setup: Setup[Any],
        *,
        scale: HeadScale = "folded",
        bias: bool = True,
        zeros: bool = False,
        keep_initial: bool = False,
    ) -> None:
        super().__init__(setup)
        clip, confidence = setup.clip, setup.confidence
        zero_shot = zero_shot_classifier(clip, self.captions)
        self.head = Head(zero_shot, scale=scale, bias=bias, zeros=zeros)
        self.initial = InitialTower(clip) if keep_initial or confidence.zero_shot_kd else None
        self.loss = ClassLoss(confidence, initial=self.initial, zero_shot=zero_shot)
        self.weights = dict(self.loss.weights)

    def trainable(self) -> dict[str, nn.Module]:
        """The image tower, or what stands for it, and the head."""
        if self.adapter is not None:
            return {"adapter": self.adapter, "head": self.head}
        return {"visual": self.clip.net.visual, "head": self.head}

    def begin_with(self, net: Mapping[str, Tensor], classifier: Classifier) -> None:
        """Take the towers and the head."""
        super().begin_with(net, classifier)
        self.head.load(classifier)

    def adapted_tower(self) -> nn.Module:
        """The image tower."""
        visual: nn.Module = self.clip.net.visual
        return visual

    @property
    def couples_samples(self) -> bool:
        """MMCE compares the samples of a batch with each other."""
        return "mmce" in self.weights

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The loss of the head's logits."""
        return self.loss.terms(self.head(embedded.images), batch)

    def classifier(self) -> Classifier:
        """The trained head."""
        return self.head.classifier()
