"""Curves of training over optimiser steps: of one run, of several, and their tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from calift_core.schema.wire.runs import Metrics
from frontend import text
from frontend.figures.style import (
    DASHES,
    INK,
    MUTED,
    SYMBOLS,
    WEBGL_POINTS,
    RunStyle,
    axis,
    blank,
    empty_figure,
    legend_below,
    run_styles,
    shares_axis,
)
from frontend.tables import Column, Run, Table


def is_share(name: str) -> bool:
    """Whether a series is one of shares, which are shown in percent: accuracies and ECEs."""
    last = name.rsplit("/", 1)[-1]
    return last.endswith(("accuracy", "ece"))


def _values_axis(values: Sequence[float], *, shares: bool, log: bool) -> dict[str, Any]:
    if shares and not log:
        return shares_axis(values)
    return axis(
        type="log" if log else "linear",
        dtick=1 if log else None,
        **({"tickformat": "$.3~%"} if shares else {"exponentformat": "power"}),
    )


def _in_words(value: float, shares: bool) -> str:
    return text.percent(value) if shares else text.number(value)


#: Of the terms of a loss, which are no run's colours.
_GREYS = (INK, MUTED, "#8795a3")


def terms(
    metrics: Metrics, names: Sequence[str], *, own: RunStyle, log_y: bool = False
) -> go.Figure:
    """A run's loss, in the run's colour, and the terms that it is a sum of, on one axis.

    Args:
        metrics: from `GET /runs/{id}/metrics`.
        names: which series, the loss first.
        own: the run's look.
        log_y: logarithmic axis; values that are not positive are left out.
    """
    title = "Loss and its terms" if len(names) > 1 else "Loss"
    by_name = {series.name: series for series in metrics.series}
    wanted = [name for name in names if name in by_name and by_name[name].steps]
    if not wanted:
        return empty_figure(title, "no point is recorded yet")
    total = sum(len(by_name[name].steps) for name in wanted)
    line = go.Scattergl if total > WEBGL_POINTS else go.Scatter
    figure = blank(title=title, alt="", height=280)
    phrases = []
    for index, name in enumerate(wanted):
        series = by_name[name]
        pairs = [
            (s, v) for s, v in zip(series.steps, series.values, strict=True) if v > 0 or not log_y
        ]
        colour = _GREYS[(index - 1) % len(_GREYS)] if index else own.colour
        dash = DASHES[index % len(DASHES)]
        figure.add_trace(
            line(
                x=[s for s, _ in pairs],
                y=[v for _, v in pairs],
                mode="lines" if len(pairs) > 1 else "markers",
                name=text.esc(name.replace("_", " ")),
                line={"color": colour, "width": 1.5 if index else 2.5,
                      "dash": dash if line is go.Scatter else "solid"},
                marker={"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
                hovertemplate="%{y:.4g}",
            )
        )  # fmt: skip
        phrases.append(
            f"{name.replace('_', ' ')} from {text.number(series.values[0])} "
            f"to {text.number(series.values[-1])}"
        )
    figure.update_layout(
        meta={"alt": f"{title} over steps up to {metrics.last_step}: {'; '.join(phrases)}."},
        xaxis=axis(name="Step", rangemode="tozero"),
        yaxis=_values_axis([], shares=False, log=log_y),
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


#: Series that a run tells of shifts while it trains begin so; nothing is chosen on them.
WATCHED = "shift/"
#: What is said of them, wherever they are shown.
DIAGNOSTIC = "diagnostic: nothing is chosen on it, and it must not be"


#: Points below which a curve is not smoothed: each of them is read by itself.
FEW = 10
#: What series are called where their names say too little.
TITLES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "sigma_min": "σ_min (ID validation)",
    "effective_rank": "Effective rank (ID validation)",
    "val_accuracy": "Accuracy (ID validation)",
    "val_ece": "ECE (ID validation)",
    "val_nll": "NLL (ID validation)",
}


def title_of(name: str) -> str:
    words = name.replace("_", " ")
    # The name of a data set in it stays as it is.
    return TITLES.get(name, words if "/" in words else words[:1].upper() + words[1:])


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average over recorded points, without the bias of its start.

    Args:
        values: in the order of their steps.
        weight: of what came before, 0 ≤ weight < 1; 0 gives the values back.
    """
    found, mean, known = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        known = weight * known + (1 - weight)
        found.append(mean / known)
    return found


def overlay(
    runs: Sequence[tuple[Run, Metrics]],
    name: str,
    *,
    styles: Mapping[str, RunStyle] | None = None,
    smoothing: float = 0.0,
    log_x: bool = False,
    log_y: bool = False,
    grouped: bool = False,
) -> go.Figure:
    """One series of several runs over optimiser steps, each in its run's colour and dash.

    Smoothed lines say so, and what was recorded stays behind them, faint. A curve of few points is
    shown as it is, each point marked.

    Args:
        runs: with their curves; those without the series are left out.
        smoothing: weight of `smoothed`.
        log_x: logarithmic steps; step 0 is left out.
        log_y: logarithmic values; those that are not positive are left out.
        grouped: runs of one label are named once, and share what `styles` gives the first of them.
    """
    title = title_of(name)
    found = [(run, next((s for s in m.series if s.name == name), None)) for run, m in runs]
    shown = [(run, s) for run, s in found if s is not None and s.steps]
    if not shown:
        return empty_figure(title, "no run has recorded it")
    styles = styles or run_styles(run.id for run, _ in shown)
    first = {run.label: run.id for run, _ in reversed(shown)}
    says = [DIAGNOSTIC] if name.startswith(WATCHED) else []
    many = {run.id for run, s in shown if len(s.steps) >= FEW}
    if smoothing and many:
        says.append(f"thick: moving average, weight {smoothing:g} on what came before")
        says.append("faint: as recorded")
    figure = blank(title=title, subtitle=says, alt="", height=280)
    total = sum(len(s.steps) for _, s in shown)
    line = go.Scattergl if total > WEBGL_POINTS else go.Scatter
    words, shares = [], is_share(name)
    small = all(abs(v) < 1e-3 for _, s in shown for v in s.values)
    seen = "y:$.2%" if shares else "y:.1e" if small else "y:.4g"
    recorded = seen.replace("y", "customdata", 1)
    for run, series in shown:
        leader = first[run.label] if grouped else run.id
        own, smooth = styles[leader], smoothing if run.id in many else 0.0
        means = smoothed(series.values, smooth)
        kept = [
            (step, value, mean)
            for step, value, mean in zip(series.steps, series.values, means, strict=True)
            if (value > 0 or not log_y) and (step > 0 or not log_x)
        ]
        label = run.label
        look = {
            "mode": "lines" if run.id in many else "lines+markers",
            "marker": {"color": own.colour, "symbol": own.symbol, "size": 8},
            "legendgroup": leader,
        }
        dash = own.dash if line is go.Scatter else "solid"
        steps = [step for step, _, _ in kept]
        if smooth:
            figure.add_trace(
                line(x=steps, y=[v for _, v, _ in kept], opacity=0.28, hoverinfo="skip",
                     showlegend=False, name=f"{text.esc(label)}, as recorded",
                     line={"color": own.colour, "width": 1}, **look)
            )  # fmt: skip
        figure.add_trace(
            line(x=steps, y=[m for _, _, m in kept], name=text.esc(label),
                 showlegend=leader == run.id,
                 customdata=[v for _, v, _ in kept],
                 hovertemplate=f"%{{{seen}}}" + (f" (%{{{recorded}}})" if smooth else ""),
                 line={"color": own.colour, "width": 2, "dash": dash}, **look)
        )  # fmt: skip
        if not grouped:
            words.append(f"{label} from {_in_words(series.values[0], shares)} to "
                         f"{_in_words(series.values[-1], shares)}")  # fmt: skip
    for label in first if grouped else ():
        ends = [s.values[-1] for run, s in shown if run.label == label]
        words.append(f"{len(ends)} of {label} end between {_in_words(min(ends), shares)} and "
                     f"{_in_words(max(ends), shares)}")  # fmt: skip
    figure.update_layout(
        meta={"alt": ". ".join([f"{title} over steps: {'; '.join(words)}", *says]) + "."},
        xaxis=axis(
            name="Step", type="log" if log_x else "linear",
            **({"dtick": 1, "exponentformat": "power"} if log_x else {"rangemode": "tozero"}),
        ),
        yaxis=_values_axis(
            [v for _, s in shown for v in s.values], shares=shares, log=log_y
        ),
        hovermode="x unified",
    )  # fmt: skip
    figure.update_layout(showlegend=False)
    if len(shown) > 1 or grouped:
        legend_below(figure, math.ceil(len(first if grouped else shown) / 2))
    return figure


def overlay_table(runs: Sequence[tuple[Run, Metrics]], name: str) -> Table:
    """One row per step, one column per run: values as they were recorded."""
    by_step: dict[int, dict[str, Any]] = {}
    columns = [Column("step", "Step", "count")]
    for run, metrics in runs:
        for series in metrics.series:
            if series.name == name:
                columns.append(Column(run.id, run.label, "number"))
                for step, value in zip(series.steps, series.values, strict=True):
                    by_step.setdefault(step, {"step": step})[run.id] = value
    return Table(columns, [by_step[step] for step in sorted(by_step)])
