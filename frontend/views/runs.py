"""Runs: filtered, sorted and paged by the server; a few columns that matter."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from calift_core.schema.report import Summary
from calift_core.schema.wire.operations import BulkAction
from calift_core.schema.wire.runs import TERMINAL_PHASES, RunSummary, counted
from frontend import api, page, state, tables, text
from frontend.panels import views
from frontend.tables import Column, Row, Table

PAGE = 25
SORTS = {
    "-created": "newest first",
    "created": "oldest first",
    "name": "name",
    "-id_accuracy": "ID accuracy, high first",
    "-ood_accuracy": "OOD accuracy, high first",
    "id_ece": "ID ECE, low first",
    "ood_ece": "OOD ECE, low first",
    "-sigma_min": "σ_min, high first",
}


def _filters() -> dict[str, Any]:
    methods = [m.kind for m in api.fetch("list the methods", api.client().methods, key="methods")]
    methods.append("imported")
    top = st.columns([3, 2, 2, 2])
    words = state.words(
        top[0], "Search", name="q", placeholder="in names and notes", icon=":material/search:"
    )
    phases = state.several(
        top[1].multiselect,
        "Status",
        name="status",
        options=list(text.PHASES),
        format_func=lambda p: text.phase_mark(p).word,
        placeholder="any",
    )
    kinds = state.several(
        top[2].multiselect, "Method", name="method", options=methods, placeholder="any"
    )
    sort = state.choice(top[3].selectbox, "Order", name="sort", options=SORTS)
    opened = any(state.param(name) for name in ("tag", "archived", "suite"))
    with st.expander("More filters", expanded=opened):
        low = st.columns([3, 3, 2])
        suites = state.several(
            low[0].multiselect,
            "Data",
            name="suite",
            options=[
                s.suite for s in api.fetch("list the suites", api.client().suites, key="suites")
            ],
            format_func=text.short_suite,
            placeholder="any",
        )
        tag_words = state.words(
            low[1], "Tags", name="tag", placeholder="comma-separated; a run must have all of them"
        )
        archived = state.toggle(low[2], "Show archived runs", name="archived")
    return {
        "q": words.strip(),
        "phase": phases,
        "method": kinds,
        "suite": suites,
        "tag": state.split(tag_words),
        "archived": "any" if archived else False,
        "sort": sort,
    }


def _row(run: RunSummary) -> dict[str, Any]:
    summary = run.summary.model_dump() if run.summary is not None else {}
    status = "" if run.phase == "SUCCEEDED" else run.reason or ""
    if run.phase in ("STARTING", "RUNNING", "CANCELLING"):
        status = page.progress_words(run)
    return {
        **summary,
        "name": run.name,
        "phase": text.phase_mark(run.phase),
        "status": status,
        "method": run.method,
        "suite": text.short_suite(run.suite),
        "worst": _worst(run.summary) if run.summary is not None else None,
        "tags": ", ".join(run.tags),
        "age": text.age(run.finished_at or run.started_at or run.created_at),
    }


def _worst(summary: Summary) -> str | None:
    if summary.worst_shift is None:
        return None
    return f"{text.percent(summary.worst_shift_accuracy)}, {text.worst_shift(summary)}"


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of the list, without those that are empty in every row: the rest must fit."""
    columns = [
        Column("name", "Run", "open"),
        Column("phase", "Status", "mark"),
        Column("status", "Progress or reason"),
        Column("age", "Age"),
        Column("method", "Method"),
        *tables.headline(("id_accuracy", "ood_accuracy", "id_ece", "ood_ece"), floors=True),
        Column("worst", "Lowest accuracy"),
        Column("suite", "Data"),
        Column("tags", "Tags"),
    ]
    may_miss = ("status", "worst", "tags")
    return [c for c in columns if c.name not in may_miss or any(row.get(c.name) for row in rows)]


def _pager(total: int, shown: Table, next_cursor: str | None) -> None:
    """Buttons to the next page, by the server's cursor, and back, by the cursors used so far."""
    trail: list[str] = st.session_state.setdefault("cursor-trail", [])
    with st.container(horizontal=True, vertical_alignment="center"):
        start = PAGE * len(trail) + 1
        n = len(shown.rows)
        place = f"{start:,} to {start + n - 1:,} of " if total > n else ""
        st.caption(f"{place}{counted(total)} {'run' if total == 1 else 'runs'}", width="content")
        if trail and st.button("Back", icon=":material/chevron_left:", type="tertiary"):
            trail.pop()
            st.rerun()
        if next_cursor and st.button(
            "Next", icon=":material/chevron_right:", icon_position="right", type="tertiary"
        ):
            trail.append(next_cursor)
            st.rerun()
        st.download_button(
            "CSV",
            lambda: tables.to_csv(shown),
            "runs.csv",
            "text/csv",
            key="runs-csv",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
            help="The runs listed here",
        )


def _bulk(some: list[RunSummary]) -> None:
    """What can be done with the runs that are chosen in the table."""
    with st.container(border=True):
        if not some:
            st.caption("Choose runs in the table to compare, cancel or archive them.")
        else:
            st.caption(f"With the {len(some)} chosen:" if len(some) > 1 else "With the chosen run:")
        done = [r for r in some if r.summary is not None]
        open_ = [r for r in some if r.phase not in TERMINAL_PHASES]
        with st.container(horizontal=True):
            if st.button(
                "Compare",
                icon=":material/compare_arrows:",
                disabled=len(done) < 2,
                type="primary" if len(done) > 1 else "secondary",
                help="Two or more finished runs",
            ):
                st.switch_page(
                    "views/compare.py", query_params={"ids": ",".join(r.id for r in done)}
                )
            if st.button(
                "Calibration", icon=":material/target:", disabled=not done, help="Finished runs"
            ):
                st.switch_page(
                    "views/calibration.py", query_params={"run": ",".join(r.id for r in done)}
                )
            locked = api.locked("submit")
            if st.button(
                "Cancel",
                icon=":material/cancel:",
                disabled=not open_ or bool(locked),
                help=locked or "Runs that still work",
            ):
                _change("cancel", open_)
            hide = not some or not all(r.archived for r in some)
            if st.button(
                "Archive" if hide else "Take out of the archive",
                icon=":material/archive:",
                disabled=not some or bool(locked),
                help=locked or "Archived runs keep everything and leave this list",
            ):
                _change("archive" if hide else "unarchive", some)
            _tag(some, locked)
            _delete(some)


_DONE = {
    "cancel": "asked to stop",
    "archive": "archived",
    "unarchive": "back in the list",
    "tag": "tagged",
    "delete": "deleted",
}


def _change(action: BulkAction, some: Sequence[RunSummary], tags: Sequence[str] = ()) -> None:
    """Do one thing to many runs, say what came of it, and draw the page anew."""
    done = api.act(
        f"{action} {len(some)} runs",
        lambda: api.client().change_runs(action, ids=[run.id for run in some], tags=tags),
    )
    if done is None:
        return
    words = f"{len(done.done)} {'run' if len(done.done) == 1 else 'runs'} {_DONE[action]}"
    if done.refused:
        words += f"; {len(done.refused)} not: {done.refused[0].message}"
    page.flash(words)
    st.rerun()


def _tag(some: Sequence[RunSummary], locked: str) -> None:
    with st.popover(
        "Tag", icon=":material/sell:", disabled=not some or bool(locked), help=locked or None
    ):
        given = st.text_input("Tags to add", key="bulk-tags", placeholder="comma-separated")
        if st.button("Add", key="bulk-tag", disabled=not state.split(given)):
            _change("tag", some, state.split(given))


def _delete(some: Sequence[RunSummary]) -> None:
    locked = api.locked("admin")
    ended = [run for run in some if run.phase in TERMINAL_PHASES or run.phase == "QUEUED"]
    with st.popover(
        "Delete",
        icon=":material/delete:",
        disabled=not ended or bool(locked),
        help=locked or "Runs that do not work, with their files",
    ):
        st.markdown(f"{len(ended)} runs with their curves, evaluations and files, for ever.")
        if st.button("Delete them", key="bulk-delete", type="primary"):
            _change("delete", ended)


def main() -> None:
    page.head(
        "Runs", "Every run, with its calibration error beside the floor it must be read against."
    )
    filters = _filters()
    views.saved("runs")
    mark = repr(sorted(filters.items(), key=str))
    if st.session_state.get("cursor-filters") != mark:
        st.session_state["cursor-filters"], st.session_state["cursor-trail"] = mark, []
    trail = st.session_state.setdefault("cursor-trail", [])
    # A page that shows working runs looks again by itself; one of finished runs does not.
    every = 5.0 if st.session_state.get("runs-working") else None

    def ask() -> Any:
        return api.fetch(
            "list the runs",
            lambda: api.client().runs(**filters, limit=PAGE, cursor=trail[-1] if trail else None),
            key=f"runs-{mark}-{len(trail)}",
        )

    @st.fragment(run_every=every)
    def listing() -> None:
        found = ask()
        if not found.items:
            if any(v for k, v in filters.items() if k not in ("sort", "archived")):
                page.empty("No run matches", "Loosen the filters above, or show archived runs.")
            else:
                page.empty("No run yet", "Nothing has been submitted to this service so far.")
                st.page_link("views/new.py", label="Start a run", icon=":material/add_circle:")
            return
        rows = [_row(run) for run in found.items]
        shown = Table(_columns(rows), rows)
        opened, chosen = page.rows(
            shown,
            key="runs",
            caption="Runs",
            links=[f"/run?id={run.id}" for run in found.items],
            several=True,
        )
        if opened is not None:
            st.switch_page("views/run.py", query_params={"id": found.items[opened].id})
        working = any(api.is_working(run.phase) for run in found.items)
        if working != bool(st.session_state.get("runs-working")):
            st.session_state["runs-working"] = working
            st.rerun()
        _pager(found.total, shown, found.next_cursor)
        _bulk([found.items[index] for index in chosen])

    listing()


main()
