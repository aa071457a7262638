"""Shifts: where accuracy and calibration go as the data move away from what was trained on."""

from collections.abc import Callable

import streamlit as st

from frontend import api, figures, page, pickers, state, text
from frontend.panels import gallery

#: Links that have room in a line or two; a browser makes each of them anew.
_LINKS = 16
#: Columns that a narrow screen has room for.
_BESIDE = 8
SHOWN = ("accuracy", "ece", "nll", "brier", "smooth_ece", "mean_confidence", "aurc")


def main() -> None:
    page.head("Shifts", "Every run on every data set: in distribution, shifted, and corrupted.")
    chosen = pickers.pick_runs("run")
    runs = pickers.as_runs(chosen)
    _draw([(run, api.evaluations(chosen[run.id])) for run in runs])


@st.fragment
def _draw(found: figures.shifts.RunEvaluations) -> None:
    metric = state.choice(
        st.segmented_control,
        "Metric",
        name="metric",
        options=SHOWN,
        format_func=lambda m: text.METRICS[m].title,
        required=True,
    )
    if not any(evaluations for _, evaluations in found):
        pickers.nothing_evaluated()
        return
    styles = state.styles([run.id for run, _ in found])
    by_name = {(run.id, e.dataset): e for run, evaluations in found for e in evaluations}

    def open_cell(run_id: str, dataset: str, *, below: bool = False) -> None:
        # The images stand beside the chart that they were opened from.
        st.session_state["cell-below"] = below
        gallery.open_samples(gallery.Chosen(evaluation=by_name[run_id, dataset].id))

    squares = figures.shifts.by_run(found, metric=metric)
    page.chart(
        squares,
        figures.shifts.table(found, metric),
        name=f"shift-heatmap-{metric}",
        key="shift-heatmap",
        wide=figures.shifts.columns(squares) > _BESIDE,
        select=lambda cell: open_cell(*cell),
        by_name=False,
    )
    _cell_picker(found, open_cell)
    low = st.session_state.get("cell-below", False)
    if not low:
        gallery.draw()
    _diagram_links(found)
    page.chart(
        figures.shifts.dots(found, metric=metric, styles=styles),
        figures.shifts.table(found, metric),
        name=f"by-shift-{metric}",
        key="by-shift",
        select=lambda mark: open_cell(*mark[-2:]),
    )
    corruptions = sorted({e.corruption for _, es in found for e in es if e.corruption})
    if not corruptions:
        st.caption(
            "These runs were evaluated without corruptions. Add them under Data in a new run to "
            "see severity curves here."
        )
        return
    st.header("Corruptions", anchor=False)
    which = state.choice(
        st.selectbox,
        "Corruption",
        name="corruption",
        options=["mean", *corruptions],
        format_func=lambda c: "mean of all" if c == "mean" else c.replace("_", " "),
    )
    page.chart(
        figures.shifts.severity_lines(
            found, metric=metric, corruption=None if which == "mean" else which, styles=styles
        ),
        figures.shifts.corruptions_table(found, metric),
        name=f"severity-{metric}-{which}",
        key="severity",
    )
    across = st.columns(2)
    values = [text.metric_value(e, metric) for _, es in found for e in es if e.corruption]
    for index, (run, evaluations) in enumerate(found):
        if any(e.corruption for e in evaluations):
            with across[index % 2]:
                page.chart(
                    figures.shifts.by_severity(
                        evaluations,
                        metric=metric,
                        title=f"{run.label}: {text.METRICS[metric].title}",
                        limits=(min(values), max(values)),
                    ),
                    figures.shifts.corruptions_table([(run, evaluations)], metric),
                    name=f"corruption-{metric}-{run.id}",
                    key=f"corruption-{run.id}",
                    select=lambda cell, run_id=run.id: open_cell(run_id, *cell, below=True),
                )
    if low:
        gallery.draw()


def _cell_picker(
    found: figures.shifts.RunEvaluations, open_cell: Callable[[str, str], None]
) -> None:
    """The same choice by name, for those who do not click into a chart."""
    cells = {
        f"{run.id} {e.dataset}": (run, e)
        for run, evaluations in found
        for e in sorted(evaluations, key=text.evaluation_order)
    }
    now = gallery.chosen_samples()
    shown = next((k for k, (_, e) in cells.items() if now and e.id == now.evaluation), None)
    st.session_state["cell"] = shown

    def changed() -> None:
        run, evaluation = cells.get(st.session_state["cell"], (None, None))
        if run is None or evaluation is None:
            gallery.open_samples(None)
        else:
            open_cell(run.id, evaluation.dataset)

    st.selectbox(
        "Images of",
        list(cells),
        key="cell",
        index=None,
        format_func=lambda k: f"{cells[k][0].label}, {text.evaluation_title(cells[k][1])}",
        on_change=changed,
        placeholder="click a cell, or choose it here",
        width=420,
    )


def _diagram_links(found: figures.shifts.RunEvaluations) -> None:
    """The way to the reliability diagrams of each data set; of a corruption, its first severity."""
    ids = ",".join(run.id for run, _ in found)
    first: dict[tuple[int, str], str] = {}
    for _, evaluations in found:
        for e in evaluations:
            first.setdefault((text.role_order(e.role), e.corruption or e.dataset), e.dataset)
    names = {dataset: name.replace("_", " ") for (_, name), dataset in sorted(first.items())}
    if len(names) > _LINKS:
        chosen = st.selectbox(
            "Reliability diagrams",
            list(names),
            index=None,
            key="diagram-of",
            format_func=names.__getitem__,
            placeholder=f"of one of {len(names)} data sets",
            width=420,
        )
        if chosen is not None:
            st.switch_page("views/calibration.py", query_params={"run": ids, "dataset": chosen})
        return
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption("Reliability diagrams:", width="content")
        for dataset, name in names.items():
            st.page_link(
                "views/calibration.py",
                label=text.md(name),
                query_params={"run": ids, "dataset": dataset},
                width="content",
            )


main()
