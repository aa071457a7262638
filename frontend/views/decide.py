"""Decide: which predictions may be kept, and which images are unlike anything the run has seen."""

import streamlit as st

from frontend import page, pickers, state
from frontend.panels import deciding, ood

VIEWS = {"keep": "Which to keep", "ood": "Unlike the ID data"}


def main() -> None:
    page.head(
        "Selective prediction",
        "Which predictions may be kept so that few of them are wrong, what the same rule gives "
        "where the data have shifted, and how well scores tell shifts from ID data.",
    )
    chosen = pickers.pick_runs("run", most=4)
    view = state.choice(st.segmented_control, "Show", name="view", options=VIEWS, required=True)
    (ood if view == "ood" else deciding).draw(chosen, pickers.as_runs(chosen))


main()
