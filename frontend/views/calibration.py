"""Calibration: the reliability diagram, slices, calibrators, and what other estimators read."""

from collections.abc import Iterable, Mapping

import streamlit as st

from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.runs import RunSummary
from frontend import answers, api, page, pickers, state, text
from frontend.panels import gallery, mapping
from frontend.panels.calibration import audit, calibrators, diagram, prompts, slices

LAYOUTS = {"0": "side by side", "1": "overlaid"}

VIEWS = {
    "diagram": "Diagram",
    "images": "Images",
    "map": "Map",
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


def _answer(
    chosen: Mapping[str, RunSummary], matches: Mapping[str, Evaluation], labels: Mapping[str, str]
) -> None:
    """How far each run's calibration is from the baseline's on the chosen data, as stored.

    The baseline is the one that was chosen on Compare, else the zero-shot run.
    """
    runs = {run_id: chosen[run_id] for run_id in matches}
    base = runs.get(state.shared("baseline") or "")
    if base is None:
        initial = pickers.with_zero_shot(list(runs.values()))
        base = next((run for run in initial if run.method == "zero_shot"), initial[0])
    names = {base.id: base.name, **labels}
    every = {**runs, base.id: base}
    if len(every) < 2:
        return
    (dataset,) = {e.dataset for e in matches.values()}
    revisions = tuple(run.revision for run in every.values())
    found = api.ask("compare the runs", api.compared, tuple(every), base.id, revisions, (dataset,))
    answered = False
    for column in found.runs:
        one = answers.by_dataset(names[column.run.id], names[base.id], column.differences, "ece")
        if one.sentence and column.run.id in runs:
            st.markdown(one.sentence, help=one.note or None)
            answered = True
    if answered:
        st.caption("As the runs were evaluated: bins and temperature below change the diagrams.")


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
    answer = st.container(gap="xsmall")
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
    with answer:
        _answer(chosen, matches, labels)
    match view:
        case "images":
            gallery.draw_all(list(matches.values()))
        case "map":
            mapping.draw(next(iter(matches.values())))
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
