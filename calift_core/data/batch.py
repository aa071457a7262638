"""One optimiser step's samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One optimiser step's samples, on the device but for the captions.

    Attributes:
        images: (B, 3, S, S), normalised; or (B, D) features where a method trains on those.
        labels: (B,) class of each image.
        captions: (B,) caption of each image, as a position in the method's `Captions`. They stay
            on the CPU, where finding the distinct ones waits for no device.
        mixed_with: (B,) class of the other image, where images are mixtures of two.
        share: λ, the weight of the image that `labels` names.
        parts: parts that frozen towers take the images and captions in, to save memory.
    """

    images: Tensor
    labels: Tensor
    captions: Tensor
    mixed_with: Tensor | None = None
    share: float = 1.0
    parts: int = 1
