"""Reliability diagrams of the chosen runs, alone, side by side or on one pair of axes."""

import json
from collections.abc import Mapping

import streamlit as st

from calift_core.schema.wire.queries import ReliabilityQuery
from calift_core.schema.wire.results import Evaluation, Reliability
from frontend import answers, api, figures, page, state, text
from frontend.panels import gallery, reliability
from frontend.panels.calibration.controls import controls
from frontend.tables import analysis


# A part of the page that is drawn by itself: a move of the temperature makes no list of runs anew.
@st.fragment
def draw(
    matches: Mapping[str, Evaluation], labels: Mapping[str, str], overlay: bool, title: str
) -> None:
    """Show a diagram per run, or all on one pair of axes.

    Args:
        matches: evaluation of each run on the chosen data, by run id.
    """
    answer = st.container()
    query = ReliabilityQuery.of(controls())
    diagrams = [
        api.reliability(match, query).model_copy(update={"run_name": labels[run_id]})
        for run_id, match in matches.items()
    ]
    if len(diagrams) == 1:
        (run_id,) = matches
        answer.markdown(
            answers.on_diagram(diagrams[0], figures.reliability.error_name(diagrams[0]))
        )
        _one(diagrams[0], matches[run_id], state.styles([run_id])[run_id])
    else:
        _several(diagrams, matches, overlay, title)


def _one(diagram: Reliability, evaluation: Evaluation, look: figures.style.RunStyle) -> None:
    left, right = st.columns([6, 5], gap="large")
    with left:
        smooth = state.toggle(
            st,
            "Smooth curve",
            name="smooth",
            help="A kernel regression of correctness on confidence: no bins to choose",
        )
        reliability.draw(
            diagram, evaluation, look, smooth=smooth, still=lambda: _still_chosen(evaluation)
        )
    with right:
        error = figures.reliability.error_name(diagram)
        page.stats(
            [
                (error, text.percent(diagram.ece),
                 f"floor {text.percent(diagram.null_mean)}, 95{text.NBSP}% "
                 f"{text.interval(*diagram.interval)}"),
                ("Accuracy", text.percent(diagram.accuracy), f"n = {text.count(diagram.n)}"),
                ("Confidence", text.percent(diagram.mean_confidence), "mean"),
            ]
        )  # fmt: skip
        st.markdown("**The same predictions under other estimators**")
        st.caption(f"As stored with the run, at T = {evaluation.temperature:g}.")
        page.table(
            analysis.stored_measures(evaluation), caption="Calibration error under other estimators"
        )
    gallery.draw([evaluation], temperature=diagram.temperature)


def _still_chosen(evaluation: Evaluation) -> bool:
    """Whether the page's widgets still choose this data and this run."""
    return state.now("dataset") == evaluation.dataset and evaluation.run_id in (
        state.now("run") or ()
    )


def _several(
    diagrams: list[Reliability], matches: Mapping[str, Evaluation], overlay: bool, dataset: str
) -> None:
    styles = state.styles([d.run_id for d in diagrams])
    together = json.dumps([d.model_dump(mode="json") for d in diagrams], ensure_ascii=False)
    summary = figures.reliability.summary_table(diagrams)
    if overlay:
        left, right = st.columns([6, 5], gap="large")
        with left:
            page.chart(
                figures.reliability.overlay(
                    diagrams, styles=styles, title=f"Reliability on {dataset}"
                ),
                figures.reliability.bins_table(diagrams),
                name="reliability-overlay",
                data=lambda: together,
            )
        with right:
            page.table(summary, caption="Calibration of the chosen runs")
            for d in diagrams:
                st.caption(answers.on_diagram(d, figures.reliability.error_name(d)))
    else:
        across = 2 if len(diagrams) in (2, 4) else 3
        for start in range(0, len(diagrams), across):
            for place, diagram in zip(
                st.columns(across), diagrams[start : start + across], strict=False
            ):
                look = styles[diagram.run_id]
                with place:
                    match = matches[diagram.run_id]
                    reliability.draw(
                        diagram, match, look, title=diagram.run_name,
                        still=lambda match=match: _still_chosen(match),
                    )  # fmt: skip
        page.table(summary, caption="Calibration of the chosen runs")
        gallery.draw(list(matches.values()), temperature=diagrams[0].temperature)
