"""FLYP: fine-tune like you pre-train."""

from __future__ import annotations

from torch import Tensor

from calift_core.clip import Captions, Clip
from calift_core.methods.base import (
    Batch,
    Classifier,
    RunLength,
    Stateless,
    encode_captions,
    refuse_sigmoid,
    zero_shot_classifier,
)
from calift_core.methods.confidence import PairLoss
from calift_core.methods.terms import info_nce, sigmoid_pairs, similarity
from calift_core.schema.methods import Flyp as FlypSpec
from calift_core.schema.spec import ConfidenceSpec


class Flyp(Stateless):
    """L = L_MCL: the symmetric contrastive loss between images and captions of their classes.

    Goyal et al. 2023, section 3. The classifier is built afresh from the tuned text tower. A model
    with a logit bias was pre-trained with the pairwise sigmoid loss, and is fine-tuned with that.
    """

    def __init__(
        self,
        clip: Clip,
        captions: Captions,
        spec: FlypSpec,
        length: RunLength,
        confidence: ConfidenceSpec,
    ) -> None:
        if confidence.active():
            refuse_sigmoid(clip, "train.confidence with flyp")
        self.clip, self.captions = clip, captions
        self.extra = PairLoss(confidence, clip, captions)
        self.weights = {"contrastive": 1.0, **self.extra.weights}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss."""
        images = self.clip.encode_image(batch.images)
        texts = encode_captions(self.clip, self.captions, batch.captions)
        z = similarity(images, texts, self.clip.logit_scale)
        if self.clip.is_sigmoid:
            return {"contrastive": sigmoid_pairs(z, self.clip.net.logit_bias)}
        terms = {"contrastive": info_nce(z, smoothing=self.extra.smoothing)}
        return terms | self.extra.terms(z, batch)

    def classifier(self) -> Classifier:
        """The prompt ensemble of the tuned model."""
        return zero_shot_classifier(self.clip, self.captions)
