"""The projections W_v and W_t of a CLIP-like model's towers."""

from typing import Any

import open_clip
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from calift_core.errors import UnsupportedTowerError as Unsupported


def _last_linear(module: nn.Module) -> nn.Linear | None:
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return linears[-1] if linears else None


def find_image_projection(visual: nn.Module) -> Tensor:
    """W_v of an image tower, (D, width).

    Raises:
        UnsupportedTowerError: it has none that is known.
    """
    if isinstance(visual, VisionTransformer):
        if visual.proj is None:
            raise Unsupported("this VisionTransformer has no projection (visual.proj is None)")
        projection: Tensor = visual.proj
        return projection
    if isinstance(visual, ModifiedResNet):
        stored: Tensor = visual.attnpool.c_proj.weight  # (D, width)
        return stored.T
    if isinstance(visual, TimmModel):
        linear = _last_linear(visual.head)
        if linear is None and hasattr(visual.trunk, "get_classifier"):
            classifier = visual.trunk.get_classifier()
            linear = classifier if isinstance(classifier, nn.Linear) else None
        if linear is None:
            raise Unsupported(
                "this timm image tower ends without a linear projection (visual.head and the "
                "trunk's classifier hold none), so W_v is not defined"
            )
        return linear.weight.T
    raise Unsupported(
        f"no projection W_v is known for an image tower of type {type(visual).__name__}; known: "
        "VisionTransformer, ModifiedResNet, TimmModel"
    )


def find_text_projection(net: Any) -> Tensor:
    """W_t of a model's text tower, (D, width).

    Raises:
        UnsupportedTowerError: it has none that is known.
    """
    text = net if isinstance(net, open_clip.CLIP) else getattr(net, "text", None)
    if isinstance(text, open_clip.CLIP | TextTransformer):
        projection: nn.Module | Tensor | None = text.text_projection
    elif text is not None and hasattr(text, "proj"):  # HFTextEncoder
        projection = text.proj
    else:
        raise Unsupported(f"no projection W_t is known for a text tower of {type(net).__name__}")
    if isinstance(projection, Tensor):
        return projection
    linear = None if projection is None else _last_linear(projection)
    if linear is None:
        raise Unsupported(f"the text tower {type(text).__name__} ends without a linear projection")
    return linear.weight.T
