"""Reliability diagrams: one, several side by side, several on one pair of axes; their tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from calift_core.schema.wire.results import Reliability
from frontend import text
from frontend.figures import square
from frontend.figures.style import MUTED, RunStyle, blank, empty_figure, legend_below, run_styles
from frontend.tables import Column, Table

#: What the line with the error takes above the square.
_GAUGE_PX = 36


def diagram(
    diagram: Reliability,
    *,
    title: str | None = None,
    colour: str | None = None,
    symbol: str = "circle",
    band: bool = True,
    smooth: bool = False,
    side: int = 380,
) -> go.Figure:
    """Accuracy against confidence, with the samples below on the same axis and the error above.

    Axes are square. A pale bar is a bin's accuracy; the hatched part is the gap to its mean
    confidence, and over- and under-confidence differ in colour and in the hatch. Points sit at the
    bin's mean confidence with the interval of its accuracy; the grey band is where a calibrated
    model's bins would fall at this n. Bins without samples are not drawn. The line above has the
    error with its interval on what a calibrated model's would be, with its mean.

    Args:
        diagram: numbers from `GET /evaluations/{id}/reliability`.
        title: default: run and data set.
        colour: of the points; default: the run's own.
        smooth: draw the kernel curve of the smooth ECE as well.
        side: of the square, in pixels, where there is room.
    """
    own = run_styles([diagram.run_id])[diagram.run_id]
    heading = title if title is not None else f"{diagram.run_name} on {diagram.dataset}"
    figure = blank(
        title=heading,
        subtitle=facts(diagram),
        alt=alt(diagram),
        height=round(1.3 * side) + 46 + _GAUGE_PX,
    )
    top = 1 - _GAUGE_PX / round(1.3 * side)
    square.draw(
        figure, diagram, colour=colour or own.colour, symbol=symbol, band=band, axes=("", "2")
    )
    drawn = smooth and diagram.smooth is not None
    if drawn and diagram.smooth is not None:
        figure.add_trace(square.smooth_line(diagram.smooth, colour or own.colour))
    square.set_axes(figure, x=(0.0, 1.0), y=(0.0, top), axes=("", "2"), below=square.below(diagram))
    if not diagram.in_sample:
        square.gauge(figure, diagram, colour=colour or own.colour, name=error_name(diagram), y=top)
    figure.update_layout(legend={"traceorder": "normal"}, margin={"l": 60}, barmode="overlay")
    # Five or six entries: two a line where the figure is wide, one where it is narrow.
    legend_below(figure, 3 if side >= 350 else 5 + drawn)
    return figure


def grid(
    diagrams: Sequence[Reliability],
    *,
    columns: int = 3,
    titles: Sequence[str] | None = None,
    styles: Mapping[str, RunStyle] | None = None,
) -> go.Figure:
    """Small multiples: one reliability diagram with count strip per entry, axes shared in range."""
    if not diagrams:
        return empty_figure("Reliability", "no evaluation is chosen")
    columns = max(1, min(columns, len(diagrams)))
    rows = math.ceil(len(diagrams) / columns)
    figure = blank(
        title="Reliability",
        subtitle=["grey band: where a calibrated model would fall · below: samples by confidence"],
        alt=" ".join(alt(d) for d in diagrams),
        height=rows * 430 + 60,
    )
    styles = styles or run_styles(d.run_id for d in diagrams)
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
        square.draw(
            figure, diagram, colour=look.colour, symbol=look.symbol, band=True,
            axes=names, x_axis=x_id, legend=index == 0,
        )  # fmt: skip
        square.set_axes(
            figure, x=(left, min(1.0, left + width)), axes=names, x_axis=x_id,
            # Three lines of words stand above each square.
            y=(bottom, bottom + cell - 58 / (rows * 430)),
            names=(row == rows - 1, column == 0), below=square.below(diagram),
        )  # fmt: skip
        label = titles[index] if titles else f"{diagram.run_name} on {diagram.dataset}"
        figure.add_annotation(
            text=f"<b>{text.esc(label)}</b><br>"
            f'<span style="color:{MUTED}">{error_name(diagram)} '
            f"{text.ece_with_floor(diagram.ece, diagram.null_mean)}<br>n = "
            f"{text.count(diagram.n)} · {diagram.n_bins} {text.SCHEMES[diagram.scheme]} · "
            f"{text.NORMS[diagram.norm]} · T = {diagram.temperature:.3g}</span>",
            x=left, y=bottom + cell, xref="paper", yref="paper", xanchor="left", yanchor="top",
            align="left", showarrow=False, font={"size": 12},
        )  # fmt: skip
    figure.update_layout(barmode="overlay")
    legend_below(figure, 2)
    return figure


def overlay(
    diagrams: Sequence[Reliability],
    *,
    styles: Mapping[str, RunStyle] | None = None,
    title: str = "Reliability of several runs",
    side: int = 440,
) -> go.Figure:
    """Several runs on one pair of axes: points at the bins' mean confidence, joined by lines."""
    if not diagrams:
        return empty_figure(title, "no evaluation is chosen")
    styles = styles or run_styles(d.run_id for d in diagrams)
    first = diagrams[0]
    figure = blank(
        title=title,
        subtitle=[
            f"{first.dataset} · {first.n_bins} bins, {text.SCHEMES[first.scheme]} · "
            f"{text.NORMS[first.norm]} · T = {first.temperature:.3g}"
        ],
        alt=" ".join(alt(d) for d in diagrams),
        height=round(1.3 * side) + 46,
    )
    figure.add_trace(square.identity("", ""))
    for diagram in diagrams:
        name = text.esc(diagram.run_name)
        square.add_line(
            figure,
            diagram,
            legend=f"{name}, n = {text.count(diagram.n)}, {error_name(diagram)} "
            f"{text.ece_with_floor(diagram.ece, diagram.null_mean)}",
            label=name,
            **styles[diagram.run_id]._asdict(),
        )
    square.set_axes(figure, x=(0.0, 1.0), y=(0.0, 1.0), axes=("", "2"))
    figure.update_layout(legend={"orientation": "v"}, margin={"l": 60})
    legend_below(figure, len(diagrams) + 1)
    return figure


def facts(diagram: Reliability) -> list[str]:
    """The lines printed in a diagram, so that an exported picture stands alone."""
    return [
        f"{text.percent(diagram.accuracy)} accuracy at {text.percent(diagram.mean_confidence)} "
        "mean confidence",
        f"{error_words(diagram)}"
        + ("" if diagram.in_sample else f", 95{text.NBSP}% {text.interval(*diagram.interval)}"),
        f"n = {text.count(diagram.n)} · {diagram.n_bins} bins, {text.SCHEMES[diagram.scheme]} · "
        f"{text.NORMS[diagram.norm]} · T = {diagram.temperature:.3g}",
    ]


def bin_fields(diagram: Reliability) -> list[dict[str, Any]]:
    """What the rail of `bins.js` shows of each bin."""
    return [
        {"lower": b.lower, "upper": b.upper, "clear": clear, "words": ", ".join(square.words(b))}
        for b in diagram.bins
        for clear in [square.clear(b)]
    ]


def alt(diagram: Reliability) -> str:
    """What a diagram shows, in words."""
    over = sum(b.count for b in diagram.bins if b.mean_confidence > b.accuracy)
    share = over / diagram.n if diagram.n else 0.0
    return (
        f"Reliability diagram of {diagram.run_name} on {diagram.dataset}: accuracy against mean "
        f"confidence in {len(diagram.bins)} bins of {text.count(diagram.n)} samples. "
        f"{error_name(diagram)} {text.percent(diagram.ece)}, "
        f"floor {text.percent(diagram.null_mean)}. "
        f"{text.percent(share, 0)} of samples lie in bins that are over-confident."
    )


def error_name(diagram: Reliability) -> str:
    """What the error of a norm is called: the largest gap is MCE, not ECE."""
    return "MCE" if diagram.norm == "max" else "ECE"


def error_words(diagram: Reliability) -> str:
    """The error with its floor, or with the reason why it has none."""
    if diagram.in_sample:
        return f"{error_name(diagram)} {text.percent(diagram.ece)} (in-sample: no floor)"
    return f"{error_name(diagram)} {text.ece_with_floor(diagram.ece, diagram.null_mean)}"


def bins_table(diagrams: Sequence[Reliability]) -> Table:
    """One row per bin that holds samples."""
    rows = [
        {"run": d.run_name, "dataset": d.dataset, **b.model_dump()}
        for d in diagrams
        for b in d.bins
    ]
    columns = [
        Column("lower", "From", "number"),
        Column("upper", "To", "number"),
        Column("count", "Samples", "count"),
        Column("mean_confidence", "Confidence", "percent"),
        Column("accuracy", "Accuracy", "percent"),
        Column("interval_low", "95 % low", "percent"),
        Column("interval_high", "95 % high", "percent"),
        Column("band_low", "Calibrated low", "percent"),
        Column("band_high", "Calibrated high", "percent"),
    ]
    if len({d.dataset for d in diagrams}) > 1:
        columns.insert(0, Column("dataset", "Data"))
    if len({d.run_id for d in diagrams}) > 1:
        columns.insert(0, Column("run", "Run"))
    return Table(columns, rows)


def summary_table(diagrams: Sequence[Reliability]) -> Table:
    """One row per diagram: the numbers beside the picture."""
    rows = [
        {
            "run": d.run_name,
            "n": d.n,
            "accuracy": d.accuracy,
            "mean_confidence": d.mean_confidence,
            "ece": d.ece,
            "null_mean": d.null_mean,
            "null_q95": d.null_q95,
            "interval_low": d.interval[0],
            "interval_high": d.interval[1],
            "debiased": d.debiased,
            "nll": d.nll,
            "brier": d.brier,
            "dataset": d.dataset,
            "n_bins": d.n_bins,
            "scheme": d.scheme,
            "norm": d.norm,
            "temperature": d.temperature,
        }
        for d in diagrams
    ]
    error = "MCE" if diagrams and diagrams[0].norm == "max" else "ECE"
    return Table(
        [
            Column("run", "Run"),
            Column("n", "n", "count"),
            Column("accuracy", "Accuracy", "percent"),
            Column("mean_confidence", "Confidence", "percent"),
            Column("ece", error, "percent"),
            Column("null_mean", "Floor", "percent"),
            Column("null_q95", "Floor, 95 %", "percent"),
            Column("interval_low", "95 % low", "percent"),
            Column("interval_high", "95 % high", "percent"),
            Column("debiased", "Debiased", "percent"),
            Column("nll", "NLL", "number"),
            Column("brier", "Brier", "number"),
        ],
        rows,
    )
