"""One run: where it is, how it ended, and everything it measured."""

import streamlit as st

from calift_core.schema.evaluation_job import is_job_id
from calift_core.schema.wire.runs import TERMINAL_PHASES, RunDetail
from frontend import api, page, state
from frontend.panels.evaluate import jobs as evaluation_jobs
from frontend.panels.evaluate import unlabelled
from frontend.panels.evaluate.form import can_be_evaluated
from frontend.panels.run import calibration, config, curves, files, head, logs, shifts, spectrum

TABS = {
    "Shifts": shifts.draw,
    "Calibration": calibration.draw,
    "Curves": curves.draw,
    "Spectrum": spectrum.draw,
    "Without labels": unlabelled.draw,
    "Config": config.draw,
    "Artifacts": files.draw,
    "Logs": logs.draw,
}
#: They look again by themselves while the run works; under the others widgets would jump.
GROWING = ("Curves", "Shifts", "Spectrum", "Logs")


def _load(run_id: str) -> RunDetail:
    return api.fetch(
        f"load the run {run_id}", lambda: api.client().run(run_id), key=f"run-{run_id}"
    )


def _first_tab(run: RunDetail) -> str:
    if run.method == "imported":
        return "Calibration"
    if run.phase == "FAILED":
        return "Logs"
    return "Shifts" if run.phase == "SUCCEEDED" else "Curves"


def main() -> None:
    run_id = state.param("id")
    if run_id is None:
        page.head("Run")
        page.empty("No run is named", "Open one from the list of runs; its address then names it.")
        st.page_link("views/runs.py", label="All runs", icon=":material/list:")
        return
    if is_job_id(run_id):
        evaluation_jobs.draw(run_id)
        return
    run = _load(run_id)
    state.know_colors({run.id: run.color_index})
    page.head(run.name)
    working = api.is_working(run.phase)
    every = page.LIVE_S if working else None

    @st.fragment(run_every=every)
    def status() -> None:
        now = _load(run_id) if working else run
        head.status(now)
        if working and (now.phase in TERMINAL_PHASES or now.phase != run.phase):
            st.rerun()

    status()
    head.actions(run)
    if can_be_evaluated(run):
        evaluation_jobs.under_way([run.id])

    @st.fragment
    def tabs() -> None:
        opened = st.tabs(
            list(TABS), default=_first_tab(run), key="tab", bind="query-params", on_change="rerun"
        )
        for tab, name in zip(opened, TABS, strict=True):
            if not tab.open:
                continue
            with tab:

                @st.fragment(run_every=every if name in GROWING else None)
                def draw(name: str = name) -> None:
                    TABS[name](_load(run_id) if working else run)

                draw()

    tabs()


main()
