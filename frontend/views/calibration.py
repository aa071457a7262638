"""Calibration: the reliability diagram, slices, calibrators, and what other estimators read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import streamlit as st

from calift_core.schema.wire import (
    TRANSFER_SETS,
    CalibratorEffect,
    Evaluation,
    MeasureSet,
    Reliability,
    RunSummary,
    SlicePage,
    TransferMatrix,
)
from frontend import charts, state, tables, text, ui
from frontend.charts import Run
from frontend.tables import Column, Markup, Table

LAYOUTS = {"0": "side by side", "1": "overlaid"}
VIEWS = {
    "diagram": "Diagram",
    "slices": "Slices",
    "calibrators": "Calibrators",
    "audit": "Estimator audit",
}
GROUPINGS = {
    "class": "true class",
    "predicted": "predicted class",
    "confidence": "confidence",
    "dataset": "data set",
    "cluster": "source image",
}
ORDERS = {
    "key": "as they come",
    "-gap": "most over-confident",
    "gap": "most under-confident",
    "-ece": "largest ECE",
    "accuracy": "lowest accuracy",
    "-n": "most samples",
}
CALIBRATORS = {
    "temperature": "temperature (one number)",
    "vector": "vector (scale and offset per class)",
    "histogram": "histogram binning of the top label",
    "isotonic": "isotonic regression of the top label",
    "tsp": "temperature on perturbed copies (TS-P)",
}
#: What a calibrator is judged by: the proper scores first.
SCORES: dict[Literal["ece", "nll", "brier"], str] = {
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
}
#: Logits of all data sets above which a transfer matrix waits to be asked for.
MATRIX_CELLS = 20_000_000


class Asked(NamedTuple):
    """How an error is measured."""

    n_bins: int
    scheme: str
    norm: str
    temperature: float


@st.cache_data(ttl=3600, max_entries=200, show_spinner=False)
def _slices(evaluation_id: str, _digest: str, **asked: Any) -> SlicePage:
    return ui.client().slices(evaluation_id, **asked)


@st.cache_data(ttl=3600, max_entries=200, show_spinner=False)
def _run_slices(run_id: str, attempt: int, **asked: Any) -> SlicePage:
    return ui.client().run_slices(run_id, **asked)


@st.cache_data(ttl=3600, max_entries=200, show_spinner=False)
def _effect(evaluation_id: str, _digest: str, **asked: Any) -> CalibratorEffect:
    return ui.client().calibrate(evaluation_id, **asked)


@st.cache_data(ttl=3600, max_entries=100, show_spinner=False)
def _matrix(run_id: str, attempt: int, **asked: Any) -> TransferMatrix:
    return ui.client().transfer(run_id, **asked)


@st.cache_data(ttl=3600, max_entries=200, show_spinner=False)
def _audit(evaluation_id: str, _digest: str, temperature: float) -> MeasureSet:
    return ui.client().audit(evaluation_id, temperature=temperature)


def _controls(*, with_temperature: bool = True) -> Asked:
    with st.container(border=True, key="diagram-controls"):
        columns = st.columns([2, 2, 2, 3] if with_temperature else [2, 2, 2])
        temperature = 1.0
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
        if with_temperature:
            with columns[3]:
                temperature = _temperature_slider()
    return Asked(n_bins, scheme, norm, round(temperature, 4))


def _temperature_slider() -> float:
    return state.bound(
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
        smooth = state.bound(
            st.toggle,
            "Smooth curve",
            name="smooth",
            default=False,
            decode=lambda given: {"1": True, "0": False}.get(given),
            encode=lambda on: "1" if on else "0",
            help="A kernel regression of correctness on confidence: no bins to choose",
        )
        ui.chart(
            charts.reliability_diagram(
                diagram, colour=look.colour, symbol=look.symbol, smooth=smooth, side=440
            ),
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


# ---- Slices ------------------------------------------------------------------------------------


def _show_slices(
    found: Mapping[str, Evaluation], runs: Mapping[str, RunSummary], labels: Mapping[str, str]
) -> None:
    columns = st.columns([2, 2, 5])
    with columns[0]:
        by = state.choice(
            st.selectbox,
            "Slices by",
            name="by",
            options=list(GROUPINGS),
            format_func=GROUPINGS.__getitem__,
        )
    with columns[1]:
        order = state.choice(
            st.selectbox,
            "Order",
            name="order",
            options=list(ORDERS),
            format_func=ORDERS.__getitem__,
            disabled=by == "dataset",
        )
    with columns[2]:
        where = state.bound(
            st.text_input,
            "Only samples where",
            name="where",
            default="",
            decode=lambda given: given[:500],
            max_chars=500,
            placeholder="confidence >= 0.9 and not correct",
            help="Columns: confidence, correct, label, predicted, rank, nll, brier, id, cluster. "
            'Comparisons joined by and, or, not; `label in (3, "shirt")`.',
        )
    asked = _controls()
    pages: list[tuple[Run, SlicePage]] = []
    for run_id, evaluation in found.items():
        page = _page_of(evaluation, runs[run_id], by, order, where, asked, first=not pages)
        pages.append((Run(run_id, labels[run_id]), page))
    if not pages[0][1].items:
        ui.empty("No slice", "No sample meets the condition.")
        return
    noun = GROUPINGS[by]
    ui.chart(
        charts.slice_gaps(pages, styles=state.styles(list(found)), title=f"Gap by {noun}"),
        tables.slices(pages),
        name=f"slices-{by}",
        data=lambda: json.dumps([page.model_dump(mode="json") for _, page in pages]),
    )
    for run, page in pages:
        st.caption(
            f"**{text.md(run.label)}.** {text.count(page.n_matching)} of {text.count(page.n)} "
            f"samples, {text.count(page.total)} slices; the first {len(page.items)} are loaded. "
            "One in twenty calibrated slices is above its floor by chance."
        )
    ui.table(tables.slices(pages[:1]), caption=f"Slices of {pages[0][0].label}", limit=50)


def _page_of(
    evaluation: Evaluation,
    run: RunSummary,
    by: str,
    order: str,
    where: str,
    asked: Asked,
    *,
    first: bool,
) -> SlicePage:
    """The slices of one run; those after the first are matched to its keys, so all are loaded."""
    condition = where.strip() or None
    if by == "dataset":
        return ui.fetch(
            f"slice {run.name} by data set",
            lambda: _run_slices(run.id, run.attempt, where=condition, limit=200, **asked._asdict()),
            key=f"run-slices-{run.id}-{condition}-{asked}",
        )
    options: dict[str, Any] = {
        **asked._asdict(),
        "by": by,
        "where": condition,
        "sort": order.removeprefix("-") if first else "key",
        "descending": first and order.startswith("-"),
        "limit": charts.MOST_SLICES if first else 200,
    }
    return ui.fetch(
        f"slice {run.name} on {evaluation.dataset}",
        lambda: _slices(evaluation.id, evaluation.predictions_sha256, **options),
        key=f"slices-{evaluation.id}-{sorted(options.items(), key=str)}",
    )


# ---- Calibrators -------------------------------------------------------------------------------


def _show_calibrators(
    found: Mapping[str, Evaluation],
    runs: Mapping[str, RunSummary],
    evaluations: Mapping[str, Sequence[Evaluation]],
    labels: Mapping[str, str],
) -> None:
    columns = st.columns([3, 3, 3])
    with columns[0]:
        run_id = state.choice(
            st.selectbox, "Run", name="of", options=list(found), format_func=labels.__getitem__
        )
    with columns[1]:
        kind = state.choice(
            st.selectbox,
            "Calibrator",
            name="kind",
            options=list(CALIBRATORS),
            format_func=CALIBRATORS.__getitem__,
        )
    own = {e.dataset: e for e in evaluations[run_id]}
    with columns[2]:
        fit_on = state.choice(
            st.selectbox,
            "Fitted on",
            name="fit",
            options=["calibration", *own],
            format_func=lambda name: (
                "ID calibration split" if name == "calibration" else f"◇ oracle: {name}"
            ),
            help="Only the ID calibration split is there before a shift happens. What is fitted on "
            "anything else is an oracle: a bound on what is possible, not a result.",
        )
    # A calibrator starts from the stored logits, so there is no temperature to choose.
    asked = _controls(with_temperature=False)
    evaluation, run = found[run_id], runs[run_id]
    binning: dict[str, Any] = {
        "n_bins": asked.n_bins, "scheme": asked.scheme, "norm": asked.norm, "kind": kind,
    }  # fmt: skip
    oracle: dict[str, Any] = (
        {} if fit_on == "calibration" else {"fit_on": own[fit_on].id, "oracle": True}
    )
    effect = ui.fetch(
        f"calibrate {run.name} on {evaluation.dataset}",
        lambda: _effect(evaluation.id, evaluation.predictions_sha256, **binning, **oracle),
        key=f"calibrator-{evaluation.id}-{binning}-{oracle}",
    )
    look = state.styles([run_id])[run_id]
    left, right = st.columns([6, 5], gap="large")
    with left:
        ui.chart(
            charts.calibrator_overlay(
                effect, style=look, title=f"{labels[run_id]}: {kind} on {evaluation.dataset}"
            ),
            tables.calibrator(effect),
            name=f"calibrator-{kind}",
            data=effect.model_dump_json,
        )
    with right:
        _effect_words(effect)
        ui.table(tables.calibrator(effect), caption=f"Before and after {kind}")
    _show_matrix(run, evaluations[run_id], binning, labels[run_id])


def _effect_words(effect: CalibratorEffect) -> None:
    before, after = effect.before, effect.after
    error = charts.diagram_error_name(after)

    def floor(diagram: Reliability) -> str:
        return "in-sample" if diagram.in_sample else f"floor {text.percent(diagram.null_mean)}"

    ui.stats(
        [
            (f"{error} before", text.percent(before.ece), floor(before)),
            (f"{error} after", text.percent(after.ece), floor(after)),
            ("NLL", text.number(after.nll), f"before {text.number(before.nll)}"),
            ("Brier", text.number(after.brier), f"before {text.number(before.brier)}"),
        ]
    )
    st.caption(
        "Judge a calibrator by NLL and Brier score: an ECE also falls where confidence only says "
        "less."
    )
    if effect.calibrator.oracle:
        st.warning(
            f"**Oracle.** {text.md(charts.fitted_words(effect.calibrator))}. Nobody has these "
            "labels before the shift happens: read it as a bound, not as a result.",
            icon=":material/visibility:",
        )
    if after.in_sample:
        st.warning(
            "**In-sample.** It was fitted on the very samples it is shown on. Its error reads too "
            "low, about 0 after an isotonic or histogram fit, so neither floor nor interval holds.",
            icon=":material/replay:",
        )
    if not after.in_sample:
        st.caption(ui.verdict(after.ece, after.null_mean, after.null_q95))
    temperature = effect.calibrator.parameters.get("temperature")
    if isinstance(temperature, float):
        said = "softer" if temperature > 1 else "sharper"
        st.caption(f"Fitted T = {temperature:.3g}: the calibrated model is {said}.")


def _show_matrix(
    run: RunSummary, evaluations: Sequence[Evaluation], binning: dict[str, Any], label: str
) -> None:
    st.subheader("Fitted on A, tested on B", anchor=False)
    titles = {e.dataset: text.evaluation_title(e) for e in evaluations if e.role == "corruption"}
    named = [e.dataset for e in evaluations if e.role != "corruption"]
    if titles and len(named) < TRANSFER_SETS:
        named += state.several(
            st.multiselect,
            "Corruptions in the matrix",
            name="with",
            options=list(titles),
            format_func=titles.__getitem__,
            max_selections=TRANSFER_SETS - len(named),
            placeholder="none",
        )
    cells = sum(e.n * e.n_classes for e in evaluations if e.dataset in named)
    if cells > MATRIX_CELLS and not st.session_state.get(f"matrix-{run.id}"):
        st.caption(
            f"{cells / 1e6:,.0f} million logits are passed over once for each of the fits: this "
            "takes a while the first time."
        )
        if not st.button("Compute the matrix", key=f"ask-matrix-{run.id}"):
            return
        st.session_state[f"matrix-{run.id}"] = True
    with st.spinner("Fitting and testing on every data set"):
        matrix = ui.fetch(
            f"compute the transfer matrix of {run.name}",
            lambda: _matrix(
                run.id,
                run.attempt,
                dataset=named if any(name in titles for name in named) else [],
                **binning,
            ),
            key=f"transfer-{run.id}-{binning}-{named}",
        )
    by = state.choice(
        st.segmented_control,
        "Judged by",
        name="judged",
        options=list(SCORES),
        format_func=SCORES.__getitem__,
        required=True,
    )
    ui.chart(
        charts.transfer_heatmap(
            matrix, by=by, title=f"{label}: {matrix.kind}, fitted on A, tested on B"
        ),
        tables.transfer(matrix),
        name=f"transfer-{matrix.kind}-{by}",
        data=matrix.model_dump_json,
        wide=True,
    )
    for note in matrix.notes:
        st.caption(text.md(note))


# ---- Estimators --------------------------------------------------------------------------------


def _show_audit(found: Mapping[str, Evaluation], labels: Mapping[str, str]) -> None:
    with st.container(border=True, key="audit-controls"):
        temperature = round(_temperature_slider(), 4)
    sets: list[tuple[Run, MeasureSet]] = []
    for run_id, evaluation in found.items():
        with st.spinner(f"Auditing {labels[run_id]}"):
            audited = ui.fetch(
                f"audit {labels[run_id]} on {evaluation.dataset}",
                lambda e=evaluation: _audit(e.id, e.predictions_sha256, temperature),  # type: ignore[misc]
                key=f"audit-{evaluation.id}-{temperature}",
            )
        sets.append((Run(run_id, labels[run_id]), audited))
    ui.chart(
        charts.estimators(sets, styles=state.styles(list(found))),
        tables.estimators(sets),
        name="estimators",
        data=lambda: json.dumps([audited.model_dump(mode="json") for _, audited in sets]),
    )
    for run, audited in sets:
        by_name = {m.name: m for m in audited.measures}
        batched = [m for m in audited.measures if m.batch_size is not None]
        whole = by_name["ece_l1_10_equal_width"]
        if batched:
            st.caption(
                f"**{text.md(run.label)}.** The same 10 equal-width bins read "
                f"{text.percent(whole.value)} over the whole set and "
                f"{text.percent(batched[0].value)} averaged over batches of "
                f"{batched[0].batch_size}, where a calibrated model reads "
                f"{text.percent(batched[0].null_mean)}."
            )
        wrapped = tables.estimators([(run, audited)])
        rows = [
            {**row, "note": Markup(f'<div class="wrap">{text.esc(row["note"])}</div>')}
            for row in wrapped.rows
        ]
        ui.table(Table(wrapped.columns, rows), caption=f"Estimators on {run.label}")


# ---- The page ----------------------------------------------------------------------------------


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
    view = state.choice(
        st.segmented_control,
        "Show",
        name="view",
        options=list(VIEWS),
        format_func=VIEWS.__getitem__,
        required=True,
    )
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
        if len(chosen) > 1 and view == "diagram":
            layout = state.choice(
                st.segmented_control,
                "Several runs",
                name="overlay",
                options=list(LAYOUTS),
                format_func=LAYOUTS.__getitem__,
                required=True,
            )
    matches: dict[str, Evaluation] = {}
    for run_id in chosen:
        match = next((e for e in found[run_id] if e.dataset == dataset), None)
        if match is None:
            st.caption(f"{text.md(runs[run_id].label)} was not evaluated on {text.md(dataset)}.")
        else:
            matches[run_id] = match
    if not matches:
        return
    labels = {run_id: run.label for run_id, run in runs.items()}
    if view == "slices":
        _show_slices(matches, chosen, labels)
    elif view == "calibrators":
        _show_calibrators(matches, chosen, found, labels)
    elif view == "audit":
        _show_audit(matches, labels)
    else:
        _show_diagrams(matches, labels, layout == "1", titles[dataset])


def _show_diagrams(
    matches: Mapping[str, Evaluation], labels: Mapping[str, str], overlay: bool, title: str
) -> None:
    asked = _controls()
    diagrams = [
        ui.reliability(match, **asked._asdict()).model_copy(update={"run_name": labels[run_id]})
        for run_id, match in matches.items()
    ]
    if len(diagrams) == 1:
        (run_id,) = matches
        _one(diagrams[0], matches[run_id], state.styles([run_id])[run_id])
    else:
        _several(diagrams, overlay, title)


main()
