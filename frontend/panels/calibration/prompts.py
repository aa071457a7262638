"""What other prompts would have said: prompts told from training, without the model."""

from collections.abc import Mapping

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.queries import ReliabilityQuery
from calift_core.schema.wire.results import Evaluation, PromptEffects
from frontend import api, figures, page, state, text
from frontend.panels.calibration.controls import controls
from frontend.tables import Run


def draw(found: Mapping[str, Evaluation], labels: Mapping[str, str]) -> None:
    """Show every kept set of prompts for each run; evaluations and labels are by run id."""
    query = controls()
    sets: list[tuple[Run, PromptEffects]] = []
    for run_id, evaluation in found.items():
        with st.spinner(f"Reading {labels[run_id]} under other prompts"):
            effects = api.fetched(
                f"read {labels[run_id]} on {evaluation.dataset} under other prompts",
                Client.prompts,
                evaluation.id,
                evaluation.predictions_sha256,
                query,
            )
        if effects.items:
            sets.append((Run(run_id, labels[run_id]), effects))
        else:
            st.info(
                text.md_prose(effects.why or f"{labels[run_id]} has none."), icon=":material/info:"
            )
    if not sets:
        return
    names = list(dict.fromkeys(e.name for _, effects in sets for e in effects.items[1:]))
    if not names:
        st.caption("These runs keep their own prompts alone.")
        return
    wanted = state.choice(st.selectbox, "Prompts", name="prompts", options=names)
    for run, effects in sets:
        st.markdown(f"**{text.md(run.label)}.** {text.md_prose(sentence(effects, wanted))}")
    for run, effects in sets:
        if wanted not in [e.name for e in effects.items]:
            continue
        evaluation, look = found[run.id], state.styles(list(found))[run.id]
        for place, prompts in zip(st.columns(2), ("own", wanted), strict=True):
            diagram = api.reliability(evaluation, ReliabilityQuery.of(query, {"prompts": prompts}))
            title = f"{run.label}, {_called(prompts)}"
            with place:
                page.chart(
                    figures.reliability.diagram(
                        diagram, title=title, colour=look.colour, symbol=look.symbol
                    ),
                    figures.reliability.bins_table([diagram]),
                    name=f"prompts-{run.id}-{'own' if prompts == 'own' else 'other'}",
                    data=diagram.model_dump_json,
                )
    page.table(figures.prompts.table(sets), caption="Other prompts")
    st.caption(
        "The classifier is made anew from the text tower's embeddings of the prompts and put on "
        "the stored image features, so a difference here is the prompts' alone. Changed: "
        "predictions that are another class than under the run's own prompts."
    )


def _called(prompts: str) -> str:
    return "its own prompts" if prompts == "own" else f"prompts “{prompts}”"


def sentence(effects: PromptEffects, wanted: str) -> str:
    """What one set of prompts does to a model, in words."""
    by_name = {e.name: e for e in effects.items}
    own, other = by_name["own"], by_name.get(wanted)
    if other is None:
        return f"It does not keep the prompts “{wanted}”."
    return (
        f"Under “{wanted}” accuracy moves by {text.points(other.accuracy - own.accuracy)} to "
        f"{text.percent(other.accuracy)} and ECE by {text.points(other.ece - own.ece)} to "
        f"{text.ece_with_floor(other.ece, other.null_mean)}; {text.percent(other.changed)} of the "
        "predictions change."
    )
