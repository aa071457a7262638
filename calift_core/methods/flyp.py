"""FLYP: fine-tune like you pre-train."""

from __future__ import annotations

from torch import Tensor

from calift_core.clip import Captions, Clip
from calift_core.errors import ModelError
from calift_core.methods.base import (
    Batch,
    Classifier,
    RunLength,
    Stateless,
    encode_captions,
    zero_shot_classifier,
)
from calift_core.methods.terms import info_nce, similarity
from calift_core.schema.methods import Flyp as FlypSpec


class Flyp(Stateless):
    """L = L_MCL: the symmetric contrastive loss between images and captions of their classes.

    Goyal et al. 2023, section 3. The classifier is built afresh from the tuned text tower.
    """

    def __init__(self, clip: Clip, captions: Captions, spec: FlypSpec, length: RunLength) -> None:
        refuse_sigmoid(clip, "flyp")
        self.clip, self.captions = clip, captions
        self.weights = {"contrastive": 1.0}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss."""
        images = self.clip.encode_image(batch.images)
        texts = encode_captions(self.clip, self.captions, batch.captions)
        return {"contrastive": info_nce(similarity(images, texts, self.clip.logit_scale))}

    def classifier(self) -> Classifier:
        """The prompt ensemble of the tuned model."""
        return zero_shot_classifier(self.clip, self.captions)


def refuse_sigmoid(clip: Clip, method: str) -> None:
    """A model with a logit bias was trained with a pairwise sigmoid, where InfoNCE is not its loss.

    Raises:
        ModelError: the model has a logit bias.
    """
    if clip.is_sigmoid:
        raise ModelError(
            f"{method} is defined by the softmax contrastive loss, and {clip.name} was pre-trained "
            "with a pairwise sigmoid loss (it has a logit bias).",
            hint="Use zero_shot or finetune with this model.",
        )
