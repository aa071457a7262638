"""Evaluation jobs: how far those of some runs are, and the page of one."""

from collections.abc import Sequence

import streamlit as st

from calift_core.schema.evaluation_job import EvaluationJob
from calift_core.schema.wire.runs import TERMINAL_PHASES
from frontend import api, page, text
from frontend.panels.evaluate import unlabelled
from frontend.tables.runs import results

#: Phases of jobs that are shown without being asked for.
WORKING = ("QUEUED", "STARTING", "RUNNING", "CANCELLING")


def under_way(run_ids: Sequence[str]) -> None:
    """The jobs that judge these runs: progress while they work, the newest if it ended badly."""
    jobs = _find(run_ids)
    working = {job.id for job in jobs if job.phase not in TERMINAL_PHASES}

    @st.fragment(run_every=page.LIVE_S if working else None)
    def live() -> None:
        now = _find(run_ids) if working else jobs
        for index, job in enumerate(now):
            if job.phase in WORKING or (index == 0 and job.phase in ("FAILED", "CANCELLED")):
                _one(job)
        if {job.id for job in now if job.phase not in TERMINAL_PHASES} != working:
            st.rerun()  # what it found is part of the page by now

    live()


def working() -> None:
    """Those that are under way, of all runs."""
    found = api.ask(
        "list the working evaluations", api.client().evaluation_jobs, phase=WORKING, limit=5
    )
    if found.items:
        st.header("Evaluations", anchor=False)
    for job in found.items:
        status(job)
        st.page_link("views/run.py", label="Open", query_params={"id": job.id})


def _find(run_ids: Sequence[str]) -> list[EvaluationJob]:
    return api.ask(
        "list the evaluations", api.client().evaluation_jobs, run_id=list(run_ids), limit=10
    ).items


def _one(job: EvaluationJob) -> None:
    """A job in a line or two, with what can be done with it."""
    locked = api.locked("submit")
    with st.container(border=True, key=f"job-{job.id}"):
        status(job)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.page_link(
                "views/run.py",
                label="Results and log",
                icon=":material/open_in_new:",
                query_params={"id": job.id},
            )
            actions(job, locked)


def status(job: EvaluationJob) -> None:
    """Phase, progress and, where it failed, why."""
    facts = [
        f"evaluation {job.name}",
        f"{len(job.spec.runs)} runs" if len(job.spec.runs) > 1 else "",
        f"{job.results} result{'' if job.results == 1 else 's'}" if job.results else "",
        text.age(job.finished_at or job.started_at or job.created_at),
    ]
    spans = "".join(f"<span>{text.esc(fact)}</span>" for fact in facts if fact)
    st.html(f'<div class="calift-meta">{page.pill(job.phase)}{spans}</div>')
    if job.phase == "FAILED":
        why = f"**{text.md(job.reason or 'FAILED')}**: {text.md_prose(job.message or '')}"
        st.error(f"{why}\n\n{text.md_prose(job.hint)}", icon=":material/error:")
    elif job.message and job.phase != "CANCELLED":
        st.caption(text.md_prose(job.message))
    if job.phase in TERMINAL_PHASES:
        return
    if job.progress is None or job.phase == "QUEUED":
        st.caption(text.md_prose(job.waiting or "Waits for a worker."))
        return
    page.progress_bar(job, "image")


def actions(job: EvaluationJob, locked: str) -> None:
    """Cancel what works, retry what did not succeed."""
    if job.phase not in TERMINAL_PHASES:
        if st.button(
            "Cancel",
            key=f"cancel-{job.id}",
            icon=":material/stop_circle:",
            disabled=job.phase == "CANCELLING" or bool(locked),
            help=locked or "What it has finished stays under the runs",
        ) and api.act("cancel it", lambda: api.client().cancel(job.id)):
            page.flash("Asked the evaluation to stop")
            st.rerun()
    elif job.phase != "SUCCEEDED" and (
        st.button(
            "Retry",
            key=f"retry-{job.id}",
            icon=":material/replay:",
            disabled=bool(locked),
            help=locked or "It goes on where it was",
        )
        and api.act("retry it", lambda: api.client().retry(job.id))
    ):
        page.flash("Queued again")
        st.rerun()


def draw(job_id: str) -> None:
    """The page of a job: how far it is, what it found, its log."""

    def load() -> EvaluationJob:
        return api.ask(f"load the evaluation {job_id}", api.client().evaluation_job, job_id)

    first = load()
    page.head(f"Evaluation {first.name}")
    working = first.phase not in TERMINAL_PHASES

    @st.fragment(run_every=page.LIVE_S if working else None)
    def live() -> None:
        job = load() if working else first
        status(job)
        _results(job)
        if working and job.phase in TERMINAL_PHASES:
            st.rerun()

    live()
    with st.container(horizontal=True):
        actions(first, api.locked("submit"))
    with st.expander("Log"):
        log = api.ask("read the log", api.client().logs, job_id, tail=300)
        st.code(log.text or "No line yet.", language=None, wrap_lines=True)


def _results(job: EvaluationJob) -> None:
    found = api.ask("load its results", api.client().job_evaluations, job.id).items
    for k, one in enumerate(api.client().unlabelled(job.id) if job.spec.unlabelled else ()):
        unlabelled.answer(one, f"unlabelled-{k}")
    if not found and (job.phase not in TERMINAL_PHASES or not job.spec.unlabelled):
        page.empty("No result yet", "Each comes when its data set is finished.")
    if not found:
        return
    links = [f"/run?id={e.run_id}" for e in found]
    page.rows(results(found), key="results", caption="Results", links=links)
