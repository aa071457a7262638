"""Runs: filtered, sorted and paged by the server; a few columns that matter."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import streamlit as st

from calift_core.schema.wire.operations import BulkAction
from calift_core.schema.wire.runs import TERMINAL_PHASES, RunSummary, counted
from frontend import address, api, page, state, tables, text
from frontend.panels import views
from frontend.tables import Table

PAGE = 25
GROUPS = 200
#: Cookie with the columns that a visitor chose.
COOKIE = "calift-columns"


def _filters() -> dict[str, Any]:
    methods = [m.kind for m in api.ask("list the methods", api.client().methods)]
    methods.append("imported")
    top = st.columns([3, 2, 2])
    words = state.words(
        top[0], "Search", name="q", placeholder="in names and notes", icon=":material/search:"
    )
    phases = state.multi_choice(
        top[1].multiselect,
        "Status",
        name="status",
        options=list(text.PHASES),
        format_func=lambda p: text.phase_mark(p).word,
        placeholder="any",
    )
    kinds = state.multi_choice(
        top[2].multiselect, "Method", name="method", options=methods, placeholder="any"
    )
    opened = any(state.param(name) for name in ("tag", "archived", "suite"))
    with st.expander("More filters", expanded=opened):
        low = st.columns([3, 3, 2])
        suites = state.multi_choice(
            low[0].multiselect,
            "Data",
            name="suite",
            options=[s.suite for s in api.ask("list the suites", api.client().suites)],
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
    }


def _columns() -> list[str]:
    """Which columns are shown: as the address says, else as the visitor's browser has kept."""
    if not st.session_state.get("columns-kept"):
        st.session_state["columns-kept"] = True
        names = str(st.context.cookies.get(COOKIE, "")).split(".")
        kept = [name for name in tables.runs.OFFERED if name in names]
        if kept and not address.has("columns"):
            address.put({"columns": ",".join(kept)})
    if (held := state.now("columns")) is not None:
        st.session_state["url-columns"] = held  # a browser forgets what a closed popover holds
    with st.popover("Columns", icon=":material/view_column:", type="tertiary"):
        chosen = state.multi_choice(
            st.pills,
            "Columns",
            name="columns",
            options={name: tables.runs.COLUMNS[name].label for name in tables.runs.OFFERED},
            default=tables.runs.SHOWN,
            selection_mode="multi",
        )
    return [name for name in tables.runs.OFFERED if name in chosen]


def _pager(total: int, shown: Table, next_cursor: str | None) -> None:
    """Buttons to the next page, by the server's cursor, and back, by the cursors used so far."""
    trail: list[str] = st.session_state.setdefault("cursor-trail", [])
    with st.container(horizontal=True, vertical_alignment="center"):
        start = PAGE * len(trail) + 1
        n = len(shown.rows)
        place = f"{start:,} to {start + n - 1:,} of " if total > n else ""
        page.pager(trail, f"{place}{_counted(total)}", next_cursor)
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
            st.caption("Choose runs in the table to compare, retry, cancel or archive them.")
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
            again = [r for r in some if r.phase in ("FAILED", "CANCELLED")]
            hide = not some or not all(r.archived for r in some)
            _confirmed("cancel", open_, locked or "Runs that are not over")
            _confirmed("retry", again, locked or "Failed and cancelled runs, from their checkpoint")
            _confirmed(
                "archive" if hide else "unarchive",
                some,
                locked or "Archived runs keep everything and leave this list",
            )
            _tag(some, locked)
            ended = [r for r in some if r.phase in TERMINAL_PHASES or r.phase == "QUEUED"]
            _confirmed(
                "delete",
                ended,
                api.locked("admin") or "Runs that do not work, with their files",
                "With their curves, evaluations and files, for ever.",
            )


#: Action → its button, its icon, and what is said of runs that it was done to.
_ACTIONS: dict[BulkAction, tuple[str, str, str]] = {
    "cancel": ("Cancel", "cancel", "asked to stop"),
    "retry": ("Retry", "replay", "queued again"),
    "archive": ("Archive", "archive", "archived"),
    "unarchive": ("Take out of the archive", "unarchive", "back in the list"),
    "tag": ("Tag", "sell", "tagged"),
    "delete": ("Delete", "delete", "deleted"),
}


def _counted(n: int) -> str:
    return f"{counted(n)} run{'' if n == 1 else 's'}"


def _confirmed(action: BulkAction, some: list[RunSummary], help: str, more: str = "") -> None:
    """A button that says how many runs it is about before it does anything."""
    label, icon, _ = _ACTIONS[action]
    scope: Literal["submit", "admin"] = "admin" if action == "delete" else "submit"
    icon = f":material/{icon}:"
    disabled = not some or bool(api.locked(scope))
    with st.popover(label, icon=icon, disabled=disabled, help=help):
        names = ", ".join(text.md(run.name) for run in some[:5])
        st.markdown(names + (f" and {len(some) - 5} more" if len(some) > 5 else "") + f". {more}")
        if st.button(f"{label}: {_counted(len(some))}", key=f"bulk-{action}", type="primary"):
            _change(action, some)


def _change(action: BulkAction, some: Sequence[RunSummary], tags: Sequence[str] = ()) -> None:
    """Do one thing to many runs, say what came of it, and draw the page anew."""
    done = api.act(
        f"{action} {_counted(len(some))}",
        lambda: api.client().change_runs(action, ids=[run.id for run in some], tags=tags),
    )
    if done is None:
        return
    words = f"{_counted(len(done.done))} {_ACTIONS[action][2]}"
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


def _groups(filters: Mapping[str, Any]) -> None:
    wanted = {name: value for name, value in filters.items() if name != "sort"}
    found = api.ask("group the runs", api.client().run_groups, **wanted)
    if not found:
        page.empty("No run matches", "Loosen the filters above, or show archived runs.")
        return
    shown = tables.runs.groups(found)
    links = [
        f"/sweep?id={group.sweep_id}" if group.sweep_id
        else f"/run?id={group.run_ids[0]}" if len(group.run_ids) == 1
        else f"/compare?ids={','.join(group.run_ids[:10])}"
        for group in found
    ]  # fmt: skip
    page.rows(
        Table(shown.columns, shown.rows[:GROUPS]),
        key="groups",
        caption="Runs in groups that differ in their seed alone",
        links=links[:GROUPS],
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        more = f", the first {GROUPS} of them here" if len(found) > GROUPS else ""
        n = sum(len(group.run_ids) for group in found)
        st.caption(f"{len(found)} groups of {_counted(n)}{more}. ± is the standard error of the "
                   "mean over seeds.", width="content")  # fmt: skip
        st.download_button(
            "CSV", lambda: tables.to_csv(shown), "groups.csv", "text/csv", key="groups-csv",
            icon=":material/download:", type="tertiary", on_click="ignore",
        )  # fmt: skip


def main() -> None:
    page.head(
        "Runs", "Every run, with its calibration error beside the floor it must be read against."
    )
    order = page.run_order("-created")
    filters = {**_filters(), "sort": order.now}
    with st.container(horizontal=True, vertical_alignment="center"):
        grouped = state.toggle(
            st, "Group by sweep", name="group",
            help="Runs that differ in their seed alone are one row: means, their standard error "
            "(sd / √n) and how many",
        )  # fmt: skip
        columns = [] if grouped else _columns()
        views.saved("runs")
    if grouped:
        _groups(filters)
        return
    mark = repr(sorted(filters.items(), key=str))
    if st.session_state.get("cursor-filters") != mark:
        st.session_state["cursor-filters"], st.session_state["cursor-trail"] = mark, []
    trail = st.session_state.setdefault("cursor-trail", [])
    # A page that shows working runs looks again by itself; one of finished runs does not.
    every = 5.0 if st.session_state.get("runs-working") else None

    def ask() -> Any:
        return api.ask(
            "list the runs",
            api.client().runs,
            **filters,
            limit=PAGE,
            cursor=trail[-1] if trail else None,
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
        rows = [tables.runs.row(run) for run in found.items]
        shown = Table(tables.runs.columns(rows, columns), rows)
        chosen_columns = "" if columns == tables.runs.SHOWN else ".".join(columns)
        chosen = page.rows(
            shown,
            key="runs",
            caption="Runs",
            links=[f"/run?id={run.id}" for run in found.items],
            several=True,
            order=order,
            kept={"name": COOKIE, "value": chosen_columns},
        )
        working = any(api.is_working(run.phase) for run in found.items)
        if working != bool(st.session_state.get("runs-working")):
            st.session_state["runs-working"] = working
            st.rerun()
        _pager(found.total, shown, found.next_cursor)
        _bulk([found.items[index] for index in chosen])

    listing()


main()
