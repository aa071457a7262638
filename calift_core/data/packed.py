"""Encoded images inside larger files: zips, tars, Arrow tables. Torch-free."""

import io
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calift_core.data.decode import decode, open_image
from calift_core.data.images import Pixels
from calift_core.data.sources import bytes_hashed, cached_key, key_of_image, key_of_set


class PackedSource(ABC):
    """An `EncodedSource` whose images are read by place; subclasses are frozen dataclasses."""

    side: Any
    border: Any

    @abstractmethod
    def _name(self, index: int) -> str:
        """What errors call an image."""

    @abstractmethod
    def _size(self, index: int) -> int: ...

    @abstractmethod
    def _bytes(self, index: int) -> bytes:
        """Raises UnreadableImageError."""

    @abstractmethod
    def _state(self, indices: NDArray[np.int64]) -> str:
        """Changes when the files or the places of these images do."""

    def _key(self, index: int) -> bytes:
        data = self._bytes(index)
        return key_of_image(len(data), lambda start, n: data[start : start + n])

    def opened(self, index: int) -> Image.Image:
        """An image whose header has been read; see `EncodedSource`."""
        return open_image(self._name(index), io.BytesIO(self._bytes(index)))

    def image(self, index: int) -> Pixels:
        """Decode one image to (H, W, 3) uint8, upright by its EXIF orientation.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        return decode(self._name(index), io.BytesIO(self._bytes(index)), side=self.side)

    def at_side(self, side: int) -> Self:
        """The same images, decoded for this side."""
        return replace(self, side=side)  # type: ignore[type-var]

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of what the images hold: the same as of files with these bytes."""
        positions = indices.tolist()
        to_read = sum(bytes_hashed(self._size(i)) for i in positions)
        return cached_key(self._state(indices), to_read, lambda: key_of_set(positions, self._key))
