"""Runs: filtered, sorted and paged by the server; a few columns that matter."""

from __future__ import annotations

from typing import Any

import streamlit as st

from calift_core.schema.wire import TERMINAL_PHASES, RunSummary
from frontend import state, text, ui
from frontend.tables import Column, Markup, Table

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
    methods = [m.kind for m in ui.fetch("list the methods", ui.client().methods, key="methods")]
    methods.append("imported")
    top = st.columns([3, 2, 2, 2])
    with top[0]:
        words = state.bound(
            st.text_input,
            "Search",
            name="q",
            default="",
            decode=str,
            placeholder="in names and notes",
            icon=":material/search:",
        )
    with top[1]:
        phases = state.several(
            st.multiselect,
            "Status",
            name="status",
            options=list(text.PHASES),
            format_func=lambda p: text.phase_look(p).word,
            placeholder="any",
        )
    with top[2]:
        kinds = state.several(
            st.multiselect, "Method", name="method", options=methods, placeholder="any"
        )
    with top[3]:
        sort = state.choice(
            st.selectbox, "Order", name="sort", options=list(SORTS), format_func=SORTS.__getitem__
        )
    opened = any(state.param(name) for name in ("tag", "archived", "suite"))
    with st.expander("More filters", expanded=opened):
        low = st.columns([3, 3, 2])
        with low[0]:
            suites = state.several(
                st.multiselect,
                "Data",
                name="suite",
                options=[
                    s.suite for s in ui.fetch("list the suites", ui.client().suites, key="suites")
                ],
                format_func=ui.short_suite,
                placeholder="any",
            )
        with low[1]:
            tag_words = state.bound(
                st.text_input,
                "Tags",
                name="tag",
                default="",
                decode=str,
                placeholder="comma-separated; a run must have all of them",
            )
        with low[2]:
            archived = state.bound(
                st.toggle,
                "Show archived runs",
                name="archived",
                default=False,
                decode=lambda given: given == "1",
                encode=lambda on: "1" if on else "",
            )
    return {
        "q": words.strip(),
        "phase": phases,
        "method": kinds,
        "suite": suites,
        "tag": state.split(tag_words),
        "archived": None if archived else False,
        "sort": sort,
    }


def _row(run: RunSummary) -> dict[str, Any]:
    s = run.summary
    when = text.age(run.finished_at or run.started_at or run.created_at)
    name = Markup(
        ui.link(run.name, "run", id=run.id)
        + (f"<small>{ui.tags(run.tags)}</small>" if run.tags else "")
    )
    status = ui.pill(run.phase)
    if run.phase in ("STARTING", "RUNNING", "CANCELLING"):
        status = Markup(status + ui.progress_cell(run))
    elif run.reason:
        status = Markup(f"{status}<small>{text.esc(run.reason)}</small>")
    worst = None
    if s is not None and s.worst_shift is not None:
        worst = Markup(
            f"{text.percent(s.worst_shift_accuracy)}<small>{text.esc(text.worst_shift(s))}</small>"
        )

    def error(value: float | None, floor: float | None) -> Markup | None:
        if value is None:
            return None
        return Markup(f"{text.percent(value)}<small>floor {text.percent(floor)}</small>")

    return {
        "name": name,
        "status": status,
        "method": Markup(f"{text.esc(run.method)}<small>{text.esc(run.suite)}</small>"),
        "id_accuracy": s.id_accuracy if s else None,
        "ood_accuracy": s.ood_accuracy if s else None,
        "worst": worst,
        "id_ece": error(s.id_ece, s.id_ece_floor) if s else None,
        "ood_ece": error(s.ood_ece, s.ood_ece_floor) if s else None,
        "age": when,
    }


COLUMNS = [
    Column("name", "Run"),
    Column("status", "Status"),
    Column("method", "Method"),
    Column("id_accuracy", "ID accuracy", "percent"),
    Column("ood_accuracy", "OOD accuracy", "percent"),
    Column("worst", "Worst shift", "percent"),
    Column("id_ece", "ECE, ID", "percent"),
    Column("ood_ece", "ECE, OOD", "percent"),
    Column("age", "Age"),
]


def _pager(total: int, shown: int, next_cursor: str | None) -> None:
    """Forward by the server's cursor, back by the ones that were used."""
    trail: list[str] = st.session_state.setdefault("cursor-trail", [])
    with st.container(horizontal=True, vertical_alignment="center"):
        start = PAGE * len(trail) + 1
        place = f"{start:,} to {start + shown - 1:,} of " if total > shown else ""
        st.caption(f"{place}{total:,} {'run' if total == 1 else 'runs'}", width="content")
        if trail and st.button("Back", icon=":material/chevron_left:", type="tertiary"):
            trail.pop()
            st.rerun()
        if next_cursor and st.button(
            "Next", icon=":material/chevron_right:", icon_position="right", type="tertiary"
        ):
            trail.append(next_cursor)
            st.rerun()


def _bulk(runs: list[RunSummary]) -> None:
    names = ui.labels(runs)
    by_id = {run.id: run for run in runs}
    with st.container(border=True):
        chosen = st.multiselect(
            "With several of these runs",
            list(by_id),
            format_func=names.__getitem__,
            placeholder="Choose runs to compare, cancel or archive",
            key="bulk",
        )
        some = [by_id[run_id] for run_id in chosen if run_id in by_id]
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
            locked = ui.locked("submit")
            if st.button(
                "Cancel",
                icon=":material/cancel:",
                disabled=not open_ or bool(locked),
                help=locked or "Runs that still work",
            ):
                for run in open_:
                    ui.act(f"cancel {run.name}", lambda run=run: ui.client().cancel(run.id))
                ui.flash(f"Asked {len(open_)} runs to stop")
                st.rerun()
            hide = not some or not all(r.archived for r in some)
            if st.button(
                "Archive" if hide else "Take out of the archive",
                icon=":material/archive:",
                disabled=not some or bool(locked),
                help=locked or "Archived runs keep everything and leave this list",
            ):
                for run in some:
                    ui.act(
                        f"archive {run.name}",
                        lambda run=run: ui.client().patch(run.id, archived=hide),
                    )
                ui.flash(f"{len(some)} runs {'archived' if hide else 'are back in the list'}")
                st.rerun()


def main() -> None:
    """Draw the page."""
    ui.head(
        "Runs", "Every run, with its calibration error beside the floor it must be read against."
    )
    filters = _filters()
    mark = repr(sorted(filters.items(), key=str))
    if st.session_state.get("cursor-filters") != mark:
        st.session_state["cursor-filters"], st.session_state["cursor-trail"] = mark, []
    trail = st.session_state.setdefault("cursor-trail", [])
    # A page that shows working runs looks again by itself; one of finished runs does not.
    every = 5.0 if st.session_state.get("runs-working") else None

    def ask() -> Any:
        return ui.fetch(
            "list the runs",
            lambda: ui.client().runs(**filters, limit=PAGE, cursor=trail[-1] if trail else None),
            key=f"runs-{mark}-{len(trail)}",
        )

    @st.fragment(run_every=every)
    def listing() -> None:
        page = ask()
        if not page.items:
            if any(v for k, v in filters.items() if k not in ("sort", "archived")):
                ui.empty("No run matches", "Loosen the filters above, or show archived runs.")
            else:
                ui.empty("No run yet", "Nothing has been submitted to this service so far.")
                st.page_link("views/new.py", label="Start a run", icon=":material/add_circle:")
            return
        ui.table(Table(COLUMNS, [_row(run) for run in page.items]), caption="Runs", classes="tall")
        working = any(ui.is_working(run.phase) for run in page.items)
        if working != bool(st.session_state.get("runs-working")):
            st.session_state["runs-working"] = working
            st.rerun()
        st.session_state["runs-page"] = page

    listing()
    page = st.session_state.get("runs-page")
    if page is not None and page.items:
        _pager(page.total, len(page.items), page.next_cursor)
        _bulk(page.items)


main()
