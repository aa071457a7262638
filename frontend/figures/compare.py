"""Runs against a baseline on the same samples, and accuracy against calibration; their tables."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.report import Summary
from calift_core.schema.wire.results import Comparison, PairedDifference
from frontend import text
from frontend.figures.style import (
    MUTED,
    SHARE,
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
from frontend.tables import Column, Run, Table, comparisons, headline

#: What a measure is taken for that has no look of its own.
_FRACTION = text.Metric("", "high", True)


def _drawn(found: PairedDifference) -> tuple[float, float, float]:
    """The difference that is judged and its interval, fractions in points."""
    scale = 100 if text.METRICS.get(found.metric, _FRACTION).fraction else 1
    apart, low, high = comparisons.decided(found)
    return scale * apart, scale * low, scale * high


def differences(
    comparison: Comparison,
    *,
    metric: str = "accuracy",
    roles: Sequence[str] = ("id", "shift", "corruption"),
    styles: Mapping[str, RunStyle] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Each run minus the baseline on the same samples, with its paired interval.

    A filled mark is a difference whose interval excludes zero, an open one could be noise. For the
    ECE the difference of the L2 errors is drawn, which is judged. `roles` says which data sets.
    """
    look = text.METRICS.get(metric, _FRACTION._replace(title=metric))
    l2 = any(d.squared for c in comparison.runs for d in c.differences if d.metric == metric)
    others = [c for c in comparison.runs if c.run.id != comparison.baseline]
    base = next((c.run.name for c in comparison.runs if c.run.id == comparison.baseline), "?")
    heading = title if title is not None else f"{look.title}: difference to {base}"
    chosen = [
        (c, [d for d in c.differences if d.metric == metric and d.role in roles]) for c in others
    ]
    names = sorted(
        {(text.role_order(d.role), d.dataset) for _, ds in chosen for d in ds}
    )  # ID first, as in every chart
    if not names:
        return empty_figure(heading, "the runs share no samples of the same data set")
    labels = [name for _, name in names]
    styles = styles or run_styles(c.run.id for c in comparison.runs)
    better = "right" if look.better == "high" else "left"
    figure = blank(
        title=heading,
        subtitle=[
            *(["L2 calibration error with the noise taken out"] if l2 else []),
            f"{better} of zero is better · filled: 95 % interval excludes zero",
        ],
        alt="",
        height=80 + max(26 * len(labels), 16 * len(labels) * len(others) // 2),
    )
    value_format = "%{x:+.2f} pp" if look.fraction else "%{x:+.4g}"
    if l2:
        value_format += " (ECE %{customdata[2]})"
    phrases = []
    for index, (column, differences) in enumerate(chosen):
        shift = offset(index, len(others))
        rows = [labels.index(d.dataset) + shift for d in differences]
        own = styles[column.run.id]
        figure.add_trace(_intervals(column.run.name, differences, rows, own, value_format))
        clear = sum(d.distinguishable for d in differences)
        phrases.append(
            f"{column.run.name}: {clear} of {len(differences)} differences are distinguishable"
        )
    figure.add_vline(x=0, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        meta={"alt": f"{heading}. {'; '.join(phrases)}."},
        xaxis=axis(name="Run minus baseline" + ", points" * look.fraction),
        yaxis=names_axis([label.replace("_", " ") for label in labels]),
        showlegend=False,
    )
    if len(others) > 1:
        legend_below(figure, math.ceil(len(others) / 3))
    return figure


def _intervals(
    name: str,
    differences: Sequence[PairedDifference],
    rows: Sequence[float],
    own: RunStyle,
    value_format: str,
) -> go.Scatter:
    """A run's differences with their intervals, one in each row; open where it could be noise."""
    drawn = [_drawn(d) for d in differences]
    return go.Scatter(
        x=[value for value, _, _ in drawn],
        y=rows,
        mode="markers",
        name=text.esc(name),
        marker={
            "color": own.colour,
            "size": 10,
            "symbol": [
                own.symbol if d.distinguishable else f"{own.symbol}-open" for d in differences
            ],
            "line": {"width": 1.5, "color": own.colour},
        },
        error_x=interval_bars(
            [max(0.0, high - value) for value, _, high in drawn],
            [max(0.0, value - low) for value, low, _ in drawn],
            own.colour,
        ),
        customdata=[
            [text.esc(d.dataset), text.count(d.n), text.points(d.difference)] for d in differences
        ],
        hovertemplate=f"%{{customdata[0]}}: {value_format}<br>n = %{{customdata[1]}}"
        f"<extra>{text.esc(name)}</extra>",
    )


def scatter(
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
        return empty_figure(title, "no run here has a result yet")
    styles = styles or run_styles(run.id for run, _ in points)
    figure = blank(
        title=title,
        subtitle=["open: ID · filled: mean OOD · tick: floor · lower right is better"],
        alt="",
        height=380,
    )
    phrases = []
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
                hovertemplate="%{customdata[0]}: accuracy %{x:$.1%}, ECE %{y:$.1%}<extra>"
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
                hovertemplate="floor %{y:$.2%}<extra>" + text.esc(run.label) + "</extra>",
            )
        )  # fmt: skip
        phrases.append(
            f"{run.label}: " + ", ".join(
                f"{m[4]} accuracy {text.percent(m[0])} with ECE {text.percent(m[1])}" for m in kept
            )
        )  # fmt: skip
    figure.update_layout(
        meta={"alt": f"{title}. {'; '.join(phrases)}."},
        xaxis=axis(name="Accuracy", tickformat=SHARE),
        yaxis=axis(name="ECE", tickformat=SHARE, rangemode="tozero"),
    )
    legend_below(figure, math.ceil(len(points) / 3))
    return figure


def scatter_table(runs: Sequence[tuple[Run, Summary]]) -> Table:
    """One row per run: the headline."""
    names = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece", "sigma_min")
    return Table(
        [Column("run", "Run"), *headline(names, floors=True)],
        [{"run": run.label, **s.model_dump()} for run, s in runs],
    )
