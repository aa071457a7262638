"""Choosing finished runs: the server searches them, and the choice is kept in the URL."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast, get_args
from urllib.parse import urlsplit

import streamlit as st

from calift_core.errors import CaliftError
from calift_core.schema.wire.operations import Page
from calift_core.schema.wire.runs import RunSummary, counted
from frontend import api, page, state, text
from frontend.figures import style
from frontend.figures.style import PALETTE
from frontend.panels import views
from frontend.tables import Run
from frontend.text import labels

#: How many runs a picker offers; older ones are reached by their link or by searching.
PICKER_LIMIT = 200

#: The choice of runs on any data.
_EVERY_SUITE = "*"

#: Seconds that a run which a link names is kept.
_NAMED_S = 60.0

#: Runs that fit one chart: as many as there are colours that can be told apart.
MAX_RUNS = len(PALETTE)


class Found(NamedTuple):
    """Finished runs that a search offers, how many there are on all data, and on which it was.

    `suite` is None where it was on all.
    """

    runs: list[RunSummary]
    total: int
    suite: str | None


def find_runs(kept: Sequence[RunSummary] = (), *, own: str = "") -> Found:
    """Widgets that search all finished runs on the server, and the newest of those that match.

    Args:
        kept: runs that are chosen already; the data of the first is where the search begins, else
            that of the newest run.
        own: a suite that comes first, where nothing is chosen.
    """
    suites = api.ask("list the suites", api.client().suites, phase=["SUCCEEDED"])
    counts = {s.suite: s.runs for s in suites}
    homes = list(dict.fromkeys(run.suite for run in kept)) or [own or next(iter(counts), "")]
    offered = list(dict.fromkeys([*homes, *counts]))
    every = f"all data ({sum(counts.values()):,})"
    with st.container(horizontal=True, vertical_alignment="bottom", key="find-runs"):
        suite = state.choice(
            st.selectbox,
            "Data set",
            name="suite",
            options=[*offered, _EVERY_SUITE],
            # What a link names may be on several suites, and nothing of it should seem left out.
            default=homes[0] if len(homes) == 1 else _EVERY_SUITE,
            format_func=lambda s: (
                every if s == _EVERY_SUITE else f"{text.short_suite(s)} ({counts.get(s, 0):,})"
            ),
            help="Pages show runs on the same data; 'all data' shows every run",
            width=300,
        )
        words = state.words(
            st,
            "Search runs",
            name="find",
            placeholder="by name, note or id",
            icon=":material/search:",
            width=300,
        ).strip()
    found = api.ask(
        "list the finished runs",
        api.client().runs,
        phase=["SUCCEEDED"],
        suite=[] if suite == _EVERY_SUITE else [suite],
        q=words[:200],
        sort="-created",
        limit=PICKER_LIMIT,
    )
    if found.total > len(found.items):
        st.caption(
            f"The newest {len(found.items)} of {counted(found.total)} runs are offered. Search "
            "looks through all of them."
        )
    elif not found.items and (words or counts):
        where = "" if suite == _EVERY_SUITE else f" on {text.md(text.short_suite(suite))}"
        what = f" with {text.md(words)} in its name, notes or id" if words else ""
        st.caption(f"There is no finished run{where}{what}.")
    return Found(found.items, sum(counts.values()), None if suite == _EVERY_SUITE else suite)


def named_runs(run_ids: Sequence[str], *, quiet: bool = False) -> list[RunSummary]:
    """Runs that a link or an earlier choice names, whatever is searched for now.

    Args:
        quiet: say nothing of one that cannot be loaded.
    """
    found: list[RunSummary] = []
    for run_id in run_ids:
        try:
            found.append(_named_run(run_id))
        except CaliftError as error:
            if not quiet:
                api.problem(error, f"load the run {run_id} that the link names")
    return found


def _named_run(run_id: str) -> RunSummary:
    """A finished run is asked for once a minute at most: a page is drawn for every click."""
    kept: dict[str, tuple[float, RunSummary]] = st.session_state.setdefault("named-runs", {})
    at, run = kept.get(run_id, (0.0, None))
    if run is None or api.is_working(run.phase) or time.monotonic() - at > _NAMED_S:
        run = api.client().run(run_id)
        kept[run_id] = (time.monotonic(), run)
    return run


def pick_runs(name: str, *, most: int = MAX_RUNS, least: int = 1) -> dict[str, RunSummary]:
    """A line that says which finished runs are chosen, kept in the URL, and changes them.

    The default is what was chosen last, else the newest three runs on the newest run's data beside
    the zero-shot run. The page ends here when there is none.

    Args:
        least: runs that the page sets side by side: one that comes from another page is joined by
            its zero-shot run.
    """
    if not state.ids(name):
        known = state.remembered_runs()[:most]
        if 0 < len(known) < least:
            known = [run.id for run in with_zero_shot(named_runs(known, quiet=True))]
        # At once: each change of an address is a step that the browser's Back goes through.
        state.arrive({name: ",".join(known)})
    with st.container(
        horizontal=True, vertical_alignment="center", border=True, gap="small", key="workspace"
    ):
        line = st.container(width="stretch")
        with st.popover("Change", icon=":material/tune:", type="tertiary", key="change-runs"):
            total, picked = _choose(name, most)
        place = urlsplit(str(st.context.url or "")).path.strip("/")
        if picked and place in get_args(Page):
            views.saved(cast("Page", place))
    if not picked:
        if total:
            page.empty("No run is chosen", "Choose at least one run under “Change”.")
        else:
            page.empty(
                "No finished run yet",
                "This page compares results, and no run has succeeded so far.",
            )
            st.page_link("views/new.py", label="Start a run", icon=":material/add:")
        st.stop()
    state.remember_runs(list(picked))
    state.know_colors({run_id: run.color_index for run_id, run in picked.items()})
    with line:
        _held(picked)
    return picked


def with_zero_shot(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs, and the zero-shot run of the first one's model and data where none of them is."""
    base = api.zero_shot_of(runs[0]) if runs else None
    known = base is None or any(run.method == "zero_shot" for run in runs)
    return [*runs, *([] if known or base is None else [base])]


def _choose(name: str, most: int) -> tuple[int, dict[str, RunSummary]]:
    """Widgets for the runs: how many there are to choose from, and those that are chosen."""
    kept = named_runs(state.ids(name) or state.remembered_runs())
    search = find_runs(kept)
    if search.suite is not None:  # chosen by hand, it changes the runs and not their offer alone
        kept = [run for run in kept if run.suite == search.suite]
    default = (kept or with_zero_shot(search.runs[:3]))[:most]
    found = {run.id: run for run in [*default, *kept, *search.runs]}
    if not search.total and not kept:
        return 0, {}
    names = labels(list(found.values()))
    several = len({run.suite for run in found.values()}) > 1

    def words(run_id: str) -> str:
        run = found[run_id]
        on = f" · {text.short_suite(run.suite)}" if several else ""
        return f"{names[run_id]} · {run.method}{on}"

    chosen = state.multi_choice(
        st.multiselect,
        "Runs",
        name=name,
        options=list(found),
        default=[run.id for run in default],
        always=True,
        format_func=words,
        max_selections=most,
        placeholder="Choose runs",
    )
    return len(found), {run_id: found[run_id] for run_id in chosen}


def _held(picked: Mapping[str, RunSummary]) -> None:
    """The runs with their colours, and what else was chosen and goes along from page to page."""
    looks, names = state.styles(list(picked)), labels(list(picked.values()))
    chips = [
        f'<span><span class="calift-dot" style="background:{style.both(looks[run_id].colour)}" '
        f'aria-hidden="true"></span>{text.esc(names[run_id])}</span>'
        for run_id in picked
    ]
    baseline, dataset = (state.carried(name) for name in ("baseline", "dataset"))
    if baseline in names:
        chips.append(f"<span>baseline: {text.esc(names[baseline])}</span>")
    if dataset:
        chips.append(f"<span>data: {text.esc(dataset.replace('_', ' '))}</span>")
    st.html(f'<div class="calift-meta">{"".join(chips)}</div>')


def as_runs(runs: Mapping[str, RunSummary]) -> list[Run]:
    names = labels(list(runs.values()))
    return [Run(run_id, names[run_id]) for run_id in runs]


def nothing_evaluated() -> None:
    page.empty(
        "No evaluation is stored",
        "The chosen runs have not been evaluated yet: evaluations appear as a run reaches "
        "the end of its training.",
    )
