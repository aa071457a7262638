"""Noise: Gaussian, shot, impulse, speckle."""

import functools

import numpy as np
import numpy.typing as npt
from scipy import special

from calift_core.data.corruptions.filters import (
    ALLOWANCE,
    Floats,
    Pixels,
    at_severity,
    draws_of,
    normal_of,
)

# --- noise -----------------------------------------------------------------------------------


def gaussian_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Normal noise, x + σ n for each pixel and channel; σ as a fraction of the range."""
    sigma = at_severity(
        x, severity, large=(0.08, 0.12, 0.18, 0.26, 0.38), small=(0.04, 0.06, 0.08, 0.09, 0.10)
    )
    # ⌊x + 255 σ n⌋ = x + ⌊255 σ n⌋, so that the table can hold whole levels.
    noisy = _noise_levels(sigma).take(draws_of(rng, x.shape))
    noisy += x
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


@functools.lru_cache(maxsize=10)
def _noise_levels(sigma: float) -> npt.NDArray[np.int16]:
    """Normal noise in whole levels of 255, rounded down, by the number drawn (65536,)."""
    levels: npt.NDArray[np.int16] = np.floor(normal_of() * (255 * sigma) + ALLOWANCE)
    return levels.astype(np.int16)


def shot_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Poisson(c x) / c for each pixel and channel, x as a fraction and c in photons."""
    photons = at_severity(x, severity, large=(60, 25, 12, 5, 3), small=(500, 250, 100, 75, 50))
    draw = draws_of(rng, x.shape)
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
    amount = at_severity(
        x, severity, large=(0.03, 0.06, 0.09, 0.17, 0.27), small=(0.01, 0.02, 0.03, 0.05, 0.07)
    )
    draw = draws_of(rng, x.shape)
    hit = round(amount / 2 * 2**16)
    kept = x * (draw >= hit)
    salt = (draw >= 2**16 - hit) * np.uint8(255)
    return kept | salt


def speckle_noise(x: Pixels, severity: int, rng: np.random.Generator) -> Floats:
    """Normal noise that grows with the value, x + σ x n for each pixel and channel."""
    sigma = at_severity(
        x, severity, large=(0.15, 0.2, 0.35, 0.45, 0.6), small=(0.06, 0.1, 0.12, 0.16, 0.2)
    )
    factor = (np.float32(sigma) * normal_of() + 1).take(draws_of(rng, x.shape))
    factor *= x
    return factor
