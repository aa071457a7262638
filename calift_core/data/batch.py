"""One optimiser step's samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calift_core.data.ranks import ALONE, Ranks


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
        ranks: who shares the step. A loss that compares samples sees the labels and captions of
            all B of them; `images` stay this rank's share, and `frozen` encodes those of all.
        total: B, where the batch is shared; 0 says that it is whole.
    """

    images: Tensor
    labels: Tensor
    captions: Tensor
    mixed_with: Tensor | None = None
    share: float = 1.0
    parts: int = 1
    ranks: Ranks = ALONE
    total: int = 0

    def __len__(self) -> int:
        """B, of all ranks together."""
        return self.total or len(self.labels)

    def frozen(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, D): the images of all ranks through a tower that is not trained, in parts."""
        return self.ranks.gather(in_parts(encode, self.images, self.parts), len(self))

    def of_all(self) -> Batch:
        """The same batch with the labels and captions of all ranks."""
        if self.ranks.world == 1:
            return self
        gather, mixed = self.ranks.gather, self.mixed_with
        return replace(
            self,
            labels=gather(self.labels, len(self)),
            captions=gather(self.captions, len(self)),
            mixed_with=None if mixed is None else gather(mixed, len(self)),
        )

    def own(self) -> Batch:
        """This rank's share as a batch of its own, which knows of no others."""
        return replace(self, ranks=ALONE, total=0)


def in_parts(encode: Callable[[Tensor], Tensor], rows: Tensor, parts: int) -> Tensor:
    """`encode(rows)`, at most `parts` parts of it one after the other."""
    if parts == 1:
        return encode(rows)
    return torch.cat([encode(part) for part in rows.chunk(parts)])
