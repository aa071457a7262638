"""Sweeps: many runs of one question, and where each of them is."""

import streamlit as st

from calift_core.schema.sweep import PRESETS
from calift_core.schema.wire.sweeps import SWEEP_ENDS
from frontend import api, page
from frontend.tables.sweeps import sweeps_table

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
        found = api.ask(
            "list the sweeps", api.client().sweeps, limit=PAGE, cursor=trail[-1] if trail else None
        )
        if not found.items:
            page.empty("No sweep yet", "Begin one above, or from the form of a new run.")
            return
        links = [f"/sweep?id={one.id}" for one in found.items]
        order = page.AS_GIVEN if found.total > len(links) else None
        page.rows(
            sweeps_table(found.items), key="sweeps", caption="Sweeps", links=links, order=order
        )
        if found.total > PAGE:
            with st.container(horizontal=True, vertical_alignment="center"):
                words = f"{len(found.items):,} of {found.total:,}"
                page.pager(trail, words, found.next_cursor)
        working = [one for one in found.items if one.phase not in SWEEP_ENDS]
        if working:
            st.caption(f"{len(working)} of them under way.")

    listing()


main()
