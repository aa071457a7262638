"""Tab Spectrum: singular values of the features, at the end and over training."""

import streamlit as st

from calift_core.schema.wire.runs import RunDetail
from frontend import api, figures, page, state, tables, text
from frontend.panels.run.missing import not_yet


def draw(run: RunDetail) -> None:
    """Show the final spectrum and its way there."""
    spectra = api.fetch(
        "load the spectra", lambda: api.client().spectra(run.id), key=f"spectra-{run.id}"
    )
    if not spectra:
        if run.method == "imported":
            page.empty("No spectrum", "It needs the model's features; predictions were imported.")
        else:
            not_yet(run, "measured")
        return
    me = tables.Run(run.id, run.name)
    styles = state.styles([run.id])
    final = next((s for s in spectra if s.final), spectra[-1])
    page.stats(
        [
            ("σ_min", text.number(final.sigma_min),
             "0 by rank: fewer samples than features" if final.sigma_min is None else "smallest"),
            ("Effective rank", text.number(final.effective_rank),
             f"of {text.count(final.n_features)} features"),
            ("Condition number", text.number(final.condition_number), "largest over smallest"),
            ("‖W_vᵀW_v − 1‖", text.number(final.projection_gram_distance),
             "how far the projection is from orthogonal"),
            ("Samples", text.count(final.n),
             f"{final.n_constant_features} constant features left out"
             if final.n_constant_features else "no constant feature"),
        ]
    )  # fmt: skip
    page.chart(
        figures.spectra.singular_values([(me, final)], styles=styles),
        figures.spectra.singular_values_table([(me, final)]),
        name="singular-values",
    )
    if len(spectra) < 2:
        return
    for place, quantity in zip(st.columns(2), ("sigma_min", "effective_rank"), strict=True):
        with place:
            page.chart(
                figures.spectra.over_steps([(me, spectra)], quantity=quantity, styles=styles),
                figures.spectra.table([(me, spectra)]),
                name=f"over-steps-{quantity}",
            )
