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

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage, special

from calift_core.errors import DataError, SpecError, UnknownNameError

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Family = Literal["noise", "blur", "weather", "digital"]

_SMALL_SIDE = 64
_MIN_SIDE = 8
_WIDE_SIGMA = 2.0
#: Added before a fraction is dropped, so that a value that rounding left at 99.9999 stays 100.
_ALLOWANCE = 2.0**-10
_C = TypeVar("_C")
_N = TypeVar("_N", bound=np.generic)


@dataclass(frozen=True)
class Corruption:
    """One corruption: its place in the benchmark and the function that makes it.

    `function(pixels (H, W, 3) uint8, severity 1..5, generator)` returns (H, W, 3), either uint8 or
    float values on the scale 0..255 that `corrupt` clips and truncates. `extra` marks the four
    that the benchmark's mean leaves out; `stochastic` those whose result depends on the seed.
    """

    name: str
    family: Family
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
    levels = _truncate(result.astype(np.float32, copy=False))
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


def corruption_names(which: Literal["all", "benchmark"] | Sequence[str] = "all") -> list[str]:
    """Names of a set of corruptions, in the order of the paper.

    Args:
        which: "all" (19), "benchmark" (the 15 of the paper's mean), or names, which are checked
            and returned in their own order without repeats.

    Raises:
        UnknownNameError: a name that is no corruption, or another set than these two.
    """
    if isinstance(which, str):
        if which not in ("all", "benchmark"):
            raise UnknownNameError("set of corruptions", which, ("all", "benchmark"))
        return [c.name for c in CORRUPTIONS.values() if which == "all" or not c.extra]
    for name in which:
        if name not in CORRUPTIONS:
            raise UnknownNameError("corruption", name, CORRUPTIONS)
    return list(dict.fromkeys(which))


# --- noise -----------------------------------------------------------------------------------


def gaussian_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Normal noise, x + σ n for each pixel and channel; σ as a fraction of the range."""
    sigma = _at(
        x, severity, large=(0.08, 0.12, 0.18, 0.26, 0.38), small=(0.04, 0.06, 0.08, 0.09, 0.10)
    )
    # ⌊x + 255 σ n⌋ = x + ⌊255 σ n⌋, so that the table can hold whole levels.
    noisy = _noise_levels(sigma).take(_draws(rng, x.shape))
    noisy += x
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


@functools.lru_cache(maxsize=10)
def _noise_levels(sigma: float) -> npt.NDArray[np.int16]:
    """Normal noise in whole levels of 255, rounded down, by the number drawn (65536,)."""
    levels: npt.NDArray[np.int16] = np.floor(_normal() * (255 * sigma) + _ALLOWANCE)
    return levels.astype(np.int16)


def shot_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Poisson(c x) / c for each pixel and channel, x as a fraction and c in photons."""
    photons = _at(x, severity, large=(60, 25, 12, 5, 3), small=(500, 250, 100, 75, 50))
    draw = _draws(rng, x.shape)
    at = x.astype(np.intp)
    at <<= 8
    at += draw & 0xFF
    entry = _shot_table(photons).take(at)
    # A cell keeps its own level for coins below its share and gives its alias for the others.
    own = draw & np.uint16(0xFF)
    return np.where((draw >> 8) < (entry >> 8), own, entry & 0xFF).astype(np.uint8)


@functools.lru_cache(maxsize=10)
def _shot_table(photons: int) -> npt.NDArray[np.uint32]:
    """Alias tables (Walker 1977) of the level that each of 256 levels becomes, flat (256 · 256,).

    Row v holds the distribution of min(⌊255 k / photons⌋, 255), k from Poisson(photons · v / 255),
    in units of 2⁻¹⁶. Entry (v, cell) is 256 · share + alias: of the 256 units of a cell, `share`
    belong to the level of its own number and the others to its alias.
    """
    units = _shot_units(photons).copy()
    rows = np.arange(256)
    shares = np.full((256, 256), 256, np.uint32)
    alias = np.tile(np.arange(256, dtype=np.uint32), (256, 1))
    for _ in range(255):  # each step completes the poorest cell of every row from its richest
        poor, rich = units.argmin(axis=1), units.argmax(axis=1)
        missing = 256 - units[rows, poor]
        open_rows = rows[(missing > 0) & (missing <= 256)]
        poor, rich, missing = poor[open_rows], rich[open_rows], missing[open_rows]
        shares[open_rows, poor] = 256 - missing
        alias[open_rows, poor] = rich
        units[open_rows, rich] -= missing
        units[open_rows, poor] = 256
    table: npt.NDArray[np.uint32] = np.ravel((shares << 8) | alias).astype(np.uint32)
    return table


def _shot_units(photons: int) -> npt.NDArray[np.int64]:
    """Probability of each new level for each old one in units of 2⁻¹⁶, (256, 256), rows whole."""
    most = (np.arange(1, 257) * photons - 1) // 255  # the most photons that a level stands for
    rates = photons * np.arange(256)[:, None] / 255
    below = np.rint(special.pdtr(most, rates) * 2.0**16).astype(np.int64)
    below[:, -1] = 2**16
    units: npt.NDArray[np.int64] = np.diff(below, axis=1, prepend=0)
    return units


def impulse_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Salt and pepper: a fraction of all values, channel by channel, becomes 0 or 255 evenly."""
    amount = _at(
        x, severity, large=(0.03, 0.06, 0.09, 0.17, 0.27), small=(0.01, 0.02, 0.03, 0.05, 0.07)
    )
    draw = _draws(rng, x.shape)
    hit = round(amount / 2 * 2**16)
    kept = x * (draw >= hit)
    salt = (draw >= 2**16 - hit) * np.uint8(255)
    return kept | salt


def speckle_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Normal noise that grows with the value, x + σ x n for each pixel and channel."""
    sigma = _at(x, severity, large=(0.15, 0.2, 0.35, 0.45, 0.6), small=(0.06, 0.1, 0.12, 0.16, 0.2))
    factor = (np.float32(sigma) * _normal() + 1).take(_draws(rng, x.shape))
    factor *= x
    return factor


# --- blur ------------------------------------------------------------------------------------


def gaussian_blur(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """Gaussian of σ pixels, cut at 4 σ, edge pixels repeated outwards."""
    sigma = _at(x, severity, large=(1.0, 2.0, 3.0, 4.0, 6.0), small=(0.4, 0.6, 0.7, 0.8, 1.0))
    return _gaussian(x.astype(np.float32), sigma)


def defocus_blur(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """A disk of the given radius in pixels, its rim softened by a Gaussian of the given σ."""
    radius, rim_sigma = _at(
        x,
        severity,
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    )
    kernel = _disk(radius, rim_sigma)
    reach = kernel.shape[0] // 2
    return _correlate(x, kernel, anchor=(reach, reach), border="reflect")


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
    sigma, reach, n_scans = _at(
        x,
        severity,
        large=((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    )
    height, width = x.shape[:2]
    blurred = _truncate(_gaussian(x.astype(np.float32), sigma)).reshape(-1, 3)
    origin = np.arange(height * width)
    for _ in range(n_scans):
        steps = rng.integers(-reach, reach, (2, height, width), dtype=np.int8)
        origin = origin[_scan_sources(steps, reach)]
    shuffled = blurred.take(origin, axis=0).reshape(x.shape)
    return _gaussian(shuffled.astype(np.float32), sigma)


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
    radius, sigma = _at(
        x,
        severity,
        large=((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
        small=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    )
    return _motion(x, radius, sigma, rng.uniform(-45, 45)) + np.float32(0.5)


def zoom_blur(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """Mean of the image and of its zooms about the centre."""
    stop, step = _at(
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
    start, stop = _zoom_span(size, factor)
    position = start - 0.5 + (np.arange(size) + 0.5) * ((stop - start) / size)
    before = np.clip(np.floor(position), 0, size - 2).astype(np.intp)
    return before, np.rint((position - before) * 256).astype(np.uint16)


# --- weather ---------------------------------------------------------------------------------


def snow(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Flakes (thresholded, zoomed and wind-blown noise) before a whitened image."""
    mean, std, zoom, threshold, radius, sigma, keep = _at(
        x,
        severity,
        large=(
            (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
        ),
        small=(
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ),
    )
    noise = mean + std * _normal().take(_draws(rng, x.shape[:2]))
    layer = np.array(_zoomed(Image.fromarray(noise), zoom))
    layer[layer < threshold] = 0
    flakes = _truncate(layer * 255)[..., None]
    fallen = np.rint(_motion(flakes, radius, sigma, rng.uniform(-135, -45))[..., 0])
    fallen = fallen + fallen[::-1, ::-1]

    colours = _planes(x).astype(np.float32)
    grey = np.float32(0.299) * colours[0]
    grey += np.float32(0.587) * colours[1]
    grey += np.float32(0.114) * colours[2]
    white = np.float32(1.5) * grey + np.float32(127.5)
    # k x + (1 − k) max(x, white) = max(x, k x + (1 − k) white)
    whitened = colours * np.float32(keep)
    whitened += white * np.float32(1 - keep)
    np.maximum(whitened, colours, out=whitened)
    whitened += fallen
    return whitened.transpose(1, 2, 0)


def frost(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """A weighted sum of the image and a random crop of a frost texture."""
    keep, add = _at(
        x,
        severity,
        large=((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        small=((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    )
    height, width = x.shape[:2]
    texture = _frost_texture(int(rng.integers(len(_FROST_TONES))), small=_is_small(x))
    side = texture.shape[0]
    top, left = rng.integers(0, side, 2)
    rows, columns = (top + np.arange(height)) % side, (left + np.arange(width)) % side
    out: Floats = texture.take(rows, axis=0).take(columns, axis=1) * np.float32(add)
    out += x * np.float32(keep)
    return out


# For each published photograph (of which two are one): its luminance at the quantiles below, and
# how red, green and blue stand off from it.
_FROST_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_FROST_TONES: tuple[tuple[tuple[int, ...], tuple[int, int, int]], ...] = (
    ((82, 97, 104, 118, 129, 142, 163, 177, 219), (-53, 18, 35)),
    ((57, 141, 166, 195, 210, 222, 236, 245, 254), (-6, -2, 7)),
    ((57, 141, 166, 195, 210, 222, 236, 245, 254), (-6, -2, 7)),
    ((23, 82, 104, 134, 152, 169, 199, 234, 254), (-14, 1, 13)),
    ((26, 45, 60, 92, 119, 151, 203, 238, 255), (-11, 0, 12)),
)
_FROST_SIDE = 500
_FROST_SHRINK = 5  # as published, small images see the photographs at a fifth of their size


@functools.lru_cache(maxsize=2 * len(_FROST_TONES))
def _frost_texture(index: int, *, small: bool) -> Pixels:
    """A texture of ice needles that wraps at its borders, (S, S, 3), S = 500, or 100 if small.

    Ridges of noise stretched along one of eight directions are needles; which direction shows
    where is decided by smooth noise, so that needles grow in patches. A fractal gives the large
    shades. Ranks are then mapped to the tones of the photograph. Fixed seeds, made once a process.
    """
    if small:
        full = _frost_texture(index, small=False).astype(np.float32)
        side = _FROST_SIDE // _FROST_SHRINK
        blocks = full.reshape(side, _FROST_SHRINK, side, _FROST_SHRINK, 3)
        return _truncate(blocks.mean(axis=(1, 3)) + np.float32(0.5))

    rng = np.random.Generator(np.random.PCG64(index))
    shape = (_FROST_SIDE, _FROST_SIDE)
    fy = fft.fftfreq(_FROST_SIDE)[:, None]
    fx = fft.rfftfreq(_FROST_SIDE)[None, :]
    frequency = np.hypot(fy, fx)

    def shaped_noise(amplitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        field: npt.NDArray[np.float64] = fft.irfft2(
            fft.rfft2(rng.standard_normal(shape)) * amplitude, s=shape
        )
        field -= field.mean()
        field /= field.std()
        return field

    needles, strongest = np.zeros(shape), np.full(shape, -np.inf)
    for angle in np.arange(8) * math.pi / 8:
        along = fx * math.cos(angle) + fy * math.sin(angle)
        across = fy * math.cos(angle) - fx * math.sin(angle)
        ridge = np.exp(
            -1.5 * np.abs(shaped_noise(np.exp(-((along / 0.02) ** 2 + (across / 0.2) ** 2))))
        )
        patch = shaped_noise(np.exp(-((frequency / 0.02) ** 2)))
        needles = np.where(patch > strongest, ridge, needles)
        strongest = np.maximum(patch, strongest)
    shades = shaped_noise(1 / np.maximum(frequency, 1 / _FROST_SIDE) ** 1.2)
    pattern = (needles - needles.mean()) / needles.std() + 0.8 * shades
    ranks = np.empty(pattern.size)
    ranks[np.argsort(pattern, axis=None, kind="stable")] = np.linspace(0, 1, pattern.size)
    luminances, tint = _FROST_TONES[index]
    luminance = np.interp(ranks, _FROST_QUANTILES, luminances).reshape(shape)
    return _truncate((luminance[..., None] + np.array(tint)).astype(np.float32))


def fog(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """(x + c plasma) · max / (max + c): a fractal haze that keeps the brightest value."""
    density, decay = _at(
        x,
        severity,
        large=((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        small=((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    )
    height, width = x.shape[:2]
    needed = 1 << (max(height, width) - 1).bit_length()
    side = needed if _is_small(x) else max(256, needed)  # 256 is published for 224 pixels
    brightest = float(x.max()) / 255
    scale = brightest / (brightest + density)
    haze = _plasma(side, decay, rng)[:height, :width] * np.float32(255 * density * scale)
    out = _planes(x) * np.float32(scale)
    out += haze
    return out.transpose(1, 2, 0)


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """Diamond-square fractal on a torus, (side, side) in [0, 1]; side is a power of two.

    At each halving of the grid the new points are the mean of four neighbours plus uniform noise
    whose amplitude falls by decay² each time.
    """
    plasma = np.zeros((side, side), np.float32)
    amplitude, step = 1.0, side
    while step >= 2:
        half = step // 2
        n = side // step
        noise = rng.random((3, n, n), dtype=np.float32)
        noise -= np.float32(0.5)
        noise *= np.float32(2 * amplitude)
        corners = np.empty((n + 1, n + 1), np.float32)  # wrapped below and to the right
        corners[:n, :n] = plasma[::step, ::step]
        corners[n, :n] = corners[0, :n]
        corners[:, n] = corners[:, 0]
        across = corners[:, :-1] + corners[:, 1:]
        centres = np.empty((n + 1, n + 1), np.float32)  # wrapped above and to the left
        centres[1:, 1:] = (across[:-1] + across[1:]) / 4 + noise[0]
        centres[0, 1:] = centres[n, 1:]
        centres[:, 0] = centres[:, n]
        between_columns = across[:-1] + centres[1:, 1:] + centres[:-1, 1:]
        between_rows = corners[:-1, :-1] + corners[1:, :-1] + centres[1:, 1:] + centres[1:, :-1]
        plasma[half::step, half::step] = centres[1:, 1:]
        plasma[::step, half::step] = between_columns / 4 + noise[1]
        plasma[half::step, ::step] = between_rows / 4 + noise[2]
        amplitude /= decay**2
        step = half
    plasma -= plasma.min()
    plasma /= plasma.max()
    return plasma


def brightness(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """HSV value raised by c and cut at one.

    With hue and saturation held, RGB is proportional to the value, so that no conversion is
    needed: x · V′ / V. Black, without hue, becomes grey.
    """
    c = _at(x, severity, large=(0.1, 0.2, 0.3, 0.4, 0.5), small=(0.05, 0.1, 0.15, 0.2, 0.3))
    value = np.arange(256, dtype=np.float32)
    raised = np.minimum(value + np.float32(255 * c), 255)
    ratio = raised / np.maximum(value, 1)
    planes = _planes(x)
    v = planes.max(axis=0)
    out: Floats = planes * ratio.take(v)
    black = v == 0
    if black.any():
        out[:, black] = raised[0]
    return out.transpose(1, 2, 0)


# --- digital ---------------------------------------------------------------------------------


def contrast(x: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    """(x − mean) c + mean, with the mean of each channel over the image."""
    c = _at(x, severity, large=(0.4, 0.3, 0.2, 0.1, 0.05), small=(0.75, 0.5, 0.4, 0.3, 0.15))
    height, width = x.shape[:2]
    sums = x.reshape(height, -1).sum(axis=0, dtype=np.uint32).reshape(width, 3).sum(axis=0)
    means = sums / (height * width)
    # A channel has 256 levels: what becomes of each is a table, (3 · 256,).
    levels = _truncate((np.arange(256) * c + (1 - c) * means[:, None]).astype(np.float32))
    return np.array(Image.fromarray(x).point(levels.ravel().tolist()))


def elastic_transform(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """A random affine map, then displacements by smooth noise.

    Constants (α, σ, δ) are shares of the image: displacements are α times uniform noise smoothed
    by a Gaussian of σ; the affine map moves three points near the centre by up to δ.
    """
    shares = _at(
        x,
        severity,
        large=(
            (2.0, 0.7, 0.1),
            (2.0, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ),
        small=(
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    )
    height, width = x.shape[:2]
    # Published as multiples of 244 for images of 224 pixels, and of 32 for those of 32.
    unit = min(height, width) * (1 if _is_small(x) else 244 / 224)
    alpha, sigma, delta = (share * unit for share in shares)
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]

    # The map moves a = (c + s, c + s), b = (c + s, c − s), d = (c − s, c − s), as (column, row),
    # by one random offset each; the offsets of all other points follow linearly.
    centre = np.array([width // 2, height // 2], np.float64)
    reach = min(height, width) // 3
    move_a, move_b, move_d = rng.uniform(-delta, delta, (3, 2))
    linear = np.eye(2) + np.stack([move_b - move_d, move_a - move_b], axis=1) / (2 * reach)
    corner = centre + [reach, -reach]
    inverse = np.linalg.inv(linear)
    offset = (corner - inverse @ (corner + move_b)).astype(np.float32)
    (xx, xy), (yx, yy) = inverse.astype(np.float32)
    moved = _sample(
        _planes(x),
        _mirror(yx * columns + yy * rows + offset[1], height),
        _mirror(xx * columns + xy * rows + offset[0], width),
    )
    if alpha == 0:
        return moved.transpose(1, 2, 0)
    noise = rng.random((2, height, width), dtype=np.float32) * 2 - 1
    shift = _gaussian_reflected(noise, sigma) * np.float32(alpha)
    bent = _sample(moved, _reflect(rows + shift[1], height), _reflect(columns + shift[0], width))
    return bent.transpose(1, 2, 0)


def pixelate(x: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    """Shrunk to a share of its size and enlarged again, both with a box filter."""
    share = _at(x, severity, large=(0.6, 0.5, 0.4, 0.3, 0.25), small=(0.95, 0.9, 0.85, 0.75, 0.65))
    height, width = x.shape[:2]
    reduced = Image.fromarray(x).resize(
        (int(width * share), int(height * share)), Image.Resampling.BOX
    )
    return np.array(reduced.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(x: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    """One JPEG round trip at a low quality."""
    quality = _at(x, severity, large=(25, 18, 15, 10, 7), small=(80, 65, 58, 50, 40))
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream, formats=("JPEG",)))


def spatter(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Drops of water on the lens, of mud at severities 4 and 5."""
    mean, std, sigma, threshold, strength, mud = _at(
        x,
        severity,
        large=(
            (0.65, 0.3, 4.0, 0.69, 0.6, False),
            (0.65, 0.3, 3.0, 0.68, 0.6, False),
            (0.65, 0.3, 2.0, 0.68, 0.5, False),
            (0.65, 0.3, 1.0, 0.65, 1.5, True),
            (0.67, 0.4, 1.0, 0.65, 1.5, True),
        ),
        small=(
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1.0, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    )
    liquid = mean + std * _normal().take(_draws(rng, x.shape[:2]))
    liquid = _gaussian(liquid, sigma)
    out: Floats = _planes(x).astype(np.float32)
    if mud:
        cover = _gaussian((liquid > threshold).astype(np.float32), strength)
        cover[cover < np.float32(0.8)] = 0
        out *= 1 - cover
        for plane, level in zip(out, (63, 42, 20), strict=True):
            plane += cover * np.float32(level)
        return out.transpose(1, 2, 0)
    liquid[liquid < threshold] = 0
    drops = _truncate(liquid * 255)
    light = drops * _relief(drops)
    if light.any():
        light *= np.float32(strength) / light.max()
    for plane, level in zip(out, (175, 238, 238), strict=True):
        plane += light * np.float32(level)
    return out.transpose(1, 2, 0)


def _relief(drops: Pixels) -> Floats:
    """How a drop catches light: an embossed map of the distance to the nearest rim, (H, W)."""
    distance = _distance(_edges(drops, low=50, high=150), limit=20)
    depth = _equalised(_truncate(_sum_of_nine(distance) * np.float32(1 / 9))).astype(np.int16)
    p = np.pad(depth, 1, mode="reflect")
    lit = p[1:-1, 1:-1] + p[1:-1, 2:] + p[2:, 1:-1] + 2 * (p[2:, 2:] - p[:-2, :-2])
    lit -= p[:-2, 1:-1] + p[1:-1, :-2]
    relief: Floats = np.rint(_sum_of_nine(np.clip(lit, 0, 255)) * np.float32(1 / 9))
    return relief


def _sum_of_nine(x: npt.NDArray[_N]) -> npt.NDArray[_N]:
    """Sum over each 3 × 3 neighbourhood, mirrored at the centres of the outer pixels, (H, W)."""
    p = np.pad(x, 1, mode="reflect")
    rows = p[:-2] + p[1:-1] + p[2:]
    total: npt.NDArray[_N] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return total


def _distance(marked: npt.NDArray[np.bool_], *, limit: int) -> Floats:
    """Euclidean distance in pixels to the nearest marked pixel, cut at the limit, (H, W).

    Exact: the least of (distance within a row)² + (distance to that row)², over the 2 limit − 1
    rows that can matter, in whole numbers.
    """
    height, width = marked.shape
    column = np.arange(width, dtype=np.int16)
    before = np.maximum.accumulate(np.where(marked, column, np.int16(-limit)), axis=1)
    after = np.where(marked, column, np.int16(width - 1 + limit))[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    within = np.minimum(np.minimum(column - before, after - column), np.int16(limit))
    within *= within
    least = within.copy()
    for rows in range(1, min(limit, height)):
        there = within + np.int16(rows * rows)
        np.minimum(least[rows:], there[:-rows], out=least[rows:])
        np.minimum(least[:-rows], there[rows:], out=least[:-rows])
    return np.sqrt(np.minimum(least, limit * limit), dtype=np.float32)


def _edges(image: Pixels, *, low: float, high: float) -> npt.NDArray[np.bool_]:
    """Canny's edges of a (H, W) image: thin ridges of the Sobel gradient, linked by hysteresis."""
    height, width = image.shape
    p = np.pad(image.astype(np.int16), 1, mode="edge")
    tall, wide = p[:-2] + 2 * p[1:-1] + p[2:], p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    gx, gy = tall[:, 2:] - tall[:, :-2], wide[2:] - wide[:-2]
    strength = np.abs(gx) + np.abs(gy)
    row, column = np.nonzero(strength > low)
    here, gx, gy = strength[row, column], gx[row, column], gy[row, column]
    tan = math.tan(math.pi / 8)
    flat = np.abs(gy) < tan * np.abs(gx)
    steep = np.abs(gx) < tan * np.abs(gy)
    down = np.where(flat, 0, 1)
    right = np.where(steep, 0, np.where(flat | ((gx ^ gy) >= 0), 1, -1))
    around = np.pad(strength, 1)
    before = around[row + 1 - down, column + 1 - right]
    after = around[row + 1 + down, column + 1 + right]
    # One of two equal neighbours wins along the axes, so that an edge stays one pixel thin.
    ridge = (here > before) & np.where(flat | steep, here >= after, here > after)
    candidates = np.zeros((height, width), bool)
    candidates[row[ridge], column[ridge]] = True
    labels, n_labels = ndimage.label(candidates, structure=np.ones((3, 3), bool))
    linked = np.zeros(n_labels + 1, bool)
    linked[labels[candidates & (strength > high)]] = True
    edges: npt.NDArray[np.bool_] = linked.take(labels)
    return edges


def _equalised(image: Pixels) -> Pixels:
    """Histogram equalisation to 0..255; the darkest level present becomes 0."""
    counts = np.bincount(image.ravel(), minlength=256)
    darkest = int(np.flatnonzero(counts)[0])
    rest = image.size - counts[darkest]
    if rest == 0:
        return image
    cumulative = np.maximum(np.cumsum(counts) - counts[: darkest + 1].sum(), 0)
    levels: Pixels = np.rint(cumulative * (255 / rest)).astype(np.uint8)
    return levels.take(image)


def saturate(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """HSV saturation S′ = a S + b, cut to [0, 1].

    With hue and value held, the distance of each channel from the value is proportional to the
    saturation: V − (V − x) S′ / S. Grey has no hue and counts as red, as in the published code.
    """
    a, b = _at(
        x,
        severity,
        large=((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
        small=((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    )
    planes = _planes(x)
    v = planes.max(axis=0)
    spread = v - planes.min(axis=0)
    value, chroma = v.astype(np.float32), np.maximum(spread, 1).astype(np.float32)
    # V S′ / (V − min) without dividing by V: min(a (V − min) + b V, V) / (V − min)
    factor = np.minimum(np.float32(a) * chroma + np.float32(b) * value, value)
    factor /= chroma
    out: Floats = value - (v - planes) * factor
    if b > 0:
        grey = spread == 0
        out[1:, grey] = value[grey] * np.float32(1 - b)
    return out.transpose(1, 2, 0)


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
    if min(image.shape[:2]) < _MIN_SIDE:
        raise DataError(
            f"an image to corrupt must have sides of at least {_MIN_SIDE} pixels, "
            f"got {image.shape[0]} × {image.shape[1]}"
        )
    return np.ascontiguousarray(image)


def _is_small(x: Pixels) -> bool:
    return bool(max(x.shape[:2]) <= _SMALL_SIDE)


def _at(x: Pixels, severity: int, *, large: tuple[_C, ...], small: tuple[_C, ...]) -> _C:
    """The constant of this severity for the size of the image."""
    return (small if _is_small(x) else large)[severity - 1]


def _truncate(values: Floats) -> Pixels:
    """Clip to 0..255 and drop the fraction; may write to its argument."""
    values += np.float32(_ALLOWANCE)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _planes(x: Pixels) -> Pixels:
    """The channels of an (H, W, C) image one after the other, (C, H, W)."""
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def _draws(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Even numbers of 16 bits, by which tables of quantiles are read."""
    return rng.integers(0, 2**16, shape, dtype=np.uint16)


@functools.cache
def _normal() -> Floats:
    """Quantiles of the standard normal distribution at (i + ½) / 2¹⁶, (65536,).

    Read at even random i they are normal draws but for steps of 2⁻¹⁶ in their distribution
    function and ends at ± 4.3.
    """
    quantiles: Floats = special.ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
    return quantiles


def _gaussian(x: Floats, sigma: float) -> Floats:
    """Gaussian filter of the first two axes: cut at 4 σ, edges repeated."""
    if sigma >= _WIDE_SIGMA:
        return _gaussian_wide(x, sigma)
    out: Floats = ndimage.gaussian_filter(x, sigma, mode="nearest", truncate=4, axes=(0, 1))
    return out


def _gaussian_wide(x: Floats, sigma: float) -> Floats:
    """The same by the cosine transform of the padded image, whose cost does not depend on σ."""
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


def _gaussian_reflected(x: Floats, sigma: float) -> Floats:
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


def _correlate(
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


def _motion(x: Pixels, radius: int, sigma: float, angle_degrees: float) -> Floats:
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
    return _correlate(x, kernel, anchor=anchor, border="edge")


def _zoomed(picture: Image.Image, factor: float) -> Image.Image:
    """The picture enlarged about its centre by linear interpolation, at its own size."""
    width, height = picture.size
    (left, right), (top, bottom) = _zoom_span(width, factor), _zoom_span(height, factor)
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def _zoom_span(size: int, factor: float) -> tuple[float, float]:
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


def _mirror(position: Floats, size: int) -> Floats:
    """Fold positions into 0..size − 1 by mirrors at the centres of the outer pixels."""
    period = np.float32(2 * (size - 1))
    folded: Floats = np.abs(position - period * np.rint(position / period))
    return folded


def _reflect(position: Floats, size: int) -> Floats:
    """Fold positions into 0..size − 1 by mirrors at the outer borders of the outer pixels."""
    half, period = np.float32(0.5), np.float32(2 * size)
    shifted = position + half
    folded: Floats = np.abs(shifted - period * np.rint(shifted / period)) - half
    return np.clip(folded, 0, size - 1, out=folded)


def _sample(x: Pixels | Floats, rows: Floats, columns: Floats) -> Floats:
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
