"""Gaussian-perturbed copies of images: what TS-P fits its temperature on (Tomani et al. 2021).

Noise is added to images of the model's input size: on larger ones the resizing would average it
away.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet, Pixels
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource
from calift_core.errors import SpecError

#: Changes when the pixels of any perturbed image change.
NOISE_VERSION = 2


@dataclass(frozen=True)
class NoisySource:
    """Another set's images, cropped to the model's input size, under Gaussian noise.

    Attributes:
        preprocess: of the model; its size and geometry.
        sigma: standard deviation, as a share of the range of a pixel.
        seed: of the noise. An image's noise at another σ is the same field, scaled.
    """

    base: ImageSet
    preprocess: Preprocess
    sigma: float
    seed: int

    def __len__(self) -> int:
        return len(self.base)

    def image(self, index: int) -> Pixels:
        """The noisy image (S, S, 3), clipped to the range of a pixel."""
        pixels = self.preprocess.fit(self.base.image(index))
        if self.sigma == 0:
            return pixels
        digest = hashlib.blake2b(self.base.ids[index].encode(), digest_size=8).digest()
        rng = np.random.default_rng((self.seed, int.from_bytes(digest, "big")))
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        noisy = pixels.astype(np.float32) + np.float32(255 * self.sigma) * noise
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of the base, the noise and the positions."""
        geometry = self.preprocess.geometry
        text = f"{self.base.sha256}:{geometry}:{self.sigma!r}:{self.seed}:{NOISE_VERSION}:"
        text += hashlib.sha256(indices.tobytes()).hexdigest()
        return hashlib.sha256(text.encode()).hexdigest()


def perturbed(
    base: ImageSet, *, preprocess: Preprocess, sigma: float, seed: int, name: str
) -> ImageSet:
    """`base` under Gaussian noise, lazily.

    Args:
        sigma: standard deviation as a share of the range of a pixel.

    Raises:
        SpecError: `sigma` is negative or not a number.
    """
    if not sigma >= 0:
        raise SpecError(f"sigma must be ≥ 0, got {sigma}")
    return _like(base, NoisySource(base, preprocess, sigma, seed), name)


def shrunk(images: ImageSet, preprocess: Preprocess) -> ImageSet:
    """The same set in memory, resized and cropped to the model's input size."""
    array = np.stack([preprocess.fit(images.image(i)) for i in range(len(images))])
    key = f"{images.sha256}:{preprocess.geometry}"
    return _like(images, ArraySource(array, key), images.name)


def _like(images: ImageSet, source: NoisySource | ArraySource, name: str) -> ImageSet:
    return replace(images, name=name, source=source, indices=np.arange(len(images), dtype=np.int64))
