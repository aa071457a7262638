"""Classifiers that other prompts would make of a finished model's text tower.

They are made when a model is saved and lie beside it. With the stored image features they give the
logits under other prompts without the model: what the prompts did is then told from what training
did.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calift_core.files import atomic_write_bytes
from calift_core.methods.base import Classifier
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.zeroshot import TEMPLATES, zero_shot_weights
from calift_core.models.zeroshot_cache import heads_dir
from calift_core.predictions.prompts import PROMPTS

#: Captions that are encoded at most beside the run's own: seconds of a small text tower.
MOST_CAPTIONS = 1000
#: So many of the run's own templates are kept one by one.
MOST_SINGLE = 20
#: Bytes of the file at most.
MOST_BYTES = 16 * 2**20
#: float16 and other orders of summation move a unit vector by less than this.
_SAME = 5e-3


def save_prompts(folder: Path, clip: Clip, classifier: Classifier, captions: Captions) -> bool:
    """Write what other prompts make of a text tower, `PROMPTS` in the model's folder.

    Args:
        clip: the model, used in eval mode and left in the mode it came in.
        classifier: C classes; where the text tower did not make it, nothing is written.
        captions: C class names in the run's own templates.

    Returns:
        Whether a file was written.

    Raises:
        DiskFullError, StorageError: the file cannot be written.
    """
    if classifier.bias is not None or classifier.cache is not None:
        return False
    head = zero_shot_weights(clip, captions).float()
    if not torch.allclose(head, classifier.weights.float(), atol=_SAME):
        return False
    room = MOST_BYTES // (2 * head.numel())
    names, heads = ["own"], [head]
    for name, made in _others(clip, captions.class_names, captions.templates):
        if len(names) < room:
            names.append(name)
            heads.append(made)
    stacked = torch.stack(heads).cpu().numpy().astype(np.float16)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.array(names),
        classes=np.array(list(captions.class_names)),
        heads=stacked,
        scale=np.float64(classifier.scale),
    )
    atomic_write_bytes(folder / PROMPTS, buffer.getvalue())
    return True


def _head(clip: Clip, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One unit vector per class, (C, D), from the cache where an equal tower has made it."""
    captions = Captions.make(class_names, templates, clip.tokenizer, cache=heads_dir())
    return zero_shot_weights(clip, captions).float()


def _others(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Name and classifier (C, D) of the named sets, then of the run's templates one by one."""
    left = MOST_CAPTIONS // len(class_names)
    wanted = sorted(TEMPLATES.items(), key=lambda item: len(item[1]))
    if 1 < len(templates) <= MOST_SINGLE:
        wanted += [(sentence, (sentence,)) for sentence in templates]
    for name, sentences in wanted:
        if tuple(sentences) != tuple(templates) and len(sentences) <= left:
            left -= len(sentences)
            yield name, _head(clip, class_names, sentences)
