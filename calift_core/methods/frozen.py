"""What methods share whose towers stay: they train a small thing beside features made once."""

from typing import Any

import torch
from torch import Tensor

from calift_core.data.batch import Batch, in_parts
from calift_core.methods.base import Classifier, Embedded, Setup, Stateless, zero_shot_classifier
from calift_core.methods.confidence import ClassLoss
from calift_core.models.clip import Clip


def encoded_once(clip: Clip, batch: Batch) -> Embedded:
    """The features (B, D) that a batch holds, or its images through a tower that stays."""
    if batch.images.ndim == 2:
        return Embedded(batch.images)
    clip.eval()
    with torch.no_grad():
        return Embedded(in_parts(clip.encode_image, batch.images, batch.parts))


class FrozenTowers(Stateless):
    """Both towers as they are; a loss of class logits."""

    def __init__(self, setup: Setup[Any]) -> None:
        super().__init__(setup)
        self.clip.net.requires_grad_(False)
        self.zero_shot = zero_shot_classifier(self.clip, self.captions)
        self.loss = ClassLoss(setup.confidence, zero_shot=self.zero_shot)
        self.weights = dict(self.loss.weights)

    @property
    def couples_samples(self) -> bool:
        """MMCE compares the samples of a batch with each other."""
        return "mmce" in self.weights

    def encode(self, batch: Batch) -> Embedded:
        """The features (B, D) that the batch holds, or images through the tower."""
        return encoded_once(self.clip, batch)

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The loss of `logits`."""
        features = embedded.images
        return self.loss.terms(self.logits(features), batch, initial_features=features)

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) → (B, C) of what is trained, as it is now."""
        raise NotImplementedError

    def classifier(self) -> Classifier:
        """The classifier, made from what is trained."""
        raise NotImplementedError
