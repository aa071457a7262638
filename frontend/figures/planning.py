"""How many samples a difference takes, over differences; its table."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.results import Budget
from frontend import text
from frontend.figures.style import MUTED, RunStyle, axis, blank, legend_below
from frontend.tables import Column, Run, Table


def needed(
    plans: Sequence[tuple[Run, Sequence[Budget]]], *, styles: Mapping[str, RunStyle], title: str
) -> go.Figure:
    """Samples over the difference that they show, a line a run; dashed: what is stored."""
    figure = blank(
        title=title,
        subtitle=["log axes · dashed: samples that are stored"],
        alt=f"{title}. " + "; ".join(f"{run.label}: {_said(found)}" for run, found in plans) + ".",
        height=340,
    )
    fraction = plans[0][1][0].metric in ("accuracy", "ece", "confidence")
    for run, found in plans:
        look = styles[run.id]
        figure.add_trace(
            go.Scatter(
                x=[100 * b.difference if fraction else b.difference for b in found],
                y=[b.needed for b in found],
                mode="lines+markers",
                name=text.esc(run.label),
                line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={
                    "color": look.colour,
                    "symbol": [look.symbol if b.enough else f"{look.symbol}-open" for b in found],
                    "size": 9,
                },
                hovertemplate="a difference of %{x:.3g} takes %{y:,} samples"
                f"<extra>{text.esc(run.label)}</extra>",
            )
        )
    figure.add_hline(y=plans[0][1][0].n, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    ticks = sorted({100 * b.difference if fraction else b.difference for _, f in plans for b in f})
    figure.update_layout(
        xaxis=axis(
            name="Difference to be shown, points" if fraction else "Difference to be shown",
            type="log",
            tickmode="array",
            tickvals=ticks,
            ticktext=[f"{tick:g}" for tick in ticks],
        ),
        yaxis=axis(name="Samples", type="log", dtick=1, tickformat=",d"),
    )
    legend_below(figure, 1)
    return figure


def _said(found: Sequence[Budget]) -> str:
    return ", ".join(f"{b.difference:g} takes {text.count(b.needed)}" for b in found)


def table(plans: Sequence[tuple[Run, Sequence[Budget]]]) -> Table:
    fraction = plans[0][1][0].metric in ("accuracy", "ece", "confidence")
    return Table(
        [
            Column("run", "Run"),
            Column("difference", "Difference, points" if fraction else "Difference", "number"),
            Column("needed", "Samples needed", "count"),
            Column("n", "Stored", "count"),
            Column("enough", "Enough", "yes"),
        ],
        [
            {
                "run": run.label,
                **b.model_dump(include={"needed", "n", "enough"}),
                "difference": 100 * b.difference if fraction else b.difference,
            }
            for run, found in plans
            for b in found
        ],
    )
