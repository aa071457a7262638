"""The same predictions under every estimator: why published numbers differ."""

import json
from collections.abc import Mapping

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.queries import AuditQuery
from calift_core.schema.wire.results import Evaluation, MeasureSet
from frontend import api, figures, page, state, text
from frontend.panels.calibration.controls import temperature_slider
from frontend.tables import Run, analysis


def draw(found: Mapping[str, Evaluation], labels: Mapping[str, str]) -> None:
    """Show every estimator for each run; evaluations and labels are by run id."""
    with st.container(border=True, key="audit-controls"):
        temperature = round(temperature_slider(), 4)
    sets: list[tuple[Run, MeasureSet]] = []
    for run_id, evaluation in found.items():
        with st.spinner(f"Auditing {labels[run_id]}"):
            audited = api.fetched(
                f"audit {labels[run_id]} on {evaluation.dataset}",
                Client.audit,
                evaluation.id,
                evaluation.predictions_sha256,
                AuditQuery(temperature=temperature),
            )
        sets.append((Run(run_id, labels[run_id]), audited))
    page.chart(
        figures.estimators.figure(sets, styles=state.styles(list(found))),
        analysis.measures(sets),
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
        page.table(analysis.measures([(run, audited)]), caption=f"Estimators on {run.label}")
