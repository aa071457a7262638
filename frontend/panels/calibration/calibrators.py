"""Before and after a calibrator, and what one fitted on A does on B."""

from collections.abc import Mapping, Sequence
from typing import Literal

import streamlit as st

from calift_core.client import Client
from calift_core.errors import ServiceError
from calift_core.schema.wire.queries import TRANSFER_SETS, CalibratorQuery, TransferQuery
from calift_core.schema.wire.results import CalibratorEffect, Evaluation, Reliability
from calift_core.schema.wire.runs import RunSummary
from frontend import api, figures, page, state, text
from frontend.panels.calibration.controls import controls
from frontend.tables import analysis

#: What a calibrator is judged by: the proper scores first.
SCORES: dict[Literal["ece", "nll", "brier"], str] = {
    "nll": "NLL",
    "brier": "Brier score",
    "ece": "ECE",
}

#: Logits of all data sets above which a transfer matrix waits to be asked for.
MATRIX_CELLS = 20_000_000


def draw(
    found: Mapping[str, Evaluation],
    runs: Mapping[str, RunSummary],
    evaluations: Mapping[str, Sequence[Evaluation]],
    labels: Mapping[str, str],
) -> None:
    """Show a run before and after a calibrator, and the matrix of all its data sets.

    Args:
        found: evaluation of each run on the chosen data, by run id.
        evaluations: all of each run, by run id.
    """
    columns = st.columns([3, 3, 3])
    run_id = state.choice(
        columns[0].selectbox, "Run", name="of", options=list(found), format_func=labels.__getitem__
    )
    kind = state.choice(columns[1].selectbox, "Calibrator", name="kind", options=text.CALIBRATORS)
    own = {e.dataset: e for e in evaluations[run_id]}
    fit_on = state.choice(
        columns[2].selectbox,
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
    params = controls(with_temperature=False)
    evaluation, run = found[run_id], runs[run_id]
    binning = params.model_dump(include={"n_bins", "scheme", "norm"})
    oracle = {} if fit_on == "calibration" else {"fit_on": own[fit_on].id, "oracle": True}
    query = CalibratorQuery.of(params={**binning, "kind": kind, **oracle})

    def ask() -> CalibratorEffect | str:
        try:
            return api.answer(Client.calibrate, evaluation.id, evaluation.predictions_sha256, query)
        except ServiceError as error:
            if error.status != 404:
                raise
            return str(error)  # what it is fitted on is not there, which is no fault

    effect = api.fetch(
        f"calibrate {run.name} on {evaluation.dataset}",
        ask,
        key=f"calibrator-{evaluation.id}-{query}",
    )
    if isinstance(effect, str):
        st.info(text.md_prose(effect), icon=":material/info:")
        return
    look = state.styles([run_id])[run_id]
    left, right = st.columns([6, 5], gap="large")
    with left:
        page.chart(
            figures.calibrators.overlay(
                effect, style=look, title=f"{labels[run_id]}: {kind} on {evaluation.dataset}"
            ),
            analysis.calibrator_effect(effect),
            name=f"calibrator-{kind}",
            data=effect.model_dump_json,
        )
    with right:
        _effect_words(effect)
        page.table(analysis.calibrator_effect(effect), caption=f"Before and after {kind}")
    transfer = TransferQuery.of(params={**binning, "kind": kind})
    _show_matrix(run, evaluations[run_id], transfer, labels[run_id])


def _effect_words(effect: CalibratorEffect) -> None:
    before, after = effect.before, effect.after
    error = figures.reliability.error_name(after)

    def floor(diagram: Reliability) -> str:
        return "in-sample" if diagram.in_sample else f"floor {text.percent(diagram.null_mean)}"

    page.stats(
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
            f"**Oracle.** {text.md(figures.calibrators.fitted_words(effect.calibrator))}. "
            "Nobody has these labels before the shift happens: read it as a bound, not as a "
            "result.",
            icon=":material/visibility:",
        )
    if after.in_sample:
        st.warning(
            "**In-sample.** It was fitted on the very samples it is shown on. Its error reads too "
            "low, about 0 after an isotonic or histogram fit, so neither floor nor interval holds.",
            icon=":material/replay:",
        )
    if not after.in_sample:
        st.caption(text.verdict(after.ece, after.null_mean, after.null_q95))
    temperature = effect.calibrator.parameters.get("temperature")
    if isinstance(temperature, float):
        change = "softer" if temperature > 1 else "sharper"
        st.caption(f"Fitted T = {temperature:.3g}: the calibrated model is {change}.")


def _show_matrix(
    run: RunSummary, evaluations: Sequence[Evaluation], query: TransferQuery, label: str
) -> None:
    st.header("Fitted on A, tested on B", anchor=False)
    titles = {e.dataset: text.evaluation_title(e) for e in evaluations if e.role == "corruption"}
    named = [e.dataset for e in evaluations if e.role != "corruption"]
    if titles and len(named) < TRANSFER_SETS:
        named += state.multi_choice(
            st.multiselect,
            "Corruptions in the matrix",
            name="with",
            options=titles,
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
        chosen = named if any(name in titles for name in named) else []
        matrix = api.fetched(
            f"compute the transfer matrix of {run.name}",
            Client.transfer,
            run.id,
            run.revision,
            TransferQuery.of(query, {"dataset": chosen}),
        )
    by = state.choice(
        st.segmented_control, "Judged by", name="judged", options=SCORES, required=True
    )
    page.chart(
        figures.calibrators.transfer(
            matrix, by=by, title=f"{label}: {matrix.kind}, fitted on A, tested on B"
        ),
        analysis.transfer(matrix),
        name=f"transfer-{matrix.kind}-{by}",
        data=matrix.model_dump_json,
        wide=True,
    )
    for note in matrix.notes:
        st.caption(text.md(note))
