"""Curves: what several runs recorded while they trained, on the same axes."""

from collections.abc import Mapping, Sequence

import streamlit as st

from calift_core.schema.wire.runs import Metrics, RunSummary
from frontend import api, figures, page, pickers, state, text
from frontend.figures.curves import WATCHED
from frontend.tables import Run

MAX_POINTS = 800
#: Shown first, where a run has recorded it.
FIRST = ("loss", "contrastive", "val_accuracy", "val_ece", "sigma_min")


def _columns(runs: Sequence[tuple[Run, Metrics]]) -> list[str]:
    """A chooser of series; those of shifts come last and must be asked for."""
    names = list(dict.fromkeys(s.name for _, m in runs for s in m.series))
    plain = [n for n in names if not n.startswith(WATCHED)]
    watched = [n for n in names if n.startswith(WATCHED)]
    offered = [*(n for n in FIRST if n in plain), *(n for n in plain if n not in FIRST)]
    default = [n for n in FIRST if n in offered] or offered[:4]
    chosen = state.multi_choice(
        st.multiselect,
        "Series",
        name="series",
        options={n: figures.curves.title_of(n) for n in offered},
        default=default,
    )
    if not watched:
        return chosen
    shown = state.toggle(
        st,
        "Shifts over training (diagnostic)",
        name="shifts",
        help="What runs with train.watch_shifts saw of shifted data on the way. Whoever chooses a "
        "step, a rate or a method by it has no honest number left.",
    )
    if shown:
        st.warning(
            "These curves are of shifted test data. They are for understanding what happened. "
            "calift chooses nothing on them, and no choice should be made on them.",
            icon=":material/visibility:",
        )
        chosen = [*chosen, *watched]
    return chosen


def _axes() -> dict[str, float | bool]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        smoothing = state.number(
            st.slider,
            "Smoothing",
            name="smooth",
            default=0.0,
            min_value=0.0,
            max_value=0.99,
            step=0.01,
            width=260,
            help="Weight of what came before in a moving average; 0 shows what was recorded",
        )
        logs = {
            axis: state.toggle(st, f"Logarithmic {what}", name=axis)
            for axis, what in (("log_x", "steps"), ("log_y", "values"))
        }
    return {"smoothing": smoothing, **logs}


def _recorded(chosen: Mapping[str, RunSummary]) -> list[tuple[Run, Metrics]]:
    return [
        (
            run,
            api.ask(
                f"load the curves of {run.label}",
                api.curves,
                run.id,
                chosen[run.id].revision,
                MAX_POINTS,
            ),
        )
        for run in pickers.as_runs(chosen)
    ]


def main() -> None:
    page.head(
        "Curves", "What runs recorded while they trained, on the same axes; each in its colour."
    )
    chosen = pickers.pick_runs("ids")
    own = _recorded(chosen)
    runs = [(run, m) for run, m in own if m.series]
    without = [run.label for run, m in own if not m.series]
    if not runs:
        page.empty(
            "No curve is recorded",
            "Zero-shot models are not trained, and imported predictions bring no curves.",
        )
        return
    series = _columns(runs)
    axes = _axes()
    styles = state.styles([run.id for run, _ in own])
    columns = st.columns(2)
    for index, name in enumerate(series):
        with columns[index % 2]:
            page.chart(
                figures.curves.overlay(runs, name, styles=styles, **axes),
                figures.curves.overlay_table(runs, name),
                name=f"curves-{name.replace('/', '-')}",
            )
    if without:
        st.caption(f"Without curves: {text.md(', '.join(without))}.")


main()
