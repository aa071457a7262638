"""Frontier: what accuracy costs in robustness and calibration, and the path between two models."""

import streamlit as st

from calift_core.schema.report import FrontierPoint
from calift_core.schema.wire.results import Frontier
from calift_core.schema.wire.runs import RunSummary
from frontend import api, figures, page, pickers, state, text
from frontend.panels import gallery

#: Methods whose runs are an end of a path already, or a point of one.
NOT_TUNED = ("zero_shot", "wise_ft", "model_stock", "vrf", "dawin", "pretrain", "imported")


def _paths(chosen: dict[str, RunSummary]) -> dict[str, Frontier]:
    """The paths of the chosen WiSE-FT runs; those of a finished attempt never change."""
    found = {}
    for run in chosen.values():
        if run.method != "wise_ft":
            continue
        path = api.ask(
            f"load the path of {run.name}", api.frontier, run.id, run.attempt, str(run.finished_at)
        )
        if path is not None:
            found[run.id] = path
    return found


def _no_path(chosen: dict[str, RunSummary]) -> None:
    page.empty(
        "No path between two models",
        "None of the chosen runs is WiSE-FT, which measures every model between the zero-shot "
        "one and a finished run. It trains nothing and takes as long as evaluating each of them.",
    )
    tuned = next((run for run in chosen.values() if run.method not in NOT_TUNED), None)
    query = {"method": "wise_ft"} | ({"input": tuned.id} if tuned else {})
    words = f"Launch WiSE-FT on {text.md(tuned.name)}" if tuned else "Launch WiSE-FT"
    st.page_link("views/new.py", label=words, icon=":material/add:", query_params=query)


def _cards(point: FrontierPoint) -> list[tuple[str, str, str]]:
    def floor(name: str) -> str:
        value = getattr(point, f"{name}_floor", None)
        return "" if value is None else f"floor {text.percent(value)}"

    shown = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece")
    return [
        *((text.HEADLINES[n].title, text.percent(getattr(point, n)), floor(n)) for n in shown),
        ("Validation accuracy", text.percent(point.val_accuracy), ""),
        ("Validation NLL", text.number(point.val_nll), ""),
    ]


def _walk(path: Frontier, label: str) -> None:
    """One path: the numbers at the α that a visitor chooses, and the table of all."""
    st.header(label, anchor=False)
    alphas = [f"{point.alpha:g}" for point in path.points]
    at = f"{path.alpha:g}"
    if len(alphas) > 1:
        at = state.choice(
            st.select_slider,
            "α",
            name=f"alpha-{path.run_id}",
            options=alphas,
            default=at,
            help="0 is the zero-shot model, 1 the fine-tuned one",
        )
    page.stats(_cards(path.points[alphas.index(at)]))
    evaluated = [p for p in path.points if p.val_nll is not None]
    if evaluated:
        best = min(evaluated, key=lambda p: p.val_nll)
        st.caption(
            f"The run kept α = {path.alpha:g}. On ID validation the NLL is lowest at "
            f"α = {best.alpha:g}. An α that was chosen by what a shift shows would no longer be "
            "tested by that shift."
        )
    with st.container(horizontal=True):
        if at != f"{path.alpha:g}":
            st.page_link(
                "views/new.py",
                label=f"Keep the model at α = {at}",
                icon=":material/add:",
                query_params={"clone": path.run_id, "alpha": at},
            )
        st.page_link(
            "views/run.py", label="Open the run", icon=":material/science:",
            query_params={"id": path.run_id},
        )  # fmt: skip
        st.page_link(
            "views/run.py", label="Open its fine-tuned run", icon=":material/science:",
            query_params={"id": path.input_run},
        )  # fmt: skip
    page.table(figures.frontier.path_table(path), caption=f"The path of {label}, α by α")


def _open(chosen: dict[str, RunSummary], mark: list[str | float], shifted: bool) -> None:
    """Open the images of a run's mark; the stops of a path have stored no predictions."""
    run = chosen.get(str(mark[0]))
    if run is None:
        return
    evaluations = [e for e in api.evaluations(run) if e.role == ("shift" if shifted else "id")]
    evaluations = evaluations or api.evaluations(run)
    if evaluations:
        worst = min(evaluations, key=lambda e: e.accuracy)
        gallery.open_samples(gallery.Chosen(evaluation=worst.id))


def main() -> None:
    page.head(
        "Trade-offs",
        "What a gain costs: ID accuracy against accuracy under shift, and accuracy against "
        "calibration.",
    )
    chosen = pickers.pick_runs("run")
    runs = pickers.as_runs(chosen)
    styles = state.styles(list(chosen))
    paths = _paths(chosen)
    points = [(run, s) for run in runs if (s := chosen[run.id].summary) is not None]
    side = state.choice(
        st.segmented_control,
        "Calibration on",
        name="on",
        options=("ood", "id"),
        format_func={"ood": "shifted data", "id": "ID data"}.get,
        required=True,
    )
    left, right = st.columns(2)
    for place, x, y in (
        (left, "id_accuracy", "ood_accuracy"),
        (right, f"{side}_accuracy", f"{side}_ece"),
    ):
        with place:
            page.chart(
                figures.frontier.figure(points, paths, x=x, y=y, styles=styles),
                figures.frontier.table(points, paths, x=x, y=y),
                name=f"frontier-{x}-{y}",
                select=lambda mark, x=x, y=y: _open(chosen, mark, y.startswith("ood")),
            )
    st.caption(
        "Click a run's own mark to see its images: on the shift where it is worst, or on ID data."
    )
    gallery.draw()
    if not paths:
        _no_path(chosen)
    labels = {run.id: run.label for run in runs}
    for run_id, path in paths.items():
        _walk(path, labels[run_id])


main()
