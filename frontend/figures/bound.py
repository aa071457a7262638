"""Finished runs as points: a term of the bound against an error under shift; their tables."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.answers import BoundMonitor, Correlation, RunPoint
from frontend import text
from frontend.figures.style import (
    DASHES,
    PALETTE,
    SHARE,
    SYMBOLS,
    RunStyle,
    axis,
    blank,
    decades,
    empty_figure,
    legend_below,
)
from frontend.tables import Column, Table

TERMS = {
    "sigma_min": "σ_min",
    "effective_rank": "Effective rank",
    "covariance_term": "D/σ_min",
    "id_ece": "ID ECE (ε_ID)",
    "rhs": "ε_ID + D/σ_min",
    "id_error": "ID error, to compare",
}
#: What is ranked but is no number of a run.
RANKED = {**TERMS, "mean_rank": "Mean rank of ε_ID and D/σ_min"}
ERRORS = {"ood_ece": "OOD ECE", "ood_error": "OOD error"}
#: The p-value from which on a sentence says that chance might do it.
_SURE = 0.05
_FRACTIONS = {"id_ece", "id_error", "ood_ece", "ood_error"}


def sentence(found: Correlation) -> str:
    """An association in words, with its interval and without a cause."""
    way = "higher" if found.rho > 0 else "lower"
    together = f"runs with a larger {RANKED[found.term]} have a {way} {ERRORS[found.error]}"
    if found.low <= 0 <= found.high:
        lead = f"{RANKED[found.term]} and {ERRORS[found.error]} cannot be said to go together"
    elif found.p_value >= _SURE:
        lead = f"Here {together}, which chance among so few variants might do too"
    else:
        lead = together[0].upper() + together[1:]
    return (
        f"{lead}: rank correlation {text.number(found.rho, 2)} "
        f"(95 % interval {text.number(found.low, 2)} to {text.number(found.high, 2)}; "
        f"{text.p_value(found.p_value)}), over "
        f"{found.n} runs of {found.n_groups} variants."
    )


#: Runs that are told apart by looks of their own; more have those of their methods.
MOST_RUNS = len(PALETTE)


def scatter(
    points: Sequence[RunPoint],
    *,
    term: str,
    error: str,
    styles: Mapping[str, RunStyle] | None = None,
) -> go.Figure:
    """Each run as a mark.

    Args:
        term: a key of `TERMS`.
        error: a key of `ERRORS`.
        styles: of the runs by their ids, for at most `MOST_RUNS` of them; none: a colour and a
            symbol a method.
    """
    title = f"{ERRORS[error]} against {TERMS[term]}"
    shown = [p for p in points if getattr(p, term) is not None]
    if not shown:
        return empty_figure(title, "no run here has both numbers")
    methods = sorted({p.method for p in shown})
    parts: list[tuple[str, RunStyle, list[RunPoint]]]
    if styles is not None:
        parts = [(p.name, styles[p.run_id], [p]) for p in shown]
    else:
        parts = [
            (
                method,
                RunStyle(
                    PALETTE[i % len(PALETTE)],
                    SYMBOLS[(i + i // len(PALETTE)) % len(SYMBOLS)],
                    DASHES[i % len(DASHES)],
                ),
                [p for p in shown if p.method == method],
            )
            for i, method in enumerate(methods)
        ]
    logarithmic = term in ("sigma_min", "covariance_term", "rhs")
    figure = blank(
        title=title,
        subtitle=["one mark a run; an association, no cause"],
        alt=f"{title}: {len(shown)} runs of {len(methods)} methods.",
        height=380,
    )
    for name, look, own in parts:
        figure.add_trace(
            go.Scatter(
                x=[getattr(p, term) for p in own],
                y=[getattr(p, error) for p in own],
                mode="markers",
                name=text.esc(name),
                marker={
                    "color": look.colour,
                    "symbol": look.symbol,
                    "size": 10,
                    "line": {"width": 1, "color": "#ffffff"},
                },
                customdata=[
                    [text.esc(p.name), text.esc(p.variant), p.seed, text.number(getattr(p, term))]
                    for p in own
                ],
                hovertemplate="%{customdata[0]}<br>%{customdata[1]}, seed %{customdata[2]}<br>"
                "%{customdata[3]}, %{y:$.2%}<extra></extra>",
            )
        )
    figure.update_layout(
        xaxis=axis(
            name=TERMS[term],
            **(decades([getattr(p, term) for p in shown]) if logarithmic else {}),
            **({"tickformat": SHARE} if term in _FRACTIONS else {}),
        ),
        yaxis=axis(name=ERRORS[error], tickformat=SHARE),
    )
    legend_below(figure, math.ceil(len(parts) / 5))
    return figure


def points_table(points: Sequence[RunPoint]) -> Table:
    """One row a run, the terms of the bound and the errors under shift."""
    return Table(
        [
            Column("name", "Run"),
            Column("variant", "Variant"),
            Column("model", "Model"),
            Column("seed", "Seed", "count"),
            Column("sigma_min", "σ_min", "number"),
            Column("effective_rank", "Effective rank", "number"),
            Column("id_ece", "ε_ID (ID ECE)", "percent"),
            Column("covariance_term", "D/σ_min", "number"),
            Column("rhs", "Sum", "number"),
            Column("ood_ece", "OOD ECE", "percent"),
            Column("ood_ece_floor", "floor", "percent"),
            Column("ood_error", "OOD error", "percent"),
        ],
        [p.model_dump() for p in points],
    )


def correlations_table(found: BoundMonitor) -> Table:
    """One row a term and an error: the rank correlation with its interval."""
    return Table(
        [
            Column("term", "Number of a run"),
            Column("error", "Error under shift"),
            Column("rho", "Rank correlation", "number"),
            Column("ends", "95 % interval"),
            Column("p", "p of no association"),
            Column("n", "Runs", "count"),
            Column("n_groups", "Variants", "count"),
        ],
        [
            {
                "term": RANKED[c.term],
                "error": ERRORS[c.error],
                "rho": c.rho,
                "ends": f"{text.number(c.low, 2)} to {text.number(c.high, 2)}",
                "p": text.p_value(c.p_value),
                "n": c.n,
                "n_groups": c.n_groups,
            }
            for c in found.correlations
        ],
    )
