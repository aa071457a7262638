"""What the corruptions are made of: checks, draws, blurs, zooms and resampling (numpy, scipy)."""

import functools
import math
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage, special

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_SMALL_SIDE = 64
MIN_SIDE = 8
_WIDE_SIGMA = 2.0
#: Added before a fraction is dropped, so that a value that rounding left at 99.9999 stays 100.
ALLOWANCE = 2.0**-10
_C = TypeVar("_C")
N = TypeVar("N", bound=np.generic)


def is_small(x: Pixels) -> bool:
    """Whether an (H, W, 3) image is of CIFAR's size, for which there are constants of its own."""
    return bool(max(x.shape[:2]) <= _SMALL_SIDE)


def at_severity(x: Pixels, severity: int, *, large: tuple[_C, ...], small: tuple[_C, ...]) -> _C:
    """The constant of this severity for the size of the image."""
    return (small if is_small(x) else large)[severity - 1]


def to_uint8(values: Floats) -> Pixels:
    """Clip to 0..255 and drop the fraction; may write to its argument."""
    values += np.float32(ALLOWANCE)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def planes_of(x: Pixels) -> Pixels:
    """The channels of an (H, W, C) image one after the other, (C, H, W)."""
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def draws_of(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Even numbers of 16 bits, by which tables of quantiles are read."""
    return rng.integers(0, 2**16, shape, dtype=np.uint16)


@functools.cache
def normal_of() -> Floats:
    """Quantiles of the standard normal distribution at (i + ½) / 2¹⁶, (65536,).

    Read at even random i they are normal draws but for steps of 2⁻¹⁶ in their distribution
    function and ends at ± 4.3.
    """
    quantiles: Floats = special.ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
    return quantiles


def gaussian(x: Floats, sigma: float) -> Floats:
    """Gaussian filter of the first two axes: cut at 4 σ, edges repeated."""
    if sigma >= _WIDE_SIGMA:
        return _gaussian_wide(x, sigma)
    out: Floats = ndimage.gaussian_filter(x, sigma, mode="nearest", truncate=4, axes=(0, 1))
    return out


def _gaussian_wide(x: Floats, sigma: float) -> Floats:
    """`gaussian` by the cosine transform of the padded image, whose cost does not depend on σ."""
    height, width = x.shape[:2]
    reach = int(4 * sigma + 0.5)
    rows, columns = (fft.next_fast_len(n + 2 * reach, real=True) for n in (height, width))
    pad = ((reach, rows - height - reach), (reach, columns - width - reach))
    planes = x.reshape(height, width, -1).transpose(2, 0, 1)
    spectrum = fft.dctn(np.pad(planes, ((0, 0), *pad), mode="edge"), axes=(1, 2), overwrite_x=True)
    spectrum *= _gaussian_response(rows, sigma, reach)[:, None]
    spectrum *= _gaussian_response(columns, sigma, reach)
    whole = fft.idctn(spectrum, axes=(1, 2), overwrite_x=True)
    inner = whole[:, reach : reach + height, reach : reach + width]
    out: Floats = inner.transpose(1, 2, 0).reshape(x.shape)
    return out


def gaussian_reflected(x: Floats, sigma: float) -> Floats:
    """Gaussian filter of the last two axes: cut at 3 σ, mirrored at the borders.

    σ may exceed the image. Mirroring about the border makes the signal even, so that the filter
    is a product under the cosine transform: exact, and its cost does not depend on σ.
    """
    reach = int(3 * sigma + 0.5)
    spectrum = fft.dctn(x, axes=(-2, -1))
    spectrum *= _gaussian_response(x.shape[-2], sigma, reach)[:, None]
    spectrum *= _gaussian_response(x.shape[-1], sigma, reach)
    out: Floats = fft.idctn(spectrum, axes=(-2, -1), overwrite_x=True)
    return out


@functools.lru_cache(maxsize=64)
def _gaussian_response(n: int, sigma: float, reach: int) -> Floats:
    """Factors of a Gaussian cut at `reach` under a cosine transform (DCT-II) of length n, (n,)."""
    taps = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    taps[1:] *= 2
    taps /= taps.sum()
    phase = np.pi * np.outer(np.arange(n), np.arange(reach + 1)) / n
    response: Floats = (np.cos(phase) * taps).sum(axis=1).astype(np.float32)
    return response


def correlate(
    x: Pixels, kernel: Floats, *, anchor: tuple[int, int], border: Literal["edge", "reflect"]
) -> Floats:
    """Σ_q kernel[q] x[p + q − anchor] for an (H, W, C) image, by the Fourier transform."""
    height, width, n_channels = x.shape
    rows, columns = kernel.shape
    pad = ((anchor[0], rows - 1 - anchor[0]), (anchor[1], columns - 1 - anchor[1]))
    shape = tuple(fft.next_fast_len(n, real=True) for n in (height + rows - 1, width + columns - 1))
    response = np.conj(fft.rfft2(kernel, s=shape))
    out = np.empty(x.shape, np.float32)
    for channel in range(n_channels):
        padded = np.pad(x[..., channel], pad, mode=border).astype(np.float32)
        spectrum = fft.rfft2(padded, s=shape)
        spectrum *= response
        out[..., channel] = fft.irfft2(spectrum, s=shape)[:height, :width]
    return out


def motion_filter(x: Pixels, radius: int, sigma: float, angle_degrees: float) -> Floats:
    """Trailing half-Gaussian of 2 radius + 1 pixels along a direction, edges repeated.

    ImageMagick's motion blur: weight exp(−i² / 2σ²) at the pixel nearest to i steps from p.
    """
    i = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (i / sigma) ** 2)
    angle = math.radians(angle_degrees)
    dy = np.ceil(i * math.sin(angle) - 0.5).astype(np.intp)
    dx = np.ceil(i * math.cos(angle) - 0.5).astype(np.intp)
    anchor = (-int(dy.min()), -int(dx.min()))
    kernel = np.zeros((np.ptp(dy) + 1, np.ptp(dx) + 1), np.float32)
    np.add.at(kernel, (dy + anchor[0], dx + anchor[1]), weights / weights.sum())
    return correlate(x, kernel, anchor=anchor, border="edge")


def zoomed_by(picture: Image.Image, factor: float) -> Image.Image:
    """The picture enlarged about its centre by linear interpolation, at its own size."""
    width, height = picture.size
    (left, right), (top, bottom) = zoom_span(width, factor), zoom_span(height, factor)
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def zoom_span(size: int, factor: float) -> tuple[float, float]:
    """Borders of the part of an axis that a zoom shows, in pixels.

    As published: the central ⌈size / factor⌉ pixels are enlarged so that first and last pixel
    centres stay, then the result is cut evenly to the size.
    """
    crop = math.ceil(size / factor)
    enlarged = round(crop * factor)
    step = (crop - 1) / (enlarged - 1)
    first = (size - crop) // 2 + (enlarged - size) // 2 * step
    start = first + (1 - step) / 2
    return start, start + size * step


def mirror(position: Floats, size: int) -> Floats:
    """Fold positions into 0..size − 1 by mirrors at the centres of the outer pixels."""
    period = np.float32(2 * (size - 1))
    folded: Floats = np.abs(position - period * np.rint(position / period))
    return folded


def reflect(position: Floats, size: int) -> Floats:
    """Fold positions into 0..size − 1 by mirrors at the outer borders of the outer pixels."""
    half, period = np.float32(0.5), np.float32(2 * size)
    shifted = position + half
    folded: Floats = np.abs(shifted - period * np.rint(shifted / period)) - half
    return np.clip(folded, 0, size - 1, out=folded)


def sample(x: Pixels | Floats, rows: Floats, columns: Floats) -> Floats:
    """Linear interpolation of channels (C, H, W) at positions (H, W) that lie within the image."""
    n_channels, height, width = x.shape
    row = np.minimum(np.floor(rows), np.float32(height - 2))
    column = np.minimum(np.floor(columns), np.float32(width - 2))
    down, right = rows - row, columns - column
    upper_left = row.astype(np.intp) * width + column.astype(np.intp)
    upper_right, lower_left = upper_left + 1, upper_left + width
    lower_right = upper_right + width
    out = np.empty((n_channels, *upper_left.shape), np.float32)
    levels = x.astype(np.float32, copy=False).reshape(n_channels, -1)
    for level, result in zip(levels, out, strict=True):
        upper, lower = level.take(upper_left), level.take(lower_left)
        upper += right * (level.take(upper_right) - upper)
        lower += right * (level.take(lower_right) - lower)
        lower -= upper
        lower *= down
        np.add(upper, lower, out=result)
    return out
