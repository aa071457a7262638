"""Each run minus the baseline by a metric, data set by data set."""

from collections.abc import Mapping

import streamlit as st

from calift_core.schema.wire.results import Comparison
from frontend import figures, page, state, text
from frontend.tables import Column, Table, comparisons


@st.fragment
def draw(comparison: Comparison, styles: Mapping[str, figures.style.RunStyle]) -> None:
    """Each run minus the baseline by a metric, on the data sets that a visitor chooses."""
    st.header("Paired differences", anchor=False)
    offered = list(dict.fromkeys(d.metric for c in comparison.runs for d in c.differences))
    if not offered:
        page.empty(
            "Nothing to pair",
            "The runs share no data set with stored predictions, so no paired test can be made.",
        )
        return
    metric = state.choice(
        st.segmented_control,
        "Metric",
        name="metric",
        options=offered,
        format_func=lambda m: text.METRICS[m].title if m in text.METRICS else m,
        required=True,
    )
    groups = {"main": ("id", "shift"), "corruption": ("id", "corruption")}
    roles: tuple[str, ...] = ("id", "shift", "corruption")
    if {d.role for c in comparison.runs for d in c.differences} >= {"shift", "corruption"}:
        roles = groups[
            state.choice(
                st.segmented_control,
                "Data",
                name="sets",
                options=list(groups),
                format_func={"main": "ID and shifts", "corruption": "ID and corruptions"}.get,
                required=True,
            )
        ]
    page.chart(
        figures.compare.differences(comparison, metric=metric, roles=roles, styles=styles),
        comparisons.differences(comparison, metric, roles),
        name=f"paired-{metric}",
        key="paired",
        data=comparison.model_dump_json,
    )
    if metric == "ece":
        st.caption(
            "Noise adds to an ECE, most where a model is calibrated, so the difference of two ECEs "
            "is shown and not judged. The interval is of the L2 error with the noise taken out."
        )
    page.table(_paired(comparison, metric, roles), caption="Paired differences to the baseline")


def _paired(comparison: Comparison, metric: str, roles: tuple[str, ...]) -> Table:
    """Differences with intervals, and in words whether they can be told from noise."""
    base = comparisons.differences(comparison, metric, roles)
    fraction = metric in text.METRICS and text.METRICS[metric].fraction
    show = text.percent if fraction else text.number
    signed = text.points if fraction else text.number
    better = text.METRICS[metric].better if metric in text.METRICS else "high"
    l2 = any(column.name == "l2" for column in base.columns)
    rows = []
    for row in base.rows:
        decided = row["l2"] if l2 else row["difference"]
        good = (decided > 0) == (better == "high")
        word = ("better" if good else "worse") if row["distinguishable"] else "not distinguishable"
        tone = ("green" if good else "red") if row["distinguishable"] else "gray"
        mark = ("▲" if decided > 0 else "▼") if row["distinguishable"] else "≈"
        rows.append(
            {
                "dataset": str(row["dataset"]).replace("_", " "),
                "run": row["run"],
                "baseline": show(row["baseline"]),
                "value": show(row["value"]),
                "difference": signed(row["difference"]),
                "l2": signed(row["l2"]) if l2 else None,
                "interval": f"{signed(row['low'])} to {signed(row['high'])}",
                "verdict": page.mark(text.Mark(word, mark, tone)),
                "n": row["n"],
            }
        )
    columns = [
        Column("dataset", "Data"),
        Column("run", "Run"),
        Column("baseline", "Baseline", "text"),
        Column("value", "Run's value", "text"),
        Column("difference", "Difference", "text"),
        *([Column("l2", "L2 difference", "text")] if l2 else []),
        Column("interval", "95 % interval of it" if l2 else "95 % interval", "text"),
        Column("verdict", "Verdict"),
        Column("n", "n", "count"),
    ]
    return Table(columns, rows)
