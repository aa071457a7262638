"""Overview: predictions to judge, what works or waits, what failed, and the newest results."""

import streamlit as st

from calift_core.installed import as_typed
from calift_core.schema.wire.runs import RunSummary
from calift_core.schema.wire.service import Stats, WorkerInfo
from frontend import api, page, tables, text
from frontend.panels.evaluate import jobs
from frontend.panels.home import findings, judging
from frontend.tables import Column, Table
from frontend.tables.workers import workers as listed_workers


def _numbers(stats: Stats) -> None:
    phases = stats.runs_by_phase
    running = sum(phases.get(p, 0) for p in ("STARTING", "RUNNING", "CANCELLING"))
    failed = phases.get("FAILED", 0)
    alive = [w for w in stats.workers if w.alive]
    busy = sum(w.run_id is not None for w in alive)
    waited = f"oldest waits {text.duration(stats.oldest_queued_s)}" if stats.queue_depth else ""
    page.stats(
        [
            ("Running", text.count(running), ""),
            ("Queued", text.count(stats.queue_depth), waited or "nothing waits"),
            ("Succeeded", text.count(phases.get("SUCCEEDED", 0)), ""),
            ("Failed", text.count(failed), "failed or lost" if failed else "none"),
            ("Workers", text.count(len(alive)), f"{busy} busy" if alive else "none reports in"),
            ("Free space", text.size(stats.free_bytes), "for artifacts"),
        ]
    )
    if not stats.broker_ok:
        st.warning(
            "The queue's broker does not answer. Runs are kept and start when it is back.",
            icon=":material/warning:",
        )
    if stats.queue_depth and not alive:
        st.warning(
            as_typed("Runs wait, and no worker reports in. `calift up` starts one."),
            icon=":material/warning:",
        )


def _working(runs: list[RunSummary]) -> None:
    rows = [{**tables.runs.row(run), "share": run.fraction_done} for run in runs]
    known = tables.runs.COLUMNS
    columns = [
        Column("name", "Run", "open"),
        *(known[name] for name in ("method", "phase")),
        Column("share", "Done", "share"),
        *(known[name] for name in ("status", "age")),
    ]
    page.rows(
        Table(columns, rows),
        key="working",
        caption="Working and queued runs",
        links=[f"/run?id={run.id}" for run in runs],
    )


def _newest(run: RunSummary) -> None:
    st.header("Newest result", anchor=False)
    base = api.zero_shot_of(run)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.page_link("views/run.py", label=text.md(run.name), query_params={"id": run.id})
        st.html(
            f'<div class="calift-meta">{page.pill(run.phase)}'
            f"<span>{text.esc(run.method)} · {text.esc(run.model)} · "
            f"{text.esc(run.suite)}</span><span>{text.age(run.finished_at)}</span></div>"
        )
        st.page_link(
            "views/calibration.py",
            label="Search its images",
            icon=":material/image_search:",
            query_params={"run": run.id, "view": "images"},
        )
    gained, clear = api.gains_over(run, base), api.clear_gains_over(run, base)
    page.stats(page.headline_cards(run, gained, clear))
    if base is None and run.method != "zero_shot":
        st.caption(
            "No zero-shot run of this model and data is stored, so there is nothing to set "
            "it against."
        )


def _workers(workers: list[WorkerInfo]) -> None:
    page.rows(
        listed_workers(workers),
        key="workers",
        caption="Workers that have reported in",
        links=[f"/run?id={w.run_id}" if w.run_id else "" for w in workers],
    )
    _drains([w for w in workers if w.alive])


def _drains(workers: list[WorkerInfo]) -> None:
    """Buttons that have workers take no run for now, and take runs again."""
    locked = api.locked("admin")
    with st.container(horizontal=True):
        for worker in workers:
            drained = worker.drained_by is not None
            words = "Let take runs" if drained else "Drain"
            if st.button(
                f"{words}: {text.md(worker.id)}",
                key=f"drain-{worker.id}",
                icon=":material/play_arrow:" if drained else ":material/pause:",
                type="tertiary",
                disabled=bool(locked),
                help=locked or "It ends the run that it works on and takes no other for now",
            ):
                change = api.client().resume_worker if drained else api.client().drain_worker
                api.act(f"{words.lower()} {worker.id}", lambda c=change, w=worker: c(w.id))
                st.rerun()


@st.fragment(run_every=5.0)
def live() -> None:
    """The part of the page that keeps itself up to date."""
    client = api.client()
    stats = api.ask("load the overview", client.stats)
    if not stats.runs_by_phase:
        page.empty(
            "Nothing has run here yet",
            "Train a first model with CaRot, or measure the zero-shot one: it takes minutes on "
            "the built-in data.",
        )
        st.page_link("views/new.py", label="Start a first run", icon=":material/add_circle:")
        return
    _numbers(stats)
    working = api.ask("list the working runs", client.runs, phase=jobs.WORKING, limit=10)
    if working.items:
        st.header("Working now", anchor=False)
        _working(working.items)
        if working.total > len(working.items):
            st.caption(f"and {working.total - len(working.items):,} more in the list of runs")
    jobs.working()


def results() -> None:
    """The newest result and what the newest ones say; they come with finished runs alone."""
    done = api.ask(
        "load the newest results", api.client().runs, phase=["SUCCEEDED"], sort="-created", limit=20
    )
    shown = [r for r in done.items if r.summary is not None]
    trained = [r for r in shown if r.method != "zero_shot"]
    if not shown:
        return
    findings.draw([*trained[:1], *(r for r in shown if r not in trained[:1])])
    _newest(trained[0] if trained else shown[0])


@st.fragment(run_every=5.0)
def below() -> None:
    """What failed, and the workers."""
    client = api.client()
    failed = api.ask("list the failed runs", client.runs, phase=["FAILED"], limit=5)
    stats = api.ask("load the workers", client.stats)
    if failed.items:
        st.header("Failed", anchor=False)
        findings.failed(failed.items)
    if stats.workers:
        st.header("Workers", anchor=False)
        _workers(stats.workers)


def main() -> None:
    page.head("Overview", "What works, what waits, what came out last.")
    judging.draw()
    with st.container(horizontal=True):
        st.page_link("views/new.py", label="New run", icon=":material/add_circle:")
        st.page_link("views/runs.py", label="All runs", icon=":material/list:")
    live()
    results()
    below()


main()
