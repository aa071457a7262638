"""How a model's images become its input: one value, stored with every checkpoint.

The geometry is open_clip's own: the resizing and cropping of `open_clip.image_transform_v2` for
evaluation. Pixels stay bytes until they are on the model's device, which is a quarter of the
traffic; scaling and normalising them there gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calift_core.errors import ModelError, UnreadableImageError

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
Pixels = NDArray[np.uint8]

#: OpenAI's mean and deviation, bicubic, shorter side: what open_clip takes where nothing is said.
DEFAULT_MEAN = (0.48145466, 0.4578275, 0.40821073)
DEFAULT_STD = (0.26862954, 0.26130258, 0.27577711)

#: Images that would be larger than this once resized are cropped first.
_MOST_PIXELS = 25_000_000

_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before a model sees it.

    Attributes:
        size: side S of the square input in pixels.
        mean: per channel, of pixels in [0, 1].
        resize_mode: for evaluation. `shortest`: the shorter side becomes S, then the central
            square; `longest`: the longer side becomes S, the rest is filled; `squash`: both do.
        fill_color: grey level of what `longest` fills.
    """

    size: int
    mean: tuple[float, ...] = DEFAULT_MEAN
    std: tuple[float, ...] = DEFAULT_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0
    #: open_clip's transform, made here so that a loader process that is spawned receives it with
    #: the rest and need not import open_clip.
    _fitted: Callable[[Image.Image], Image.Image] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fitted", _geometry(self))

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Preprocess:
        """Read one from open_clip's `preprocess_cfg` or from what `described` gave.

        Raises:
            ModelError: a value is not one that open_clip has.
        """
        size = described.get("size", 224)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(set(sides)) != 1 or not _is_whole(sides[0]) or sides[0] < 1:
            raise ModelError(f"the input of a model must be square, got a size of {size!r}")
        if described.get("mode", "RGB") != "RGB":
            raise ModelError(f"images must be RGB, got the mode {described['mode']!r}")
        interpolation = described.get("interpolation") or "bicubic"
        if interpolation == "random":  # of the training; evaluations take bicubic
            interpolation = "bicubic"
        resize_mode = described.get("resize_mode") or "shortest"
        for name, value, known in (
            ("interpolation", interpolation, get_args(Interpolation)),
            ("resize_mode", resize_mode, get_args(ResizeMode)),
        ):
            if value not in known:
                raise ModelError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        fill = described.get("fill_color", 0)
        if not _is_whole(fill) or not 0 <= fill <= 255:
            raise ModelError(f"fill_color must be a grey level in 0 … 255, got {fill!r}")
        std = _channels("std", described.get("std") or DEFAULT_STD)
        if min(std) <= 0:
            raise ModelError(f"std must be above 0, got {std}")
        return cls(
            int(sides[0]),
            _channels("mean", DEFAULT_MEAN if (m := described.get("mean")) is None else m),
            std,
            cast(Interpolation, interpolation),
            cast(ResizeMode, resize_mode),
            fill,
        )

    def described(self) -> dict[str, Any]:
        """As JSON: the keys of open_clip's `PreprocessCfg`."""
        return {
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill_color,
        }

    @property
    def geometry(self) -> str:
        """What decides the pixels that `fit` gives, as text."""
        return f"{self.size}:{self.interpolation}:{self.resize_mode}:{self.fill_color}"

    @property
    def resample(self) -> Image.Resampling:
        """The interpolation as Pillow names it; it smooths before it shrinks."""
        return _RESAMPLE[self.interpolation]

    def fit(self, pixels: Pixels) -> Pixels:
        """An image as an evaluation sees it, by open_clip's own transform.

        Args:
            pixels: (H, W, 3) uint8.

        Returns:
            (S, S, 3) uint8.

        Raises:
            UnreadableImageError: the image is so thin that none of it is left.
        """
        height, width = pixels.shape[:2]
        if height == width == self.size:
            return pixels
        short, long = sorted((height, width))
        image = Image.fromarray(pixels)
        if self.resize_mode == "shortest" and self.size**2 * long > _MOST_PIXELS * short:
            return np.asarray(self._centre(image))
        if self.resize_mode == "longest" and round(self.size * short / long) < 1:
            raise UnreadableImageError(
                f"an image of {width} × {height} pixels has nothing left when its longer side "
                f"becomes {self.size} (resize_mode longest)"
            )
        return np.asarray(self._fitted(image))

    def _centre(self, image: Image.Image) -> Image.Image:
        """What `shortest` keeps, resized alone: whole, a thin image would fill the memory."""
        horizontal = image.width > image.height
        long = max(image.size)
        resized = int(self.size * long / min(image.size))
        first = round((resized - self.size) / 2)
        low, high = first * long / resized, (first + self.size) * long / resized
        box = (low, 0, high, image.height) if horizontal else (0, low, image.width, high)
        return image.resize((self.size, self.size), self.resample, box=box)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _channels(name: str, value: Any) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ModelError(f"{name} must be a number for each of 3 channels, got {value!r}")
    return tuple(float(v) for v in values)


def _geometry(preprocess: Preprocess) -> Callable[[Image.Image], Image.Image]:
    """What open_clip does to an RGB image before it makes a tensor of it."""
    from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, Normalize

    whole = image_transform_v2(PreprocessCfg(**preprocess.described()), is_train=False)
    *geometry, to_tensor, normalise = whole.transforms
    assert isinstance(to_tensor, MaybeToTensor)
    assert isinstance(normalise, Normalize)
    # The images are RGB already, and the class that says so would have to be imported.
    chosen = Compose([t for t in geometry if type(t).__name__ != "MaybeConvertMode"])
    return cast(Callable[[Image.Image], Image.Image], chosen)
