"""Calibration: the reliability diagram, slices, calibrators, and what other estimators read."""

from collections.abc import Iterable, Mapping

import streamlit as st

from calift_core.schema.wire.results import Evaluation
from frontend import api, page, pickers, state, text
from frontend.panels import gallery
from frontend.panels.calibration import audit, calibrators, diagram, prompts, slices

LAYOUTS = {"0": "side by side", "1": "overlaid"}

VIEWS = {
    "diagram": "Diagram",
    "images": "Images",
    "slices": "Slices",
    "calibrators": "Calibrators",
    "prompts": "Prompts",
    "audit": "Estimator audit",
}


def _titles(evaluations: Iterable[Evaluation]) -> dict[str, str]:
    """A title for each data set, in the order in which they are offered."""
    titles: dict[str, str] = {}
    for e in sorted(evaluations, key=text.evaluation_order):
        titles.setdefault(e.dataset, f"{text.evaluation_title(e)} ({text.ROLES[e.role]})")
    return titles


def _choose(titles: Mapping[str, str], several: bool) -> tuple[str, str, bool]:
    """What is shown, on which data, and whether several diagrams share their axes."""
    view = state.choice(st.segmented_control, "Show", name="view", options=VIEWS, required=True)
    left, right = st.columns([3, 2])
    dataset = state.choice(left.selectbox, "Data", name="dataset", options=titles, always=True)
    layout = "0"
    if several and view == "diagram":
        layout = state.choice(
            right.segmented_control, "Several runs", name="overlay", options=LAYOUTS, required=True
        )
    return view, dataset, layout == "1"


def main() -> None:
    page.head(
        "Calibration", "How often a model is right when it says it is sure, and how sure we are."
    )
    chosen = pickers.pick_runs("run")
    labels = {run.id: run.label for run in pickers.as_runs(chosen)}
    found = {run_id: api.evaluations(run) for run_id, run in chosen.items()}
    titles = _titles(e for evaluations in found.values() for e in evaluations)
    if not titles:
        pickers.nothing_evaluated()
        return
    view, dataset, overlay = _choose(titles, len(chosen) > 1)
    matches: dict[str, Evaluation] = {}
    for run_id in chosen:
        match = next((e for e in found[run_id] if e.dataset == dataset), None)
        if match is None:
            st.caption(f"{text.md(labels[run_id])} was not evaluated on {text.md(dataset)}.")
        else:
            matches[run_id] = match
    if not matches:
        return
    match view:
        case "images":
            gallery.draw_all(list(matches.values()))
        case "slices":
            slices.draw(matches, chosen, labels)
        case "calibrators":
            calibrators.draw(matches, chosen, found, labels)
        case "prompts":
            prompts.draw(matches, labels)
        case "audit":
            audit.draw(matches, labels)
        case _:
            diagram.draw(matches, labels, overlay, titles[dataset])


main()
