"""Which predictions to keep: risk against coverage, and what a threshold gives; their tables."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.answers import Decision, KeptSet
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
)
from frontend.tables import Column, Run, Table
from frontend.tables.analysis import set_name, set_order


def risks(
    decisions: Sequence[tuple[Run, Decision]], *, styles: Mapping[str, RunStyle]
) -> go.Figure:
    """Errors among what each run's threshold keeps, by data set, beside what was promised.

    A filled mark is a risk whose interval leaves out the promised one, an open mark could be it.
    """
    shown = [(run, d) for run, d in decisions if d.threshold is not None]
    title = "Error rate of kept predictions"
    if not shown:
        return empty_figure(title, "no threshold can keep this promise for any of the runs")
    risk = shown[0][1].risk
    sets = sorted({set_order(one): set_name(one) for _, d in shown for one in d.sets}.items())
    rows = {key: at for at, (key, _) in enumerate(sets)}
    figure = blank(
        title=title,
        subtitle=[f"dashed: at most {text.percent(risk)}, promised for data like the ID data"],
        alt="",
        height=90 + max(26 * len(rows), 16 * len(rows) * len(shown) // 2),
    )
    phrases = []
    for index, (run, decision) in enumerate(shown):
        kept = [one for one in decision.sets if one.risk is not None]
        look, shift = styles[run.id], offset(index, len(shown))
        values = [one.risk or 0.0 for one in kept]
        ends = [one.risk_interval or (0.0, 1.0) for one in kept]
        figure.add_trace(
            go.Scatter(
                x=values,
                y=[rows[set_order(one)] + shift for one in kept],
                mode="markers",
                name=text.esc(run.label),
                marker={
                    "color": look.colour,
                    "size": 10,
                    "symbol": [
                        f"{look.symbol}-open" if one.holds is None else look.symbol for one in kept
                    ],
                    "line": {"width": 1.5, "color": look.colour},
                },
                error_x=interval_bars(
                    [high - v for v, (_, high) in zip(values, ends, strict=True)],
                    [v - low for v, (low, _) in zip(values, ends, strict=True)],
                    look.colour,
                ),
                customdata=[
                    [text.esc(set_name(one)), text.percent(one.coverage), text.count(one.kept)]
                    for one in kept
                ],
                hovertemplate="%{customdata[0]}: %{x:$.2%} wrong of %{customdata[1]} kept (n = "
                f"%{{customdata[2]}})<extra>{text.esc(run.label)}</extra>",
            )
        )
        above = sum(one.holds is False for one in decision.sets)
        phrases.append(f"{run.label}: more errors than promised on {above} of {len(decision.sets)}")
    figure.add_vline(x=risk, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        meta={"alt": f"{title}, by data set. {'; '.join(phrases)}."},
        # Not `tozero`, which cuts a mark without errors in half.
        xaxis=axis(
            name="Error rate of what is kept",
            tickformat=SHARE,
            autorangeoptions={"include": 0, "clipmin": -0.03, "clipmax": 1.03},
        ),
        yaxis=names_axis([name for _, name in sets]),
        showlegend=False,
    )
    if len(shown) > 1:
        legend_below(figure, math.ceil(len(shown) / 3))
    return figure


def curves(
    found: Sequence[tuple[Run, KeptSet, float | None]],
    *,
    styles: Mapping[str, RunStyle],
    risk: float,
    title: str,
    most: float,
) -> go.Figure:
    """Risk against coverage on one data set, a line and its 95 % band a run; a mark where it keeps.

    Args:
        found: run, what it keeps, and its threshold.
        risk: the promised one, as a dashed line.
        most: where the risk axis ends, so that charts side by side compare.
    """
    figure = blank(
        title=title,
        subtitle=["mark: where the threshold is · band: 95 % interval, pointwise"],
        alt=f"{title}: risk against coverage. "
        + "; ".join(_words(run, one) for run, one, _ in found),
        height=320,
    )
    for run, one, threshold in found:
        look = styles[run.id]
        x = [p.coverage for p in one.curve]
        red, green, blue = (int(look.colour[at : at + 2], 16) for at in (1, 3, 5))
        figure.add_trace(
            go.Scatter(
                x=[*x, *reversed(x)],
                y=[*(p.high for p in one.curve), *(p.low for p in reversed(one.curve))],
                fill="toself",
                fillcolor=f"rgba({red},{green},{blue},0.12)",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=x,
                y=[p.risk for p in one.curve],
                mode="lines",
                name=text.esc(run.label),
                line={"color": look.colour, "dash": look.dash, "width": 2},
                customdata=[p.threshold for p in one.curve],
                hovertemplate="%{x:$.1%} kept, %{y:$.2%} wrong<br>confidence from %{customdata:.4g}"
                f"<extra>{text.esc(run.label)}</extra>",
            )
        )
        if threshold is not None and one.risk is not None:
            figure.add_trace(
                go.Scatter(
                    x=[one.coverage],
                    y=[one.risk],
                    mode="markers",
                    marker={"color": look.colour, "symbol": look.symbol, "size": 12,
                            "line": {"color": "#ffffff", "width": 1.5}},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )  # fmt: skip
    figure.add_hline(y=risk, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        xaxis=axis(name="Coverage: share that is kept", tickformat=SHARE, range=[0, 1.02]),
        yaxis=axis(name="Risk: errors among it", tickformat=SHARE, range=[0, most]),
    )
    legend_below(figure, math.ceil(len(found) / 2))
    return figure


def _words(run: Run, one: KeptSet) -> str:
    if one.risk is None:
        return f"{run.label} keeps nothing"
    return (
        f"{run.label} keeps {text.percent(one.coverage)}, of which {text.percent(one.risk)} wrong"
    )


def curves_table(found: Sequence[tuple[Run, KeptSet, float | None]]) -> Table:
    return Table(
        [
            Column("run", "Run"),
            Column("threshold", "Confidence from", "number"),
            Column("coverage", "Kept", "percent"),
            Column("risk", "Wrong", "percent"),
            Column("low", "95 % low", "percent"),
            Column("high", "95 % high", "percent"),
        ],
        [{"run": run.label, **p.model_dump()} for run, one, _ in found for p in one.curve],
    )
