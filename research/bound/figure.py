"""Scatter plots of errors against the bound, as SVG, by matplotlib."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calift_core.errors import SpecError
from calift_core.installed import install_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe & Ito's colours, told apart by people with colour-blindness too; shapes say the same.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHAPES = ("o", "s", "D", "^", "v", "P")
_INK, _MUTED, _GRID = "#1c2733", "#5b6875", "#e8ecf0"

#: Of the whole figure: text stays text, and the same marks give the same bytes.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calift",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.06,
    "axes.ymargin": 0.06,
    "grid.color": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}
_PANEL_INCHES = (5.2, 3.9)


@dataclass(frozen=True)
class PlotMark:
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
    marks: tuple[PlotMark, ...]


def need_matplotlib() -> None:
    """Make sure that figures can be drawn, before hours are spent on what they show.

    Raises:
        SpecError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SpecError(
            "figures need matplotlib, which is not installed.", hint=install_extra("study")
        ) from error


def scatter_svg(panels: Sequence[Panel], *, title: str, caption: str) -> str:
    """Scatter plots side by side under one title, with one legend, as a stand-alone SVG.

    Raises:
        SpecError: there are no panels, a panel has no marks, an x is not positive, or matplotlib is
            not installed.
    """
    if not panels or any(not p.marks for p in panels):
        raise SpecError("a figure needs at least one panel with marks")
    if any(m.x <= 0 for p in panels for m in p.marks):
        raise SpecError("x must be positive on a logarithmic axis")
    need_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    styles = _styles(m.series for p in panels for m in p.marks)
    with rc_context(STYLE):
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width * len(panels), height))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        figure.subplots_adjust(wspace=0.3)
        for i, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            _draw(ax, panel, styles, f"marks-{i}")
        _around(figure, axes[0], styles, title, caption)
        svg = io.StringIO()
        about = {"Title": title, "Description": caption, "Date": None}
        figure.savefig(svg, format="svg", metadata=about, bbox_inches="tight", pad_inches=0.2)
    return svg.getvalue()


def _styles(series: Any) -> dict[str, dict[str, Any]]:
    """Colour and shape of each series, in the order in which they first come."""
    return {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _SHAPES[i % len(_SHAPES)]}
        for i, name in enumerate(dict.fromkeys(series))
    }


def _draw(ax: Axes, panel: Panel, styles: dict[str, dict[str, Any]], gid: str) -> None:
    """Draw the marks of a panel, each as an SVG group of its own with an id."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    ax.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.set_xscale("log")
    for i, mark in enumerate(panel.marks):
        ax.plot(
            [mark.x],
            [mark.y],
            linestyle="none",
            markersize=7,
            markerfacecolor="#ffffff" if mark.hollow else styles[mark.series]["color"],
            markeredgewidth=1.6 if mark.hollow else 0.6,
            alpha=0.8,
            gid=f"{gid}-{i}",
            **styles[mark.series],
        )
    low, high = ax.get_xlim()
    few = high < 4 * low  # a logarithmic scale has no round numbers to spare here
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    ax.xaxis.set_major_locator(MaxNLocator(5) if few else LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(which="both", length=0)


def _around(
    figure: Figure, first: Axes, styles: dict[str, dict[str, Any]], title: str, caption: str
) -> None:
    """Put the title above the panels, and below them the legend and then the caption."""
    from matplotlib.lines import Line2D

    left, right = figure.subplotpars.left, figure.subplotpars.right
    columns = (right - left) * figure.get_figwidth() / (0.45 + 0.075 * max(map(len, styles)))
    figure.text(left, 0.99, title, fontsize=13, fontweight="bold", va="bottom")
    legend = first.legend(
        handles=[Line2D([], [], linestyle="none", label=n, **s) for n, s in styles.items()],
        loc="upper left",
        bbox_to_anchor=(left, -0.04),
        bbox_transform=figure.transFigure,
        ncols=max(1, min(len(styles), math.floor(columns))),
        frameon=False,
        borderaxespad=0.0,
        borderpad=0.0,
        handletextpad=0.2,
    )
    figure.draw_without_rendering()
    below = legend.get_window_extent().transformed(figure.transFigure.inverted()).y0
    columns = (right - left) * figure.get_figwidth() / 0.068
    wrapped = textwrap.fill(caption, math.floor(columns), break_on_hyphens=False)
    figure.text(left, below - 0.03, wrapped, color=_MUTED, va="top", linespacing=1.4)


def _short(value: float) -> str:
    """A number on the x axis: 20 k for 20,000, 3 M for 3,000,000."""
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else f"{value:g}"
