"""Spectra: singular values of the features, σ_min and effective rank over training."""

import streamlit as st

from calift_core.schema.wire.results import Spectrum
from frontend import api, figures, page, pickers, state, tables, text


def main() -> None:
    page.head(
        "Spectra",
        "Singular values of the standardised ID features: the paper's bound falls as the "
        "smallest one rises.",
    )
    chosen = pickers.pick_runs("run")
    runs = pickers.as_runs(chosen)
    styles = state.styles(list(chosen))
    series: list[tuple[tables.Run, list[Spectrum]]] = []
    for run in runs:
        spectra = api.ask(f"load the spectra of {run.label}", api.client().spectra, run.id)
        series.append((run, spectra))
    steps = sorted({s.step for _, spectra in series for s in spectra if not s.final})
    if not any(spectra for _, spectra in series):
        page.empty(
            "No spectrum is stored",
            "It needs the model's features; predictions were imported."
            if all(run.method == "imported" for run in chosen.values())
            else "The chosen runs measured none. It is measured at the end of a run, and during "
            "training with 'Spectrum every (epochs)'.",
        )
        return
    at = "final"
    if steps:
        at = state.choice(
            st.select_slider,
            "Step",
            name="step",
            options=[*(str(s) for s in steps), "final"],
            default="final",
            help="Scrub through the training; 'final' is the finished model",
        )
    shown = [(run, s) for run, spectra in series if (s := _at(spectra, at)) is not None]
    absent = [run.label for run, spectra in series if _at(spectra, at) is None]
    page.chart(
        figures.spectra.singular_values(shown, styles=styles),
        figures.spectra.singular_values_table(shown),
        name=f"singular-values-{at}",
    )
    if absent:
        st.caption(f"Nothing was measured at this step for {text.md(', '.join(absent))}.")
    for run, spectra in series:
        short = [s for s in spectra if s.sigma_min is None]
        if short:
            st.caption(
                f"{text.md(run.label)}: {text.count(short[0].n)} samples for "
                f"{text.count(short[0].n_features)} features, so σ\\_min is 0 by rank and says "
                "nothing."
            )
    left, right = st.columns(2)
    with left:
        page.chart(
            figures.spectra.over_steps(series, styles=styles),
            figures.spectra.table(series),
            name="sigma-over-steps",
        )
    with right:
        page.chart(
            figures.spectra.over_steps(series, quantity="effective_rank", styles=styles),
            figures.spectra.table(series),
            name="rank-over-steps",
        )
    st.header("Finished models", anchor=False)
    finals = [(run, [s for s in spectra if s.final]) for run, spectra in series]
    page.table(figures.spectra.table(finals), caption="Spectra of the finished models")


def _at(spectra: list[Spectrum], at: str) -> Spectrum | None:
    if at == "final":
        return next((s for s in spectra if s.final), spectra[-1] if spectra else None)
    return next((s for s in spectra if not s.final and str(s.step) == at), None)


main()
