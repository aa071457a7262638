"""Records to figures. Pure: wire models in, `plotly.graph_objects.Figure` out; no Streamlit.

Fractions come in and percent is made by the axes alone. Every figure carries a description for
people who do not see it (`alt_text`), and one colour, symbol and dash belong to a run in all of
them (`run_styles`). The palette is Okabe and Ito's, without the yellow that vanishes on white.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from calift_core.schema.report import EvaluationReport, Summary
from calift_core.schema.wire import (
    CalibratorEffect,
    Comparison,
    FittedCalibrator,
    Frontier,
    MeasureSet,
    Metrics,
    PairedDifference,
    Reliability,
    ReliabilityBin,
    SlicePage,
    SmoothCurve,
    Spectrum,
    TransferCell,
    TransferMatrix,
)
from frontend import text

INK = "#1c2733"
MUTED = "#5b6875"
GRID = "#e8ecf0"
RULE = "#c4ccd4"
BAR = "#dfe6ed"
BAND = "rgba(91,104,117,0.18)"
OVER = "#D55E00"
UNDER = "#0072B2"
FONT = '"Source Sans", "Source Sans 3", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif'

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
)
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "triangle-down",
    "star",
    "x",
)
DASHES = (
    "solid",
    "dash",
    "dot",
    "dashdot",
    "longdash",
    "longdashdot",
    "2px 6px",
    "10px 3px 2px 3px",
)
#: Widest bar of a reliability diagram's gap, as a share of the axis.
GAP_WIDTH = 0.08
#: Points above which lines are drawn by WebGL.
WEBGL_POINTS = 4000
#: Light enough at its dark end for ink to stay readable on it.
SEQUENTIAL = (
    (0.0, "#f6f9fc"),
    (0.5, "#b9d5e8"),
    (1.0, "#6ba6d0"),
)


class RunStyle(NamedTuple):
    """How a run is drawn everywhere."""

    colour: str
    symbol: str
    dash: str


class Run(NamedTuple):
    """What a chart needs to know of a run: its id gives the style, its label is read."""

    id: str
    label: str


def run_slots(run_ids: Iterable[str], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Give each run a slot of the palette.

    A run keeps the slot in `known` unless another shown run holds it; a new run takes the slot its
    id hashes to, or the next free one. The order of `run_ids` does not matter, and up to eight
    runs are all different.
    """
    ids = sorted(set(run_ids))
    known = known or {}
    slots: dict[str, int] = {}
    used: dict[int, int] = defaultdict(int)
    for run_id in [i for i in ids if i in known] + [i for i in ids if i not in known]:
        wish = known.get(run_id, zlib.crc32(run_id.encode()) % len(PALETTE))
        ring = [(wish + k) % len(PALETTE) for k in range(len(PALETTE))]
        slot = min(ring, key=lambda s: used[s])
        slots[run_id] = slot
        used[slot] += 1
    return slots


def style_of_slot(slot: int) -> RunStyle:
    """The look that belongs to a slot."""
    return RunStyle(PALETTE[slot], SYMBOLS[slot], DASHES[slot])


def run_styles(
    run_ids: Iterable[str], known: Mapping[str, int] | None = None
) -> dict[str, RunStyle]:
    """Colour, symbol and dash per run; see `run_slots`."""
    return {run_id: style_of_slot(slot) for run_id, slot in run_slots(run_ids, known).items()}


def alt_text(figure: go.Figure) -> str:
    """The description that goes with a figure."""
    meta = figure.layout.meta
    return str(meta["alt"]) if meta else ""


def _figure(
    *, title: str, alt: str, height: int, subtitle: Sequence[str] = (), legend: bool = True
) -> go.Figure:
    """An empty figure in calift's look. `subtitle` lines stand under the title, one a line."""
    lines = [f"<b>{text.esc(title)}</b>"] if title else []
    lines += [
        f'<span style="font-size:12px;color:{MUTED}">{text.esc(line)}</span>' for line in subtitle
    ]
    head = "<br>".join(lines)
    # The first line of several is drawn higher by plotly than a line alone.
    pad = 6 if len(lines) == 1 else 18
    top = (34 if title else 8) + (20 * len(subtitle) + 6 if subtitle else 0)
    figure = go.Figure()
    figure.update_layout(
        title={
            "text": head if title or subtitle else None,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 4, "t": pad},
            "font": {"size": 15, "color": INK},
        },
        meta={"alt": alt},
        height=height + top,
        margin={"l": 56, "r": 14, "t": top, "b": 46, "autoexpand": True},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        colorway=list(PALETTE),
        hoverlabel={
            "bgcolor": "#ffffff",
            "bordercolor": RULE,
            "font": {"family": FONT, "size": 13, "color": INK},
            "align": "left",
        },
        showlegend=legend,
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.16,
            "yanchor": "top",
            "font": {"size": 12},
            "itemwidth": 36,
            "bgcolor": "rgba(0,0,0,0)",
        },
        bargap=0,
        dragmode=False,
    )
    return figure


def _legend_below(figure: go.Figure, rows: int) -> None:
    """Put the legend under the x axis's title and make room for `rows` lines of it."""
    axis, bottom = 50, 54 + 21 * rows
    plot = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    figure.update_layout(
        showlegend=True,
        height=plot + figure.layout.margin.t + bottom,
        margin={"b": bottom},
        legend={"y": -axis / plot, "yanchor": "top"},
    )


def _axis(**changes: Any) -> dict[str, Any]:
    axis = {
        "gridcolor": GRID,
        "linecolor": RULE,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": RULE,
        "tickfont": {"size": 12, "color": MUTED},
        "title": {"font": {"size": 13, "color": INK}, "standoff": 8},
        "automargin": True,
        "showline": True,
    }
    name = changes.pop("name", None)
    if name is not None:
        axis["title"] = {**axis["title"], "text": name}
    return {**axis, **changes}


def _values_axis(metric: str, **changes: Any) -> dict[str, Any]:
    look = text.METRICS[metric]
    if look.fraction:
        changes.setdefault("tickformat", ".0%")
    return _axis(name=look.title, **changes)


def _nothing(title: str, why: str) -> go.Figure:
    """A figure that says why it is empty."""
    figure = _figure(title=title, alt=f"{title}: {why}", height=160, legend=False)
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    figure.add_annotation(
        text=text.esc(why), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper",
        font={"color": MUTED},
    )  # fmt: skip
    return figure


# ---- Reliability -------------------------------------------------------------------------------


def reliability_facts(diagram: Reliability) -> list[str]:
    """The lines printed in a diagram, so that an exported picture stands alone."""
    return [
        f"{text.percent(diagram.accuracy)} accuracy at {text.percent(diagram.mean_confidence)} "
        "mean confidence",
        f"{_error_words(diagram)}"
        + ("" if diagram.in_sample else f", 95{text.NBSP}% {text.interval(*diagram.interval)}"),
        f"n = {text.count(diagram.n)} · {diagram.n_bins} bins, {text.SCHEMES[diagram.scheme]} · "
        f"{text.NORMS[diagram.norm]} · T = {diagram.temperature:.3g}",
    ]


def diagram_error_name(diagram: Reliability) -> str:
    """What the error of a norm is called: the largest gap is MCE, not ECE."""
    return "MCE" if diagram.norm == "max" else "ECE"


def _error_words(diagram: Reliability) -> str:
    """The error with its floor, or with the reason why it has none."""
    if diagram.in_sample:
        return f"{diagram_error_name(diagram)} {text.percent(diagram.ece)} (in-sample: no floor)"
    return f"{diagram_error_name(diagram)} {text.ece_with_floor(diagram.ece, diagram.null_mean)}"


def reliability_alt(diagram: Reliability) -> str:
    """What a diagram shows, in words."""
    over = sum(b.count for b in diagram.bins if b.mean_confidence > b.accuracy)
    share = over / diagram.n if diagram.n else 0.0
    return (
        f"Reliability diagram of {diagram.run_name} on {diagram.dataset}: accuracy against mean "
        f"confidence in {len(diagram.bins)} bins of {text.count(diagram.n)} samples. "
        f"{diagram_error_name(diagram)} {text.percent(diagram.ece)}, "
        f"floor {text.percent(diagram.null_mean)}. "
        f"{text.percent(share, 0)} of samples lie in bins that are over-confident."
    )


def reliability_diagram(
    diagram: Reliability,
    *,
    title: str | None = None,
    colour: str | None = None,
    symbol: str = "circle",
    band: bool = True,
    smooth: bool = False,
    side: int = 380,
) -> go.Figure:
    """Accuracy against confidence, with the counts below on the same axis.

    Axes are square. A pale bar is a bin's accuracy; the hatched part is the gap to its mean
    confidence, and over- and under-confidence differ in colour and in the hatch. Points sit at the
    bin's mean confidence with the interval of its accuracy; the grey band is where a calibrated
    model's bins would fall at this n. Bins without samples are not drawn.

    Args:
        diagram: numbers from `GET /evaluations/{id}/reliability`.
        title: default: run and data set.
        colour: of the points; default: the run's own.
        symbol: of the points.
        band: draw the consistency band.
        smooth: draw the kernel curve of the smooth ECE as well.
        side: of the square, in pixels, where there is room.
    """
    own = run_styles([diagram.run_id])[diagram.run_id]
    heading = title if title is not None else f"{diagram.run_name} on {diagram.dataset}"
    figure = _figure(
        title=heading,
        subtitle=reliability_facts(diagram),
        alt=reliability_alt(diagram),
        height=round(1.3 * side) + 46,
    )
    _draw_reliability(
        figure, diagram.bins, colour=colour or own.colour, symbol=symbol, band=band, axes=("", "2")
    )
    drawn = smooth and diagram.smooth is not None
    if drawn and diagram.smooth is not None:
        figure.add_trace(_smooth_line(diagram.smooth, colour or own.colour))
    _reliability_axes(figure, x=(0.0, 1.0), y=(0.0, 1.0), axes=("", "2"))
    figure.update_layout(legend={"traceorder": "normal"}, margin={"l": 60}, barmode="overlay")
    # Five or six entries: two a line where the figure is wide, one where it is narrow.
    _legend_below(figure, 3 if side >= 350 else 5 + drawn)
    return figure


def _smooth_line(curve: SmoothCurve, colour: str) -> go.Scatter:
    """The kernel regression of correctness on confidence; gaps where no sample is near."""
    return go.Scatter(
        x=curve.confidence,
        y=curve.accuracy,
        mode="lines",
        name=f"smooth curve, smooth ECE {text.percent(curve.smooth_ece)}",
        line={"color": colour, "width": 2, "dash": "dot"},
        connectgaps=False,
        hovertemplate="confidence %{x:.1%}<br>smoothed accuracy %{y:.1%}<extra></extra>",
    )


def reliability_grid(
    diagrams: Sequence[Reliability], *, columns: int = 3, titles: Sequence[str] | None = None
) -> go.Figure:
    """Small multiples: one reliability diagram with count strip per entry, axes shared in range."""
    if not diagrams:
        return _nothing("Reliability", "no evaluation is chosen")
    columns = max(1, min(columns, len(diagrams)))
    rows = math.ceil(len(diagrams) / columns)
    figure = _figure(
        title="Reliability",
        subtitle=["grey band: where a calibrated model would fall · bars below: samples per bin"],
        alt=" ".join(reliability_alt(d) for d in diagrams),
        height=rows * 430 + 60,
    )
    styles = run_styles(d.run_id for d in diagrams)
    gap_x, gap_y = 0.07, 0.2 / rows
    width = (1 - gap_x * (columns - 1)) / columns
    cell = (1 - gap_y * (rows - 1)) / rows
    for index, diagram in enumerate(diagrams):
        row, column = divmod(index, columns)
        left = column * (width + gap_x)
        bottom = max(0.0, 1 - (row + 1) * cell - row * gap_y)  # rounding may fall below zero
        x_id = "" if index == 0 else str(index + 1)
        names = ("" if index == 0 else str(2 * index + 1), str(2 * index + 2))
        look = styles[diagram.run_id]
        _draw_reliability(
            figure, diagram.bins, colour=look.colour, symbol=look.symbol, band=True,
            axes=names, x_axis=x_id, legend=index == 0, own_name="accuracy, 95 % interval",
        )  # fmt: skip
        _reliability_axes(
            figure, x=(left, min(1.0, left + width)), axes=names, x_axis=x_id,
            # Three lines of words stand above each square.
            y=(bottom, bottom + cell - 58 / (rows * 430)),
            names=(row == rows - 1, column == 0),
        )  # fmt: skip
        label = titles[index] if titles else f"{diagram.run_name} on {diagram.dataset}"
        figure.add_annotation(
            text=f"<b>{text.esc(label)}</b><br>"
            f'<span style="color:{MUTED}">{diagram_error_name(diagram)} '
            f"{text.ece_with_floor(diagram.ece, diagram.null_mean)}<br>n = "
            f"{text.count(diagram.n)} · {diagram.n_bins} {text.SCHEMES[diagram.scheme]} · "
            f"{text.NORMS[diagram.norm]} · T = {diagram.temperature:.3g}</span>",
            x=left, y=bottom + cell, xref="paper", yref="paper", xanchor="left", yanchor="top",
            align="left", showarrow=False, font={"size": 12},
        )  # fmt: skip
    figure.update_layout(barmode="overlay")
    _legend_below(figure, 2)
    return figure


def reliability_overlay(
    diagrams: Sequence[Reliability],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "Reliability of several runs",
    side: int = 440,
) -> go.Figure:
    """Several runs on one pair of axes: points at the bins' mean confidence, joined by lines."""
    if not diagrams:
        return _nothing(title, "no evaluation is chosen")
    styles = styles or run_styles(d.run_id for d in diagrams)
    first = diagrams[0]
    figure = _figure(
        title=title,
        subtitle=[
            f"{first.dataset} · {first.n_bins} bins, {text.SCHEMES[first.scheme]} · "
            f"{text.NORMS[first.norm]} · T = {first.temperature:.3g}",
        ],
        alt=" ".join(reliability_alt(d) for d in diagrams),
        height=round(1.3 * side) + 46,
    )
    figure.add_trace(_identity("", ""))
    for diagram in diagrams:
        look = styles[diagram.run_id]
        bins = diagram.bins
        figure.add_trace(
            go.Scatter(
                x=[b.mean_confidence for b in bins],
                y=[b.accuracy for b in bins],
                error_y=_error_bars(bins, look.colour),
                mode="lines+markers",
                name=f"{text.esc(diagram.run_name)}, n = {text.count(diagram.n)}, "
                f"{diagram_error_name(diagram)} "
                f"{text.ece_with_floor(diagram.ece, diagram.null_mean)}",
                line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={"color": look.colour, "symbol": look.symbol, "size": 8},
                customdata=[[b.count] for b in bins],
                hovertemplate="confidence %{x:.1%}<br>accuracy %{y:.1%}"
                "<br>%{customdata[0]:,} samples<extra>" + text.esc(diagram.run_name) + "</extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[b.mean_confidence for b in bins],
                y=[b.count for b in bins],
                yaxis="y2",
                mode="lines+markers",
                line={"color": look.colour, "dash": look.dash, "width": 1.5},
                marker={"color": look.colour, "symbol": look.symbol, "size": 5},
                showlegend=False,
                hovertemplate="%{y:,} samples at %{x:.1%}<extra>"
                + text.esc(diagram.run_name)
                + "</extra>",
            )
        )
    _reliability_axes(figure, x=(0.0, 1.0), y=(0.0, 1.0), axes=("", "2"))
    figure.update_layout(legend={"orientation": "v"}, margin={"l": 60})
    _legend_below(figure, len(diagrams) + 1)
    return figure


def _draw_reliability(
    figure: go.Figure,
    bins: Sequence[ReliabilityBin],
    *,
    colour: str,
    symbol: str,
    band: bool,
    axes: tuple[str, str],
    x_axis: str = "",
    legend: bool = True,
    own_name: str = "accuracy, 95 % interval",
) -> None:
    """Add one diagram's traces on `y{axes[0]}` and its counts on `y{axes[1]}`."""
    place = {"xaxis": f"x{x_axis}", "yaxis": f"y{axes[0]}"}
    centres = [(b.lower + b.upper) / 2 for b in bins]
    widths = [b.upper - b.lower for b in bins]
    said = [[b.lower, b.upper, b.count, b.mean_confidence, b.accuracy] for b in bins]
    hover = (
        "bin %{customdata[0]:.3f} to %{customdata[1]:.3f}<br>%{customdata[2]:,} samples"
        "<br>confidence %{customdata[3]:.1%}<br>accuracy %{customdata[4]:.1%}<extra></extra>"
    )
    figure.add_trace(
        go.Bar(
            x=centres,
            y=[b.accuracy for b in bins],
            width=widths,
            name="accuracy",
            legendgroup="bar",
            marker={"color": BAR, "line": {"color": "#ffffff", "width": 0.5}},
            customdata=said,
            hovertemplate=hover,
            showlegend=False,
            **place,
        )
    )
    if band and bins:
        xs = [b.mean_confidence for b in bins]
        figure.add_trace(
            go.Scatter(
                x=xs + xs[::-1],
                y=[b.band_low for b in bins] + [b.band_high for b in bins][::-1],
                fill="toself",
                fillcolor=BAND,
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                name="calibrated at this n (95 %)",
                legendgroup="band",
                showlegend=legend,
                **place,
            )
        )
    # A side without bins keeps its place in the legend, so that diagrams stay equally large.
    for name, tint, hatch, chosen in (
        ("over-confident", OVER, "/", [b for b in bins if b.mean_confidence > b.accuracy]),
        ("under-confident", UNDER, ".", [b for b in bins if b.mean_confidence < b.accuracy]),
    ):
        figure.add_trace(
            go.Bar(
                x=[sum(_gap_span(b)) / 2 for b in chosen] or [None],
                y=[abs(b.mean_confidence - b.accuracy) for b in chosen],
                base=[min(b.mean_confidence, b.accuracy) for b in chosen],
                width=[_gap_span(b)[1] - _gap_span(b)[0] for b in chosen],
                name=name,
                legendgroup=name,
                marker={
                    "color": "rgba(255,255,255,0.55)",
                    "line": {"color": tint, "width": 1},
                    "pattern": {
                        "shape": hatch,
                        "fgcolor": tint,
                        "bgcolor": "rgba(255,255,255,0.55)",
                        "size": 6,
                        "solidity": 0.3,
                    },
                },
                customdata=[
                    [b.lower, b.upper, b.count, b.mean_confidence, b.accuracy] for b in chosen
                ],
                hovertemplate=hover,
                showlegend=legend,
                **place,
            )
        )
    figure.add_trace(_identity(x_axis, axes[0], legend=legend))
    figure.add_trace(
        go.Scatter(
            x=[b.mean_confidence for b in bins],
            y=[b.accuracy for b in bins],
            error_y=_error_bars(bins, colour),
            mode="markers",
            name=own_name,
            legendgroup="points",
            marker={
                "color": colour,
                "symbol": symbol,
                "size": 8,
                "line": {"color": "#ffffff", "width": 1},
            },
            customdata=said,
            hovertemplate=hover,
            showlegend=legend,
            **place,
        )
    )
    figure.add_trace(
        go.Bar(
            x=centres,
            y=[b.count for b in bins],
            width=widths,
            name="samples per bin",
            legendgroup="count",
            marker={"color": "#a9b5c0", "line": {"color": "#ffffff", "width": 0.5}},
            customdata=said,
            hovertemplate=hover,
            showlegend=False,
            xaxis=f"x{x_axis}",
            yaxis=f"y{axes[1]}",
        )
    )


def _gap_span(b: ReliabilityBin) -> tuple[float, float]:
    """Where the gap's bar stands: in its bin, around the mean confidence, not wider than needed.

    An equal-mass bin can reach over most of the axis with all its samples at one end; a bar of its
    whole width would look like most of the data.
    """
    half = GAP_WIDTH / 2
    low = max(b.lower, min(b.mean_confidence - half, b.upper - GAP_WIDTH))
    return low, min(b.upper, low + GAP_WIDTH)


def _identity(x_axis: str, y_axis: str, *, legend: bool = True) -> go.Scatter:
    return go.Scatter(
        x=[0, 1],
        y=[0, 1],
        xaxis=f"x{x_axis}",
        yaxis=f"y{y_axis}",
        mode="lines",
        line={"color": MUTED, "dash": "dash", "width": 1.25},
        name="perfect calibration",
        legendgroup="identity",
        hoverinfo="skip",
        showlegend=legend,
    )


def _error_bars(bins: Sequence[ReliabilityBin], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, b.interval_high - b.accuracy) for b in bins],
        "arrayminus": [max(0.0, b.accuracy - b.interval_low) for b in bins],
        "color": colour,
        "thickness": 1.25,
        "width": 2,
    }


def _reliability_axes(
    figure: go.Figure,
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    axes: tuple[str, str],
    x_axis: str = "",
    names: tuple[bool, bool] = (True, True),
) -> None:
    """Set one x axis and two stacked y axes on it: the square above, the count strip below.

    One x axis serves both, so the strip stays under the square when the square shrinks to fit.
    """
    bottom, top = y
    split = bottom + 0.2 * (top - bottom)
    gap = 0.02 * (top - bottom)
    ticks = {"tickmode": "array", "tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1.0], "tickformat": ".0%"}
    figure.update_layout(
        {
            f"xaxis{x_axis}": _axis(
                name="Confidence" if names[0] else None,
                range=[-0.005, 1.005],
                domain=list(x),
                anchor=f"y{axes[1]}",
                constrain="domain",
                constraintoward="left",
                **ticks,
            ),
            f"yaxis{axes[0]}": _axis(
                name="Accuracy" if names[1] else None,
                range=[-0.005, 1.005],
                domain=[split + gap, top],
                anchor=f"x{x_axis}",
                scaleanchor=f"x{x_axis}",
                scaleratio=1,
                constrain="domain",
                constraintoward="bottom",
                **ticks,
            ),
            f"yaxis{axes[1]}": _axis(
                name="Count" if names[1] else None,
                domain=[bottom, split - gap],
                anchor=f"x{x_axis}",
                rangemode="tozero",
                nticks=3,
            ),
        }
    )


# ---- Accuracy and calibration over shifts ------------------------------------------------------

RunEvaluations = Sequence[tuple[Run, Sequence[EvaluationReport]]]


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share, for error bars of accuracies (Wilson 1927)."""
    if n <= 0:
        return (0.0, 1.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


class ShiftPoint(NamedTuple):
    """One run on one row of a shift chart; a corruption's severities are averaged."""

    dataset: str
    role: str
    value: float
    low: float | None
    high: float | None
    floor: float | None
    above_floor: bool | None
    n: int
    parts: int


def shift_points(evaluations: Sequence[EvaluationReport], metric: str) -> list[ShiftPoint]:
    """Rows of a shift chart: ID first, then shifts by name, then corruptions averaged by name."""
    groups: dict[tuple[int, str], list[EvaluationReport]] = defaultdict(list)
    order = {"id": 0, "shift": 1, "corruption": 2}
    for evaluation in evaluations:
        name = evaluation.corruption or evaluation.dataset
        groups[order[evaluation.role], name].append(evaluation)
    rows = []
    for (_, name), members in sorted(groups.items()):
        low = high = floor = None
        above = None
        if metric == "accuracy" and len(members) == 1:
            low, high = wilson(members[0].accuracy * members[0].n, members[0].n)
        if metric == "ece":
            floor = fmean(m.ece.null_mean for m in members)
            if len(members) == 1:
                low, high = members[0].ece.interval
                above = text.above_floor(members[0].ece)
            else:
                above = any(text.above_floor(m.ece) for m in members)
        rows.append(
            ShiftPoint(
                dataset=name.replace("_", " ") if members[0].corruption else name,
                role=members[0].role,
                value=fmean(text.metric_value(m, metric) for m in members),
                low=low,
                high=high,
                floor=floor,
                above_floor=above,
                n=sum(m.n for m in members),
                parts=len(members),
            )
        )
    return rows


def _dataset_order(runs: Sequence[tuple[Run, list[ShiftPoint]]]) -> list[str]:
    seen: dict[str, tuple[int, str]] = {}
    order = {"id": 0, "shift": 1, "corruption": 2}
    for _, rows in runs:
        for row in rows:
            seen.setdefault(row.dataset, (order[row.role], row.dataset))
    return sorted(seen, key=lambda name: seen[name])


def accuracy_by_shift(
    runs: RunEvaluations,
    *,
    metric: str = "accuracy",
    styles: Mapping[str, RunStyle] | None = None,
    title: str | None = None,
) -> go.Figure:
    """A dot per run and data set, with its 95 % interval; for ECE also a tick at the floor.

    ID data stand first, then shifts, then corruptions, each averaged over its severities (without
    an interval: the severities share their images).
    """
    look = text.METRICS[metric]
    heading = title if title is not None else f"{look.title} by shift"
    rows_of = [(run, shift_points(evaluations, metric)) for run, evaluations in runs]
    names = _dataset_order(rows_of)
    if not names:
        return _nothing(heading, "no evaluation is stored yet")
    styles = styles or run_styles(run.id for run, _ in runs)
    lines = ["bars: 95 % interval" + (" · small tick: floor at this n" if metric == "ece" else "")]
    figure = _figure(
        title=heading,
        subtitle=lines,
        alt=_shift_alt(heading, rows_of, metric),
        height=80 + max(26 * len(names), 16 * len(names) * max(1, len(runs)) // 2),
    )
    spread = 0.0 if len(runs) < 2 else min(0.22, 0.6 / (len(runs) - 1))
    for index, (run, rows) in enumerate(rows_of):
        own = styles[run.id]
        shift = (index - (len(runs) - 1) / 2) * spread
        ys = [names.index(row.dataset) + shift for row in rows]
        figure.add_trace(
            go.Scatter(
                x=[row.value for row in rows],
                y=ys,
                mode="markers",
                name=text.esc(run.label),
                marker={
                    "color": own.colour,
                    "symbol": own.symbol,
                    "size": 9,
                    "line": {"color": "#ffffff", "width": 1},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [0 if r.high is None else max(0.0, r.high - r.value) for r in rows],
                    "arrayminus": [0 if r.low is None else max(0.0, r.value - r.low) for r in rows],
                    "color": own.colour,
                    "thickness": 1.25,
                    "width": 0,
                },
                customdata=[
                    [text.esc(r.dataset), text.metric_text(r.value, metric), text.count(r.n)]
                    for r in rows
                ],
                hovertemplate="%{customdata[0]}: %{customdata[1]}<br>n = %{customdata[2]}"
                "<extra>" + text.esc(run.label) + "</extra>",
            )
        )
        if metric == "ece":
            figure.add_trace(
                go.Scatter(
                    x=[row.floor for row in rows],
                    y=ys,
                    mode="markers",
                    marker={"symbol": "line-ns-open", "size": 9, "color": own.colour,
                            "line": {"width": 1.5}},
                    showlegend=False,
                    hovertemplate="floor %{x:.2%}<extra>" + text.esc(run.label) + "</extra>",
                )
            )  # fmt: skip
    figure.update_layout(
        xaxis=_values_axis(metric, rangemode="tozero" if look.better == "low" else "normal"),
        yaxis=_axis(
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=[text.esc(name) for name in names],
            range=[len(names) - 0.5, -0.5],
            ticks="",
            showline=False,
            tickfont={"size": 13, "color": INK},
        ),
        showlegend=False,
    )
    if len(runs) > 1:
        _legend_below(figure, math.ceil(len(runs) / 3))
    for index in range(1, len(names)):
        roles = {row.dataset: row.role for _, rows in rows_of for row in rows}
        if roles[names[index]] != roles[names[index - 1]]:
            figure.add_hline(y=index - 0.5, line={"color": RULE, "width": 1})
    return figure


def _shift_alt(heading: str, rows_of: Sequence[tuple[Run, list[ShiftPoint]]], metric: str) -> str:
    said = []
    for run, rows in rows_of[:4]:
        worst = (max if text.METRICS[metric].better == "low" else min)(
            rows, key=lambda row: row.value, default=None
        )
        if worst is not None:
            said.append(
                f"{run.label}: worst is {worst.dataset} at {text.metric_text(worst.value, metric)}"
            )
    more = f", and {len(rows_of) - 4} more runs" if len(rows_of) > 4 else ""
    return f"{heading}, {len(rows_of)} runs. " + "; ".join(said) + more + "."


def shift_heatmap(
    runs: RunEvaluations, *, metric: str = "accuracy", title: str | None = None
) -> go.Figure:
    """Runs down, data sets across; each cell says its number.

    For ECE a number in brackets is one that a calibrated model would show as well (its 95 % null
    quantile is not exceeded).
    """
    look = text.METRICS[metric]
    heading = title if title is not None else f"{look.title}: run × shift"
    rows_of = [(run, shift_points(evaluations, metric)) for run, evaluations in runs]
    names = _dataset_order(rows_of)
    if not names:
        return _nothing(heading, "no evaluation is stored yet")
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for _, rows in rows_of:
        by_name = {row.dataset: row for row in rows}
        z.append([by_name[name].value if name in by_name else None for name in names])
        words.append([_cell(by_name.get(name), metric) for name in names])
    note = "darker is worse" if look.better == "low" else "darker is better"
    if metric == "ece":
        note += " · (in brackets): not above the floor"
    figure = _figure(
        title=heading,
        subtitle=[note],
        alt=_shift_alt(heading, rows_of, metric),
        height=130 + 38 * len(runs) + 6 * max(map(len, names)),
        legend=False,
    )
    figure.add_trace(
        _heatmap(z, words, columns=names, rows=[run.label for run, _ in runs], metric=metric)
    )
    figure.update_layout(
        xaxis=_axis(tickangle=-40 if len(names) > 5 else 0, showgrid=False, ticks="",
                    showline=False, tickfont={"size": 12, "color": INK}),
        yaxis=_axis(autorange="reversed", showgrid=False, ticks="", showline=False,
                    type="category", tickfont={"size": 12, "color": INK}),
        margin={"b": 12},
    )  # fmt: skip
    return figure


def _cell(row: ShiftPoint | None, metric: str) -> str:
    if row is None:
        return ""
    if not text.METRICS[metric].fraction:
        return text.number(row.value)
    words = f"{100 * row.value:.1f}"
    return f"({words})" if row.above_floor is False else words


def _heatmap(
    z: list[list[float | None]],
    words: list[list[str]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    metric: str,
    limits: tuple[float, float] | None = None,
) -> go.Heatmap:
    """A heat-map with its numbers in the cells; labels that repeat are kept apart by blanks."""
    fraction = text.METRICS[metric].fraction
    shown: dict[str, int] = defaultdict(int)
    labels = []
    for row in rows:
        labels.append(text.esc(row) + "\u200b" * shown[row])
        shown[row] += 1
    return go.Heatmap(
        z=z,
        x=[text.esc(column) for column in columns],
        y=labels,
        text=words,
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        colorscale=[list(stop) for stop in SEQUENTIAL],
        zmin=limits[0] if limits else None,
        zmax=limits[1] if limits else None,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="%{y}<br>%{x}: " + ("%{z:.2%}" if fraction else "%{z:.4g}")
        + "<extra></extra>",
        colorbar={
            "thickness": 8,
            "outlinewidth": 0,
            "tickformat": ".0%" if fraction else None,
            "tickfont": {"size": 11, "color": MUTED},
            "len": 1.0,
            "nticks": 4,
        },
    )  # fmt: skip


def corruption_heatmap(
    evaluations: Sequence[EvaluationReport],
    *,
    metric: str = "accuracy",
    title: str | None = None,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """One run: corruptions down, severities across.

    `limits` are the values at the ends of the colours, to be shared by figures side by side.
    """
    look = text.METRICS[metric]
    heading = title if title is not None else f"{look.title}: corruption × severity"
    cells = {(e.corruption, e.severity): e for e in evaluations if e.corruption is not None}
    if not cells:
        return _nothing(heading, "this run was not evaluated on corruptions")
    names = sorted({str(name) for name, _ in cells})
    severities = sorted({int(s) for _, s in cells if s is not None})
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for name in names:
        found = [cells.get((name, severity)) for severity in severities]
        z.append([None if e is None else text.metric_value(e, metric) for e in found])
        words.append(
            ["" if e is None else _cell(shift_points([e], metric)[0], metric) for e in found]
        )
    note = "darker is worse" if look.better == "low" else "darker is better"
    if metric == "ece":
        note += " · (in brackets): not above the floor"
    flat = [(v, n, s) for n, row in zip(names, z, strict=True)
            for s, v in zip(severities, row, strict=True) if v is not None]  # fmt: skip
    worst = (max if look.better == "low" else min)(flat)
    figure = _figure(
        title=heading,
        subtitle=[note],
        alt=f"{heading}, {len(names)} corruptions at severities {severities[0]} to "
        f"{severities[-1]}. Worst: {worst[1].replace('_', ' ')} at severity {worst[2]}, "
        f"{text.metric_text(worst[0], metric)}.",
        height=70 + 28 * len(names),
        legend=False,
    )
    figure.add_trace(
        _heatmap(
            z,
            words,
            columns=[f"severity {s}" if len(severities) < 4 else str(s) for s in severities],
            rows=[name.replace("_", " ") for name in names],
            metric=metric,
            limits=limits,
        )
    )
    figure.update_layout(
        xaxis=_axis(type="category", showgrid=False, ticks="", showline=False,
                    tickfont={"size": 12, "color": INK}),
        yaxis=_axis(autorange="reversed", type="category", showgrid=False, ticks="",
                    showline=False, tickfont={"size": 12, "color": INK}),
        margin={"b": 12},
    )  # fmt: skip
    return figure


def corruption_severity(
    runs: RunEvaluations,
    *,
    metric: str = "accuracy",
    corruption: str | None = None,
    styles: Mapping[str, RunStyle] | None = None,
    title: str | None = None,
) -> go.Figure:
    """A line per run over severity, from the clean test images at 0.

    Args:
        runs: runs and their evaluations.
        metric: a key of `text.METRICS`.
        corruption: one corruption; none: the mean over all of them at each severity.
        styles: of the runs.
        title: default: says what is shown.
    """
    look = text.METRICS[metric]
    what = corruption.replace("_", " ") if corruption else "mean of all corruptions"
    heading = title if title is not None else f"{look.title} by severity: {what}"
    styles = styles or run_styles(run.id for run, _ in runs)
    figure = _figure(title=heading, alt="", height=330)
    said = []
    for run, evaluations in runs:
        at: dict[int, list[EvaluationReport]] = defaultdict(list)
        for e in evaluations:
            if e.role == "id":
                at[0].append(e)
            elif e.severity is not None and corruption in (None, e.corruption):
                at[e.severity].append(e)
        severities = sorted(at)
        if not any(severities):
            continue
        own = styles[run.id]
        values = [fmean(text.metric_value(e, metric) for e in at[s]) for s in severities]
        said.append(
            f"{run.label}: {text.metric_text(values[0], metric)} at severity {severities[0]}, "
            f"{text.metric_text(values[-1], metric)} at {severities[-1]}"
        )
        figure.add_trace(
            go.Scatter(
                x=severities,
                y=values,
                mode="lines+markers",
                name=text.esc(run.label),
                line={"color": own.colour, "dash": own.dash, "width": 2},
                marker={"color": own.colour, "symbol": own.symbol, "size": 9},
                hovertemplate="severity %{x}: "
                + ("%{y:.2%}" if look.fraction else "%{y:.4g}")
                + "<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )
    if not said:
        return _nothing(heading, "no run here was evaluated on corruptions")
    figure.update_layout(
        meta={"alt": f"{heading}. " + "; ".join(said) + "."},
        xaxis=_axis(name="Severity (0: clean)", dtick=1),
        yaxis=_values_axis(metric, rangemode="tozero" if look.better == "low" else "normal"),
        showlegend=False,
    )
    if len(said) > 1:
        _legend_below(figure, math.ceil(len(said) / 3))
    return figure


# ---- Spectra -----------------------------------------------------------------------------------


def singular_values(
    spectra: Sequence[tuple[Run, Spectrum]],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "Singular values of the ID features",
) -> go.Figure:
    """All singular values, largest first, on a logarithmic axis; σ_min is marked.

    Values that are zero cannot stand on a logarithmic axis and are left out; a spectrum of fewer
    samples than features has no σ_min that says anything, so none is marked.
    """
    if not spectra:
        return _nothing(title, "no spectrum is stored yet")
    styles = styles or run_styles(run.id for run, _ in spectra)
    total = sum(len(s.singular_values) for _, s in spectra)
    line = go.Scattergl if total > WEBGL_POINTS else go.Scatter
    figure = _figure(
        title=title,
        subtitle=["covariance of standardised features · ring: σ_min"],
        alt="",
        height=360,
    )
    said = []
    for run, spectrum in spectra:
        own = styles[run.id]
        kept = [(i, v) for i, v in enumerate(spectrum.singular_values, 1) if v > 0]
        step = "final" if spectrum.final else f"step {spectrum.step}"
        figure.add_trace(
            line(
                x=[i for i, _ in kept],
                y=[v for _, v in kept],
                mode="lines",
                name=f"{text.esc(run.label)}, {step}",
                legendgroup=run.id,
                line={"color": own.colour, "dash": own.dash if line is go.Scatter else "solid",
                      "width": 2},
                hovertemplate="σ%{x} = %{y:.3g}<extra>" + text.esc(run.label) + "</extra>",
            )
        )  # fmt: skip
        if spectrum.sigma_min is not None and spectrum.sigma_min > 0:
            figure.add_trace(
                go.Scatter(
                    x=[len(spectrum.singular_values)],
                    y=[spectrum.sigma_min],
                    mode="markers",
                    legendgroup=run.id,
                    showlegend=False,
                    marker={"symbol": f"{own.symbol}-open", "size": 11, "color": own.colour,
                            "line": {"width": 2}},
                    hovertemplate="σ_min = %{y:.3g}<extra>" + text.esc(run.label) + "</extra>",
                )
            )  # fmt: skip
        said.append(f"{run.label} ({step}): {_spectrum_words(spectrum)}")
    figure.update_layout(
        meta={"alt": f"{title}, {len(spectra)} spectra on a logarithmic axis. {'; '.join(said)}."},
        xaxis=_axis(name="Index", rangemode="tozero"),
        yaxis=_axis(
            name="Singular value",
            type="log",
            exponentformat="power",
            dtick=1,
            tickfont={"size": 10, "color": MUTED},
        ),
        showlegend=False,
    )
    if len(spectra) > 1:
        _legend_below(figure, math.ceil(len(spectra) / 3))
    return figure


def _spectrum_words(spectrum: Spectrum) -> str:
    sigma = (
        f"σ_min undefined ({spectrum.n} samples for {spectrum.n_features} features)"
        if spectrum.sigma_min is None
        else f"σ_min {text.number(spectrum.sigma_min)}"
    )
    return f"{sigma}, effective rank {text.number(spectrum.effective_rank)}"


def sigma_over_steps(
    spectra: Sequence[tuple[Run, Sequence[Spectrum]]],
    *,
    quantity: str = "sigma_min",
    styles: Mapping[str, RunStyle] | None = None,
    title: str | None = None,
) -> go.Figure:
    """σ_min or the effective rank over training; the finished model is marked by a ring.

    Args:
        spectra: runs and their spectra in any order.
        quantity: `sigma_min` or `effective_rank`.
        styles: of the runs.
        title: default: names the quantity.
    """
    names = {"sigma_min": "σ_min", "effective_rank": "Effective rank"}
    heading = title if title is not None else f"{names[quantity]} over training"
    styles = styles or run_styles(run.id for run, _ in spectra)
    figure = _figure(title=heading, alt="", height=300)
    said = []
    for run, series in spectra:
        own = styles[run.id]
        # The final spectrum is of other images (test, not validation): a mark of its own, no line.
        path = sorted((s for s in series if not s.final), key=lambda s: s.step)
        path = [s for s in path if getattr(s, quantity) is not None]
        final = [s for s in series if s.final and getattr(s, quantity) is not None]
        if path:
            figure.add_trace(
                go.Scatter(
                    x=[s.step for s in path],
                    y=[getattr(s, quantity) for s in path],
                    mode="lines+markers",
                    name=text.esc(run.label),
                    legendgroup=run.id,
                    line={"color": own.colour, "dash": own.dash, "width": 2},
                    marker={"color": own.colour, "symbol": own.symbol, "size": 8},
                    hovertemplate="step %{x}: %{y:.4g}<extra>" + text.esc(run.label) + "</extra>",
                )
            )
        if final:
            figure.add_trace(
                go.Scatter(
                    x=[s.step for s in final],
                    y=[getattr(s, quantity) for s in final],
                    mode="markers",
                    name=f"{text.esc(run.label)}, final",
                    legendgroup=run.id,
                    showlegend=not path,
                    marker={"symbol": f"{own.symbol}-open", "size": 13, "color": own.colour,
                            "line": {"width": 2}},
                    hovertemplate="final model: %{y:.4g}<extra>" + text.esc(run.label)
                    + "</extra>",
                )
            )  # fmt: skip
        if path or final:
            last = (final or path)[-1]
            said.append(f"{run.label} ends at {text.number(getattr(last, quantity))}")
    if not said:
        why = (
            "there were fewer samples than features, so σ_min says nothing"
            if any(series for _, series in spectra)
            else "no spectrum is stored yet"
        )
        return _nothing(heading, why)
    figure.update_layout(
        meta={"alt": f"{heading}. {'; '.join(said)}. Rings are the finished models."},
        xaxis=_axis(name="Step", rangemode="tozero"),
        yaxis=_axis(name=names[quantity], exponentformat="power"),
        showlegend=False,
    )
    if len(said) > 1:
        _legend_below(figure, math.ceil(len(said) / 2))
    return figure


# ---- Training curves ---------------------------------------------------------------------------


def curves(
    metrics: Metrics,
    names: Sequence[str] | None = None,
    *,
    title: str = "Training",
    log_y: bool = False,
) -> go.Figure:
    """Named series over optimiser steps, all on one axis.

    Args:
        metrics: from `GET /runs/{id}/metrics`.
        names: which series, in the legend's order; none: all.
        title: of the figure.
        log_y: logarithmic axis; values that are not positive are left out.
    """
    by_name = {series.name: series for series in metrics.series}
    wanted = list(by_name) if names is None else [name for name in names if name in by_name]
    wanted = [name for name in wanted if by_name[name].steps]
    if not wanted:
        return _nothing(title, "no point is recorded yet")
    total = sum(len(by_name[name].steps) for name in wanted)
    line = go.Scattergl if total > WEBGL_POINTS else go.Scatter
    figure = _figure(title=title, alt="", height=280)
    said = []
    for index, name in enumerate(wanted):
        series = by_name[name]
        pairs = [
            (s, v) for s, v in zip(series.steps, series.values, strict=True) if v > 0 or not log_y
        ]
        slot = index % len(PALETTE)
        figure.add_trace(
            line(
                x=[s for s, _ in pairs],
                y=[v for _, v in pairs],
                mode="lines" if len(pairs) > 1 else "markers",
                name=text.esc(name.replace("_", " ")),
                line={"color": PALETTE[slot], "width": 2,
                      "dash": DASHES[slot] if line is go.Scatter else "solid"},
                marker={"color": PALETTE[slot], "symbol": SYMBOLS[slot], "size": 7},
                hovertemplate="%{y:.4g}",
            )
        )  # fmt: skip
        said.append(
            f"{name.replace('_', ' ')} from {text.number(series.values[0])} "
            f"to {text.number(series.values[-1])}"
        )
    figure.update_layout(
        meta={"alt": f"{title} over steps up to {metrics.last_step}: {'; '.join(said)}."},
        xaxis=_axis(name="Step", rangemode="tozero"),
        yaxis=_axis(
            type="log" if log_y else "linear", exponentformat="power", dtick=1 if log_y else None
        ),
        hovermode="x unified",
        showlegend=False,
    )
    if len(wanted) > 1:
        _legend_below(figure, math.ceil(len(wanted) / 5))
    return figure


# ---- Comparison --------------------------------------------------------------------------------


def _decided(found: PairedDifference) -> tuple[float, float, float]:
    """The difference that is decided on and its interval; squared errors in pp²."""
    if found.squared is not None:
        low, high = found.squared.interval
        return 1e4 * found.squared.difference, 1e4 * low, 1e4 * high
    low, high = found.interval or (found.difference, found.difference)
    return found.difference, low, high


def paired_differences(
    comparison: Comparison,
    *,
    metric: str = "accuracy",
    roles: Sequence[str] = ("id", "shift", "corruption"),
    styles: Mapping[str, RunStyle] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Each run minus the baseline on the same samples, with its paired interval.

    A filled mark is a difference whose interval excludes zero, an open one could be noise. For the
    ECE the difference of squared errors is drawn, which is what is decided on. `roles` says which
    data sets are shown.
    """
    look = text.METRICS.get(metric, text.Metric(metric, "high", True))
    squared = any(d.squared for c in comparison.runs for d in c.differences if d.metric == metric)
    others = [c for c in comparison.runs if c.run.id != comparison.baseline]
    base = next((c.run.name for c in comparison.runs if c.run.id == comparison.baseline), "?")
    heading = title if title is not None else f"{look.title}: difference to {base}"
    chosen = [
        (c, [d for d in c.differences if d.metric == metric and d.role in roles]) for c in others
    ]
    order = {"id": 0, "shift": 1, "corruption": 2}
    names = sorted(
        {(order[d.role], d.dataset) for _, ds in chosen for d in ds}
    )  # ID first, as in every chart
    if not names:
        return _nothing(heading, "the runs share no samples of the same data set")
    labels = [name for _, name in names]
    styles = styles or run_styles(c.run.id for c in comparison.runs)
    better = "right" if look.better == "high" else "left"
    figure = _figure(
        title=heading,
        subtitle=[
            *(["squared L2 error with the noise taken out: what is decided on"] if squared else []),
            f"{better} of zero is better · filled: 95 % interval excludes zero",
        ],
        alt="",
        height=80 + max(26 * len(labels), 16 * len(labels) * len(others) // 2),
    )
    spread = 0.0 if len(others) < 2 else min(0.22, 0.6 / (len(others) - 1))
    said = []
    for index, (column, differences) in enumerate(chosen):
        own = styles[column.run.id]
        shift = (index - (len(others) - 1) / 2) * spread
        drawn = [_decided(d) for d in differences]
        figure.add_trace(
            go.Scatter(
                x=[value for value, _, _ in drawn],
                y=[labels.index(d.dataset) + shift for d in differences],
                mode="markers",
                name=text.esc(column.run.name),
                marker={
                    "color": own.colour,
                    "size": 10,
                    "symbol": [
                        own.symbol if d.distinguishable else f"{own.symbol}-open"
                        for d in differences
                    ],
                    "line": {"width": 1.5, "color": own.colour},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, high - value) for value, _, high in drawn],
                    "arrayminus": [max(0.0, value - low) for value, low, _ in drawn],
                    "color": own.colour,
                    "thickness": 1.25,
                    "width": 0,
                },
                customdata=[
                    [text.esc(d.dataset), text.count(d.n), text.points(d.difference)]
                    for d in differences
                ],
                hovertemplate="%{customdata[0]}: "
                + (
                    "%{x:+.2f} pp² (ECE %{customdata[2]})"
                    if squared
                    else "%{x:+.2%}"
                    if look.fraction
                    else "%{x:+.4g}"
                )
                + "<br>n = %{customdata[1]}<extra>"
                + text.esc(column.run.name)
                + "</extra>",
            )
        )
        clear = sum(d.distinguishable for d in differences)
        said.append(
            f"{column.run.name}: {clear} of {len(differences)} differences are distinguishable"
        )
    figure.add_vline(x=0, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        meta={"alt": f"{heading}. {'; '.join(said)}."},
        xaxis=_axis(
            name="Run minus baseline, pp²" if squared else "Run minus baseline",
            tickformat="+.1%" if look.fraction and not squared else None,
        ),
        yaxis=_axis(
            tickmode="array",
            tickvals=list(range(len(labels))),
            ticktext=[text.esc(label.replace("_", " ")) for label in labels],
            range=[len(labels) - 0.5, -0.5],
            ticks="",
            showline=False,
            tickfont={"size": 13, "color": INK},
        ),
        showlegend=False,
    )
    if len(others) > 1:
        _legend_below(figure, math.ceil(len(others) / 3))
    return figure


def accuracy_calibration_scatter(
    runs: Sequence[tuple[Run, Summary]],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "Accuracy against calibration",
) -> go.Figure:
    """Accuracy against ECE: open mark on ID data, filled mark OOD, a line between the two.

    The small tick under a mark is the floor of its ECE. Down and to the right is better.
    """
    points = [
        (run, s)
        for run, s in runs
        if (s.id_accuracy is not None and s.id_ece is not None)
        or (s.ood_accuracy is not None and s.ood_ece is not None)
    ]
    if not points:
        return _nothing(title, "no run here has a result yet")
    styles = styles or run_styles(run.id for run, _ in points)
    figure = _figure(
        title=title,
        subtitle=["open: ID · filled: mean OOD · tick: floor · lower right is better"],
        alt="",
        height=380,
    )
    said = []
    for run, s in points:
        own = styles[run.id]
        marks = [
            (s.id_accuracy, s.id_ece, s.id_ece_floor, f"{own.symbol}-open", "ID"),
            (s.ood_accuracy, s.ood_ece, s.ood_ece_floor, own.symbol, "OOD"),
        ]
        kept = [m for m in marks if m[0] is not None and m[1] is not None]
        figure.add_trace(
            go.Scatter(
                x=[m[0] for m in kept],
                y=[m[1] for m in kept],
                mode="lines+markers",
                name=text.esc(run.label),
                legendgroup=run.id,
                line={"color": own.colour, "dash": own.dash, "width": 1.25},
                marker={"color": own.colour, "symbol": [m[3] for m in kept], "size": 11,
                        "line": {"width": 2, "color": own.colour}},
                customdata=[[m[4]] for m in kept],
                hovertemplate="%{customdata[0]}: accuracy %{x:.1%}, ECE %{y:.1%}<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )  # fmt: skip
        floors = [m for m in kept if m[2] is not None]
        figure.add_trace(
            go.Scatter(
                x=[m[0] for m in floors],
                y=[m[2] for m in floors],
                mode="markers",
                legendgroup=run.id,
                showlegend=False,
                marker={"symbol": "line-ew-open", "size": 12, "color": own.colour,
                        "line": {"width": 1.5}},
                hovertemplate="floor %{y:.2%}<extra>" + text.esc(run.label) + "</extra>",
            )
        )  # fmt: skip
        said.append(
            f"{run.label}: " + ", ".join(
                f"{m[4]} accuracy {text.percent(m[0])} with ECE {text.percent(m[1])}" for m in kept
            )
        )  # fmt: skip
    figure.update_layout(
        meta={"alt": f"{title}. {'; '.join(said)}."},
        xaxis=_axis(name="Accuracy", tickformat=".0%"),
        yaxis=_axis(name="ECE", tickformat=".0%", rangemode="tozero"),
    )
    _legend_below(figure, math.ceil(len(points) / 3))
    return figure


# ---- Frontier ----------------------------------------------------------------------------------


class FrontierMark(NamedTuple):
    """One model on the frontier's axes: a run, or a point of a WiSE-FT run's path.

    `kept` says that it is the run itself and not a stop on the way; `alpha` is none for a run that
    has no path; `best` says that no other model here is better on both axes.
    """

    run: Run
    alpha: float | None
    kept: bool
    x: float
    y: float
    floor: float | None
    best: bool


def pareto(
    points: Sequence[tuple[float, float]], *, better: tuple[str, str] = ("high", "high")
) -> list[bool]:
    """Which points no other point beats: at least as good on both axes and better on one.

    Args:
        points: pairs of values.
        better: `high` or `low` for each axis.
    """
    signs = [1.0 if way == "high" else -1.0 for way in better]
    turned = [(signs[0] * x, signs[1] * y) for x, y in points]
    return [not any(u >= x and v >= y and (u, v) != (x, y) for u, v in turned) for x, y in turned]


def frontier_marks(
    runs: Sequence[tuple[Run, Summary]],
    paths: Mapping[str, Frontier],
    *,
    x: str = "id_accuracy",
    y: str = "ood_accuracy",
) -> list[FrontierMark]:
    """Every model that has both values: the points of a run's path by α, else the run's own."""
    found: list[FrontierMark] = []

    def add(run: Run, alpha: float | None, kept: bool, values: Any) -> None:
        at = getattr(values, x), getattr(values, y)
        if None not in at:
            floor = getattr(values, f"{y}_floor", None)
            found.append(FrontierMark(run, alpha, kept, at[0], at[1], floor, False))

    for run, summary in runs:
        path = paths.get(run.id)
        if path is None:
            add(run, None, True, summary)
            continue
        for point in path.points:
            add(run, point.alpha, point.alpha == path.alpha, point)
    ways = text.HEADLINES[x].better, text.HEADLINES[y].better
    best = pareto([(m.x, m.y) for m in found], better=ways)
    return [mark._replace(best=is_best) for mark, is_best in zip(found, best, strict=True)]


def _labelled(marks: Sequence[FrontierMark], most: int = 6) -> list[str]:
    """α in words for the ends, the kept one and a few between: all of them would overlap."""
    stride = max(1, math.ceil((len(marks) - 1) / (most - 1)))
    return [
        f"{mark.alpha:g}" if mark.kept or i % stride == 0 or i == len(marks) - 1 else ""
        for i, mark in enumerate(marks)
    ]


def frontier(
    runs: Sequence[tuple[Run, Summary]],
    paths: Mapping[str, Frontier],
    *,
    x: str = "id_accuracy",
    y: str = "ood_accuracy",
    styles: Mapping[str, RunStyle] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Runs on two headline numbers, the Pareto front, and the paths of WiSE-FT runs.

    A path runs from the zero-shot model (α = 0) to the fine-tuned one (α = 1); the run's own mark
    stands at the α that it kept. Where the second axis is an ECE, a tick shows each model's floor.

    Args:
        runs: what is shown.
        paths: by run id, of the WiSE-FT runs among them.
        x: of `text.HEADLINES`.
        y: of `text.HEADLINES`.
        styles: of the runs.
        title: default: names the axes.
    """
    across, up = text.HEADLINES[x], text.HEADLINES[y]
    heading = title if title is not None else f"{up.title} against {across.title}"
    marks = frontier_marks(runs, paths, x=x, y=y)
    if not marks:
        return _nothing(heading, "no run here has both numbers yet")
    styles = styles or run_styles(run.id for run, _ in runs)
    words = "ring: Pareto front"
    if any(mark.floor is not None for mark in marks):
        words += " · tick: floor"
    subtitle = [f"{words} · {'upper' if up.better == 'high' else 'lower'} right is better"]
    if paths:
        subtitle.append("numbers: α, from 0 zero-shot to 1 fine-tuned")
    figure = _figure(title=heading, subtitle=subtitle, alt="", height=400)
    front = sorted((m for m in marks if m.best), key=lambda m: m.x)
    figure.add_trace(
        go.Scatter(
            x=[m.x for m in front],
            y=[m.y for m in front],
            mode="lines+markers",
            name="Pareto front",
            line={"color": MUTED, "dash": "dot", "width": 1.25},
            marker={"symbol": "circle-open", "size": 19, "color": MUTED, "line": {"width": 1.5}},
            hoverinfo="skip",
        )
    )
    shown = f"{across.title} %{{x:.1%}}<br>{up.title} %{{y:.1%}}"
    for run, _ in runs:
        own = styles[run.id]
        mine = [m for m in marks if m.run.id == run.id]
        extra = f"<extra>{text.esc(run.label)}</extra>"
        if not mine:
            continue
        steps = [m for m in mine if m.alpha is not None]
        if steps:
            figure.add_trace(
                go.Scatter(
                    x=[m.x for m in steps],
                    y=[m.y for m in steps],
                    mode="lines+markers+text",
                    text=_labelled(steps),
                    textposition="top left",
                    textfont={"size": 11, "color": MUTED},
                    name=f"{text.esc(run.label)}, path",
                    legendgroup=run.id,
                    showlegend=False,
                    line={"color": own.colour, "dash": own.dash, "width": 1.5},
                    marker={"color": own.colour, "symbol": "circle", "size": 5},
                    customdata=[[m.alpha] for m in steps],
                    hovertemplate=f"α = %{{customdata[0]:g}}<br>{shown}{extra}",
                )
            )
        kept = [m for m in mine if m.kept]
        figure.add_trace(
            go.Scatter(
                x=[m.x for m in kept],
                y=[m.y for m in kept],
                mode="markers",
                name=text.esc(run.label),
                legendgroup=run.id,
                marker={"color": own.colour, "symbol": own.symbol, "size": 11,
                        "line": {"color": "#ffffff", "width": 1}},
                hovertemplate=f"{shown}{extra}",
            )
        )  # fmt: skip
        floors = [m for m in mine if m.floor is not None]
        if floors:
            figure.add_trace(
                go.Scatter(
                    x=[m.x for m in floors],
                    y=[m.floor for m in floors],
                    mode="markers",
                    legendgroup=run.id,
                    showlegend=False,
                    marker={"symbol": "line-ew-open", "size": 10, "color": own.colour,
                            "line": {"width": 1.5}},
                    hovertemplate=f"floor %{{y:.2%}}{extra}",
                )
            )  # fmt: skip
    figure.update_layout(
        meta={"alt": _frontier_alt(heading, marks, across, up)},
        xaxis=_axis(name=across.title, tickformat=".0%"),
        yaxis=_axis(
            name=up.title,
            tickformat=".0%",
            **({"rangemode": "tozero"} if up.better == "low" else {}),
        ),
    )
    _legend_below(figure, math.ceil((len(runs) + 1) / 2))
    return figure


def _frontier_alt(
    heading: str, marks: Sequence[FrontierMark], across: text.Metric, up: text.Metric
) -> str:
    def where(mark: FrontierMark) -> str:
        at = "" if mark.alpha is None else f" at α = {mark.alpha:g}"
        return (
            f"{mark.run.label}{at}: {across.title} {text.percent(mark.x)}, "
            f"{up.title} {text.percent(mark.y)}"
        )

    own = "; ".join(where(m) for m in marks if m.kept)
    front = ", ".join(
        m.run.label if m.alpha is None else f"{m.run.label} at α = {m.alpha:g}"
        for m in marks
        if m.best
    )
    return f"{heading}. {own}. On the Pareto front: {front}."


# ---- Slices, calibrators, estimators -----------------------------------------------------------

#: Slices that one chart shows; a table shows the rest of a page.
MOST_SLICES = 40


def slice_gaps(
    pages: Sequence[tuple[Run, SlicePage]],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "Gap of each slice",
) -> go.Figure:
    """Confidence minus accuracy of each slice with its 95 % interval, a mark per run.

    The slices are those of the first page, in its order. A filled mark is a slice whose ECE is
    above its floor, an open one could be noise; a slice that is too small has a small open mark
    without an interval.
    """
    names = [(s.key, s.title) for s in pages[0][1].items[:MOST_SLICES]] if pages else []
    if not names:
        return _nothing(title, "no sample meets the condition")
    place = {key: i for i, (key, _) in enumerate(names)}
    styles = styles or run_styles(run.id for run, _ in pages)
    first = pages[0][1]
    condition = f" · where {first.where}" if first.where else ""
    figure = _figure(
        title=title,
        subtitle=[
            f"T = {first.temperature:.3g}{condition}",
            "right of zero: over-confident · filled: above the floor",
            "small marks: too few samples for an error",
        ],
        alt="",
        height=80 + max(20 * len(names), 12 * len(names) * len(pages)),
    )
    spread = 0.0 if len(pages) < 2 else min(0.22, 0.6 / (len(pages) - 1))
    said = []
    for index, (run, page) in enumerate(pages):
        own = styles[run.id]
        shift = (index - (len(pages) - 1) / 2) * spread
        shown = [s for s in page.items if s.key in place]
        above = [s.ece is not None and s.null_q95 is not None and s.ece > s.null_q95 for s in shown]
        figure.add_trace(
            go.Scatter(
                x=[s.gap for s in shown],
                y=[place[s.key] + shift for s in shown],
                mode="markers",
                name=text.esc(run.label),
                marker={
                    "color": own.colour,
                    "size": [6 if s.too_small else 10 for s in shown],
                    "symbol": [own.symbol if a else f"{own.symbol}-open" for a in above],
                    "line": {"width": 1.5, "color": own.colour},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [s.gap_interval[1] - s.gap if s.gap_interval else 0 for s in shown],
                    "arrayminus": [
                        s.gap - s.gap_interval[0] if s.gap_interval else 0 for s in shown
                    ],
                    "color": own.colour,
                    "thickness": 1.25,
                    "width": 0,
                },
                customdata=[
                    [text.esc(s.title), text.count(s.n), text.percent(s.accuracy),
                     text.percent(s.mean_confidence),
                     "too small for an ECE" if s.too_small
                     else f"ECE {text.ece_with_floor(s.ece, s.null_mean)}"]
                    for s in shown
                ],
                hovertemplate="%{customdata[0]}: gap %{x:+.1%}<br>accuracy %{customdata[2]}, "
                "confidence %{customdata[3]}<br>%{customdata[4]}<br>n = %{customdata[1]}<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )  # fmt: skip
        widest = max(shown, key=lambda s: abs(s.gap), default=None)
        worst = "" if widest is None else (
            f", the widest gap is {text.points(widest.gap)} at {widest.title}"
        )  # fmt: skip
        said.append(f"{run.label}: {sum(above)} of {len(shown)} slices above their floor{worst}")
    figure.add_vline(x=0, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        meta={"alt": f"{title}, {len(names)} slices. {'; '.join(said)}."},
        xaxis=_axis(name="Confidence minus accuracy", tickformat="+.0%"),
        yaxis=_axis(
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=[text.esc(name.replace("_", " ")) for _, name in names],
            range=[len(names) - 0.5, -0.5],
            ticks="",
            showline=False,
            tickfont={"size": 12, "color": INK},
        ),
        showlegend=False,
    )
    if len(pages) > 1:
        _legend_below(figure, math.ceil(len(pages) / 3))
    return figure


def fitted_words(calibrator: FittedCalibrator) -> str:
    """What a calibrator was fitted on, and whether that makes it an oracle."""
    on = f"{calibrator.fitted_on.dataset}, n = {text.count(calibrator.fitted_on.n)}"
    return f"ORACLE: fitted on {on}" if calibrator.oracle else f"fitted on {on}"


def calibrator_overlay(
    effect: CalibratorEffect,
    *,
    style: RunStyle | None = None,
    title: str | None = None,
    side: int = 420,
) -> go.Figure:
    """One run before and after a calibrator on one pair of axes.

    Before is grey with open marks, after has the run's colour; an oracle's line is dotted and says
    what it is.
    """
    own = style or run_styles([effect.after.run_id])[effect.after.run_id]
    before, after, c = effect.before, effect.after, effect.calibrator
    heading = title if title is not None else f"{c.kind} on {after.dataset}"
    figure = _figure(
        title=heading,
        subtitle=[
            fitted_words(c),
            f"{after.n_bins} bins, {text.SCHEMES[after.scheme]} · {text.NORMS[after.norm]} · "
            f"n = {text.count(after.n)}",
        ],
        alt=f"Reliability of {after.run_name} on {after.dataset} before and after {c.kind} "
        f"({fitted_words(c)}). {diagram_error_name(before)} {text.percent(before.ece)} before, "
        f"{text.percent(after.ece)} after, "
        + (
            "in-sample, so that no floor holds."
            if after.in_sample
            else f"floor {text.percent(after.null_mean)}."
        ),
        height=round(1.3 * side) + 46,
    )
    figure.add_trace(_identity("", ""))
    looks = (
        ("before", before, MUTED, f"{own.symbol}-open", "dash"),
        ("after, oracle" if c.oracle else "after", after, own.colour, own.symbol,
         "dot" if c.oracle else "solid"),
    )  # fmt: skip
    for name, diagram, colour, symbol, dash in looks:
        xs = [b.mean_confidence for b in diagram.bins]
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=[b.accuracy for b in diagram.bins],
                error_y=_error_bars(diagram.bins, colour),
                mode="lines+markers",
                name=f"{name}: {_error_words(diagram)}",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"color": colour, "symbol": symbol, "size": 8},
                customdata=[[b.count] for b in diagram.bins],
                hovertemplate="confidence %{x:.1%}<br>accuracy %{y:.1%}"
                "<br>%{customdata[0]:,} samples<extra>" + name + "</extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=[b.count for b in diagram.bins],
                yaxis="y2",
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 1.5},
                marker={"color": colour, "symbol": symbol, "size": 5},
                showlegend=False,
                hovertemplate="%{y:,} samples at %{x:.1%}<extra>" + name + "</extra>",
            )
        )
    _reliability_axes(figure, x=(0.0, 1.0), y=(0.0, 1.0), axes=("", "2"))
    figure.update_layout(legend={"orientation": "v"}, margin={"l": 60})
    _legend_below(figure, 3)
    return figure


def transfer_names(matrix: TransferMatrix) -> list[str]:
    """A name per row: what was fitted on, oracles marked."""
    names = []
    for row in matrix.rows:
        c = row.calibrator
        if c is None:
            names.append("no calibrator")
        else:
            names.append(f"◇ oracle: {c.fitted_on.dataset}" if c.oracle else c.fitted_on.dataset)
    return names


def _transfer_word(cell: TransferCell, by: str) -> str:
    if by != "ece":
        worse = "▲" if getattr(cell, f"{by}_gain") < 0 else ""
        return f"{worse}{text.number(getattr(cell, by))}"
    percent = f"{100 * cell.ece:.1f}"
    if cell.in_sample:
        return f"{percent}*"
    return f"({percent})" if cell.ece <= cell.null_q95 else percent


def transfer_heatmap(
    matrix: TransferMatrix,
    *,
    by: Literal["ece", "nll", "brier"] = "ece",
    title: str | None = None,
) -> go.Figure:
    """A calibrator fitted on the row and tested on the column: an error or score in each cell.

    Rows of oracles carry a ◇ and a dotted frame, the honest row a solid one. An ECE in brackets is
    not above its floor, one with a star is in-sample and has none; an NLL or Brier score with a ▲
    is worse than without a calibrator.
    """
    heading = title if title is not None else f"{matrix.kind}: fitted on A, tested on B"
    if not matrix.rows or not matrix.rows[0].cells:
        return _nothing(heading, "the run was evaluated on nothing that this can be tested on")
    names = transfer_names(matrix)
    columns = [cell.dataset for cell in matrix.rows[0].cells]
    z: list[list[float | None]] = [[getattr(c, by) for c in row.cells] for row in matrix.rows]
    words = [[_transfer_word(c, by) for c in row.cells] for row in matrix.rows]
    honest = [r for r in matrix.rows if r.calibrator is not None and not r.calibrator.oracle]
    oracles = len(matrix.rows) - 1 - len(honest)
    said = [
        f"{name}: " + ", ".join(
            f"{text.metric_text(getattr(c, by), by)} on {c.dataset}" for c in row.cells
        )
        for name, row in zip(names, matrix.rows, strict=True)
        if row.calibrator is None or not row.calibrator.oracle
    ]  # fmt: skip
    marks = {
        "ece": f"{'MCE' if matrix.norm == 'max' else 'ECE'} in %, darker is worse · (in brackets): "
        "not above the floor · *: in-sample",
        "nll": "NLL in nats, darker is worse · ▲: worse than without a calibrator",
        "brier": "Brier score, darker is worse · ▲: worse than without a calibrator",
    }
    binned = f"{matrix.n_bins} bins, {text.SCHEMES[matrix.scheme]} · {text.NORMS[matrix.norm]} · "
    figure = _figure(
        title=heading,
        subtitle=[
            marks[by],
            f"{binned if by == 'ece' else ''}solid frame: honest · ◇ dotted: oracle",
        ],
        alt=f"{heading}. {'; '.join(said)}. {oracles} further rows are oracles.",
        height=110 + 40 * len(names) + 6 * max(map(len, columns)),
        legend=False,
    )
    figure.add_trace(_heatmap(z, words, columns=columns, rows=names, metric=by))
    for index, row in enumerate(matrix.rows):
        if row.calibrator is not None:
            figure.add_shape(
                type="rect", x0=-0.48, x1=len(columns) - 0.52, y0=index - 0.44, y1=index + 0.44,
                line={"color": INK if not row.calibrator.oracle else MUTED,
                      "width": 2 if not row.calibrator.oracle else 1.25,
                      "dash": "solid" if not row.calibrator.oracle else "dot"},
            )  # fmt: skip
    figure.update_layout(
        xaxis=_axis(name="Tested on", tickangle=-40 if len(columns) > 5 else 0, showgrid=False,
                    ticks="", showline=False, type="category",
                    tickfont={"size": 12, "color": INK}),
        yaxis=_axis(name="Fitted on", autorange="reversed", showgrid=False, ticks="",
                    showline=False, type="category", tickfont={"size": 12, "color": INK}),
        margin={"b": 12},
    )  # fmt: skip
    return figure


def estimators(
    sets: Sequence[tuple[Run, MeasureSet]],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "The same predictions under other estimators",
) -> go.Figure:
    """One row per estimator, a mark per run: its value, and in grey what chance alone shows.

    The grey bar under a mark reaches from the mean of that run's floor to its 95 % quantile. A
    filled mark is above it.
    """
    names = [(m.name, m.title) for m in sets[0][1].measures] if sets else []
    if not names:
        return _nothing(title, "no evaluation is chosen")
    place = {name: i for i, (name, _) in enumerate(names)}
    styles = styles or run_styles(run.id for run, _ in sets)
    first = sets[0][1]
    figure = _figure(
        title=title,
        subtitle=[
            f"n = {text.count(first.n)} · T = {first.temperature:.3g} · grey: a calibrated model, "
            "mean to 95 %",
            "filled: above what a calibrated model shows · open: could be chance",
        ],
        alt="",
        height=80 + max(26 * len(names), 12 * len(names) * len(sets)),
    )
    spread = 0.0 if len(sets) < 2 else min(0.22, 0.6 / (len(sets) - 1))
    said = []
    for index, (run, found) in enumerate(sets):
        own = styles[run.id]
        shift = (index - (len(sets) - 1) / 2) * spread
        floors = [m for m in found.measures if m.name in place and m.null_mean is not None]
        figure.add_trace(
            go.Bar(
                x=[(m.null_q95 or 0.0) - (m.null_mean or 0.0) for m in floors],
                base=[m.null_mean for m in floors],
                y=[place[m.name] + shift for m in floors],
                width=0.9 * spread or 0.6,
                orientation="h",
                name="calibrated at this n, mean to 95 %",
                legendgroup="floor",
                showlegend=not index,
                marker={"color": BAR, "line": {"color": RULE, "width": 1}},
                customdata=[[text.percent(m.null_mean), text.percent(m.null_q95)] for m in floors],
                hovertemplate="floor %{customdata[0]} to %{customdata[1]}<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )
        shown = [m for m in found.measures if m.name in place and m.value is not None]
        values = [m.value or 0.0 for m in shown]
        above = [
            m.null_q95 is None or value > m.null_q95 for m, value in zip(shown, values, strict=True)
        ]
        figure.add_trace(
            go.Scatter(
                x=values,
                y=[place[m.name] + shift for m in shown],
                mode="markers",
                name=text.esc(run.label),
                marker={
                    "color": own.colour,
                    "size": 10,
                    "symbol": [own.symbol if a else f"{own.symbol}-open" for a in above],
                    "line": {"width": 1.5, "color": own.colour},
                },
                customdata=[[text.esc(m.title), text.percent(m.null_mean)] for m in shown],
                hovertemplate="%{customdata[0]}: %{x:.2%}<br>floor %{customdata[1]}<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )
        said.append(
            f"{run.label}: from {text.percent(min(values))} to {text.percent(max(values))}, "
            f"{sum(above)} of {len(shown)} above what a calibrated model shows"
        )
    figure.update_layout(
        barmode="overlay",
        meta={"alt": f"{title}, {len(names)} estimators. {'; '.join(said)}."},
        xaxis=_axis(name="Calibration error", tickformat=".0%"),
        yaxis=_axis(
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=[text.esc(name) for _, name in names],
            range=[len(names) - 0.5, -0.5],
            ticks="",
            showline=False,
            tickfont={"size": 12, "color": INK},
        ),
    )
    _legend_below(figure, math.ceil((len(sets) + 1) / 2))
    return figure


# ---- Exports -----------------------------------------------------------------------------------


def to_html(figure: go.Figure, *, title: str = "calift") -> str:
    """A page of its own that needs no network: the figure, its script and its description."""
    body = figure.to_html(full_html=False, include_plotlyjs=True, config=CONFIG)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text.esc(title)}</title></head><body>"
        f'<figure role="img" aria-label="{text.esc(alt_text(figure))}">{body}</figure>'
        f'<p style="font-family:sans-serif;color:{MUTED}">{text.esc(alt_text(figure))}</p>'
        "</body></html>"
    )


#: What the browser's chart bar offers; pictures are made in the browser, as SVG.
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": [
        "select2d",
        "lasso2d",
        "autoScale2d",
        "zoomIn2d",
        "zoomOut2d",
    ],
    "toImageButtonOptions": {"format": "svg", "scale": 1},
}
