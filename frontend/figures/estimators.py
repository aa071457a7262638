"""The same predictions under every estimator, each with its own floor; their tables."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.results import MeasureSet
from frontend import text
from frontend.figures.style import (
    BAR,
    RULE,
    SHARE,
    RunStyle,
    axis,
    blank,
    empty_figure,
    legend_below,
    names_axis,
    offset,
    run_styles,
    spread,
)
from frontend.tables import Run


def figure(
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
        return empty_figure(title, "no evaluation is chosen")
    place = {name: i for i, (name, _) in enumerate(names)}
    styles = styles or run_styles(run.id for run, _ in sets)
    first = sets[0][1]
    figure = blank(
        title=title,
        subtitle=[
            f"n = {text.count(first.n)} · T = {first.temperature:.3g} · grey: a calibrated model, "
            "mean to 95 %",
            "filled: above what a calibrated model shows · open: could be chance",
        ],
        alt="",
        height=80 + max(26 * len(names), 12 * len(names) * len(sets)),
    )
    phrases = []
    for index, (run, found) in enumerate(sets):
        own = styles[run.id]
        shift = offset(index, len(sets))
        floors = [m for m in found.measures if m.name in place and m.null_mean is not None]
        figure.add_trace(
            go.Bar(
                x=[(m.null_q95 or 0.0) - (m.null_mean or 0.0) for m in floors],
                base=[m.null_mean for m in floors],
                y=[place[m.name] + shift for m in floors],
                width=0.9 * spread(len(sets)) or 0.6,
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
                hovertemplate="%{customdata[0]}: %{x:$.2%}<br>floor %{customdata[1]}<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )
        phrases.append(
            f"{run.label}: from {text.percent(min(values))} to {text.percent(max(values))}, "
            f"{sum(above)} of {len(shown)} above what a calibrated model shows"
        )
    figure.update_layout(
        barmode="overlay",
        meta={"alt": f"{title}, {len(names)} estimators. {'; '.join(phrases)}."},
        xaxis=axis(name="Calibration error", tickformat=SHARE),
        yaxis=names_axis([name for _, name in names], size=12),
    )
    legend_below(figure, math.ceil((len(sets) + 1) / 2))
    return figure
