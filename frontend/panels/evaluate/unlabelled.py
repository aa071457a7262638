"""Tab Without labels: how right a run is likely to be on images without labels, and alarms."""

import streamlit as st

from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.schema.wire.runs import RunDetail
from frontend import api, figures, page, text
from frontend.panels.evaluate.form import can_be_evaluated
from frontend.panels.new import bring

_FOLDER = "unlabelled-folder"


def draw(run: RunDetail) -> None:
    if not can_be_evaluated(run):
        page.empty("No model to ask", "Images without labels need the model of a finished run.")
        return
    locked = api.locked("submit")
    if not locked:
        with st.expander("Choose a folder", icon=":material/folder_open:"):
            bring.choose(_FOLDER)
    with (
        st.form("unlabelled", border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        folder = st.text_input(
            "Folder of images without labels", key=_FOLDER, placeholder="/data/november",
            disabled=bool(locked), help=locked or "All images below it, or manifest:FILE",
        )  # fmt: skip
        go = st.form_submit_button("Check images", type="primary", disabled=bool(locked))
    if go and api.act(
        "check the images",
        lambda: api.client().evaluate([run.id], unlabelled=[folder.strip()]),
    ):
        st.rerun(scope="app")
    found = _found(run.id)
    if not found:
        st.caption(
            "The answer is an expected accuracy or that it is unknown, a drift test against the "
            "run's ID images, the share that is none of its classes, and whether that is an alarm."
        )
        return
    one = found[0]
    if len(found) > 1:
        place = st.selectbox("Checked", range(len(found)), format_func=lambda k: found[k].source)
        one = found[place]
    answer(one, "unlabelled")


def _found(run_id: str) -> list[UnlabelledRecord]:
    """What was found on the run, the newest first."""
    return api.fetch(
        "load what was checked",
        lambda: api.client().unlabelled(run_id),
        key=f"unlabelled-{run_id}",
    )


def answer(one: UnlabelledRecord, name: str) -> None:
    """What was found in sentences, and its chart."""
    show = st.warning if one.alarms else st.success
    icon = ":material/notifications_active:" if one.alarms else ":material/check:"
    show(
        f"**{text.md(one.source.removeprefix('folder:'))}**: {text.md_prose(one.sentence)}",
        icon=icon,
    )
    page.chart(figures.unlabelled.figure(one), figures.unlabelled.table(one), name=name)
    st.caption("No measurement: labels of a few hundred of these images would be.")
