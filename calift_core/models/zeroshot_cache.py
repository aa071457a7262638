"""Zero-shot classifiers kept on disk, so that equal text towers encode equal prompts once.

A file is named by a hash of all that decides the weights: the text tower's tensors, its make, the
tokens (which hold tokenizer, context length, templates and class names), and the kind of device.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from calift_core.files.disk_cache import DiskCache
from calift_core.home import cache_dir
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip

log = logging.getLogger(__name__)

#: Classifiers used longest ago are removed beyond this many bytes.
CACHE_LIMIT_BYTES = 256 * 2**20
_FORMAT = 2
#: Bytes of the SHA-256 that stands before the weights.
_DIGEST = 32
#: Tensors that no text embedding depends on.
_OUTSIDE = frozenset({"logit_scale", "logit_bias"})


def heads_dir() -> Path:
    """Where classifiers are kept."""
    return cache_dir() / "heads"


def text_tower_sha256(clip: Clip) -> str:
    """SHA-256 (hex) of the text tower: its tensors in name order and how it is made."""
    net = clip.net
    digest = hashlib.sha256()
    config = {k: v for k, v in (clip.config or {"name": clip.name}).items() if k != "vision_cfg"}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, module in net.named_modules():
        if not _is_visual(name):
            digest.update(f"{name}:{type(module).__name__};".encode())
    for name, tensor in sorted(net.state_dict().items()):
        if _is_visual(name) or name in _OUTSIDE:
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _is_visual(name: str) -> bool:
    return name == "visual" or name.startswith("visual.")


def _bytes(tensor: Tensor) -> Any:
    array = tensor.detach().cpu().contiguous()
    return array.reshape(-1).view(torch.uint8).numpy()


def head_key(clip: Clip, captions: Captions, *, batch_size: int) -> str:
    """Names the classifier that a model's text tower makes of captions."""
    digest = hashlib.sha256(text_tower_sha256(clip).encode())
    described = {
        "format": _FORMAT,
        "class_names": captions.class_names,
        "templates": captions.templates,
        "tokens": [str(captions.tokens.dtype), list(captions.tokens.shape)],
        "batch_size": batch_size,  # sums are taken in another order
        "device": clip.net.logit_scale.device.type,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    digest.update(_bytes(captions.tokens))
    return digest.hexdigest()


def cached_head(
    folder: Path, clip: Clip, captions: Captions, make: Callable[[], Tensor], *, batch_size: int
) -> Tensor:
    """The classifier of a text tower, from disk if it was made before.

    A cache that cannot be read or written costs time only.

    Args:
        batch_size: captions encoded at once by `make`.

    Returns:
        (C, D) float32 on the model's device.
    """
    cache = DiskCache(folder, CACHE_LIMIT_BYTES)
    key = head_key(clip, captions, batch_size=batch_size)
    kept = cache.get(key) or b""
    digest, body = kept[:_DIGEST], kept[_DIGEST:]
    if kept and hashlib.sha256(body).digest() == digest:
        return load(body)["weights"].to(clip.net.logit_scale.device)
    if kept:
        log.warning("the cached classifier %s is damaged and is made again", key)
    weights = make()
    body = save({"weights": weights.detach().cpu().contiguous()})
    cache.put(key, hashlib.sha256(body).digest() + body)
    return weights
