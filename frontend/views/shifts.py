"""Shifts: where accuracy and calibration go as the data move away from what was trained on."""

from __future__ import annotations

import streamlit as st

from frontend import charts, state, tables, text, ui
from frontend.tables import Markup

SHOWN = ("accuracy", "ece", "nll", "brier", "smooth_ece", "mean_confidence", "aurc")


def main() -> None:
    """Draw the page."""
    ui.head("Shifts", "Every run on every data set: in distribution, shifted, and corrupted.")
    chosen = ui.pick_runs("run")
    runs = ui.as_runs(chosen)
    found = [(run, ui.evaluations(chosen[run.id])) for run in runs]
    metric = state.choice(
        st.segmented_control,
        "Metric",
        name="metric",
        options=SHOWN,
        format_func=lambda m: text.METRICS[m].title,
        required=True,
    )
    if not any(evaluations for _, evaluations in found):
        ui.empty(
            "No evaluation is stored",
            "The chosen runs have not been evaluated yet: evaluations appear as a run reaches "
            "the end of its training.",
        )
        return
    styles = state.styles(list(chosen))
    ui.chart(
        charts.shift_heatmap(found, metric=metric),
        tables.shifts(found, metric),
        name=f"shift-heatmap-{metric}",
        wide=True,
    )
    _diagram_links(found)
    ui.chart(
        charts.accuracy_by_shift(found, metric=metric, styles=styles),
        tables.shifts(found, metric),
        name=f"by-shift-{metric}",
    )
    corruptions = sorted({e.corruption for _, es in found for e in es if e.corruption})
    if not corruptions:
        st.caption(
            "These runs were evaluated without corruptions. Add them under Data in a new run to "
            "see severity curves here."
        )
        return
    st.subheader("Corruptions", anchor=False)
    which = state.choice(
        st.selectbox,
        "Corruption",
        name="corruption",
        options=["mean", *corruptions],
        format_func=lambda c: "mean of all" if c == "mean" else c.replace("_", " "),
    )
    ui.chart(
        charts.corruption_severity(
            found, metric=metric, corruption=None if which == "mean" else which, styles=styles
        ),
        tables.corruptions(found, metric),
        name=f"severity-{metric}-{which}",
    )
    across = st.columns(2)
    values = [text.metric_value(e, metric) for _, es in found for e in es if e.corruption]
    for index, (run, evaluations) in enumerate(found):
        if any(e.corruption for e in evaluations):
            with across[index % 2]:
                ui.chart(
                    charts.corruption_heatmap(
                        evaluations,
                        metric=metric,
                        title=f"{run.label}: {text.METRICS[metric].title}",
                        limits=(min(values), max(values)),
                    ),
                    tables.corruptions([(run, evaluations)], metric),
                    name=f"corruption-{metric}-{run.id}",
                )


def _diagram_links(found: charts.RunEvaluations) -> None:
    """One link per data set to its reliability diagrams."""
    ids = ",".join(run.id for run, _ in found)
    order = {"id": 0, "shift": 1, "corruption": 2}
    first: dict[str, tuple[int, str]] = {}
    for _, evaluations in found:
        for e in evaluations:
            name = e.corruption or e.dataset
            first.setdefault(name, (order[e.role], e.dataset))
    links = [
        Markup(
            f'<span class="calift-tag">'
            f"{ui.link(name.replace('_', ' '), 'calibration', run=ids, dataset=dataset)}</span>"
        )
        for name, (_, dataset) in sorted(first.items(), key=lambda item: (item[1][0], item[0]))
    ]
    st.html(
        f'<div class="calift-meta"><span>Reliability diagrams:</span><span>{"".join(links)}</span>'
        "</div>"
    )


main()
