"""Random resized crops."""

import math

import numpy as np
from PIL import Image

from calift_core.data.images import Pixels
from calift_core.data.preprocess import Preprocess


def random_resized_crop(
    pixels: Pixels,
    preprocess: Preprocess,
    *,
    rng: np.random.Generator,
    scale: tuple[float, float],
    flip: bool = False,
) -> Pixels:
    """A random part of the image, resized to the model's input by its own interpolation.

    Where no part is chosen (`scale` of 1) or none fits in ten trials, it is the image as an
    evaluation sees it.

    Args:
        pixels: (H, W, 3) uint8.
        scale: range of the part's share of the area.

    Returns:
        (S, S, 3) uint8.
    """
    height, width = pixels.shape[:2]
    if scale == (1.0, 1.0):
        out = preprocess.fit(pixels)
    else:
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
            w, h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
            if w <= width and h <= height:
                left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                out = _resize(pixels, (left, top, left + w, top + h), preprocess)
                break
        else:
            out = preprocess.fit(pixels)
    if flip and rng.random() < 0.5:
        out = np.ascontiguousarray(out[:, ::-1])
    return out


def _resize(
    pixels: Pixels, box: tuple[float, float, float, float], preprocess: Preprocess
) -> Pixels:
    side = (preprocess.size, preprocess.size)
    return np.asarray(Image.fromarray(pixels).resize(side, preprocess.resample, box=box))


def smallest_side(preprocess: Preprocess, scale: tuple[float, float]) -> int:
    """Pixels that a side of an image needs for its smallest random part to fill the input."""
    return math.ceil(preprocess.size / math.sqrt(scale[0] * 3 / 4))
