"""Images under a corruption, computed when they are asked for."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calift_core.data.corruptions import corrupt, image_seed
from calift_core.data.images import ImageSet, Pixels


@dataclass(frozen=True)
class CorruptedSource:
    """Another source's images under one corruption, computed when asked for.

    Attributes:
        severity: 1 to 5.
        copies: how many corrupted sets of these images are asked for together.
    """

    base: ImageSet
    name: str
    severity: int
    seed: int
    copies: int = 1

    def __len__(self) -> int:
        return len(self.base)

    def image(self, index: int) -> Pixels:
        """The corrupted image; the same bytes whatever the order and number of workers."""
        seed = image_seed(self.seed, self.base.ids[index], self.name, self.severity)
        return corrupt(self.base.image(index), self.name, self.severity, seed=seed)

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of the base and the corruption."""
        text = f"{self.base.sha256}:{self.name}:{self.severity}:{self.seed}:{CORRUPTION_VERSION}"
        return hashlib.sha256(text.encode()).hexdigest()


#: Changes when the pixels of any corruption change, so that cached ones are made anew.
CORRUPTION_VERSION = 2


def corrupted(base: ImageSet, name: str, severity: int, *, seed: int, copies: int = 1) -> ImageSet:
    """`base` under a corruption, lazily; one of so many that are asked for together."""
    return ImageSet(
        name=f"{name}/{severity}",
        source=CorruptedSource(base, name, severity, seed, copies),
        ids=base.ids,
        labels=base.labels,
        indices=np.arange(len(base), dtype=np.int64),
        classes=base.classes,
    )
