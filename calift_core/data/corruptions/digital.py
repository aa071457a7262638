"""Digital: contrast, elastic transform, pixelate, JPEG compression, saturation."""

import io

import numpy as np
from PIL import Image

from calift_core.data.corruptions.filters import (
    Floats,
    Pixels,
    at_severity,
    gaussian_reflected,
    is_small,
    mirror,
    planes_of,
    reflect,
    sample,
    to_uint8,
)

# --- digital ---------------------------------------------------------------------------------


def contrast(x: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    """(x − mean) c + mean, with the mean of each channel over the image."""
    c = at_severity(
        x, severity, large=(0.4, 0.3, 0.2, 0.1, 0.05), small=(0.75, 0.5, 0.4, 0.3, 0.15)
    )
    height, width = x.shape[:2]
    sums = x.reshape(height, -1).sum(axis=0, dtype=np.uint32).reshape(width, 3).sum(axis=0)
    means = sums / (height * width)
    # A channel has 256 levels: what becomes of each is a table, (3 · 256,).
    levels = to_uint8((np.arange(256) * c + (1 - c) * means[:, None]).astype(np.float32))
    return np.array(Image.fromarray(x).point(levels.ravel().tolist()))


def elastic_transform(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """A random affine map, then displacements by smooth noise.

    Constants (α, σ, δ) are shares of the image: displacements are α times uniform noise smoothed
    by a Gaussian of σ; the affine map moves three points near the centre by up to δ.
    """
    shares = at_severity(
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
    unit = min(height, width) * (1 if is_small(x) else 244 / 224)
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
    moved = sample(
        planes_of(x),
        mirror(yx * columns + yy * rows + offset[1], height),
        mirror(xx * columns + xy * rows + offset[0], width),
    )
    if alpha == 0:
        return moved.transpose(1, 2, 0)
    noise = rng.random((2, height, width), dtype=np.float32) * 2 - 1
    shift = gaussian_reflected(noise, sigma) * np.float32(alpha)
    bent = sample(moved, reflect(rows + shift[1], height), reflect(columns + shift[0], width))
    return bent.transpose(1, 2, 0)


def pixelate(x: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    """Shrunk to a share of its size and enlarged again, both with a box filter."""
    share = at_severity(
        x, severity, large=(0.6, 0.5, 0.4, 0.3, 0.25), small=(0.95, 0.9, 0.85, 0.75, 0.65)
    )
    height, width = x.shape[:2]
    reduced = Image.fromarray(x).resize(
        (int(width * share), int(height * share)), Image.Resampling.BOX
    )
    return np.array(reduced.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(x: Pixels, severity: int, _rng: np.random.Generator) -> Pixels:
    """One JPEG round trip at a low quality."""
    quality = at_severity(x, severity, large=(25, 18, 15, 10, 7), small=(80, 65, 58, 50, 40))
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream, formats=("JPEG",)))


def saturate(x: Pixels, severity: int, _rng: np.random.Generator) -> Floats:
    """HSV saturation S′ = a S + b, cut to [0, 1].

    With hue and value held, the distance of each channel from the value is proportional to the
    saturation: V − (V − x) S′ / S. Grey has no hue and counts as red, as in the published code.
    """
    a, b = at_severity(
        x,
        severity,
        large=((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
        small=((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    )
    planes = planes_of(x)
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
