"""Captions that say less than the class, or something wrong, as captions of the web do.

Of a caption whose share is drawn, what stands in the place of the class name is a word for any
image of the suite (*vague*), the name of another class (*wrong*), or a name that several classes
share (*coarse*: "letter a" for A and a). A model pre-trained on such captions has something to
learn from fine-tuning. Torch-free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from calift_core.errors import SpecError


@dataclass(frozen=True)
class WeakCaptions:
    """What captions call an image of each class.

    Attributes:
        names: every name, those of the C classes first, in label order.
        coarse: (C,) position of each class's coarse name; its own where it has none.
        n_vague: the last so many names say nothing of the class.
        coarse_share: of the captions that are not vague.
        wrong_share: of the captions that are not vague.
    """

    names: tuple[str, ...]
    coarse: tuple[int, ...]
    n_vague: int
    vague_share: float
    coarse_share: float
    wrong_share: float

    @classmethod
    def make(
        cls,
        classes: Sequence[str],
        class_names: Sequence[str],
        coarse_names: Mapping[str, str],
        vague_names: Sequence[str],
        *,
        vague: float,
        coarse: float,
        wrong: float,
    ) -> Self:
        """The names, each once, and where each class finds its own.

        Args:
            coarse_names: class → a name that it shares with others; the others keep their own.
            coarse: share of those that are not vague.
            wrong: share of those that are not vague.

        Raises:
            SpecError: a class is not in the suite, or no class has a coarse name.
        """
        if unknown := sorted(set(coarse_names) - set(classes)):
            raise SpecError(
                f"coarse_names must name classes of the suite, {list(classes)[:20]}, got {unknown}"
            )
        if coarse > 0 and not coarse_names:
            raise SpecError(
                f"coarse_captions needs coarse_names of some classes, got {coarse:g} and none; "
                "the suite has none of its own"
            )
        shared = tuple(dict.fromkeys(coarse_names[c] for c in classes if c in coarse_names))
        first = {name: len(classes) + i for i, name in enumerate(shared)}
        positions = tuple(
            first[coarse_names[c]] if c in coarse_names else label
            for label, c in enumerate(classes)
        )
        names = (*class_names, *shared, *vague_names)
        return cls(names, positions, len(vague_names), vague, coarse, wrong)

    def name_of(self, label: int, rng: np.random.Generator) -> int:
        """Position of the name that one caption of an image has."""
        if rng.random() < self.vague_share:
            return len(self.names) - 1 - int(rng.integers(self.n_vague))
        if rng.random() < self.wrong_share:
            label = (label + 1 + int(rng.integers(len(self.coarse) - 1))) % len(self.coarse)
        return self.coarse[label] if rng.random() < self.coarse_share else label
