"""Contrastive pre-training of a small CLIP."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from calift_core.data.batch import Batch
from calift_core.methods.base import Embedded, Features, Setup, refuse_sigmoid
from calift_core.methods.contrastive import Contrastive
from calift_core.methods.terms import info_nce, multi_positive_info_nce
from calift_core.schema.methods import Pretrain as PretrainSpec
from calift_core.schema.records import Record

#: open_clip's and OpenAI's bound on the logit scale.
MAX_SCALE = 100.0


class Pretrain(Contrastive):
    """L = L_MCL over images in random styles and the captions that tell class and style.

    Radford et al. 2021, section 2.3.

    Differs from the reference: the captions are calift's, and a batch of few classes holds equal
    ones many times; `multi_positive` makes those pairs positives of each other instead of
    negatives. A ViT's patches start blind to even ground: each filter's weights sum to zero a
    channel. Else light and colour of the ground drown the drawing, and on small data the loss stays
    where it is for hundreds of steps.
    """

    def __init__(self, setup: Setup[PretrainSpec]) -> None:
        refuse_sigmoid(setup.clip, "pretrain")
        super().__init__(setup, weights={"contrastive": 1.0})
        self.spec = setup.spec

    @torch.no_grad()
    def prepare(self, features: Features) -> Iterator[Record]:
        """Take the mean out of the patch filters."""
        patches = getattr(self.clip.net.visual, "conv1", None)
        if not self.clip.is_convolutional and patches is not None:
            patches.weight -= patches.weight.mean(dim=(2, 3), keepdim=True)
        return iter(())

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The contrastive loss."""
        z = self.z_of(embedded)
        if self.spec.multi_positive:
            return {"contrastive": multi_positive_info_nce(z, batch.captions.to(z.device))}
        return {"contrastive": info_nce(z)}

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, float]:
        """Keep the logit scale within its bound."""
        self.clip.net.logit_scale.clamp_(0, math.log(MAX_SCALE))
        return {}
