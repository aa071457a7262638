"""The image corruptions of ImageNet-C as pure, seeded functions (numpy, scipy, Pillow; no torch).

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (arXiv:1903.12261), section 3 and appendix B: 15 corruptions that make up
the benchmark and 4 extra ones, each at severities 1 to 5. Images whose longer side is at most
64 pixels take the constants published for CIFAR-10-C, all others those for 224-pixel ImageNet-C.
Constants in pixels stay in pixels at every size; those of the elastic transform, published as
multiples of the image size, follow the shorter side.

`corrupt` is the way in. Its result depends on (image, name, severity, seed) and on nothing else;
`image_seed` makes a seed per image that does not depend on the order of visiting.
The published generator truncates to uint8 where numpy writes the image; so does this module.

Differs from the published generator (`docs/corruptions.md` says by how much):

- every random draw comes from the seed of the image, never from global state; draws have the
  published distributions, read from tables of 2¹⁶ quantiles, but are other draws;
- any size and aspect ratio: zooms are about the centre of both axes, the fractal and the frost
  cover any size, the affine map of `elastic_transform` takes (column, row) for what it is;
- `glass_blur` gathers all copies of a scan at once (same result, see there);
- `frost` uses five procedural textures in the tones of the published photographs, which are not
  shipped here;
- `motion_blur` and `snow` follow ImageMagick's trailing half-Gaussian without ImageMagick;
- `spatter` measures exact Euclidean distances and clips where the published code wraps over 255;
- `zoom_blur` interpolates with weights of 8 bits and rounds rows to levels, which moves a result
  by at most one level.

Given the same random draws, the published recipe and these agree to one level of 255, but for
`frost` (its texture), the water of `spatter` (OpenCV's distances are approximate) and `shot_noise`,
`impulse_noise` and `glass_blur`, which take their draws in another form.
"""

import hashlib
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calift_core.data.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from calift_core.data.corruptions.digital import (
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from calift_core.data.corruptions.filters import MIN_SIDE, Floats, Pixels, to_uint8
from calift_core.data.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from calift_core.data.corruptions.weather import brightness, fog, frost, snow, spatter
from calift_core.errors import DataError, SpecError, UnknownNameError

SuiteFamily = Literal["noise", "blur", "weather", "digital"]


@dataclass(frozen=True)
class Corruption:
    """One corruption: its place in the benchmark and the function that makes it.

    `function(pixels (H, W, 3) uint8, severity 1..5, generator)` returns (H, W, 3), either uint8 or
    float values on the scale 0..255 that `corrupt` clips and truncates. `extra` marks the four
    that the benchmark's mean leaves out; `stochastic` those whose result depends on the seed.
    """

    name: str
    family: SuiteFamily
    extra: bool
    function: Callable[[Pixels, int, np.random.Generator], Pixels | Floats]
    stochastic: bool


def corrupt(image: Pixels, name: str, severity: int, *, seed: int) -> Pixels:
    """Corrupt one image.

    Args:
        image: (H, W, 3) uint8 RGB, both sides at least 8 pixels; left unchanged.
        name: a key of `CORRUPTIONS`.
        severity: 1 (mild) to 5 (strong).
        seed: non-negative; see `image_seed`. Deterministic corruptions ignore it.

    Returns:
        A new (H, W, 3) uint8 array, the same bytes for the same arguments in any process.

    Raises:
        UnknownNameError: no corruption of this name.
        SpecError: severity outside 1..5 or a negative seed.
        DataError: the image has another dtype or shape.
    """
    corruption = CORRUPTIONS.get(name)
    if corruption is None:
        raise UnknownNameError("corruption", name, CORRUPTIONS)
    level = _checked_severity(severity)
    if seed < 0:
        raise SpecError(f"seed must be ≥ 0, got {seed}")
    pixels = _checked_image(image)
    result = corruption.function(pixels, level, np.random.Generator(np.random.PCG64(seed)))
    if result.dtype == np.uint8:
        return result.astype(np.uint8, copy=False)
    levels = to_uint8(result.astype(np.float32, copy=False))
    if levels.flags.c_contiguous:
        return levels
    return np.stack([levels[..., channel] for channel in range(3)], axis=2)


def image_seed(global_seed: int, image_id: str, name: str, severity: int) -> int:
    """Seed of one (image, corruption, severity) under a run's seed: 63 bits of a BLAKE2b hash.

    Independent of the order in which images are visited and of the process that visits them;
    63 bits fit a signed 64-bit column.
    """
    key = json.dumps([int(global_seed), image_id, name, int(severity)]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("gaussian_noise", "noise", False, gaussian_noise, True),
    "shot_noise": Corruption("shot_noise", "noise", False, shot_noise, True),
    "impulse_noise": Corruption("impulse_noise", "noise", False, impulse_noise, True),
    "defocus_blur": Corruption("defocus_blur", "blur", False, defocus_blur, False),
    "glass_blur": Corruption("glass_blur", "blur", False, glass_blur, True),
    "motion_blur": Corruption("motion_blur", "blur", False, motion_blur, True),
    "zoom_blur": Corruption("zoom_blur", "blur", False, zoom_blur, False),
    "snow": Corruption("snow", "weather", False, snow, True),
    "frost": Corruption("frost", "weather", False, frost, True),
    "fog": Corruption("fog", "weather", False, fog, True),
    "brightness": Corruption("brightness", "weather", False, brightness, False),
    "contrast": Corruption("contrast", "digital", False, contrast, False),
    "elastic_transform": Corruption("elastic_transform", "digital", False, elastic_transform, True),
    "pixelate": Corruption("pixelate", "digital", False, pixelate, False),
    "jpeg_compression": Corruption("jpeg_compression", "digital", False, jpeg_compression, False),
    "speckle_noise": Corruption("speckle_noise", "noise", True, speckle_noise, True),
    "gaussian_blur": Corruption("gaussian_blur", "blur", True, gaussian_blur, False),
    "spatter": Corruption("spatter", "weather", True, spatter, True),
    "saturate": Corruption("saturate", "digital", True, saturate, False),
}


# --- shared ----------------------------------------------------------------------------------


def _checked_severity(severity: int) -> int:
    try:
        level = operator.index(severity)
    except TypeError:
        level = 0
    if isinstance(severity, bool) or not 1 <= level <= 5:
        raise SpecError(f"severity must be an integer from 1 to 5, got {severity!r}")
    return level


def _checked_image(image: Pixels) -> Pixels:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"an image to corrupt must be a uint8 array, got {got}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"an image to corrupt must have shape (H, W, 3), got {image.shape}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise DataError(
            f"an image to corrupt must have sides of at least {MIN_SIDE} pixels, "
            f"got {image.shape[0]} × {image.shape[1]}"
        )
    return np.ascontiguousarray(image)
