"""A sweep's contenders and its verdict as tables, and the ladders as a chart."""

from collections.abc import Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.sweeps import SweepArm
from frontend import text
from frontend.figures import style


def ladders(arms: Sequence[SweepArm]) -> go.Figure | None:
    """ID validation accuracy along each contender's ladder; None where there is no ladder."""
    climbing = [arm for arm in arms if any(r.val_accuracy is not None for r in arm.rates)]
    if not climbing:
        return None
    words = "; ".join(
        f"{arm.label}: " + (f"{arm.lr:g} chosen" if arm.lr is not None else "still climbing")
        for arm in climbing
    )
    figure = style.blank(
        title="Ladders of rates",
        alt=f"ID validation accuracy against the learning rate, one line a configuration. {words}.",
        height=340,
        subtitle=["ID validation accuracy of one seed; the larger mark is the chosen rate"],
    )
    for slot, arm in enumerate(climbing):
        done = [r for r in arm.rates if r.val_accuracy is not None]
        look = style.style_of_slot(slot)
        figure.add_trace(
            go.Scatter(
                x=[r.lr for r in done],
                y=[r.val_accuracy for r in done],
                name=text.esc(arm.label),
                mode="lines+markers",
                line={"color": look.colour, "dash": look.dash},
                marker={
                    "color": look.colour,
                    "symbol": look.symbol,
                    "size": [12 if r.lr == arm.lr else 7 for r in done],
                },
                hovertemplate="%{fullData.name}: rate %{x:g}, %{y:$.2%}<extra></extra>",
            )
        )
    figure.update_xaxes(**style.axis(name="Learning rate", type="log", exponentformat="power"))
    figure.update_yaxes(**style.axis(name="ID validation accuracy", tickformat="$.1%"))
    style.legend_below(figure, rows=1 + len(climbing) // 4)
    return figure
