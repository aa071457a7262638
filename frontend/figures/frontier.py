"""Runs on two headline numbers, the Pareto front and the paths of WiSE-FT runs; their tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from calift_core.schema.report import Summary
from calift_core.schema.wire.results import Frontier
from frontend import text
from frontend.figures.style import (
    MUTED,
    SHARE,
    RunStyle,
    axis,
    blank,
    empty_figure,
    legend_below,
    run_styles,
)
from frontend.tables import Column, Run, Table, headline


class Mark(NamedTuple):
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
        better: `high` or `low` for each axis.
    """
    signs = [1.0 if way == "high" else -1.0 for way in better]
    turned = [(signs[0] * x, signs[1] * y) for x, y in points]
    return [not any(u >= x and v >= y and (u, v) != (x, y) for u, v in turned) for x, y in turned]


def marks_of(
    runs: Sequence[tuple[Run, Summary]],
    paths: Mapping[str, Frontier],
    *,
    x: str = "id_accuracy",
    y: str = "ood_accuracy",
) -> list[Mark]:
    """Every model that has both values: the points of a run's path by α, else the run's own."""
    found: list[Mark] = []

    def add(run: Run, alpha: float | None, kept: bool, values: Any) -> None:
        at = getattr(values, x), getattr(values, y)
        if None not in at:
            floor = getattr(values, f"{y}_floor", None)
            found.append(Mark(run, alpha, kept, at[0], at[1], floor, False))

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


def _labelled(marks: Sequence[Mark], most: int = 6) -> list[str]:
    """The α in words at both ends, at the kept point and at a few between: more would overlap."""
    stride = max(1, math.ceil((len(marks) - 1) / (most - 1)))
    return [
        f"{mark.alpha:g}" if mark.kept or i % stride == 0 or i == len(marks) - 1 else ""
        for i, mark in enumerate(marks)
    ]


def figure(
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
        paths: by run id, of the WiSE-FT runs among them.
        x: of `text.HEADLINES`.
        y: of `text.HEADLINES`.
        title: default: names the axes.
    """
    across, up = text.HEADLINES[x], text.HEADLINES[y]
    heading = title if title is not None else f"{up.title} against {across.title}"
    marks = marks_of(runs, paths, x=x, y=y)
    if not marks:
        return empty_figure(heading, "no run here has both numbers yet")
    styles = styles or run_styles(run.id for run, _ in runs)
    words = "ring: Pareto front"
    if any(mark.floor is not None for mark in marks):
        words += " · tick: floor"
    subtitle = [f"{words} · {'upper' if up.better == 'high' else 'lower'} right is better"]
    if paths:
        subtitle.append("numbers: α, from 0 zero-shot to 1 fine-tuned")
    figure = blank(title=heading, subtitle=subtitle, alt="", height=400)
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
    shown = f"{across.title} %{{x:$.1%}}<br>{up.title} %{{y:$.1%}}"
    for run, _ in runs:
        own = styles[run.id]
        mine = [m for m in marks if m.run.id == run.id]
        extra = f"<extra>{text.esc(run.label)}</extra>"
        if not mine:
            continue
        steps = [m for m in mine if m.alpha is not None]
        if steps:
            figure.add_trace(_path(run, steps, own, shown + extra))
        figure.add_trace(_own_mark(run, [m for m in mine if m.kept], own, shown + extra))
        floors = [m for m in mine if m.floor is not None]
        if floors:
            figure.add_trace(_floors(run, floors, own, extra))
    figure.update_layout(
        meta={"alt": _alt(heading, marks, across, up)},
        xaxis=axis(name=across.title, tickformat=SHARE),
        yaxis=axis(
            name=up.title,
            tickformat=SHARE,
            **({"rangemode": "tozero"} if up.better == "low" else {}),
        ),
    )
    # One mark that is chosen leaves the others as they are.
    figure.update_traces(unselected={"marker": {"opacity": 1}, "textfont": {"color": MUTED}})
    legend_below(figure, math.ceil((len(runs) + 1) / 2))
    return figure


def _path(run: Run, steps: Sequence[Mark], own: RunStyle, shown: str) -> go.Scatter:
    """The models of a WiSE-FT run between its two ends, joined by a line."""
    return go.Scatter(
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
        hovertemplate=f"α = %{{customdata[0]:g}}<br>{shown}",
    )


def _own_mark(run: Run, kept: Sequence[Mark], own: RunStyle, shown: str) -> go.Scatter:
    return go.Scatter(
        x=[m.x for m in kept],
        y=[m.y for m in kept],
        mode="markers",
        name=text.esc(run.label),
        legendgroup=run.id,
        customdata=[[run.id] for _ in kept],
        marker={"color": own.colour, "symbol": own.symbol, "size": 11,
                "line": {"color": "#ffffff", "width": 1}},
        hovertemplate=shown,
    )  # fmt: skip


def _floors(run: Run, marks: Sequence[Mark], own: RunStyle, extra: str) -> go.Scatter:
    """A tick below each model: what its calibration error would be if it were calibrated."""
    return go.Scatter(
        x=[m.x for m in marks],
        y=[m.floor for m in marks],
        mode="markers",
        legendgroup=run.id,
        showlegend=False,
        marker={"symbol": "line-ew-open", "size": 10, "color": own.colour, "line": {"width": 1.5}},
        hovertemplate=f"floor %{{y:$.2%}}{extra}",
    )


def _alt(heading: str, marks: Sequence[Mark], across: text.Metric, up: text.Metric) -> str:
    def where(mark: Mark) -> str:
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


def table(
    runs: Sequence[tuple[Run, Summary]], paths: Mapping[str, Frontier], *, x: str, y: str
) -> Table:
    """One row per model of `figure`: a run, or an α of its path."""
    columns = [
        Column("run", "Run"),
        Column("alpha", "α"),
        Column("kept", "The run's own", "yes"),
        *headline((x, y)),
    ]
    marks = marks_of(runs, paths, x=x, y=y)
    if any(mark.floor is not None for mark in marks):
        columns.append(Column("floor", "floor", "percent"))
    columns.append(Column("best", "On the Pareto front", "yes"))
    return Table(
        columns,
        [
            {
                "run": mark.run.label,
                "alpha": "" if mark.alpha is None else mark.alpha,
                "kept": mark.kept,
                x: mark.x,
                y: mark.y,
                "floor": mark.floor,
                "best": mark.best,
            }
            for mark in marks
        ],
    )


def path_table(frontier: Frontier) -> Table:
    """One row per α of a path, with the validation values that an α may be chosen on."""
    names = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece", "id_nll", "ood_nll")
    return Table(
        [
            Column("alpha", "α"),
            *headline(names, floors=True),
            Column("val_accuracy", "Validation accuracy", "percent"),
            Column("val_ece", "Validation ECE", "percent"),
            Column("val_ece_floor", "floor", "percent"),
            Column("val_nll", "Validation NLL", "number"),
        ],
        [point.model_dump(exclude={"datasets"}) for point in frontier.points],
    )
