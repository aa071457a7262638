"""How a score lies on ID test images and on another set; its table."""

import plotly.graph_objects as go

from calift_core.schema.wire.ood import OodDetection, OodScore, OodSet
from frontend import text
from frontend.figures.style import MUTED, OVER, SHARE, UNDER, axis, blank, legend_below
from frontend.tables import Column, Table, ood


def densities(found: OodDetection, one: OodSet, row: OodScore) -> go.Figure:
    """The shares of both by score, and the threshold that accepts 95 % of the ID test images."""
    title, name = ood.TITLES[row.score], ood.set_name(one)
    figure = blank(
        title=f"{title}: ID test images against {name}",
        subtitle=[
            f"AUROC {row.auroc.value:.3f} · dashed: right of it 95 % of the ID images are accepted",
            f"and {text.percent(row.fpr95.value)} of {name}",
        ],
        alt=f"{title} of {found.n:,} ID test images and {one.n:,} of {name}: AUROC "
        f"{row.auroc.value:.3f}, FPR95 {text.percent(row.fpr95.value)}.",
        height=320,
    )
    edges = row.histogram.edges
    for shares, label, colour, dash in (
        (row.histogram.id, f"ID test images ({found.dataset})", UNDER, "solid"),
        (row.histogram.ood, name, OVER, "dot"),
    ):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        figure.add_trace(
            go.Scatter(
                x=edges,
                y=[*shares, shares[-1]],
                mode="lines",
                line={"shape": "hv", "color": colour, "width": 2, "dash": dash},
                fill="tozeroy",
                fillcolor=f"rgba({red},{green},{blue},0.15)",
                name=text.esc(label),
                hovertemplate="from %{x:.4g}: %{y:$.1%}<extra>" + text.esc(label) + "</extra>",
            )
        )
    figure.add_vline(x=row.threshold, line={"color": MUTED, "width": 1.25, "dash": "dash"})
    figure.update_layout(
        xaxis=axis(name=f"{title} (larger: more like the ID data)"),
        yaxis=axis(name="Share of images", tickformat=SHARE, rangemode="tozero"),
    )
    legend_below(figure, 2)
    return figure


def densities_table(row: OodScore) -> Table:
    edges, own = row.histogram.edges, row.histogram
    bins = zip(edges, edges[1:], own.id, own.ood, strict=False)
    return Table(
        [
            Column("low", "Score from", "number"),
            Column("high", "to", "number"),
            Column("id", "ID test images", "percent"),
            Column("ood", "The other set", "percent"),
        ],
        [dict(zip(("low", "high", "id", "ood"), one, strict=True)) for one in bins],
    )
