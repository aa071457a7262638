"""Compare: the answer first, then the leaderboard, what differs between the runs, the numbers."""

from collections.abc import Mapping, Sequence

import streamlit as st

from calift_core.schema.wire.results import Comparison
from frontend import api, figures, page, pickers, state, tables, text
from frontend.panels import reporting
from frontend.panels.compare import answers as panel
from frontend.panels.compare import ledger, paired
from frontend.panels.evaluate import form, jobs
from frontend.tables import Column, Table, comparisons

MOST = 8
#: Logits of a data set that is asked for after the others.
_LARGE = 5_000_000


def _headline(comparison: Comparison, labels: dict[str, str]) -> Table:
    """The headline per run, the baseline marked."""
    rows = [
        {
            **(column.run.summary.model_dump() if column.run.summary is not None else {}),
            "name": labels[column.run.id],
            "method": column.run.method,
            "baseline": "baseline" if column.run.id == comparison.baseline else "",
        }
        for column in comparison.runs
    ]
    columns = [
        Column("name", "Run", "open"),
        Column("method", "Method"),
        Column("baseline", "Role"),
    ]
    return Table([*columns, *tables.headline(floors=True)], rows)


def main() -> None:
    page.head(
        "Compare",
        "Runs on the same samples, in pairs: a difference counts when its interval excludes zero.",
    )
    chosen = pickers.pick_runs("ids", most=MOST, least=2)
    labels = {run.id: run.label for run in pickers.as_runs(chosen)}
    if len(chosen) < 2:
        page.empty("One run is chosen", "Choose at least two runs above to set them side by side.")
        return
    zero_shot = next((r.id for r in chosen.values() if r.method == "zero_shot"), None)
    baseline = state.choice(
        st.selectbox,
        "Baseline",
        name="baseline",
        options=list(chosen),
        default=zero_shot or next(iter(chosen)),
        format_func=labels.__getitem__,
        always=True,
        help="Every difference below is a run minus this one",
    )
    revisions = [run.revision for run in chosen.values()]

    def ask(names: Sequence[str] | None) -> Comparison:
        return api.fetch(
            "compare the runs",
            lambda: _named(
                api.compared(
                    tuple(chosen),
                    baseline,
                    tuple(revisions),
                    None if names is None else tuple(names),
                ),
                labels,
            ),
            key=f"compare-{sorted(chosen)}-{baseline}-{names}",
        )

    bare = ask(None)
    for warning in bare.warnings:
        st.warning(text.md_prose(warning), icon=":material/warning:")
    # Places in the order of the page; what is at hand fills them before what takes time.
    answer, forgotten, rest = (st.container() for _ in range(3))
    with rest:
        _tables(bare, labels, baseline)
        below = st.container()
    with answer:
        comparison = panel.gather(bare, _datasets(bare), ask)
        boards = api.fetch(
            "rank the runs",
            lambda: api.leaders(tuple(chosen), tuple(revisions)),
            key=f"leaders-{sorted(chosen)}",
        ).boards
        panel.draw(comparison, boards, labels)
        panel.leaderboard(boards, labels)
    with forgotten:
        ledger.draw(
            baseline, list(chosen), labels, {run.id: run.revision for run in chosen.values()}
        )
    with below:
        for warning in comparison.warnings[len(bare.warnings) :]:
            st.warning(text.md_prose(warning), icon=":material/warning:")
        paired.draw(comparison, state.styles(list(chosen)))


def _named(comparison: Comparison, labels: Mapping[str, str]) -> Comparison:
    """With the names that are shown, which tell equal names apart as the stored ones do not."""
    columns = [
        c.model_copy(update={"run": c.run.model_copy(update={"name": labels.get(c.run.id, "?")})})
        for c in comparison.runs
    ]
    return comparison.model_copy(update={"runs": columns})


def _datasets(comparison: Comparison) -> list[str]:
    """What the baseline and another run were tested on: ID data, shifts, corruptions.

    Sets whose logits take seconds to be read come last: the first answer does not wait for them.
    """
    base = next(c for c in comparison.runs if c.run.id == comparison.baseline)
    others = {e.dataset for c in comparison.runs if c is not base for e in c.evaluations}
    ordered = sorted(
        base.evaluations, key=lambda e: (e.n * e.n_classes > _LARGE, text.evaluation_order(e))
    )
    return list(dict.fromkeys(e.dataset for e in ordered if e.dataset in others))


def _tables(comparison: Comparison, labels: dict[str, str], baseline: str) -> None:
    """What differs between the runs, and their headline numbers."""
    _settings(comparison)
    st.header("Headline", anchor=False)
    with st.container(horizontal=True, key="compare-actions"):
        form.button([c.run for c in comparison.runs])
        if all(c.run.phase == "SUCCEEDED" for c in comparison.runs):
            reporting.button([c.run for c in comparison.runs], baseline=baseline)
    jobs.under_way([c.run.id for c in comparison.runs])
    page.rows(
        _headline(comparison, labels),
        key=f"headline-{baseline}",
        caption="Headline numbers of the compared runs",
        links=[f"/run?id={c.run.id}" for c in comparison.runs],
    )
    _accuracy_against_calibration(comparison, state.styles([c.run.id for c in comparison.runs]))


def _settings(comparison: Comparison) -> None:
    st.header("What differs", anchor=False)
    if comparison.parameters:
        page.table(
            comparisons.parameters(comparison), caption="Settings that differ between the runs"
        )
    elif all(c.run.method == "imported" for c in comparison.runs):
        st.caption("Predictions were imported: how they were made is not known here.")
    else:
        st.caption("The runs have the same settings.")


def _accuracy_against_calibration(
    comparison: Comparison, styles: Mapping[str, figures.style.RunStyle]
) -> None:
    """A mark for each run on its ID data and one on shifted data."""
    st.header("Accuracy against calibration", anchor=False)
    points = [
        (tables.Run(c.run.id, c.run.name), c.run.summary)
        for c in comparison.runs
        if c.run.summary is not None
    ]
    page.chart(
        figures.compare.scatter(points, styles=styles, title=""),
        figures.compare.scatter_table(points),
        name="accuracy-calibration",
    )


main()
