"""Overview: what works, what failed, the queue and the workers, and the newest result."""

from __future__ import annotations

import streamlit as st

from calift_core.installed import as_typed
from calift_core.schema.wire import RunSummary, Stats, WorkerInfo
from frontend import tables, text, ui
from frontend.tables import Column, Markup, Table

WORKING = ["QUEUED", "STARTING", "RUNNING", "CANCELLING"]


def _numbers(stats: Stats) -> None:
    phases = stats.runs_by_phase
    running = sum(phases.get(p, 0) for p in ("STARTING", "RUNNING", "CANCELLING"))
    failed = phases.get("FAILED", 0) + phases.get("LOST", 0)
    alive = [w for w in stats.workers if w.alive]
    busy = sum(w.run_id is not None for w in alive)
    waited = f"oldest waits {text.duration(stats.oldest_queued_s)}" if stats.queue_depth else ""
    ui.stats(
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
    rows = [
        {
            "name": ui.link(run.name, "run", id=run.id, note=run.method),
            "phase": ui.pill(run.phase),
            "progress": ui.progress_cell(run),
            "age": text.age(run.started_at or run.created_at),
        }
        for run in runs
    ]
    columns = [
        Column("name", "Run"),
        Column("phase", "Status"),
        Column("progress", "Progress"),
        Column("age", "Since"),
    ]
    ui.table(Table(columns, rows), caption="Working and queued runs")


def _failed(runs: list[RunSummary]) -> None:
    rows = [
        {
            "name": ui.link(run.name, "run", id=run.id, note=text.age(run.finished_at)),
            "phase": ui.pill(run.phase),
            "why": Markup(
                f'<div class="wrap">{text.html_prose(run.message or "no message was left")}'
                f"<small>{text.esc(run.reason or '')}</small></div>"
            ),
        }
        for run in runs
    ]
    columns = [Column("name", "Run"), Column("phase", "Status"), Column("why", "Why")]
    ui.table(Table(columns, rows), caption="Runs that failed")


@st.fragment(run_every=5.0)
def live() -> None:
    """The part of the page that keeps itself up to date."""
    api = ui.client()
    stats = ui.fetch("load the overview", api.stats, key="stats")
    if not stats.runs_by_phase:
        ui.empty(
            "Nothing has run here yet",
            "Train a first model with CaRot, or measure the zero-shot one: it takes minutes on "
            "the built-in data.",
        )
        st.page_link("views/new.py", label="Start a first run", icon=":material/add_circle:")
        return
    _numbers(stats)
    working = ui.fetch(
        "list the working runs", lambda: api.runs(phase=WORKING, limit=10), key="working"
    )
    failed = ui.fetch(
        "list the failed runs", lambda: api.runs(phase=["FAILED", "LOST"], limit=5), key="failed"
    )
    done = ui.fetch(
        "load the newest result",
        lambda: api.runs(phase=["SUCCEEDED"], sort="-created", limit=5),
        key="newest",
    )
    if working.items:
        st.subheader("Working now", anchor=False)
        _working(working.items)
        if working.total > len(working.items):
            st.caption(f"and {working.total - len(working.items):,} more in the list of runs")
    trained = [r for r in done.items if r.summary is not None and r.method != "zero_shot"]
    newest = trained[0] if trained else next((r for r in done.items if r.summary), None)
    if newest is not None:
        st.subheader("Newest result", anchor=False)
        base = ui.zero_shot_of(newest)
        st.html(
            f'<div class="calift-meta">{ui.pill(newest.phase)}'
            f"{ui.link(newest.name, 'run', id=newest.id)}"
            f"<span>{text.esc(newest.method)} · {text.esc(newest.model)} · "
            f"{text.esc(newest.suite)}</span><span>{text.age(newest.finished_at)}</span></div>"
        )
        ui.stats(ui.against(newest, base))
        if base is None and newest.method != "zero_shot":
            st.caption(
                "No zero-shot run of this model and data is stored, so there is nothing to set "
                "it against."
            )
    if failed.items:
        st.subheader("Failed", anchor=False)
        _failed(failed.items)
    if stats.workers:
        st.subheader("Workers", anchor=False)
        rows = [
            {
                "id": w.host,
                "state": _worker_state(w),
                "device": w.device,
                "queues": ", ".join(w.queues),
                "run": ui.link(w.run_id, "run", id=w.run_id) if w.run_id else "idle",
                "seen": text.age(w.seen_at),
            }
            for w in stats.workers
        ]
        columns = [
            Column("id", "Host"),
            Column("state", "State"),
            Column("device", "Device"),
            Column("queues", "Queues"),
            Column("run", "Works on"),
            Column("seen", "Last heartbeat"),
        ]
        st.html(tables.to_html(Table(columns, rows), caption="Workers that have reported in"))


def _worker_state(worker: WorkerInfo) -> Markup:
    if not worker.alive:
        return ui.mark("gray", "○", "silent")
    if worker.trouble:
        return ui.mark("orange", "▲", f"out: {worker.trouble}")
    return ui.mark("green", "✓", "alive")


def main() -> None:
    """Draw the page."""
    ui.head("Overview", "What works, what waits, what came out last.")
    with st.container(horizontal=True):
        st.page_link("views/new.py", label="New run", icon=":material/add_circle:")
        st.page_link("views/runs.py", label="All runs", icon=":material/list:")
    live()


main()
