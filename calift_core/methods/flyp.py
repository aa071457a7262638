"""FLYP: fine-tune like you pre-train."""

from typing import Any

from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Setup, refuse_sigmoid
from calift_core.methods.contrastive import Contrastive
from calift_core.methods.terms import info_nce, sigmoid_pairs


class Flyp(Contrastive):
    """L = L_MCL: the symmetric contrastive loss between images and captions of their classes.

    Goyal et al. 2023, section 3. The classifier is built afresh from the tuned text tower.

    Differs from the reference code: a caption that stands in a batch several times is encoded
    once; a model with a logit bias was pre-trained with the pairwise sigmoid loss, and is
    fine-tuned with that.
    """

    def __init__(self, setup: Setup[Any]) -> None:
        clip, confidence = setup.clip, setup.confidence
        if confidence.active():
            refuse_sigmoid(clip, "train.confidence with flyp")
        super().__init__(setup, weights={"contrastive": 1.0})

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss."""
        z = self.z_of(embedded)
        if self.clip.is_sigmoid:
            return {"contrastive": sigmoid_pairs(z, self.clip.net.logit_bias)}
        terms = {"contrastive": info_nce(z, smoothing=self.extra.smoothing)}
        return terms | self.extra.terms(z, batch)
