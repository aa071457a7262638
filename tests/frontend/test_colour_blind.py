"""Series and marks stay apart for people who see colours otherwise.

Colours are seen through the matrices of Machado, Oliveira and Fernandes (2009, table 1, severity
1.0), applied to linear RGB; distances are CIEDE2000 (Sharma, Wu and Dalal 2005).
"""

import itertools
import math

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
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
#: Of CIEDE2000: about 2.3 is a just noticeable difference of patches side by side.
APART = 10.0


def linear(colour: str) -> Floats:
    """Linear RGB of `#rrggbb`."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: Floats) -> Floats:
    """CIE Lab (D65) of linear RGB."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    x = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: Floats, other: Floats) -> float:
    """The distance of two colours in Lab."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(mean**7 / (mean**7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    d_l, d_c = l2 - l1, c2 - c1
    d_h = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn) / 2)
    l_mean, c_mean = (l1 + l2) / 2, (c1 + c2) / 2
    h_mean = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    t = (
        1
        - 0.17 * math.cos(math.radians(h_mean - 30))
        + 0.24 * math.cos(math.radians(2 * h_mean))
        + 0.32 * math.cos(math.radians(3 * h_mean + 6))
        - 0.20 * math.cos(math.radians(4 * h_mean - 63))
    )
    s_l = 1 + 0.015 * (l_mean - 50) ** 2 / math.sqrt(20 + (l_mean - 50) ** 2)
    s_c, s_h = 1 + 0.045 * c_mean, 1 + 0.015 * c_mean * t
    turned = 60 * math.exp(-(((h_mean - 275) / 25) ** 2))
    r = -2 * math.sqrt(c_mean**7 / (c_mean**7 + 25**7)) * math.sin(math.radians(turned))
    x, y, z = d_l / s_l, d_c / s_c, d_h / s_h
    return math.sqrt(x * x + y * y + z * z + r * y * z)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_ciede2000__gives_the_published_pairs(one, other, distance):
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(distance, abs=1e-4)


def seen(colour: str, kind: str) -> Floats:
    return lab(SEEN[kind] @ linear(colour))


def closest(colours: tuple[str, ...], kind: str) -> tuple[float, tuple[str, str]]:
    return min(
        (ciede2000(seen(a, kind), seen(b, kind)), (a, b))
        for a, b in itertools.combinations(colours, 2)
    )


GROUNDS = {"light": {c: c for c in DARK}, "dark": DARK}


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("ground", GROUNDS)
def test_palette__series_are_told_apart(kind, ground):
    distance, pair = closest(tuple(GROUNDS[ground][c] for c in PALETTE), kind)
    assert distance >= APART, (pair, distance)


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("ground", GROUNDS)
def test_marks__over_and_under_are_told_apart(kind, ground):
    over, under = (GROUNDS[ground][c] for c in (OVER, UNDER))
    assert ciede2000(seen(over, kind), seen(under, kind)) >= 3 * APART


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


if __name__ == "__main__":
    for kind in SEEN:
        print(kind, closest(PALETTE, kind), ciede2000(seen(OVER, kind), seen(UNDER, kind)))  # noqa: T201
