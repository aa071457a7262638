"""The same predictions under every estimator, each with its own floor; their tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.results import MeasureSet
from frontend import text
from frontend.figures.style import (
    BAR,
    RULE,
    SHARE,
    Run,
    RunStyle,
    axis,
    blank,
    legend_below,
    names_axis,
    nothing,
    offset,
    run_styles,
    spread,
)
from frontend.tables import Column, Table


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
        return nothing(title, "no evaluation is chosen")
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
    said = []
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
        xaxis=axis(name="Calibration error", tickformat=SHARE),
        yaxis=names_axis([name for _, name in names], size=12),
    )
    legend_below(figure, math.ceil((len(sets) + 1) / 2))
    return figure


def table(sets: Sequence[tuple[Run, MeasureSet]]) -> Table:
    """One row per run and estimator, with its floor and how it reads."""
    rows = [
        {
            "run": run.label,
            "name": m.name,
            "title": m.title,
            "value": m.value,
            "null_mean": m.null_mean,
            "null_q95": m.null_q95,
            "low": m.interval[0] if m.interval else None,
            "high": m.interval[1] if m.interval else None,
            "debiased": m.debiased,
            "note": m.note,
        }
        for run, found in sets
        for m in found.measures
    ]
    columns = [
        Column("title", "Estimator"),
        Column("value", "Value", "percent"),
        Column("null_mean", "Floor", "percent"),
        Column("null_q95", "Floor, 95 %", "percent"),
        Column("low", "95 % low", "percent"),
        Column("high", "95 % high", "percent"),
        Column("debiased", "Debiased", "percent"),
        Column("note", "Reads", "prose"),
    ]
    if len(sets) > 1:
        columns.insert(0, Column("run", "Run"))
    return Table(columns, rows)


def stored_table(evaluation: EvaluationReport) -> Table:
    """What was stored with an evaluation: one row per estimator of the same predictions."""
    e = evaluation
    rows = [
        {"name": f"ECE, {e.ece.n_bins} equal-mass bins", "value": e.ece.value,
         "note": f"floor {text.percent(e.ece.null_mean)}"},
        {"name": f"ECE, {e.ece_equal_width.n_bins} equal-width bins",
         "value": e.ece_equal_width.value,
         "note": f"floor {text.percent(e.ece_equal_width.null_mean)}"},
        {"name": "Debiased calibration error (L2)", "value": e.ece.debiased,
         "note": "negative: not above the noise"},
        {"name": "Smooth ECE", "value": e.smooth_ece, "note": "has a floor too"},
        {"name": "KS calibration error", "value": e.ks_error, "note": "no bins"},
        {"name": "Class-wise ECE", "value": e.classwise_ece, "note": "mean over classes"},
        {"name": "MCE", "value": e.mce, "note": "mostly noise in small bins"},
        {"name": "Batch-averaged ECE", "value": e.ece_batch_averaged,
         "note": "paper-compatible: biased upwards, never ranked on"},
        {"name": "Over-confidence", "value": e.overconfidence, "note": "share of the ECE"},
        {"name": "Under-confidence", "value": e.underconfidence, "note": "share of the ECE"},
    ]  # fmt: skip
    columns = [
        Column("name", "Estimator"),
        Column("value", "Value", "percent"),
        Column("note", "Reads", "prose"),
    ]
    return Table(columns, rows)
