"""Tab Calibration: in distribution beside the shift that is worst calibrated."""

import streamlit as st

from calift_core.schema.wire.queries import ReliabilityQuery
from calift_core.schema.wire.runs import RunDetail
from frontend import answers, api, state, text
from frontend.panels import gallery, reliability
from frontend.panels.run.missing import not_yet


def draw(run: RunDetail) -> None:
    """Show the two diagrams and a link to the rest."""
    found = api.evaluations(run)
    if not found:
        not_yet(run, "evaluated")
        return
    ordered = sorted(found, key=lambda e: (text.role_order(e.role), e.dataset))
    # ID beside the shift that is worst calibrated: the contrast people come for.
    first = ordered[0]
    rest = [e for e in ordered if e.role != "id"]
    chosen = [first] + ([max(rest, key=lambda e: e.ece.value)] if rest else [])
    look = state.styles([run.id])[run.id]
    for place, evaluation in zip(st.columns(2), chosen, strict=False):
        with place:
            diagram = api.reliability(evaluation, ReliabilityQuery())
            title = text.evaluation_title(evaluation)
            if evaluation.role != "id":
                title += ", the worst calibrated"
            reliability.draw(diagram, evaluation, look, title=title)
            st.caption(answers.on_diagram(diagram))
    if (now := gallery.chosen_samples()) is not None and now.evaluation in {e.id for e in found}:
        gallery.draw()
    st.page_link(
        "views/calibration.py",
        label="Other data, bins and temperatures",
        icon=":material/target:",
        query_params={"run": run.id, "dataset": first.dataset},
    )
