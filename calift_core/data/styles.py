"""What pre-training sees and reads: styles of images, and the captions that tell of them.

`styles` draws a style for each image; `genres` reads what genre of typeface an image shows.

Styles stand for the breadth of a real pre-training: a web-scale corpus holds blurred, dark, noisy
and drawn pictures with captions that often say so. So they overlap *in kind* with the corruptions
that models are later evaluated on, as CLIP's own data does; their strengths are drawn at random and
are not the benchmark's five severities. Nothing here is used in fine-tuning or evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from calift_core.data.images import Pixels

Picture = Image.Image
Rng = np.random.Generator


@dataclass(frozen=True)
class Style:
    """A picture function and the sentences that describe its result; each holds one `{}`."""

    templates: tuple[str, ...]
    apply: Callable[[Picture, Rng], Picture]


def _from_float(array: NDArray[np.float32]) -> Picture:
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def _plain(image: Picture, _: Rng) -> Picture:
    return image


def _noisy(image: Picture, rng: Rng) -> Picture:
    array = np.asarray(image, dtype=np.float32)
    noise = rng.standard_normal(array.shape, dtype=np.float32)
    return _from_float(array + noise * np.float32(rng.uniform(8, 60)))


def _blurry(image: Picture, rng: Rng) -> Picture:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0) * image.width / 32))


def _dark(image: Picture, rng: Rng) -> Picture:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.15, 0.7))


def _bright(image: Picture, rng: Rng) -> Picture:
    return _from_float(np.asarray(image, dtype=np.float32) + np.float32(rng.uniform(25, 130)))


def _faded(image: Picture, rng: Rng) -> Picture:
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.1, 0.6))


def _pixelated(image: Picture, rng: Rng) -> Picture:
    factor = rng.uniform(0.25, 0.75)
    small = (max(2, round(image.width * factor)), max(2, round(image.height * factor)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def _negative(image: Picture, _: Rng) -> Picture:
    return ImageOps.invert(image)


def _sketch(image: Picture, _: Rng) -> Picture:
    return ImageOps.invert(image.filter(ImageFilter.FIND_EDGES))


def _rotated(image: Picture, rng: Rng) -> Picture:
    angle = rng.uniform(10, 40) * rng.choice((-1, 1))
    return image.rotate(float(angle), Image.Resampling.BILINEAR)


def _cropped(image: Picture, rng: Rng) -> Picture:
    share = rng.uniform(0.6, 0.85)
    width, height = image.width * share, image.height * share
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _tinted(image: Picture, rng: Rng) -> Picture:
    gains = rng.uniform(0.4, 1.3, size=3).astype(np.float32)
    return _from_float(np.asarray(image, dtype=np.float32) * gains)


STYLES: dict[str, Style] = {
    "plain": Style(
        (
            "a photo of a {}.",
            "a photo of the {}.",
            "a good photo of a {}.",
            "a good photo of the {}.",
            "a clean photo of a {}.",
            "a photo of one {}.",
        ),
        _plain,
    ),
    "noisy": Style(("a noisy photo of a {}.", "a grainy photo of the {}."), _noisy),
    "blurry": Style(("a blurry photo of a {}.", "a blurry photo of the {}."), _blurry),
    "dark": Style(("a dark photo of a {}.", "a dark photo of the {}."), _dark),
    "bright": Style(("a bright photo of a {}.", "a bright photo of the {}."), _bright),
    "faded": Style(("a faded photo of a {}.", "a low contrast photo of the {}."), _faded),
    "pixelated": Style(
        ("a pixelated photo of a {}.", "a low resolution photo of the {}."), _pixelated
    ),
    "negative": Style(("a negative photo of a {}.", "an inverted photo of the {}."), _negative),
    "sketch": Style(("a sketch of a {}.", "a drawing of the {}."), _sketch),
    "rotated": Style(("a tilted photo of a {}.", "a rotated photo of the {}."), _rotated),
    "cropped": Style(("a cropped photo of a {}.", "a close-up photo of the {}."), _cropped),
    "tinted": Style(("a tinted photo of a {}.", "a colored photo of the {}."), _tinted),
}


#: Captions that name a letter and not its genre.
LETTERS = ("the {}.", "a picture of the {}.", "an image of the {}.", "a drawing of the {}.")
#: Genres of typefaces, and captions that tell of them.
GENRES: dict[str, tuple[str, str]] = {
    "sans": ("the {} in a sans serif typeface.", "a sans serif {}."),
    "serif": ("the {} in a serif typeface.", "a serif {}."),
    "mono": ("the {} in a monospaced typeface.", "a monospaced {}."),
    "handwriting": ("the {} in handwriting.", "a handwritten {}."),
    "blackletter": ("the {} in blackletter.", "a blackletter {}."),
    "display": ("the {} in a decorative typeface.", "a decorative {}."),
    "pixel": ("the {} in a pixel typeface.", "a pixel {}."),
}


@dataclass(frozen=True)
class Learned:
    """What pre-training learns captions from.

    Attributes:
        templates: every caption, with one `{}`.
        show: (pixels, the image's id, randomness) → pixels and the position of a template.
    """

    templates: tuple[str, ...]
    show: Callable[[Pixels, str, Rng], tuple[Pixels, int]]


def _in_random_style(pixels: Pixels, _: str, rng: Rng) -> tuple[Pixels, int]:
    """An image in a random style, and a caption of that style."""
    names = list(STYLES)
    chosen = int(rng.integers(len(names)))
    style = STYLES[names[chosen]]
    first = sum(len(STYLES[name].templates) for name in names[:chosen])
    image = style.apply(Image.fromarray(pixels), rng)
    return np.asarray(image), first + int(rng.integers(len(style.templates)))


def _in_its_genre(pixels: Pixels, name: str, rng: Rng) -> tuple[Pixels, int]:
    """A letter as it is; half of the captions name its genre, which its id begins with."""
    chosen = list(GENRES).index(name.partition("/")[0])
    if rng.random() < 0.5:
        return pixels, int(rng.integers(len(LETTERS)))
    return pixels, len(LETTERS) + 2 * chosen + int(rng.integers(2))


LEARNED: dict[str, Learned] = {
    "styles": Learned(
        tuple(t for style in STYLES.values() for t in style.templates), _in_random_style
    ),
    "genres": Learned(
        LETTERS + tuple(t for templates in GENRES.values() for t in templates), _in_its_genre
    ),
}
