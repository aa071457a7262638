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
    jobs = api.fetch(
        "list what was checked",
        lambda: api.client().evaluation_jobs(run_id=[run.id], phase=["SUCCEEDED"]),
        key=f"unlabelled-{run.id}",
    ).items
    checked = [(job, source) for job in jobs for source in job.spec.unlabelled]
    if not checked:
        st.caption(
            "The answer is an expected accuracy or that it is unknown, a drift test against the "
            "run's ID images, the share that is none of its classes, and whether that is an alarm."
        )
        return

    def words(k: int) -> str:
        job, source = checked[k]
        return f"{source.removeprefix('folder:')}, {text.age(job.finished_at)}"

    several = len(checked) > 1
    at = st.selectbox("Checked", range(len(checked)), format_func=words) if several else 0
    job, source = checked[at]
    found = api.fetch(
        "load what was found", lambda: api.unlabelled(job.id), key=f"unlabelled-{job.id}"
    )
    for one in found:
        if (one.run, one.source) == (run.id, source):
            answer(one, "unlabelled")


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
