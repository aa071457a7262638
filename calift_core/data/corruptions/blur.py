"""Blur: Gaussian, defocus, glass, motion, zoom."""

import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from calift_core.data.corruptions.filters import (
    Floats,
    Pixels,
    at_severity,
    correlate,
    gaussian,
    motion_filter,
    to_uint8,
    zoom_span,
)

# --- blur ------------------------------------------------------------------------------------


def gaussian_blur(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """Gaussian of σ pixels, cut at 4 σ, edge pixels repeated outwards."""
    sigma = at_severity(
        x, severity, large=(1.0, 2.0, 3.0, 4.0, 6.0), small=(0.4, 0.6, 0.7, 0.8, 1.0)
    )
    return gaussian(x.astype(np.float32), sigma)


def defocus_blur(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """A disk of the given radius in pixels, its rim softened by a Gaussian of the given σ."""
    radius, rim_sigma = at_severity(
        x,
        severity,
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    )
    kernel = _disk(radius, rim_sigma)
    reach = kernel.shape[0] // 2
    return correlate(x, kernel, anchor=(reach, reach), border="reflect")


@functools.lru_cache(maxsize=10)
def _disk(radius: float, rim_sigma: float) -> Floats:
    """The (2 r + 1)² kernel of a defocused lens.

    As published, the rim is softened inside a window that radii 8 and 10 fill to the border, with
    the window mirrored there: those two kernels sum to slightly more than one.
    """
    half, reach = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    axis = np.arange(-half, half + 1)
    disk = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / rim_sigma) ** 2)
    taps /= taps.sum()
    for dimension in (0, 1):
        disk = ndimage.correlate1d(disk, taps, axis=dimension, mode="mirror")
    used = int(np.abs(axis[disk.any(axis=0)]).max())
    return disk[half - used : half + used + 1, half - used : half + used + 1].astype(np.float32)


def glass_blur(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Blur, move pixels about within a few pixels, blur again: frosted glass.

    The published scan walks from the last pixel to the first and gives each the value that a
    random neighbour holds at that moment (the swap it writes down acts on views, so that it
    copies). A neighbour later in the image has been visited before: its value is its own source's.
    All sources are resolved together by following these references with doubling.
    """
    sigma, reach, n_scans = at_severity(
        x,
        severity,
        large=((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    )
    height, width = x.shape[:2]
    blurred = to_uint8(gaussian(x.astype(np.float32), sigma)).reshape(-1, 3)
    origin = np.arange(height * width)
    for _ in range(n_scans):
        steps = rng.integers(-reach, reach, (2, height, width), dtype=np.int8)
        origin = origin[_scan_sources(steps, reach)]
    shuffled = blurred.take(origin, axis=0).reshape(x.shape)
    return gaussian(shuffled.astype(np.float32), sigma)


def _scan_sources(steps: npt.NDArray[np.int8], reach: int) -> npt.NDArray[np.intp]:
    """Flat index of the pixel whose value each pixel holds after one scan, (H · W,).

    `steps` (2, H, W) are the row and column offsets of the neighbour each pixel copies; pixels
    closer to the border than the reach keep their value.
    """
    _, height, width = steps.shape
    index = np.arange(height * width)
    inner = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    source = index.copy()
    grid = source.reshape(height, width)
    grid[inner] += steps[0][inner] * np.intp(width) + steps[1][inner]
    settled = source <= index
    waiting = np.flatnonzero(~settled)
    while waiting.size:
        via = source[waiting]
        source[waiting], settled[waiting] = source[via], settled[via]
        waiting = waiting[~settled[waiting]]
    return source


def motion_blur(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Movement along a random direction within 45° of the horizontal."""
    radius, sigma = at_severity(
        x,
        severity,
        large=((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
        small=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    )
    return motion_filter(x, radius, sigma, rng.uniform(-45, 45)) + np.float32(0.5)


def zoom_blur(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """Mean of the image and of its zooms about the centre."""
    stop, step = at_severity(
        x,
        severity,
        large=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        small=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    )
    factors = np.arange(1, stop, step)
    height, width = x.shape[:2]
    # Four bytes to a pixel, so that one take of 32-bit words gathers a column. Weights of 8 bits
    # on levels of 8 bits fill 16, which numpy adds and multiplies several times faster than floats.
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = x
    words = pixels.view(np.uint32)[..., 0]
    total = pixels.reshape(height, -1).astype(np.uint32) << 8
    for factor in factors.tolist():
        row, down = _zoom_places(height, factor)
        column, right = _zoom_places(width, factor)
        band, row, right = words[row[0] : row[-1] + 2], row - row[0], right.repeat(4)
        wide = band.take(column, axis=1).view(np.uint8) * (256 - right)
        wide += band.take(column + 1, axis=1).view(np.uint8) * right
        wide += 128
        wide >>= 8
        zoomed = wide.take(row, axis=0) * (256 - down[:, None])
        zoomed += wide.take(row + 1, axis=0) * down[:, None]
        total += zoomed
    mean: Floats = total * np.float32(1 / (256 * (len(factors) + 1)))
    return mean.reshape(pixels.shape)[..., :3]


@functools.lru_cache(maxsize=256)
def _zoom_places(size: int, factor: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint16]]:
    """Where a zoom reads an axis: the pixel before and 256 times the share of the next, (size,)."""
    start, stop = zoom_span(size, factor)
    position = start - 0.5 + (np.arange(size) + 0.5) * ((stop - start) / size)
    before = np.clip(np.floor(position), 0, size - 2).astype(np.intp)
    return before, np.rint((position - before) * 256).astype(np.uint16)
