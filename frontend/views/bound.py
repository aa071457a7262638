"""Bound: spectra and the bound's terms of finished runs beside their errors under shift."""

from collections.abc import Mapping

import streamlit as st

from calift_core.schema.wire.answers import BoundMonitor
from frontend import api, figures, page, state, text


def main() -> None:
    page.head(
        "Theory bound", "Does σ_min correlate with error under shift? Each finished run is a point."
    )
    suites = api.ask("list the suites", api.client().suites, phase=["SUCCEEDED"])
    if not suites:
        page.empty("No finished run yet", "This page ranks runs, and no run has succeeded so far.")
        st.page_link("views/new.py", label="Start a run", icon=":material/add:")
        return
    suite = state.choice(
        st.selectbox,
        "Data set",
        name="suite",
        options={s.suite: f"{text.short_suite(s.suite)} ({s.runs:,})" for s in suites},
        default=state.shared("suite"),
        always=True,
    )
    found = api.ask("load the bound's terms", api.client().bound, suite=suite)
    for note in found.notes:
        st.caption(text.md(note))
    if not found.runs:
        page.empty(
            "Nothing to rank",
            "No finished run on this data has a spectrum and was judged on ID data and shifts.",
        )
        return
    term = state.choice(
        st.segmented_control,
        "Number of a run",
        name="term",
        options=figures.bound.TERMS,
        required=True,
    )
    error = state.choice(
        st.segmented_control,
        "Error under shift",
        name="error",
        options=figures.bound.ERRORS,
        required=True,
    )
    for one in found.correlations:
        if (one.term, one.error) == (term, error):
            st.markdown(text.md(figures.bound.sentence(one)))
    page.chart(
        figures.bound.scatter(found.runs, term=term, error=error, styles=_styles(found)),
        figures.bound.points_table(found.runs),
        name=f"bound-{term}-{error}",
        data=found.model_dump_json,
    )
    if found.correlations:
        st.header("Every association", anchor=False)
        page.table(
            figures.bound.correlations_table(found),
            caption="Rank correlations of the runs' numbers with their errors under shift",
        )
        st.caption(
            "Spearman's rank correlation inside each model; intervals and p-values draw whole "
            "variants, as seeds of one are no independent evidence. With so many associations on a "
            "page, one that excludes zero may be chance. The bound is far above 1 for every run, "
            "so only ranks are read."
        )
    st.header("Terms of the bound", anchor=False)
    page.table(figures.bound.points_table(found.runs), caption="Terms of the bound of every run")


def _styles(found: BoundMonitor) -> Mapping[str, figures.style.RunStyle] | None:
    """The looks that the runs have on every page, where they are few enough to be told apart."""
    if len(found.runs) > figures.bound.MOST_RUNS:
        return None
    state.know_colors({point.run_id: point.color_index for point in found.runs})
    return state.styles([point.run_id for point in found.runs])


main()
