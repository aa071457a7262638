"""Confidence minus accuracy of each slice of the samples, and its table."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.results import SlicePage
from frontend import text
from frontend.figures.style import (
    MUTED,
    RunStyle,
    axis,
    blank,
    empty_figure,
    interval_bars,
    legend_below,
    names_axis,
    offset,
    run_styles,
)
from frontend.tables import Run

#: Slices that one chart shows; a table shows the rest of a page.
MOST = 40


def gaps(
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
    names = [(s.key, s.title) for s in pages[0][1].items[:MOST]] if pages else []
    if not names:
        return empty_figure(title, "no sample meets the condition")
    place = {key: i for i, (key, _) in enumerate(names)}
    styles = styles or run_styles(run.id for run, _ in pages)
    first = pages[0][1]
    condition = f" · where {first.where}" if first.where else ""
    figure = blank(
        title=title,
        subtitle=[
            f"T = {first.temperature:.3g}{condition}",
            "right of zero: over-confident · filled: above the floor",
            "small marks: too few samples for an error",
        ],
        alt="",
        height=80 + max(20 * len(names), 12 * len(names) * len(pages)),
    )
    phrases = []
    for index, (run, page) in enumerate(pages):
        own = styles[run.id]
        shift = offset(index, len(pages))
        shown = [s for s in page.items if s.key in place]
        above = [s.ece is not None and s.null_q95 is not None and s.ece > s.null_q95 for s in shown]
        figure.add_trace(
            go.Scatter(
                x=[100 * s.gap for s in shown],
                y=[place[s.key] + shift for s in shown],
                mode="markers",
                name=text.esc(run.label),
                marker={
                    "color": own.colour,
                    "size": [6 if s.too_small else 10 for s in shown],
                    "symbol": [own.symbol if a else f"{own.symbol}-open" for a in above],
                    "line": {"width": 1.5, "color": own.colour},
                },
                error_x=interval_bars(
                    [100 * (s.gap_interval[1] - s.gap) if s.gap_interval else 0 for s in shown],
                    [100 * (s.gap - s.gap_interval[0]) if s.gap_interval else 0 for s in shown],
                    own.colour,
                ),
                customdata=[
                    [text.esc(s.title), text.count(s.n), text.percent(s.accuracy),
                     text.percent(s.mean_confidence),
                     "too small for an ECE" if s.too_small
                     else f"ECE {text.ece_with_floor(s.ece, s.null_mean)}",
                     run.id, s.key]
                    for s in shown
                ],
                hovertemplate="%{customdata[0]}: gap %{x:+.1f} pp<br>accuracy %{customdata[2]}, "
                "confidence %{customdata[3]}<br>%{customdata[4]}<br>n = %{customdata[1]}<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )  # fmt: skip
        widest = max(shown, key=lambda s: abs(s.gap), default=None)
        worst = "" if widest is None else (
            f", the widest gap is {text.points(widest.gap)} at {widest.title}"
        )  # fmt: skip
        phrases.append(f"{run.label}: {sum(above)} of {len(shown)} slices above their floor{worst}")
    # One mark that is chosen leaves the others as they are.
    figure.update_traces(unselected={"marker": {"opacity": 1}})
    figure.add_vline(x=0, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        meta={"alt": f"{title}, {len(names)} slices. {'; '.join(phrases)}."},
        xaxis=axis(name="Confidence minus accuracy, points"),
        yaxis=names_axis([name.replace("_", " ") for _, name in names], size=12),
        showlegend=False,
    )
    if len(pages) > 1:
        legend_below(figure, math.ceil(len(pages) / 3))
    return figure
