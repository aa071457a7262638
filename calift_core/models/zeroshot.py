"""Class names × templates → classifier weights.

Radford et al. 2021, section 3.1.4: per class, the mean of the L2-normalised embeddings of its
prompts, normalised again.
"""

from functools import partial

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from calift_core.data.styles import LEARNED, LETTERS, STYLES
from calift_core.errors import UnknownNameError
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.zeroshot_cache import cached_head

#: What CLIP's authors put before and after the class in their prompts for CIFAR-10 and -100.
_CIFAR_PHOTOS = (
    "photo of {article} {{}}.",
    "blurry photo of {article} {{}}.",
    "black and white photo of {article} {{}}.",
    "low contrast photo of {article} {{}}.",
    "high contrast photo of {article} {{}}.",
    "bad photo of {article} {{}}.",
    "good photo of {article} {{}}.",
    "photo of {article} small {{}}.",
    "photo of {article} big {{}}.",
)

#: Named template sets. `openai_imagenet` (80), `simple` (7 of them) and `cifar` (18) are those of
#: CLIP's authors; `styles` and `genres` hold every caption that calift's own pre-training uses.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "openai_imagenet": tuple(t("{}") for t in OPENAI_IMAGENET_TEMPLATES),
    "simple": tuple(t("{}") for t in SIMPLE_IMAGENET_TEMPLATES),
    "cifar": tuple(
        "a " + photo.format(article=article) for article in ("a", "the") for photo in _CIFAR_PHOTOS
    ),
    "photo": ("a photo of a {}.",),
    "plain": STYLES["plain"].templates,
    "letters": LETTERS,
    **{name: learned.templates for name, learned in LEARNED.items()},
}


def resolve_templates(templates: str | tuple[str, ...]) -> tuple[str, ...]:
    """A named set or the sentences themselves.

    Raises:
        UnknownNameError: the name is not in `TEMPLATES`.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise UnknownNameError("template set", templates, TEMPLATES)
        return TEMPLATES[templates]
    return templates


def zero_shot_weights(clip: Clip, captions: Captions, *, batch_size: int = 512) -> Tensor:
    """One unit vector per class.

    Args:
        clip: the model, used in eval mode and left in the mode it came in.
        captions: C classes × P templates; where they name a cache, prompts that an equal text tower
            has encoded before are not encoded again.

    Returns:
        (C, D), float32, on the model's device. Logits are `s * features @ weights.T`.
    """
    if captions.cache is None:
        return _encoded(clip, captions, batch_size)
    return cached_head(
        captions.cache,
        clip,
        captions,
        partial(_encoded, clip, captions, batch_size),
        batch_size=batch_size,
    )


@torch.no_grad()
def _encoded(clip: Clip, captions: Captions, batch_size: int) -> Tensor:
    device = next(clip.parameters()).device
    was_training = clip.training
    clip.eval()
    tokens = captions.tokens.to(device)
    parts = [
        clip.encode_text(tokens[i : i + batch_size]) for i in range(0, len(tokens), batch_size)
    ]
    clip.train(was_training)
    embeddings = torch.cat(parts)  # (C·P, D)
    shape = (len(captions.class_names), len(captions.templates), -1)
    return F.normalize(embeddings.view(shape).mean(dim=1), dim=-1)
