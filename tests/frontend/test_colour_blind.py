"""Series and marks stay apart for people who see colours otherwise.

Colours are seen through the matrices of Machado, Oliveira and Fernandes (2009, table 1, severity
1.0), applied to linear RGB; distances are of OKLab (Ottosson 2020), where 0.02 is just noticeable.
"""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from frontend.figures.style import (
    DARK,
    DASHES,
    INK,
    MUTED,
    OVER,
    PALETTE,
    SEQUENTIAL,
    SYMBOLS,
    UNDER,
)

Floats = npt.NDArray[np.float64]

SEEN: dict[str, Floats] = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def linear(colour: str) -> Floats:
    """Linear RGB of `#rrggbb`."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def distance(one: str, other: str, kind: str) -> float:
    seen = (np.clip(SEEN[kind] @ linear(colour), 0, 1) for colour in (one, other))
    a, b = (LAB @ np.cbrt(CONES @ rgb) for rgb in seen)
    return float(np.linalg.norm(a - b))


GROUNDS = {"light": {c: c for c in DARK}, "dark": DARK}


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("ground", GROUNDS)
def test_palette__series_and_marks_of_confidence_are_told_apart(kind, ground):
    series, marks = ([GROUNDS[ground][c] for c in colours] for colours in (PALETTE, (OVER, UNDER)))
    assert min(distance(a, b, kind) for a, b in itertools.combinations(series, 2)) > 0.07
    assert min(distance(a, b, kind) for a in series for b in marks) > 0.045
    assert distance(*marks, kind) > 0.2


def contrast(one: str, other: str) -> float:
    """WCAG's, from 1 to 21."""
    light = [float(linear(c) @ np.array([0.2126, 0.7152, 0.0722])) + 0.05 for c in (one, other)]
    return max(light) / min(light)


@pytest.mark.parametrize("ground", GROUNDS)
def test_words__of_a_figure_are_read_on_its_ground_and_on_its_cells(ground):
    look = GROUNDS[ground]
    for words in (INK, MUTED):
        assert contrast(look[words], look["#ffffff"]) >= 4.5
    for _, cell in SEQUENTIAL:
        assert contrast(look[INK], look[cell]) >= 4.5


@pytest.mark.parametrize("ground", GROUNDS)
def test_marks__stand_out_from_the_ground(ground):
    look = GROUNDS[ground]
    lowest = {c: contrast(look[c], look["#ffffff"]) for c in (*PALETTE, OVER, UNDER)}
    assert min(lowest.values()) >= (3 if ground == "dark" else 2.2), lowest


def test_palette__no_two_series_share_symbol_or_dash():
    assert len(set(SYMBOLS)) == len(set(DASHES)) == len(PALETTE)
