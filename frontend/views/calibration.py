"""Calibration: the reliability diagram with counts, floor and other estimators beside it."""

from __future__ import annotations

import json

import streamlit as st

from calift_core.schema.wire import Evaluation, Reliability
from frontend import charts, state, tables, text, ui
from frontend.tables import Column, Markup, Table

LAYOUTS = {"0": "side by side", "1": "overlaid"}


def _controls() -> tuple[int, str, str, float]:
    with st.container(border=True, key="diagram-controls"):
        columns = st.columns([2, 2, 2, 3])
        with columns[0]:
            n_bins = state.bound(
                st.number_input,
                "Bins",
                name="bins",
                default=15,
                decode=lambda given: (
                    int(given) if given.isdigit() and 1 <= int(given) <= 100 else None
                ),
                min_value=1,
                max_value=100,
                step=1,
                help="How many bins the samples are put in",
            )
        with columns[1]:
            scheme = state.choice(
                st.selectbox,
                "Binning",
                name="scheme",
                options=list(text.SCHEMES),
                format_func=text.SCHEMES.__getitem__,
                help="Equal mass: as many samples in each bin. Equal width: bins as wide as each "
                "other, so some are nearly empty.",
            )
        with columns[2]:
            norm = state.choice(
                st.selectbox,
                "Norm",
                name="norm",
                options=list(text.NORMS),
                format_func=lambda n: {"l1": "L1 (ECE)", "l2": "L2", "max": "largest gap (MCE)"}[n],
            )
        with columns[3]:
            temperature = state.bound(
                st.slider,
                "Temperature",
                name="temperature",
                default=1.0,
                decode=_temperature,
                encode=lambda t: f"{t:g}",
                min_value=0.25,
                max_value=4.0,
                step=0.05,
                help="Divides the logits. It moves confidence and never accuracy: what training "
                "did beyond it is what stays different between runs.",
            )
    return n_bins, scheme, norm, round(temperature, 4)


def _temperature(given: str) -> float | None:
    try:
        value = float(given)
    except ValueError:
        return None
    return value if 0.25 <= value <= 4 else None


def _other_estimators(evaluation: Evaluation) -> Table:
    """The same predictions under other estimators: why published numbers differ."""
    e = evaluation
    rows = [
        {"name": f"ECE, {e.ece.n_bins} equal-mass bins", "value": e.ece.value,
         "note": f"floor {text.percent(e.ece.null_mean)}"},
        {"name": f"ECE, {e.ece_equal_width.n_bins} equal-width bins",
         "value": e.ece_equal_width.value,
         "note": f"floor {text.percent(e.ece_equal_width.null_mean)}"},
        {"name": "Debiased calibration error (L2)", "value": e.ece.debiased,
         "note": "negative: not above the noise"},
        {"name": "Smooth ECE", "value": e.smooth_ece, "note": "has a floor too"},
        {"name": "KS calibration error", "value": e.ks_error, "note": "no bins"},
        {"name": "Class-wise ECE", "value": e.classwise_ece, "note": "mean over classes"},
        {"name": "MCE", "value": e.mce, "note": "mostly noise in small bins"},
        {"name": "Batch-averaged ECE", "value": e.ece_batch_averaged,
         "note": "paper-compatible: biased upwards, never ranked on"},
        {"name": "Over-confidence", "value": e.overconfidence, "note": "share of the ECE"},
        {"name": "Under-confidence", "value": e.underconfidence, "note": "share of the ECE"},
    ]  # fmt: skip
    columns = [
        Column("name", "Estimator"),
        Column("value", "Value", "percent"),
        Column("note", "Reads"),
    ]
    wrapped = [
        {**row, "note": Markup(f'<div class="wrap">{text.esc(row["note"])}</div>')} for row in rows
    ]
    return Table(columns, wrapped)


def _one(diagram: Reliability, evaluation: Evaluation, look: charts.RunStyle) -> None:
    left, right = st.columns([6, 5], gap="large")
    with left:
        ui.chart(
            charts.reliability_diagram(diagram, colour=look.colour, symbol=look.symbol, side=440),
            tables.reliability([diagram]),
            name=f"reliability-{diagram.run_id}-{diagram.dataset.replace('/', '-')}",
            data=diagram.model_dump_json,
        )
    with right:
        error = charts.diagram_error_name(diagram)
        ui.stats(
            [
                (error, text.percent(diagram.ece),
                 f"floor {text.percent(diagram.null_mean)}, 95{text.NBSP}% "
                 f"{text.interval(*diagram.interval)}"),
                ("Accuracy", text.percent(diagram.accuracy), f"n = {text.count(diagram.n)}"),
                ("Confidence", text.percent(diagram.mean_confidence),
                 _lean(diagram.mean_confidence - diagram.accuracy)),
            ]
        )  # fmt: skip
        st.caption(ui.verdict(diagram.ece, diagram.null_mean, diagram.null_q95))
        st.markdown("**The same predictions under other estimators**")
        st.caption(f"As stored with the run, at T = {evaluation.temperature:g}.")
        ui.table(_other_estimators(evaluation), caption="Calibration error under other estimators")


def _lean(gap: float) -> str:
    if abs(gap) < 0.0005:
        return "as high as accuracy"
    return f"{text.points(gap)}: {'over' if gap > 0 else 'under'}-confident on average"


def _several(diagrams: list[Reliability], overlay: bool, dataset: str) -> None:
    styles = state.styles([d.run_id for d in diagrams])
    together = json.dumps([d.model_dump(mode="json") for d in diagrams], ensure_ascii=False)
    summary = tables.reliability_summary(diagrams)
    if overlay:
        left, right = st.columns([6, 5], gap="large")
        with left:
            ui.chart(
                charts.reliability_overlay(
                    diagrams, styles=styles, title=f"Reliability on {dataset}"
                ),
                tables.reliability(diagrams),
                name="reliability-overlay",
                data=lambda: together,
            )
        with right:
            ui.table(summary, caption="Calibration of the chosen runs")
            for d in diagrams:
                said = ui.verdict(d.ece, d.null_mean, d.null_q95)
                st.caption(f"**{text.md(d.run_name)}.** {said}")
    else:
        across = 2 if len(diagrams) in (2, 4) else 3
        for start in range(0, len(diagrams), across):
            for place, diagram in zip(
                st.columns(across), diagrams[start : start + across], strict=False
            ):
                look = styles[diagram.run_id]
                with place:
                    ui.chart(
                        charts.reliability_diagram(
                            diagram,
                            title=diagram.run_name,
                            colour=look.colour,
                            symbol=look.symbol,
                            side=300 if across == 3 else 380,
                        ),
                        tables.reliability([diagram]),
                        name=f"reliability-{diagram.run_id}",
                        data=diagram.model_dump_json,
                    )
        ui.table(summary, caption="Calibration of the chosen runs")


def main() -> None:
    """Draw the page."""
    ui.head(
        "Calibration", "How often a model is right when it says it is sure, and how sure we are."
    )
    chosen = ui.pick_runs("run")
    runs = {run.id: run for run in ui.as_runs(chosen)}
    found = {run_id: ui.evaluations(run) for run_id, run in chosen.items()}
    titles: dict[str, str] = {}
    order = {"id": 0, "shift": 1, "corruption": 2}
    every = sorted(
        (e for evaluations in found.values() for e in evaluations),
        key=lambda e: (order[e.role], e.corruption or e.dataset, e.severity or 0),
    )
    for e in every:
        titles.setdefault(e.dataset, f"{text.evaluation_title(e)} ({text.ROLES[e.role]})")
    if not titles:
        ui.empty(
            "No evaluation is stored",
            "The chosen runs have not been evaluated yet: evaluations appear as a run reaches "
            "the end of its training.",
        )
        return
    top = st.columns([3, 2])
    with top[0]:
        dataset = state.choice(
            st.selectbox,
            "Data",
            name="dataset",
            options=list(titles),
            format_func=titles.__getitem__,
            always=True,
        )
    with top[1]:
        layout = "0"
        if len(chosen) > 1:
            layout = state.choice(
                st.segmented_control,
                "Several runs",
                name="overlay",
                options=list(LAYOUTS),
                format_func=LAYOUTS.__getitem__,
                required=True,
            )
    n_bins, scheme, norm, temperature = _controls()
    diagrams, evaluations = [], []
    for run_id in chosen:
        match = next((e for e in found[run_id] if e.dataset == dataset), None)
        if match is None:
            st.caption(f"{text.md(runs[run_id].label)} was not evaluated on {text.md(dataset)}.")
            continue
        diagram = ui.reliability(
            match, n_bins=n_bins, scheme=scheme, norm=norm, temperature=temperature
        )
        diagrams.append(diagram.model_copy(update={"run_name": runs[run_id].label}))
        evaluations.append(match)
    if not diagrams:
        return
    if len(diagrams) == 1:
        styles = state.styles([diagrams[0].run_id])
        _one(diagrams[0], evaluations[0], styles[diagrams[0].run_id])
    else:
        _several(diagrams, layout == "1", titles[dataset])


main()
