"""Curves of training over optimiser steps, and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from calift_core.schema.wire.runs import Metrics
from frontend import text
from frontend.figures.style import (
    DASHES,
    PALETTE,
    SYMBOLS,
    WEBGL_POINTS,
    axis,
    blank,
    legend_below,
    nothing,
)
from frontend.tables import Column, Table


def figure(
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
        return nothing(title, "no point is recorded yet")
    total = sum(len(by_name[name].steps) for name in wanted)
    line = go.Scattergl if total > WEBGL_POINTS else go.Scatter
    figure = blank(title=title, alt="", height=280)
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
        xaxis=axis(name="Step", rangemode="tozero"),
        yaxis=axis(
            type="log" if log_y else "linear", exponentformat="power", dtick=1 if log_y else None
        ),
        hovermode="x unified",
        showlegend=False,
    )
    if len(wanted) > 1:
        legend_below(figure, math.ceil(len(wanted) / 5))
    return figure


def table(metrics: Metrics, names: Sequence[str] | None = None) -> Table:
    """One row per step, one column per series."""
    series = [s for s in metrics.series if names is None or s.name in names]
    by_step: dict[int, dict[str, Any]] = {}
    for one in series:
        for step, value in zip(one.steps, one.values, strict=True):
            by_step.setdefault(step, {"step": step})[one.name] = value
    columns = [Column("step", "Step", "count")]
    columns += [Column(one.name, one.name.replace("_", " "), "number") for one in series]
    return Table(columns, [by_step[step] for step in sorted(by_step)])
