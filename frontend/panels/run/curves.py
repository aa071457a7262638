"""Tab Curves: the loss, its terms and what was measured beside them, over steps."""

from __future__ import annotations

import streamlit as st

from calift_core.schema.wire.runs import Metrics, RunDetail
from frontend import api, figures, page, state

MAX_POINTS = 800

#: Curves that are no part of the loss and have another scale.
ASIDE = (
    "lr",
    "grad_norm",
    "logit_scale",
    "sigma_min",
    "effective_rank",
)

TITLES = {"Lr": "Learning rate", "Grad norm": "Gradient norm", "Sigma min": "σ_min (validation)"}


def draw(run: RunDetail) -> None:
    """Show the loss and what else was recorded."""
    metrics = api.fetch(
        "load the curves",
        lambda: api.client().metrics(run.id, max_points=MAX_POINTS),
        key=f"metrics-{run.id}",
    )
    if not metrics.series:
        if run.method == "zero_shot":
            page.empty(
                "No curves", "A zero-shot model is not trained. Its results are under Shifts."
            )
        elif run.method == "imported":
            page.empty("No curves", "The predictions were made elsewhere. See Calibration.")
        elif api.is_working(run.phase):
            page.empty("No point yet", "The first one appears when training has begun.")
        else:
            page.empty("No curves", "The run ended before it recorded a step.")
        return
    watched = [s.name for s in metrics.series if s.name.startswith(figures.curves.WATCHED)]
    names = [s.name for s in metrics.series if s.name not in watched]
    aside = [n for n in names if n in ASIDE or n.startswith(("teacher", "lr"))]
    losses = [n for n in names if n not in aside and not n.startswith(("val", "validation"))]
    checks = [n for n in names if n.startswith(("val", "validation"))]
    log_y = state.bound(
        st.toggle,
        "Logarithmic axis",
        name="log",
        default=False,
        decode=lambda given: given == "1",
        encode=lambda on: "1" if on else "",
    )
    _curve(metrics, sorted(losses, key=lambda n: n != "loss"), "Loss and its terms", "loss", log_y)
    rest: list[tuple[str, list[str]]] = []
    # Shares have an axis of their own, in percent.
    shares = [n for n in checks if figures.curves.is_share(n)]
    others = [n for n in checks if n not in shares]
    rest += [(title, some) for title, some in
             (("Validation", shares), ("Validation: other measures", others)) if some]  # fmt: skip
    rest += [(name.replace("_", " ").capitalize(), [name]) for name in aside]
    if watched:
        st.page_link(
            "views/curves.py", label="Shifts over training, a diagnostic",
            icon=":material/visibility:", query_params={"ids": run.id, "shifts": "1"},
        )  # fmt: skip
    columns = st.columns(2)
    for index, (title, some) in enumerate(rest):
        with columns[index % 2]:
            _curve(metrics, some, TITLES.get(title, title), some[0], log_y)


def _curve(metrics: Metrics, names: list[str], title: str, key: str, log_y: bool) -> None:
    page.chart(
        figures.curves.figure(metrics, names, title=title, log_y=log_y),
        figures.curves.table(metrics, names),
        name=f"curve-{key}",
    )
