"""Tab Curves: the loss, its terms and what was measured beside them, over steps."""

import streamlit as st

from calift_core.schema.wire.runs import RunDetail
from frontend import api, figures, page, state, tables

MAX_POINTS = 800

#: Curves that are no part of the loss and have another scale.
ASIDE = ("lr", "grad_norm", "logit_scale", "sigma_min", "effective_rank")


def draw(run: RunDetail) -> None:
    """Show the loss and what else was recorded."""
    metrics = api.fetch(
        "load the curves",
        lambda: api.client().metrics(run.id, max_points=MAX_POINTS),
        key=f"metrics-{run.id}",
    )
    if not metrics.series:
        if run.method == "imported":
            page.empty("No curves", "The predictions were made elsewhere. See Calibration.")
        elif run.phase == "SUCCEEDED":
            page.empty("No curves", "Nothing was trained here. The results are under Shifts.")
        elif api.is_working(run.phase):
            page.empty("No point yet", "The first one appears when training has begun.")
        else:
            page.empty("No curves", "The run ended before it recorded a step.")
        return
    watched = [s.name for s in metrics.series if s.name.startswith(figures.curves.WATCHED)]
    names = [s.name for s in metrics.series if s.name not in watched]
    checks = [n for n in names if n.startswith(("val", "validation"))]
    aside = [n for n in names if n in ASIDE or n.startswith(("teacher", "lr"))]
    losses = [n for n in names if n not in (*checks, *aside)]
    log_y = state.toggle(st, "Logarithmic axis", name="log")
    me = tables.Run(run.id, run.name)
    styles = state.styles([run.id])
    losses.sort(key=lambda n: n != "loss")
    page.chart(
        figures.curves.terms(metrics, losses, own=styles[run.id], log_y=log_y),
        figures.curves.table(metrics, losses),
        name="curve-loss",
    )
    if watched:
        st.page_link(
            "views/curves.py", label="Shifts over training, a diagnostic",
            icon=":material/visibility:", query_params={"ids": run.id, "shifts": "1"},
        )  # fmt: skip
    # A panel each: what is measured in other units, or lies elsewhere, has an axis that fits it.
    columns = st.columns(2)
    for index, name in enumerate((*checks, *aside)):
        with columns[index % 2]:
            page.chart(
                figures.curves.overlay([(me, metrics)], name, styles=styles, log_y=log_y),
                figures.curves.overlay_table([(me, metrics)], name),
                name=f"curve-{name}",
            )
