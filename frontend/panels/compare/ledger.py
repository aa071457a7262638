"""What a run has gained and forgotten against the baseline, and the way to its images."""

from collections.abc import Mapping, Sequence

import streamlit as st

from calift_core.schema.wire.answers import LedgerSet
from frontend import api, figures, page, state, text
from frontend.panels import gallery
from frontend.panels.compare.answers import waiting
from frontend.tables import analysis


@st.fragment
def draw(
    baseline: str, run_ids: Sequence[str], labels: Mapping[str, str], revisions: Mapping[str, int]
) -> None:
    """Let a visitor choose a run and a data set, and show what became of its samples."""
    st.header("Gained and forgotten", anchor=False)
    others = [run for run in run_ids if run != baseline]
    left, right = st.columns(2)
    run = state.choice(
        left.selectbox,
        "Run",
        name="ledger",
        options={run: labels[run] for run in others},
        default=others[-1],
        help="Set against the baseline, image by image",
    )
    place = st.empty()
    with place.container():
        waiting("Counting what was gained and forgotten", 4)
    found = api.fetch(
        "count what was gained and forgotten",
        lambda: api.ledger(run, baseline, revisions[run], revisions[baseline]),
        key=f"ledger-{run}-{baseline}",
    )
    place.empty()
    for warning in found.warnings:
        st.caption(text.md_prose(warning))
    if not found.sets:
        page.empty("Nothing to count", "The two runs share no samples of the same data set.")
        return
    by_name = {one.dataset: one for one in found.sets}
    chosen = state.choice(
        right.selectbox,
        "Data",
        name="ledger-on",
        options={name: name.replace("_", " ") for name in by_name},
        default=max(found.sets, key=lambda one: one.forgotten or 0.0).dataset,
        help="It begins with the data of which most was forgotten",
    )
    one = by_name[chosen]
    st.markdown(text.md(figures.ledger.sentence(one)) + ".")
    page.chart(
        figures.ledger.flows(one, run=labels[run], base=labels[baseline], step=found.step),
        analysis.ledger_cells(one),
        name="ledger",
        data=found.model_dump_json,
        wide=True,
    )
    _images(one)
    page.table(analysis.ledger_sets(found.sets), caption="Gained and forgotten by data set")


def _images(found: LedgerSet) -> None:
    """Buttons that open the images of an outcome, and the images."""
    own, other = found.evaluation_id, found.against_id
    if own is None or other is None:
        return
    with st.container(horizontal=True, gap="small"):
        for outcome, words in (("lost", "forgotten"), ("gained", "gained")):
            if count := getattr(found, outcome):
                st.button(
                    f"Images that were {words} ({text.count(count)})",
                    key=f"ledger-{outcome}",
                    icon=":material/image:",
                    on_click=gallery.open_samples,
                    args=[gallery.Chosen(evaluation=own, outcome=outcome, against=other)],
                )
    chosen = gallery.chosen_samples()
    if chosen is not None and chosen.evaluation == own:
        gallery.draw()
