"""Pictures that are in several parts: equal ones, and near-copies by a perceptual hash. Torch-free.

The hash is a difference hash: whether each cell of a small grey copy of the picture is brighter
than its neighbour, 64 times to the right and 64 times downwards. Pictures whose 128 bits differ in
at most `NEAR_BITS` are called near-copies: the same picture at another size, quality or brightness,
and its mirror image, which is hashed as well. Other views of one scene are not found, nor are
copies of pictures too plain to tell (fewer than `PLAIN_BITS` bits set).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calift_core.data.images import ImageSet, Pixels
from calift_core.data.listing import PARTS
from calift_core.errors import UnreadableImageError

NEAR_BITS = 7
PLAIN_BITS = 16
_CELLS = 8
#: With `NEAR_BITS` bits flipped, one of this many pairs of bytes is whole: that finds them all.
_BANDS = NEAR_BITS + 1


@dataclass(frozen=True)
class SetHashes:
    """What was seen of one set.

    Attributes:
        digests: of their pixels.
        hashes: (n, 16) uint8, the perceptual hash of each.
        mirrored: (n, 16) uint8, the same of their mirror images.
        unreadable: a sentence for each image that cannot be decoded.
    """

    name: str
    ids: Sequence[str]
    digests: Sequence[bytes]
    hashes: NDArray[np.uint8]
    mirrored: NDArray[np.uint8]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Images of one set that another has too.

    Attributes:
        n: images of the set that could be read.
        exact: (its id, the other's id) where all pixels are equal.
        near: the same where the perceptual hashes nearly are and the pixels are not.
        alike: the same where only a model's features say so; see `calift_core.data.alike`.
    """

    name: str
    other: str
    n: int
    exact: tuple[tuple[str, str], ...]
    near: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str], ...] = ()

    @property
    def ids(self) -> set[str]:
        """The set's own images that the other has too."""
        return {mine for mine, _ in self.exact + self.near + self.alike}

    @property
    def share(self) -> float:
        """The most that these images can move the set's accuracy by, a fraction."""
        return len(self.ids) / self.n if self.n else 0.0

    @property
    def kinds(self) -> str:
        """How many are equal, nearly so, and alike by features."""
        by_features = f", {len(self.alike):,} by features" if self.alike else ""
        return f"({len(self.exact):,} equal, {len(self.near):,} nearly{by_features})"

    @property
    def sentence(self) -> str:
        """How many there are and what they can be worth, without a full stop."""
        return (
            f"{len(self.ids):,} of {self.n:,} {self.name} images are copies of {self.other} images "
            f"{self.kinds}: without them accuracy on {self.name} differs by at most "
            f"{100 * self.share:.1f} points"
        )


def perceptual_hash(pixels: Pixels) -> NDArray[np.uint8]:
    """(16,) uint8 of an image (H, W, 3) uint8."""
    grey = Image.fromarray(pixels).convert("L")

    def small(width: int, height: int) -> NDArray[np.int16]:
        return np.asarray(grey.resize((width, height), Image.Resampling.BOX), dtype=np.int16)

    right = np.diff(small(_CELLS + 1, _CELLS), axis=1) > 0
    down = np.diff(small(_CELLS, _CELLS + 1), axis=0) > 0
    return np.packbits(np.concatenate([right.ravel(), down.ravel()]))


def perceptual_hashes(images: ImageSet) -> SetHashes:
    """Decode every image of a set once; one that cannot be is kept as a sentence."""
    ids, digests, wrong = list[str](), list[bytes](), list[str]()
    hashes: list[NDArray[np.uint8]] = []
    mirrored: list[NDArray[np.uint8]] = []
    for position in range(len(images)):
        try:
            pixels = images.image(position)
        except UnreadableImageError as error:
            wrong.append(error.message)
            continue
        shape = np.array(pixels.shape, "<i8").tobytes()
        digests.append(hashlib.blake2b(shape + pixels.tobytes(), digest_size=16).digest())
        hashes.append(perceptual_hash(pixels))
        mirrored.append(perceptual_hash(np.ascontiguousarray(pixels[:, ::-1])))
        ids.append(images.ids[position])
    return SetHashes(images.name, ids, digests, _stacked(hashes), _stacked(mirrored), tuple(wrong))


def _stacked(hashes: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(hashes) if hashes else np.empty((0, 16), np.uint8)


def overlap(one: SetHashes, other: SetHashes) -> Overlap:
    """Which images of `one` are in `other` too; each is counted once."""
    there = dict(zip(other.digests, other.ids, strict=True))
    exact, near = list[tuple[str, str]](), list[tuple[str, str]]()
    nearest = dict(_near_pairs(one.mirrored, other.hashes))
    nearest |= dict(_near_pairs(one.hashes, other.hashes))
    for position, (image_id, digest) in enumerate(zip(one.ids, one.digests, strict=True)):
        if digest in there:
            exact.append((image_id, there[digest]))
        elif position in nearest:
            near.append((image_id, other.ids[nearest[position]]))
    return Overlap(one.name, other.name, len(one.ids), tuple(exact), tuple(near))


def between(seen: Mapping[str, SetHashes], shifts: Iterable[str] = ()) -> list[Overlap]:
    """Between any two parts, the one evaluated first; and of shifts with what is trained on.

    Later parts (`PARTS`) are evaluated on earlier ones.

    Args:
        seen: what was seen of each set, by name.
    """
    parts = [part for part in PARTS if part in seen]
    pairs = [(later, earlier) for earlier, later in combinations(parts, 2)]
    pairs += [(shift, "train") for shift in shifts if shift in seen and "train" in seen]
    return [overlap(seen[one], seen[other]) for one, other in pairs]


def near_copies(hashes: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of positions whose hashes (n, 16) are near; of few images, as it is quadratic in n."""
    distinctive = np.bitwise_count(hashes).sum(axis=1) >= PLAIN_BITS
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2, dtype=np.int64)
    near = np.triu(apart <= NEAR_BITS, k=1) & distinctive[:, None] & distinctive[None]
    return [(int(a), int(b)) for a, b in np.argwhere(near)]


def _near_pairs(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """(position in `one`, position of its nearest in `other`) where that is near enough."""
    width = one.shape[1] // _BANDS
    tables: list[dict[bytes, list[int]]] = []
    for band in range(_BANDS):
        table: dict[bytes, list[int]] = {}
        for position, bits in enumerate(other[:, band * width : (band + 1) * width]):
            table.setdefault(bits.tobytes(), []).append(position)
        tables.append(table)
    for position, bits in enumerate(one):
        if np.bitwise_count(bits).sum() < PLAIN_BITS:
            continue
        candidates = [
            at
            for band, table in enumerate(tables)
            for at in table.get(bits[band * width : (band + 1) * width].tobytes(), ())
        ]
        if candidates:
            apart = np.bitwise_count(other[candidates] ^ bits).sum(axis=1)
            best = int(apart.argmin())
            if apart[best] <= NEAR_BITS:
                yield position, candidates[best]
