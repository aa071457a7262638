"""Labelled images: the one shape in which every data set reaches training and evaluation.

An `ImageSet` gives pixels one image at a time, as `(H, W, 3)` uint8, so that a loader can decode in
worker processes and nothing is held that need not be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calift_core.data.listing import split_names, unit_hash
from calift_core.data.names import taken
from calift_core.errors import DataError

Pixels = NDArray[np.uint8]
#: Names that are one text while a set is hashed.
_HASHED_AT_ONCE = 65_536


class PixelSource(Protocol):
    """Pixels by position."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8."""

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """What the images at these positions hold: equal for copies, other for other pixels."""


@dataclass(frozen=True)
class MergedClasses:
    """Classes of a set that each stand for one or more of the suite's (ObjectNet).

    Attributes:
        groups: K groups of positions in the suite's class list; no position is in two of them.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ImageSet:
    """N labelled images of C classes.

    Attributes:
        source: where pixels come from.
        labels: (N,) int64, positions in the suite's class list.
        indices: (N,) positions in `source`.
        classes: positions of the suite's classes that this set has, or None for all. A set with
            fewer classes is evaluated on those logits only (as ImageNet-R and -A); one with
            merged classes on the largest logit of each group (the ObjectNet protocol). A label is
            then any member of its group.
        notes: sentences on what lies beside a shift's images and is left out.
    """

    name: str
    source: PixelSource
    ids: Sequence[str]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    classes: tuple[int, ...] | MergedClasses | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def columns(self) -> NDArray[np.int64] | None:
        """Which of the suite's C logits each of the set's K classes is read from, or None for all.

        (K, M): class k has the largest logit of row k, where shorter groups repeat a member.
        """
        if self.classes is None:
            return None
        if not isinstance(self.classes, MergedClasses):
            return np.array(self.classes, dtype=np.int64)[:, None]
        widest = max(map(len, self.classes.groups))
        rows = [group + group[:1] * (widest - len(group)) for group in self.classes.groups]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def own_labels(self) -> NDArray[np.int64]:
        """Labels (N,) among the set's own K classes.

        Raises:
            DataError: a label is of no class that the set has.
        """
        columns = self.columns
        if columns is None:
            return self.labels
        row_of = np.full(max(columns.max(), self.labels.max(initial=0)) + 1, -1, dtype=np.int64)
        row_of[columns] = np.arange(len(columns))[:, None]
        own = row_of[self.labels]
        if (own < 0).any():
            strange = sorted(set(self.labels[own < 0].tolist()))[:5]
            raise DataError(
                f"{self.name}: labels must be among the classes of the set, got {strange}"
            )
        return own

    def own_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the set's own K classes, given those of the suite's C."""
        if self.classes is None:
            return tuple(names)
        if isinstance(self.classes, MergedClasses):
            return self.classes.names
        return tuple(names[c] for c in self.classes)

    def image(self, index: int) -> Pixels:
        """Pixels of image `index`: (H, W, 3) uint8.

        Raises:
            UnreadableImageError: the file cannot be decoded.
        """
        return self.source.image(int(self.indices[index]))

    def take(self, positions: Sequence[int] | NDArray[np.integer[Any]], name: str) -> ImageSet:
        """The images at these positions, as a set of its own."""
        positions = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            name=name,
            ids=taken(self.ids, positions),
            labels=self.labels[positions],
            indices=self.indices[positions],
        )

    def limited(self, limit: int | None, name: str | None = None) -> ImageSet:
        """At most `limit` images: those whose ids hash lowest, so more images keep the fewer."""
        if limit is None or limit >= len(self):
            return self
        order = sorted(range(len(self)), key=lambda i: unit_hash("limit", self.ids[i]))
        return self.take(sorted(order[:limit]), name or self.name)

    def of_each_class(self, n: int, seed: int) -> ImageSet:
        """At most `n` images of each class, in order: those whose seeded ids hash lowest.

        So the images depend on ids and seed alone, and fewer of them are among more.
        """
        found: dict[int, list[tuple[float, int]]] = {}
        for position, label in enumerate(self.labels.tolist()):
            found.setdefault(label, []).append(
                (unit_hash(f"n_shot:{seed}", self.ids[position]), position)
            )
        chosen = [position for own in found.values() for _, position in sorted(own)[:n]]
        return self.take(sorted(chosen), self.name)

    @cached_property
    def sha256(self) -> str:
        """Hash (hex) of what the set holds: pixel source, ids and labels."""
        digest = hashlib.sha256(self.source.fingerprint(self.indices).encode())
        for start in range(0, len(self), _HASHED_AT_ONCE):
            names = "\n".join(self.ids[start : start + _HASHED_AT_ONCE])
            digest.update(("\n" * (start > 0) + names).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def split_by_hash(images: ImageSet, fractions: dict[str, float], rest: str) -> dict[str, ImageSet]:
    """Split a set by a hash of each image's id.

    An image's part depends on its id alone: adding or removing images moves no other. Parts are
    disjoint and cover the set.

    Args:
        fractions: part → share in [0, 1), in the order in which they are cut.
    """
    return {
        part: images.take(positions, part)
        for part, positions in split_names(images.ids, fractions, rest).items()
    }
