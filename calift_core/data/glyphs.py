"""Letters and digits as stored coverage: half a byte a pixel, coloured when an image is asked for.

A drawn letter is its coverage, one ink, one ground and a little noise. The first compresses well
and the others are a few bytes, so a file of these is a fifteenth of the images that it stands for.
All of it is integer arithmetic, and the noise comes from the raw stream of a bit generator, which
NumPy keeps as it is: the same file gives the same pixels everywhere. Torch-free.
"""

import hashlib
import io
import json
import lzma
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import Pixels
from calift_core.errors import DataError, reason_of

#: Pixels of a side.
SIDE = 32
#: The largest coverage.
FULL = 15


@dataclass(frozen=True)
class Glyphs:
    """N drawn letters.

    Attributes:
        coverage: (N, 512) uint8, two pixels of 0 … 15 in a byte, the left one in the high half.
        ink: (N, 3) uint8, RGB.
        ground: (N, 3) uint8, RGB.
        noise: (N,) uint8, the largest deviation of a pixel's channel.
        labels: (N,) uint8.
        fonts: (N,) uint16, positions in the file's list of fonts.
        draws: (N,) uint8: the same letter of the same font is drawn several times.
        about: what the file says of itself, its fonts among it.
        key: SHA-256 (hex) of the file.
    """

    coverage: NDArray[np.uint8]
    ink: NDArray[np.uint8]
    ground: NDArray[np.uint8]
    noise: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    fonts: NDArray[np.uint16]
    draws: NDArray[np.uint8]
    about: dict[str, Any]
    key: str

    def __len__(self) -> int:
        """Number of letters."""
        return len(self.labels)

    def image(self, index: int) -> Pixels:
        """(32, 32, 3) uint8: ink over ground by coverage, and noise."""
        packed = self.coverage[index]
        cover = np.empty(SIDE * SIDE, np.int32)
        cover[0::2], cover[1::2] = packed >> 4, packed & 15
        ink, ground = self.ink[index].astype(np.int32), self.ground[index].astype(np.int32)
        flat = (cover[:, None] * ink + (FULL - cover)[:, None] * ground) // FULL  # (1024, 3)
        flat += self._noise(index)
        return np.asarray(np.clip(flat, 0, 255), np.uint8).reshape(SIDE, SIDE, 3)

    def _noise(self, index: int) -> NDArray[np.int32]:
        """(1024, 3): sums of two uniform bytes, scaled to at most the letter's own deviation."""
        where = (int(self.fonts[index]) * 256 + int(self.labels[index])) * 256
        raw = np.random.PCG64(where + int(self.draws[index])).random_raw(SIDE * SIDE * 6 // 8)
        pairs = raw.astype("<u8").view(np.uint8).reshape(-1, 3, 2).astype(np.int32)
        return np.asarray((pairs.sum(axis=2) - 255) * int(self.noise[index]) // 255, np.int32)

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of the file and of which of its letters are taken."""
        digest = hashlib.sha256(self.key.encode())
        digest.update(np.asarray(indices, dtype="<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def parts(self) -> NDArray[np.str_]:
        """(N,) the part or the shift that each letter's font belongs to."""
        return np.array([font["part"] for font in self.about["fonts"]])[self.fonts]


ARRAYS = ("coverage", "ink", "ground", "noise", "labels", "fonts", "draws")


def pack(glyphs: dict[str, NDArray[Any]], about: dict[str, Any]) -> bytes:
    """A file's bytes; equal letters give equal bytes.

    Args:
        glyphs: the arrays of `Glyphs` by name.
    """
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8)
    arrays: dict[str, Any] = {name: glyphs[name] for name in ARRAYS}
    np.savez(buffer, about=text, **arrays)
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def read_glyphs(path: Path) -> Glyphs:
    """The letters in a file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        raw = path.read_bytes()
        with np.load(io.BytesIO(lzma.decompress(raw)), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ARRAYS}
            about = json.loads(stored["about"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{str(path)!r} is no file of drawn letters: {reason_of(error)}") from None
    n = len(arrays["labels"])
    wrong = [name for name, array in arrays.items() if len(array) != n]
    if wrong or arrays["coverage"].shape != (n, SIDE * SIDE // 2):
        raise DataError(
            f"{str(path)!r} must hold {n} of each array and coverage ({n}, {SIDE * SIDE // 2}), "
            f"got coverage {arrays['coverage'].shape} and others of {wrong}"
        )
    return Glyphs(**arrays, about=about, key=hashlib.sha256(raw).hexdigest())
