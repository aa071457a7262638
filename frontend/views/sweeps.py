"""Sweeps: many runs of one question, and where each of them is."""

from typing import Any

import streamlit as st

from calift_core.schema.sweep import PRESETS
from calift_core.schema.wire.sweeps import SWEEP_ENDS, SweepSummary
from frontend import api, page, text
from frontend.tables import Column, Table

PAGE = 25


def _begin() -> None:
    """Where a sweep begins: in the form of a run, with its own part opened."""
    with st.container(horizontal=True):
        ways = {"own": "New sweep", "compare-methods": PRESETS["compare-methods"],
                "ablate-carot": PRESETS["ablate-carot"]}  # fmt: skip
        for what, label in ways.items():
            query = {"sweep": "1"} | ({} if what == "own" else {"what": what})
            st.page_link(
                "views/new.py", label=label, icon=":material/add_circle:", query_params=query
            )


def _row(one: SweepSummary) -> dict[str, Any]:
    return {
        "name": one.name,
        "phase": text.phase_mark(one.phase),
        "share": one.runs_done / one.runs_at_most if one.runs_at_most else None,
        "runs": f"{one.runs_done} of {one.runs_at_most} at most",
        "why": one.message if one.phase in ("PAUSED", "FAILED", "CANCELLING") else "",
        "methods": ", ".join(one.methods),
        "owner": one.owner,
        "age": text.age(one.finished_at or one.created_at),
        "age_by": -(one.finished_at or one.created_at).timestamp(),
    }


def _pager(total: int, shown: int, next_cursor: str | None) -> None:
    trail: list[str] = st.session_state.setdefault("sweeps-trail", [])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{shown:,} of {total:,}", width="content")
        if trail and st.button("Back", icon=":material/chevron_left:", type="tertiary"):
            trail.pop()
            st.rerun()
        if next_cursor and st.button("Next", icon=":material/chevron_right:", type="tertiary"):
            trail.append(next_cursor)
            st.rerun()


def main() -> None:
    page.head(
        "Sweeps",
        "Methods × seeds × values as one question: each method at a rate chosen on ID validation, "
        "and one verdict with intervals.",
    )
    _begin()
    trail: list[str] = st.session_state.setdefault("sweeps-trail", [])

    @st.fragment(run_every=5.0)
    def listing() -> None:
        found = api.fetch(
            "list the sweeps",
            lambda: api.client().sweeps(limit=PAGE, cursor=trail[-1] if trail else None),
            key=f"sweeps-{len(trail)}",
        )
        if not found.items:
            page.empty("No sweep yet", "Begin one above, or from the form of a new run.")
            return
        columns = [
            Column("name", "Sweep", "open"),
            Column("phase", "Status", "mark"),
            Column("share", "Done", "share"),
            Column("runs", "Runs"),
            Column("why", "Why"),
            Column("methods", "Methods"),
            Column("owner", "Owner"),
            Column("age", "Age"),
        ]
        rows = [_row(one) for one in found.items]
        shown = [c for c in columns if c.name != "why" or any(row["why"] for row in rows)]
        links = [f"/sweep?id={one.id}" for one in found.items]
        order = page.AS_GIVEN if found.total > len(rows) else None
        opened, _ = page.rows(
            Table(shown, rows), key="sweeps", caption="Sweeps", links=links, order=order
        )
        if opened is not None:
            st.switch_page("views/sweep.py", query_params={"id": found.items[opened].id})
        if found.total > PAGE:
            _pager(found.total, len(found.items), found.next_cursor)
        working = [one for one in found.items if one.phase not in SWEEP_ENDS]
        if working:
            st.caption(f"{len(working)} of them {'work' if len(working) > 1 else 'works'}.")

    listing()


main()
