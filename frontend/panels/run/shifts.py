"""Tab Shifts: one metric on every data set that the run was evaluated on."""

import streamlit as st

from calift_core.schema.wire.runs import RunDetail
from frontend import api, figures, page, state, tables, text
from frontend.panels import gallery
from frontend.panels.run.missing import not_yet
from frontend.tables import Table, analysis


def draw(run: RunDetail) -> None:
    found = api.evaluations(run)
    if not found:
        not_yet(run, "evaluated")
        return
    metric = state.choice(
        st.segmented_control,
        "Metric",
        name="metric",
        options=("accuracy", "ece", "nll", "brier"),
        format_func=lambda m: text.METRICS[m].title,
        required=True,
    )
    me = tables.Run(run.id, run.name)
    styles = state.styles([run.id])
    pairs = [(me, found)]
    by_name = {e.dataset: e for e in found}

    def open_images(mark: list[str]) -> None:
        gallery.open_samples(gallery.Chosen(evaluation=by_name[mark[-1]].id))

    corrupted = any(e.corruption for e in found)
    left, right = st.columns(2) if corrupted else (st.container(), None)
    with left:
        page.chart(
            figures.shifts.dots(pairs, metric=metric, styles=styles),
            figures.shifts.table(pairs, metric),
            name=f"by-shift-{metric}",
            key="by-shift",
            select=open_images,
        )
    if right is not None:
        with right:
            page.chart(
                figures.shifts.by_severity(found, metric=metric),
                figures.shifts.corruptions_table(pairs, metric),
                name=f"corruptions-{metric}",
                key="corruptions",
                select=open_images,
            )
    if (now := gallery.chosen_samples()) is not None and now.evaluation in {e.id for e in found}:
        gallery.draw()
    shown = analysis.evaluations(found)
    opened, _ = page.grid(
        Table([shown.columns[0]._replace(kind="open"), *shown.columns[1:]], shown.rows),
        key=f"evaluations-{run.id}",
        caption="Every evaluation of the run",
    )
    if opened is not None:
        query = {"run": run.id, "dataset": shown.rows[opened]["dataset"]}
        st.switch_page("views/calibration.py", query_params=query)
