"""Runs over shifted and corrupted data: dots, heat-maps and lines over severity; their tables."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from calift_core.calibration.diagrams import wilson_interval
from calift_core.schema.report import EvaluationReport
from frontend import text
from frontend.figures.style import (
    RULE,
    RunStyle,
    axis,
    blank,
    cells,
    cells_axis,
    empty_figure,
    heatmap,
    interval_bars,
    legend_below,
    names_axis,
    offset,
    run_styles,
    values_axis,
)
from frontend.tables import Column, Run, Table

#: Data sets that have room beside each other in a heat-map.
_ACROSS = 16
RunEvaluations = Sequence[tuple[Run, Sequence[EvaluationReport]]]


class ShiftPoint(NamedTuple):
    """One run on one row of a shift chart; a corruption's severities are averaged.

    `worst` is the evaluation that the row is of, or the one of a corruption's highest severity.
    """

    dataset: str
    role: str
    value: float
    low: float | None
    high: float | None
    floor: float | None
    above_floor: bool | None
    n: int
    parts: int
    worst: EvaluationReport


def _share_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` samples (Wilson 1927)."""
    low, high = wilson_interval(np.asarray(round(share * n)), np.asarray(n))
    return float(low), float(high)


def points(evaluations: Sequence[EvaluationReport], metric: str) -> list[ShiftPoint]:
    """Rows of a shift chart: ID first, then shifts by name, then corruptions averaged by name."""
    groups: dict[tuple[int, str], list[EvaluationReport]] = defaultdict(list)
    for evaluation in evaluations:
        name = evaluation.corruption or evaluation.dataset
        groups[text.role_order(evaluation.role), name].append(evaluation)
    rows = []
    for (_, name), members in sorted(groups.items()):
        low = high = floor = None
        above = None
        if metric == "accuracy" and len(members) == 1:
            low, high = _share_interval(members[0].accuracy, members[0].n)
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
                worst=max(members, key=lambda m: m.severity or 0),
            )
        )
    return rows


def _dataset_order(runs: Sequence[tuple[Run, list[ShiftPoint]]]) -> list[str]:
    seen: dict[str, tuple[int, str]] = {}
    for _, rows in runs:
        for row in rows:
            seen.setdefault(row.dataset, (text.role_order(row.role), row.dataset))
    return sorted(seen, key=lambda name: seen[name])


def dots(
    runs: RunEvaluations,
    *,
    metric: str = "accuracy",
    styles: Mapping[str, RunStyle] | None = None,
) -> go.Figure:
    """A dot per run and data set, with its 95 % interval; for ECE also a tick at the floor.

    ID data stand first, then shifts, then corruptions, each averaged over its severities (without
    an interval: the severities share their images).
    """
    look = text.METRICS[metric]
    heading = f"{look.title} by shift"
    rows_of = [(run, points(evaluations, metric)) for run, evaluations in runs]
    names = _dataset_order(rows_of)
    if not names:
        return empty_figure(heading, "no evaluation is stored yet")
    styles = styles or run_styles(run.id for run, _ in runs)
    lines = ["bars: 95 % interval" + (" · small tick: floor at this n" if metric == "ece" else "")]
    figure = blank(
        title=heading,
        subtitle=lines,
        alt=_alt(heading, rows_of, metric),
        height=80 + max(26 * len(names), 16 * len(names) * max(1, len(runs)) // 2),
    )
    for index, (run, rows) in enumerate(rows_of):
        own = styles[run.id]
        shift = offset(index, len(runs))
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
                error_x=interval_bars(
                    [0 if r.high is None else max(0.0, r.high - r.value) for r in rows],
                    [0 if r.low is None else max(0.0, r.value - r.low) for r in rows],
                    own.colour,
                ),
                customdata=[
                    [
                        text.esc(r.dataset),
                        text.metric_text(r.value, metric),
                        text.count(r.n),
                        run.id,
                        r.worst.dataset,
                    ]
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
                    hovertemplate="floor %{x:$.2%}<extra>" + text.esc(run.label) + "</extra>",
                )
            )  # fmt: skip
    # One mark that is chosen leaves the others as they are.
    figure.update_traces(unselected={"marker": {"opacity": 1}})
    figure.update_layout(
        xaxis=values_axis(metric, rangemode="tozero" if look.better == "low" else "normal"),
        yaxis=names_axis(names),
        showlegend=False,
    )
    if len(runs) > 1:
        legend_below(figure, math.ceil(len(runs) / 3))
    for index in range(1, len(names)):
        roles = {row.dataset: row.role for _, rows in rows_of for row in rows}
        if roles[names[index]] != roles[names[index - 1]]:
            figure.add_hline(y=index - 0.5, line={"color": RULE, "width": 1})
    return figure


def _alt(heading: str, rows_of: Sequence[tuple[Run, list[ShiftPoint]]], metric: str) -> str:
    phrases = []
    for run, rows in rows_of[:4]:
        worst = (max if text.METRICS[metric].better == "low" else min)(
            rows, key=lambda row: row.value, default=None
        )
        if worst is not None:
            phrases.append(
                f"{run.label}: worst is {worst.dataset} at {text.metric_text(worst.value, metric)}"
            )
    more = f", and {len(rows_of) - 4} more runs" if len(rows_of) > 4 else ""
    return f"{heading}, {len(rows_of)} runs. " + "; ".join(phrases) + more + "."


def by_run(runs: RunEvaluations, *, metric: str = "accuracy") -> go.Figure:
    """Runs down, data sets across, many of them down; each cell says its number.

    For ECE a number in brackets is one that a calibrated model would show as well (its 95 % null
    quantile is not exceeded).
    """
    look = text.METRICS[metric]
    heading = f"{look.title}: run × shift"
    rows_of = [(run, points(evaluations, metric)) for run, evaluations in runs]
    names = _dataset_order(rows_of)
    if not names:
        return empty_figure(heading, "no evaluation is stored yet")
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for _, rows in rows_of:
        by_name = {row.dataset: row for row in rows}
        z.append([by_name[name].value if name in by_name else None for name in names])
        words.append([_cell(by_name.get(name), metric) for name in names])
    marks = [
        (k, names.index(row.dataset), text.metric_text(row.value, metric),
         [run.id, row.worst.dataset])
        for k, (run, rows) in enumerate(rows_of)
        for row in rows
    ]  # fmt: skip
    note = "stronger blue is worse" if look.better == "low" else "stronger blue is better"
    if metric == "ece":
        note += " · (in brackets): not above the floor"
    down, across = [run.label for run, _ in runs], names
    turned = len(names) > _ACROSS
    if turned:
        # Names of many data sets are read one below another.
        down, across = across, down
        z, words = ([list(line) for line in zip(*lines, strict=True)] for lines in (z, words))
        marks = [(column, row, shown, data) for row, column, shown, data in marks]
    figure = blank(
        title=heading,
        subtitle=[note],
        alt=_alt(heading, rows_of, metric),
        height=130 + (24 if turned else 38) * len(down) + 6 * max(map(len, across)),
        legend=False,
    )
    figure.add_trace(heatmap(z, words, columns=across, rows=down, metric=metric))
    figure.add_trace(cells(columns=across, rows=down, marks=marks, size=20 if turned else 30))
    tilted = max(map(len, across)) > 140 // len(across) if turned else len(across) > 5
    if turned:
        # Words above the cells stand below the figure's own.
        room = 5 * max(map(len, across)) if tilted else 12
        figure.update_layout(margin={"t": figure.layout.margin.t + room})
    figure.update_layout(
        xaxis=cells_axis(
            tickangle=-40 if tilted else 0, type="category", side="top" if turned else "bottom",
            range=[-0.5, len(across) - 0.5],
        ),
        yaxis=cells_axis(type="category", range=[len(down) - 0.5, -0.5]),
        margin={"b": 12},
        hoverdistance=1000,
    )  # fmt: skip
    return figure


def columns(figure: go.Figure) -> int:
    """Columns of a heat-map of `by_run`, 0 where it has none."""
    return len(figure.data[0].x) if figure.data else 0


def _cell(row: ShiftPoint | None, metric: str) -> str:
    if row is None:
        return ""
    if not text.METRICS[metric].fraction:
        return text.number(row.value)
    words = f"{100 * row.value:.1f}"
    return f"({words})" if row.above_floor is False else words


def by_severity(
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
    cells_of = {(e.corruption, e.severity): e for e in evaluations if e.corruption is not None}
    if not cells_of:
        return empty_figure(heading, "this run was not evaluated on corruptions")
    names = sorted({str(name) for name, _ in cells_of})
    severities = sorted({int(s) for _, s in cells_of if s is not None})
    z: list[list[float | None]] = []
    words: list[list[str]] = []
    for name in names:
        found = [cells_of.get((name, severity)) for severity in severities]
        z.append([None if e is None else text.metric_value(e, metric) for e in found])
        words.append(["" if e is None else _cell(points([e], metric)[0], metric) for e in found])
    note = "stronger blue is worse" if look.better == "low" else "stronger blue is better"
    if metric == "ece":
        note += " · (in brackets): not above the floor"
    labels = [f"severity {s}" if len(severities) < 4 else str(s) for s in severities]
    flat = [(v, n, s) for n, row in zip(names, z, strict=True)
            for s, v in zip(severities, row, strict=True) if v is not None]  # fmt: skip
    worst = (max if look.better == "low" else min)(flat)
    figure = blank(
        title=heading,
        subtitle=[note],
        alt=f"{heading}, {len(names)} corruptions at severities {severities[0]} to "
        f"{severities[-1]}. Worst: {worst[1].replace('_', ' ')} at severity {worst[2]}, "
        f"{text.metric_text(worst[0], metric)}.",
        height=70 + 28 * len(names),
        legend=False,
    )
    figure.add_trace(
        heatmap(
            z,
            words,
            columns=labels,
            rows=[name.replace("_", " ") for name in names],
            metric=metric,
            limits=limits,
        )
    )
    figure.add_trace(
        cells(
            columns=labels,
            rows=[name.replace("_", " ") for name in names],
            marks=[
                (
                    names.index(name),
                    severities.index(severity),
                    text.metric_text(text.metric_value(found, metric), metric),
                    [found.dataset],
                )
                for (name, severity), found in cells_of.items()
                if name is not None and severity is not None
            ],
            size=24,
        )
    )
    figure.update_layout(
        xaxis=cells_axis(type="category"),
        yaxis=cells_axis(autorange="reversed", type="category"),
        margin={"b": 12},
        hoverdistance=1000,
    )
    return figure


def severity_lines(
    runs: RunEvaluations,
    *,
    metric: str = "accuracy",
    corruption: str | None = None,
    styles: Mapping[str, RunStyle] | None = None,
) -> go.Figure:
    """A line per run over severity, from the clean test images at 0.

    Args:
        metric: a key of `text.METRICS`.
        corruption: one corruption; none: the mean over all of them at each severity.
    """
    look = text.METRICS[metric]
    what = corruption.replace("_", " ") if corruption else "mean of all corruptions"
    heading = f"{look.title} by severity: {what}"
    styles = styles or run_styles(run.id for run, _ in runs)
    figure = blank(title=heading, alt="", height=330)
    phrases = []
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
        phrases.append(
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
                + ("%{y:$.2%}" if look.fraction else "%{y:.4g}")
                + "<extra>"
                + text.esc(run.label)
                + "</extra>",
            )
        )
    if not phrases:
        return empty_figure(heading, "no run here was evaluated on corruptions")
    figure.update_layout(
        meta={"alt": f"{heading}. " + "; ".join(phrases) + "."},
        xaxis=axis(name="Severity (0: clean)", dtick=1),
        yaxis=values_axis(metric, rangemode="tozero" if look.better == "low" else "normal"),
        showlegend=False,
    )
    if len(phrases) > 1:
        legend_below(figure, math.ceil(len(phrases) / 3))
    return figure


def table(runs: RunEvaluations, metric: str) -> Table:
    """One row per run and data set, as the shift charts draw them."""
    look = text.METRICS[metric]
    kind = "percent" if look.fraction else "number"
    rows = [
        {"run": run.label, "metric": metric, **row._asdict()}
        for run, found in runs
        for row in points(found, metric)
    ]
    columns = [
        Column("run", "Run"),
        Column("dataset", "Data"),
        Column("role", "Role"),
        Column("value", look.title, kind),
    ]
    if metric in ("accuracy", "ece"):
        columns += [Column("low", "95 % low", kind), Column("high", "95 % high", kind)]
    if metric == "ece":
        columns += [Column("floor", "Floor", kind), Column("above_floor", "Above the floor", "yes")]
    return Table([*columns, Column("n", "n", "count"), Column("parts", "Sets averaged")], rows)


def corruptions_table(runs: RunEvaluations, metric: str) -> Table:
    """One row per run, corruption and severity."""
    look = text.METRICS[metric]
    rows = [
        {
            "run": run.label,
            "corruption": (e.corruption or "clean").replace("_", " "),
            "severity": e.severity or 0,
            "value": text.metric_value(e, metric),
            "floor": e.ece.null_mean if metric == "ece" else None,
            "n": e.n,
        }
        for run, found in runs
        for e in sorted(found, key=lambda e: (e.corruption or "", e.severity or 0))
        if e.role != "shift"
    ]
    columns = [
        Column("run", "Run"),
        Column("corruption", "Corruption"),
        Column("severity", "Severity", "count"),
        Column("value", look.title, "percent" if look.fraction else "number"),
    ]
    if metric == "ece":
        columns.append(Column("floor", "Floor", "percent"))
    return Table([*columns, Column("n", "n", "count")], rows)
