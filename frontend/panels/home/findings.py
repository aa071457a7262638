"""Findings of the newest results as cards, each with the way to its evidence."""

from collections.abc import Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from calift_core.errors import CaliftError
from calift_core.recommendation import RECOMMENDED, advice
from calift_core.schema.wire.answers import Board
from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.runs import RunSummary
from frontend import api, figures, findings, page, pickers, text
from frontend.panels.compare.answers import waiting

#: The newest finished runs that findings are of, and those that are ranked.
_RUNS, _RANKED = 8, 6


@st.fragment
def draw(newest: Sequence[RunSummary]) -> None:
    """Show what the newest finished runs on one suite say.

    Args:
        newest: finished runs, newest first.
    """
    runs = [r for r in newest if r.suite == newest[0].suite and r.summary is not None][:_RUNS]
    if not runs:
        return
    st.header("Findings", anchor=False)
    suite = text.md(text.short_suite(runs[0].suite))
    st.caption(f"Of the newest {len(runs)} finished runs on {suite}.")
    left, right = st.columns(2)
    with left:
        places = [st.container() for _ in range(2)]
    with right:
        slow = [st.container() for _ in range(2)]
    _suggested(runs)
    names = pickers.labels(runs)
    evaluations = [e for run in runs for e in api.evaluations(run)]
    trained = {run.id for run in runs if run.method != "zero_shot"}
    of_trained = [e for e in evaluations if e.run_id in trained] or evaluations
    with places[0]:
        _worst(of_trained, names)
    with places[1]:
        _over(of_trained, names)
    with slow[0]:
        _leads(runs[:_RANKED], names)
    with slow[1]:
        _forgotten(runs, names)


def _card(title: str) -> DeltaGenerator:
    card = st.container(border=True, gap="xsmall")
    card.html(f'<div class="calift-meta"><strong>{text.esc(title)}</strong></div>')
    return card


def _diagram_link(e: Evaluation) -> None:
    st.page_link(
        "views/calibration.py",
        label="Its diagram and images",
        icon=":material/target:",
        query_params={"run": e.run_id, "dataset": e.dataset},
    )


def _suggested(runs: Sequence[RunSummary]) -> None:
    """What the study suggests to do next, and whether it covers these runs."""
    initial = [r for r in runs if r.method == "zero_shot"]
    tuned = [r for r in runs if r.method == RECOMMENDED.method]
    with _card("Suggested recipe"):
        st.markdown(RECOMMENDED.recipe)
        with st.expander("Evidence and limits"):
            st.caption(f"{RECOMMENDED.evidence} {RECOMMENDED.limits}")
        if initial and tuned:
            if caveat := advice(_id_accuracy(initial[0]), _id_accuracy(tuned[0])):
                st.caption(caveat)
            st.page_link(
                "views/run.py",
                label=f"Export {text.md(tuned[0].name)} so",
                icon=":material/inventory_2:",
                query_params={"id": tuned[0].id},
            )
        else:
            st.page_link(
                "views/new.py",
                label="Train it",
                icon=":material/add:",
                query_params={"intent": "robust"},
            )


def _id_accuracy(run: RunSummary) -> float | None:
    return None if run.summary is None else run.summary.id_accuracy


def _worst(evaluations: Sequence[Evaluation], names: dict[str, str]) -> None:
    found = findings.worst_cell(evaluations)
    if found is None:
        return
    e = found.evaluation
    with _card("Lowest accuracy"):
        st.markdown(
            f"**{text.md(names[e.run_id])}** is right on {text.percent(found.value)} "
            f"({text.interval(found.low, found.high)}) of {text.md(text.evaluation_title(e))}."
        )
        _diagram_link(e)


def _over(evaluations: Sequence[Evaluation], names: dict[str, str]) -> None:
    found = findings.most_over_confident(evaluations)
    with _card("Largest over-confidence"):
        if found is None:
            st.markdown("No run is more confident than right beyond doubt on any data set.")
            return
        e = found.evaluation
        st.markdown(
            f"**{text.md(names[e.run_id])}** on {text.md(text.evaluation_title(e))}: mean "
            f"confidence {text.percent(e.mean_confidence)}, accuracy {text.percent(e.accuracy)}, "
            f"so {100 * found.value:.1f} points too sure ({100 * found.low:.1f} to "
            f"{100 * found.high:.1f})."
        )
        _diagram_link(e)


def _leads(runs: Sequence[RunSummary], names: dict[str, str]) -> None:
    if len(runs) < 2:
        return
    with _card("Leaderboard"):
        place = st.empty()
        with place.container():
            waiting("Ranking the runs", 2)
        ids = tuple(run.id for run in runs)
        try:
            boards = api.leaders(ids, tuple(run.revision for run in runs)).boards
        except CaliftError as error:
            place.markdown(text.md_prose(error.message))
            return
        lines = []
        for metric, words in (("accuracy", "most accurate"), ("ece", "best calibrated")):
            own = [b for b in boards if b.metric == metric and b.role != "id"] or [
                b for b in boards if b.metric == metric
            ]
            if own:
                lines.append(_leading(words, own[0], names))
        place.markdown("\n\n".join(lines) or "The newest runs share no data to be ranked on.")
        st.page_link(
            "views/compare.py",
            label="Compare them",
            icon=":material/compare_arrows:",
            query_params={"ids": ",".join(ids)},
        )


def _leading(words: str, board: Board, names: dict[str, str]) -> str:
    over = {"id": "On ID data", "shift": "Over the shifts", "corruption": "Over the corruptions"}
    best = [text.md(names[s.run_id]) for s in board.standings if s.leads]
    if len(best) == 1:
        rest = "the other is" if len(board.standings) == 2 else "the others are"
        return f"{over[board.role]} **{best[0]}** is {words}; {rest} ruled out."
    return (
        f"{over[board.role]} **{best[0]}** looks {words}, and cannot be told apart from "
        f"{', '.join(best[1:])}."
    )


def _forgotten(runs: Sequence[RunSummary], names: dict[str, str]) -> None:
    run = next((r for r in runs if r.method != "zero_shot"), None)
    base = api.zero_shot_of(run) if run is not None else None
    if run is None or base is None:
        return
    with _card("Forgotten"):
        place = st.empty()
        with place.container():
            waiting("Counting what was forgotten", 1)
        try:
            sets = api.ledger(run.id, base.id, run.revision, base.revision).sets
        except CaliftError as error:
            place.markdown(text.md_prose(error.message))
            return
        known = [one for one in sets if one.forgotten is not None]
        if not known:
            place.markdown("The newest run shares no samples with its zero-shot model.")
            return
        one = max(known, key=lambda s: s.forgotten or 0.0)
        place.markdown(
            f"**{text.md(names[run.id])}** against zero-shot on "
            f"{text.md(one.dataset.replace('_', ' '))}: {text.md(figures.ledger.sentence(one))}."
        )
        st.page_link(
            "views/compare.py",
            label="Ledger and images",
            icon=":material/swap_vert:",
            query_params={
                "ids": f"{base.id},{run.id}", "baseline": base.id, "ledger-on": one.dataset
            },
        )  # fmt: skip


def failed(runs: Sequence[RunSummary]) -> None:
    """Runs that failed: why, what to do, and one click to do it."""
    locked = api.locked("submit")
    for run in runs:
        with st.container(border=True, gap="xsmall"):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.page_link("views/run.py", label=text.md(run.name), query_params={"id": run.id})
                st.html(
                    f'<div class="calift-meta">{page.pill(run.phase)}'
                    f"<span>{text.esc(run.reason or '')}</span>"
                    f"<span>{text.age(run.finished_at)}</span></div>"
                )
            st.markdown(text.md_prose(run.message or "no message was left"))
            hint = api.hint_of(run.id, run.revision)
            if hint:
                st.markdown(f"**To mend it:** {text.md_prose(hint)}")
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                if st.button(
                    "Retry",
                    key=f"retry-{run.id}",
                    icon=":material/replay:",
                    disabled=bool(locked),
                    help=locked or "Queues this run again, from its checkpoint",
                ) and api.act("retry the run", lambda r=run: api.client().retry(r.id)):
                    page.flash("Queued again")
                    st.rerun()
                if run.method != "imported":
                    st.page_link(
                        "views/new.py",
                        label="Change and run again",
                        icon=":material/edit:",
                        query_params={"clone": run.id},
                    )
