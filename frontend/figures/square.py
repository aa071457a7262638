"""The square of accuracy against confidence and the strip of counts below it, on one x axis."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from calift_core.schema.wire.results import Reliability, ReliabilityBin, SmoothCurve
from frontend import text
from frontend.figures.style import BAND, BAR, INK, MUTED, OVER, UNDER, axis, interval_bars

#: Of samples below the square.
COUNTS = "#a9b5c0"
#: Widest bar of a reliability diagram's gap, as a share of the axis.
GAP_WIDTH = 0.08


def draw(
    figure: go.Figure,
    diagram: Reliability,
    *,
    colour: str,
    symbol: str,
    band: bool,
    axes: tuple[str, str],
    x_axis: str = "",
    legend: bool = True,
) -> None:
    """Add one diagram's traces on `y{axes[0]}` and its samples on `y{axes[1]}`."""
    bins = diagram.bins
    square = {"xaxis": f"x{x_axis}", "yaxis": f"y{axes[0]}"}
    strip = {"xaxis": f"x{x_axis}", "yaxis": f"y{axes[1]}"}
    figure.add_trace(_whole_bins(bins, [b.accuracy for b in bins], "accuracy", "bar", BAR, square))
    if band and bins:
        figure.add_trace(_band(bins, legend=legend, place=square))
    # A side without bins keeps its place in the legend, so that diagrams stay equally large.
    over = [b for b in bins if b.mean_confidence > b.accuracy]
    under = [b for b in bins if b.mean_confidence < b.accuracy]
    figure.add_trace(_gap_bars(over, "over-confident", OVER, "/", legend=legend, place=square))
    figure.add_trace(_gap_bars(under, "under-confident", UNDER, ".", legend=legend, place=square))
    figure.add_trace(identity(x_axis, axes[0], legend=legend))
    figure.add_trace(
        go.Scatter(
            x=[b.mean_confidence for b in bins],
            y=[b.accuracy for b in bins],
            error_y=error_bars(bins, colour),
            mode="markers",
            name="accuracy, 95 % interval",
            legendgroup="points",
            marker={
                "color": colour,
                "symbol": symbol,
                "size": 8,
                "line": {"color": "#ffffff", "width": 1},
            },
            showlegend=legend,
            **_hover(bins),
            **square,
        )
    )
    if (curve := density(diagram)) is None:
        counts = [b.count for b in bins]
        figure.add_trace(_whole_bins(bins, counts, "samples per bin", "count", COUNTS, strip))
        return
    common = {"hoverinfo": "skip", "legendgroup": "count", "showlegend": False, **strip}
    figure.add_trace(
        go.Scatter(
            x=curve.confidence, y=curve.density, name="density", mode="lines", fill="tozeroy",
            fillcolor=COUNTS, line={"width": 0}, **common,
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[b.lower for b in bins], y=[0] * len(bins), name="edges of bins", mode="markers",
            marker={"symbol": "line-ns-open", "size": 10, "color": INK}, **common,
        )
    )  # fmt: skip


def density(diagram: Reliability) -> SmoothCurve | None:
    """What stands below bins of equal mass, whose counts are all the same; else None."""
    return diagram.smooth if diagram.scheme == "equal_mass" else None


def below(diagram: Reliability) -> str:
    return "Count" if density(diagram) is None else "Density"


def clear(b: ReliabilityBin) -> int:
    """1 for a bin that is over-confident beyond its interval, −1 under-confident, 0 for neither."""
    return int(b.mean_confidence > b.interval_high) - int(b.mean_confidence < b.interval_low)


def words(b: ReliabilityBin) -> list[str]:
    gap = b.mean_confidence - b.accuracy
    lean = "over-confident" if gap > 0 else "under-confident" if gap < 0 else "calibrated"
    return [
        text.span(b.lower, b.upper),
        f"n = {text.count(b.count)}",
        f"confidence {text.percent(b.mean_confidence)}",
        f"accuracy {text.percent(b.accuracy)}, 95{text.NBSP}% "
        f"{text.interval(b.interval_low, b.interval_high)}",
        f"{text.points(abs(gap)).removeprefix('+')} {lean}"
        + ("" if clear(b) else ", within noise"),
    ]


def _hover(bins: Sequence[ReliabilityBin]) -> dict[str, Any]:
    return {
        "hovertext": ["<br>".join(words(b)) for b in bins],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def gauge(figure: go.Figure, diagram: Reliability, *, colour: str, name: str, y: float) -> None:
    """The error on a line of its own, from `y` to the top: a calibrated one, and the interval."""
    low, high = diagram.interval
    place = {"xaxis": "x2", "yaxis": "y3", "showlegend": False, "hoverinfo": "skip"}
    figure.add_trace(
        go.Bar(x=[diagram.null_q95], y=[name], orientation="h", marker={"color": BAND}, **place)
    )
    figure.add_trace(
        go.Scatter(
            x=[diagram.null_mean, diagram.ece],
            y=[name, name],
            mode="markers",
            cliponaxis=False,
            marker={
                "symbol": ["line-ns-open", "circle"],
                "size": [16, 9],
                "color": [MUTED, colour],
                "opacity": 1,
            },
            error_x={
                **interval_bars(
                    [0, max(0, high - diagram.ece)], [0, max(0, diagram.ece - low)], colour
                ),
                "thickness": 2,
            },
            **place,
        )
    )
    end = 1.12 * max(diagram.null_q95, high, diagram.ece, 1e-6)
    figure.update_layout(
        xaxis2=axis(range=[0, end], anchor="y3", visible=False, fixedrange=True),
        yaxis3=axis(domain=[y + 0.02, 1.0], anchor="x2", ticks="", showgrid=False, showline=False),
    )


def _whole_bins(
    bins: Sequence[ReliabilityBin],
    heights: Sequence[float],
    name: str,
    group: str,
    colour: str,
    place: dict[str, str],
) -> go.Bar:
    return go.Bar(
        x=[(b.lower + b.upper) / 2 for b in bins],
        y=heights,
        width=[b.upper - b.lower for b in bins],
        name=name,
        legendgroup=group,
        marker={"color": colour, "line": {"color": "#ffffff", "width": 0.5}},
        showlegend=False,
        **_hover(bins),
        **place,
    )


def _band(bins: Sequence[ReliabilityBin], *, legend: bool, place: dict[str, str]) -> go.Scatter:
    """The accuracies that a calibrated model would show."""
    xs = [b.mean_confidence for b in bins]
    return go.Scatter(
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


def _gap_bars(
    bins: Sequence[ReliabilityBin],
    name: str,
    tint: str,
    hatch: str,
    *,
    legend: bool,
    place: dict[str, str],
) -> go.Bar:
    """Hatched bars from the accuracy to the mean confidence of bins that lie on one side."""
    ground = "rgba(255,255,255,0.55)"
    return go.Bar(
        x=[sum(gap_span(b)) / 2 for b in bins] or [None],
        y=[abs(b.mean_confidence - b.accuracy) for b in bins],
        base=[min(b.mean_confidence, b.accuracy) for b in bins],
        width=[gap_span(b)[1] - gap_span(b)[0] for b in bins],
        name=name,
        legendgroup=name,
        marker={
            "color": ground,
            "line": {"color": tint, "width": 1},
            "pattern": {
                "shape": hatch,
                "fgcolor": tint,
                "bgcolor": ground,
                "size": 6,
                "solidity": 0.3,
            },
        },
        showlegend=legend,
        **_hover(bins),
        **place,
    )


def gap_span(b: ReliabilityBin) -> tuple[float, float]:
    """Where the gap's bar stands: in its bin, around the mean confidence, not wider than needed.

    An equal-mass bin can reach over most of the axis with all its samples at one end; a bar of its
    whole width would look like most of the data.
    """
    half = GAP_WIDTH / 2
    low = max(b.lower, min(b.mean_confidence - half, b.upper - GAP_WIDTH))
    return low, min(b.upper, low + GAP_WIDTH)


def smooth_line(curve: SmoothCurve, colour: str) -> go.Scatter:
    """The kernel regression of correctness on confidence; gaps where no sample is near."""
    return go.Scatter(
        x=curve.confidence,
        y=curve.accuracy,
        mode="lines",
        name=f"smooth curve, smooth ECE {text.percent(curve.smooth_ece)}",
        line={"color": colour, "width": 2, "dash": "dot"},
        connectgaps=False,
        text=[
            f"confidence {text.percent(x)}<br>smoothed accuracy {text.percent(y)}"
            for x, y in zip(curve.confidence, curve.accuracy, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def identity(x_axis: str = "", y_axis: str = "", *, legend: bool = True) -> go.Scatter:
    """The diagonal, where confidence equals accuracy."""
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


def error_bars(bins: Sequence[ReliabilityBin], colour: str) -> dict[str, Any]:
    """The 95 % interval of each bin's accuracy, as plotly's error bars."""
    up = [max(0.0, b.interval_high - b.accuracy) for b in bins]
    down = [max(0.0, b.accuracy - b.interval_low) for b in bins]
    return {**interval_bars(up, down, colour), "width": 2}


def add_line(
    figure: go.Figure,
    diagram: Reliability,
    *,
    legend: str,
    label: str,
    colour: str,
    symbol: str,
    dash: str,
) -> None:
    """Add a diagram as points at its bins' mean confidence, joined by lines, and its counts below.

    Args:
        figure: with the axes of `set_axes`.
        label: its name under the pointer, as HTML.
    """
    bins = diagram.bins
    xs = [b.mean_confidence for b in bins]
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=[b.accuracy for b in bins],
            error_y=error_bars(bins, colour),
            mode="lines+markers",
            name=legend,
            line={"color": colour, "dash": dash, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 8},
            customdata=[[b.count] for b in bins],
            hovertemplate="confidence %{x:$.1%}<br>accuracy %{y:$.1%}"
            f"<br>%{{customdata[0]:,}} samples<extra>{label}</extra>",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=[b.count for b in bins],
            yaxis="y2",
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 1.5},
            marker={"color": colour, "symbol": symbol, "size": 5},
            showlegend=False,
            hovertemplate=f"%{{y:,}} samples at %{{x:$.1%}}<extra>{label}</extra>",
        )
    )


def set_axes(
    figure: go.Figure,
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    axes: tuple[str, str],
    x_axis: str = "",
    names: tuple[bool, bool] = (True, True),
    below: str = "Count",
) -> None:
    """Set one x axis and two stacked y axes on it: the square above, the count strip below.

    One x axis serves both, so the strip stays under the square when the square shrinks to fit.
    """
    bottom, top = y
    split = bottom + 0.2 * (top - bottom)
    gap = 0.02 * (top - bottom)
    shares = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    # In words, and not by SHARE: a notebook shows this figure without CONFIG.
    ticks = {"tickvals": shares, "ticktext": [text.percent(share, 0) for share in shares]}
    figure.update_layout(
        {
            f"xaxis{x_axis}": axis(
                name="Confidence" if names[0] else None,
                range=[-0.005, 1.005],
                domain=list(x),
                anchor=f"y{axes[1]}",
                constrain="domain",
                constraintoward="left",
                **ticks,
            ),
            f"yaxis{axes[0]}": axis(
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
            f"yaxis{axes[1]}": axis(
                name=below if names[1] else None,
                domain=[bottom, split - gap],
                anchor=f"x{x_axis}",
                rangemode="tozero",
                nticks=3,
            ),
        }
    )
