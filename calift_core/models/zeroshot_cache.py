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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calift_core.errors import StorageError
from calift_core.files import atomic_write_bytes
from calift_core.home import cache_dir
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip

log = logging.getLogger(__name__)

#: Classifiers used longest ago are removed beyond this many bytes.
CACHE_LIMIT_BYTES = 256 * 2**20
_FORMAT = 1
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

    A cache that cannot be read or written is told in the log and costs time only.

    Args:
        batch_size: captions encoded at once by `make`.

    Returns:
        (C, D) float32 on the model's device.
    """
    path = folder / f"{head_key(clip, captions, batch_size=batch_size)}.safetensors"
    found = _read(path, n_classes=len(captions.class_names))
    if found is not None:
        return found.to(clip.net.logit_scale.device)
    weights = make()
    stored = weights.detach().cpu().contiguous()
    metadata = {"sha256": hashlib.sha256(_bytes(stored)).hexdigest()}
    try:
        atomic_write_bytes(path, save({"weights": stored}, metadata))
        _prune(folder)
    except (OSError, StorageError) as error:
        log.warning("the zero-shot classifier could not be cached: %s", error)
    return weights


def _read(path: Path, *, n_classes: int) -> Tensor | None:
    """Verified weights, or None if there are none or they are damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("sha256")
            weights: Tensor = file.get_tensor("weights").clone()
        path.touch()  # the newest are kept
    except (OSError, SafetensorError) as error:
        log.warning("the cached classifier %s cannot be read: %s", path.name, error)
        return None
    good = weights.dtype == torch.float32 and weights.ndim == 2 and len(weights) == n_classes
    if not good or hashlib.sha256(_bytes(weights)).hexdigest() != expected:
        log.warning("the cached classifier %s is damaged and is made again", path.name)
        return None
    return weights


def _prune(folder: Path) -> None:
    """Remove the classifiers used longest ago beyond `CACHE_LIMIT_BYTES`."""
    entries = sorted(
        ((path.stat(), path) for path in folder.glob("*.safetensors")),
        key=lambda entry: entry[0].st_mtime_ns,
        reverse=True,
    )
    total = 0
    for stat, path in entries:
        total += stat.st_size
        if total > CACHE_LIMIT_BYTES:
            path.unlink(missing_ok=True)
