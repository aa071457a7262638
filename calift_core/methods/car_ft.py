"""CAR-FT: cross-entropy, and what the image tower says about the context kept as it was."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from calift_core.data.batch import Batch
from calift_core.errors import ModelError
from calift_core.methods.base import Embedded, Setup
from calift_core.methods.supervised import Supervised
from calift_core.methods.terms import kl, similarity
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.schema.methods import CarFt as CarFtSpec


class CarFt(Supervised):
    """L = CE + α · KL(c⁰ ‖ c), with c = softmax(s · I Aᵀ) over the P templates.

    Mao et al. 2024, section 3. Row A_p is the normalised mean over classes of template p's text
    embeddings; c⁰ is the initial image tower's. Text tower and scale are frozen.

    Differs from the reference: written from the equation, and compared with no code of its authors;
    the default α = 1 is recalled, not read.
    """

    def __init__(self, setup: Setup[CarFtSpec]) -> None:
        clip, captions, spec = setup.clip, setup.captions, setup.spec
        if spec.alpha and len(captions.templates) < 2:
            raise ModelError(
                "car_ft keeps the distribution over prompt templates, and there is one template: "
                "it is 1 whatever the image",
                hint="Take suite.templates: openai_imagenet, or list two or more.",
            )
        super().__init__(setup, keep_initial=spec.alpha > 0)
        self.spec = spec
        self.weights["context"] = spec.alpha
        self.scale = clip.logit_scale.detach().clone()
        self.contexts = context_weights(clip, captions) if spec.alpha else None  # (P, D)

    def terms_of(self, embedded: Embedded, batch: Batch) -> dict[str, Tensor]:
        """The head's loss and the divergence of contexts."""
        images = embedded.images
        if self.contexts is None or self.initial is None:
            return self.loss.terms(self.head(images), batch)
        initial = self.initial(batch)
        terms = self.loss.terms(self.head(images), batch, initial_features=initial)
        terms["context"] = kl(
            similarity(images, self.contexts, self.scale),
            similarity(initial, self.contexts, self.scale),
        )
        return terms


@torch.no_grad()
def context_weights(clip: Clip, captions: Captions, *, batch_size: int = 512) -> Tensor:
    """A: per template, the normalised mean over classes of the normalised embeddings.

    Args:
        clip: the model, used in eval mode and left in the mode it came in.

    Returns:
        (P, D).
    """
    was_training = clip.training
    clip.eval()
    tokens = captions.tokens.to(next(clip.parameters()).device)
    parts = [clip.encode_text(part) for part in torch.split(tokens, batch_size)]
    clip.train(was_training)
    shape = (len(captions.class_names), len(captions.templates), -1)
    return F.normalize(torch.cat(parts).view(shape).mean(dim=0), dim=-1)
