"""Weather: snow, frost, fog, brightness, spatter."""

import functools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage

from calift_core.data.corruptions.filters import (
    Floats,
    N,
    Pixels,
    at_severity,
    draws_of,
    gaussian,
    is_small,
    motion_filter,
    normal_of,
    planes_of,
    to_uint8,
    zoomed_by,
)

# --- weather ---------------------------------------------------------------------------------


def snow(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Flakes (thresholded, zoomed and wind-blown noise) before a whitened image."""
    mean, std, zoom, threshold, radius, sigma, keep = at_severity(
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
    noise = mean + std * normal_of().take(draws_of(rng, x.shape[:2]))
    layer = np.array(zoomed_by(Image.fromarray(noise), zoom))
    layer[layer < threshold] = 0
    flakes = to_uint8(layer * 255)[..., None]
    fallen = np.rint(motion_filter(flakes, radius, sigma, rng.uniform(-135, -45))[..., 0])
    fallen = fallen + fallen[::-1, ::-1]

    colours = planes_of(x).astype(np.float32)
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
    keep, add = at_severity(
        x,
        severity,
        large=((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        small=((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    )
    height, width = x.shape[:2]
    texture = _frost_texture(int(rng.integers(len(_FROST_TONES))), small=is_small(x))
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
        return to_uint8(blocks.mean(axis=(1, 3)) + np.float32(0.5))

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
    return to_uint8((luminance[..., None] + np.array(tint)).astype(np.float32))


def fog(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """(x + c plasma) · max / (max + c): a fractal haze that keeps the brightest value."""
    density, decay = at_severity(
        x,
        severity,
        large=((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        small=((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    )
    height, width = x.shape[:2]
    needed = 1 << (max(height, width) - 1).bit_length()
    side = needed if is_small(x) else max(256, needed)  # 256 is published for 224 pixels
    brightest = float(x.max()) / 255
    scale = brightest / (brightest + density)
    haze = _plasma(side, decay, rng)[:height, :width] * np.float32(255 * density * scale)
    out = planes_of(x) * np.float32(scale)
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
    c = at_severity(x, severity, large=(0.1, 0.2, 0.3, 0.4, 0.5), small=(0.05, 0.1, 0.15, 0.2, 0.3))
    value = np.arange(256, dtype=np.float32)
    raised = np.minimum(value + np.float32(255 * c), 255)
    ratio = raised / np.maximum(value, 1)
    planes = planes_of(x)
    v = planes.max(axis=0)
    out: Floats = planes * ratio.take(v)
    black = v == 0
    if black.any():
        out[:, black] = raised[0]
    return out.transpose(1, 2, 0)


def spatter(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Drops of water on the lens, of mud at severities 4 and 5."""
    mean, std, sigma, threshold, strength, mud = at_severity(
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
    liquid = mean + std * normal_of().take(draws_of(rng, x.shape[:2]))
    liquid = gaussian(liquid, sigma)
    out: Floats = planes_of(x).astype(np.float32)
    if mud:
        cover = gaussian((liquid > threshold).astype(np.float32), strength)
        cover[cover < np.float32(0.8)] = 0
        out *= 1 - cover
        for plane, level in zip(out, (63, 42, 20), strict=True):
            plane += cover * np.float32(level)
        return out.transpose(1, 2, 0)
    liquid[liquid < threshold] = 0
    drops = to_uint8(liquid * 255)
    light = drops * _relief(drops)
    if light.any():
        light *= np.float32(strength) / light.max()
    for plane, level in zip(out, (175, 238, 238), strict=True):
        plane += light * np.float32(level)
    return out.transpose(1, 2, 0)


def _relief(drops: Pixels) -> Floats:
    """How a drop catches light: an embossed map of the distance to the nearest rim, (H, W)."""
    distance = _distance(_edges(drops, low=50, high=150), limit=20)
    depth = _equalised(to_uint8(_sum_of_nine(distance) * np.float32(1 / 9))).astype(np.int16)
    p = np.pad(depth, 1, mode="reflect")
    lit = p[1:-1, 1:-1] + p[1:-1, 2:] + p[2:, 1:-1] + 2 * (p[2:, 2:] - p[:-2, :-2])
    lit -= p[:-2, 1:-1] + p[1:-1, :-2]
    relief: Floats = np.rint(_sum_of_nine(np.clip(lit, 0, 255)) * np.float32(1 / 9))
    return relief


def _sum_of_nine(x: npt.NDArray[N]) -> npt.NDArray[N]:
    """Sum over each 3 × 3 neighbourhood, mirrored at the centres of the outer pixels, (H, W)."""
    p = np.pad(x, 1, mode="reflect")
    rows = p[:-2] + p[1:-1] + p[2:]
    total: npt.NDArray[N] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
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
