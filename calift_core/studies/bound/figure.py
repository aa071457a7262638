"""A scatter of ranks as SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from calift_core.errors import SpecError

#: Okabe & Ito's colours, told apart by people with colour-blindness too; shapes say the same.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK, _MUTED, _GRID = "#1c2733", "#5b6875", "#e8ecf0"
_R = 4.5

_SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - _R:.1f},{y:.1f}a{_R},{_R} 0 1,0 {2 * _R},0a{_R},{_R} 0 1,0 {-2 * _R},0Z",
    lambda x, y: _polygon(x, y, ((-1, -1), (1, -1), (1, 1), (-1, 1)), 0.88),
    lambda x, y: _polygon(x, y, ((0, -1), (1, 0), (0, 1), (-1, 0)), 1.3),
    lambda x, y: _polygon(x, y, ((0, -1.1), (1, 0.8), (-1, 0.8)), 1.2),
    lambda x, y: _polygon(x, y, ((0, 1.1), (1, -0.8), (-1, -0.8)), 1.2),
    lambda x, y: _polygon(
        x,
        y,
        (
            (-0.4, -1.2),
            (0.4, -1.2),
            (0.4, -0.4),
            (1.2, -0.4),
            (1.2, 0.4),
            (0.4, 0.4),
            (0.4, 1.2),
            (-0.4, 1.2),
            (-0.4, 0.4),
            (-1.2, 0.4),
            (-1.2, -0.4),
            (-0.4, -0.4),
        ),
        1.0,
    ),
)


def _polygon(x: float, y: float, corners: Sequence[tuple[float, float]], size: float) -> str:
    spots = (f"{x + size * _R * dx:.1f},{y + size * _R * dy:.1f}" for dx, dy in corners)
    return "M" + "L".join(spots) + "Z"


@dataclass(frozen=True)
class Mark:
    """A point of a scatter plot; `series` decides colour and shape."""

    x: float
    y: float
    series: str
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; x is logarithmic and positive."""

    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]


def scatter_svg(panels: Sequence[Panel], *, title: str, caption: str) -> str:
    """Scatter plots side by side under one title, with one legend, as a stand-alone SVG.

    Raises:
        SpecError: there are no panels, a panel has no marks, or an x is not positive.
    """
    if not panels or any(not p.marks for p in panels):
        raise SpecError("a figure needs at least one panel with marks")
    if any(m.x <= 0 for p in panels for m in p.marks):
        raise SpecError("x must be positive on a logarithmic axis")
    series = list(dict.fromkeys(m.series for p in panels for m in p.marks))
    style = {
        name: (_COLOURS[i % len(_COLOURS)], _SHAPES[i % len(_SHAPES)])
        for i, name in enumerate(series)
    }
    inner_w, inner_h, left, top, gap = 330, 290, 70, 84, 84
    width = left + len(panels) * inner_w + (len(panels) - 1) * gap + 24
    body: list[str] = []
    for i, panel in enumerate(panels):
        body += _panel_svg(panel, style, left + i * (inner_w + gap), top, inner_w, inner_h)
    y = float(top + inner_h + 70)
    x = float(left)
    for name in series:
        advance = 26 + 6.8 * len(name)
        if x > left and x + advance > width - 24:
            x, y = float(left), y + 22
        colour, shape = style[name]
        body.append(f'<path d="{shape(x, y - 4)}" fill="{colour}" fill-opacity="0.85"/>')
        body.append(_text(x + 11, y, name))
        x += advance
    y += 28
    for line in textwrap.wrap(caption, int((width - left - 24) / 6.1)):
        body.append(_text(left, y, line, fill=_MUTED))
        y += 16
    height = int(y + 8)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Segoe UI, Helvetica, Arial, sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(caption)}</desc>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            _text(left, 32, title, size=17, weight="600"),
            *body,
            "</svg>\n",
        ]
    )


def _panel_svg(
    panel: Panel,
    style: dict[str, tuple[str, Callable[[float, float], str]]],
    left: float,
    top: float,
    width: float,
    height: float,
) -> list[str]:
    xs = [math.log10(m.x) for m in panel.marks]
    ys = [m.y for m in panel.marks]
    x_low, x_high = _padded(min(xs), max(xs), 1e-3)
    y_low, y_high = _padded(min(ys), max(ys), 1e-6)

    def across(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * width

    def down(value: float) -> float:
        return top + (1 - (value - y_low) / (y_high - y_low)) * height

    body = [_text(left, top - 14, panel.title, size=13, weight="600")]
    y_ticks = linear_ticks(y_low, y_high)
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    for value in y_ticks:
        at = down(value)
        body.append(_line(left, at, left + width, at, _GRID))
        body.append(_text(left - 8, at + 4, f"{value:.{digits}f}", anchor="end", fill=_MUTED))
    for value in log_ticks(10**x_low, 10**x_high):
        at = across(math.log10(value))
        body.append(_line(at, top, at, top + height, _GRID))
        body.append(_text(at, top + height + 18, _short(value), anchor="middle", fill=_MUTED))
    body.append(
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" '
        f'stroke="{_MUTED}"/>'
    )
    for mark, x, y in zip(panel.marks, xs, ys, strict=True):
        colour, shape = style[mark.series]
        fill = "#ffffff" if mark.hollow else colour
        body.append(
            f'<path d="{shape(across(x), down(y))}" fill="{fill}" fill-opacity="0.75" '
            f'stroke="{colour}" stroke-width="{1.8 if mark.hollow else 0.8}"/>'
        )
    middle = top + height / 2
    body.append(_text(left + width / 2, top + height + 40, panel.x_label, anchor="middle"))
    body.append(
        f'<text x="{left - 52}" y="{middle}" text-anchor="middle" fill="{_INK}" '
        f'transform="rotate(-90 {left - 52} {middle})">{escape(panel.y_label)}</text>'
    )
    return body


def _padded(low: float, high: float, smallest: float) -> tuple[float, float]:
    margin = max(0.06 * (high - low), smallest)
    return low - margin, high + margin


def linear_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers in [low, high], about `target` and at least 2 of them."""
    raw = (high - low) / target
    unit = 10.0 ** math.floor(math.log10(raw))
    for factor in (5, 2, 1, 0.5):
        step = factor * unit
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= min(target, 4):
            break
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; the powers alone when there are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks if len(ticks) <= 8 else ticks[:: math.ceil(len(ticks) / 8)]
    return linear_ticks(low, high)


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else f"{value:g}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = _INK,
    size: int = 12,
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
    )
