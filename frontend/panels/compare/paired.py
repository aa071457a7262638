"""Each run minus the baseline by a metric, and which runs may be the best on each data set."""

from collections.abc import Mapping

import streamlit as st

from calift_core.schema.wire.results import Comparison
from frontend import figures, page, state, text
from frontend.tables import Column, Table, comparisons


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
        data=comparison.model_dump_json,
    )
    if metric == "ece":
        st.caption(
            "Noise adds to an ECE, most where a model is calibrated, so the difference of two ECEs "
            "is shown and not judged. What decides is the squared L2 error with the noise taken "
            "out, in squared percentage points (pp²)."
        )
    page.table(_paired(comparison, metric, roles), caption="Paired differences to the baseline")
    _show_confidence_sets(comparison, metric)


def _show_confidence_sets(comparison: Comparison, metric: str) -> None:
    """Which runs may be the best, all of them at once."""
    shown = comparisons.confidence_sets(comparison, metric)
    if not shown.rows:
        return
    title = text.METRICS[metric].title if metric in text.METRICS else metric
    st.header(f"Which run is best by {title}?", anchor=False)
    st.caption(
        "Any run of the set may be the best; the others are ruled out. The set holds the best run "
        "in 95 of 100 repeats, however many runs are compared, so it can keep runs that a pair "
        "above tells apart (a model confidence set)."
    )
    page.table(shown, caption=f"Runs that may be the best by {title}")


def _paired(comparison: Comparison, metric: str, roles: tuple[str, ...]) -> Table:
    """Differences with intervals, and in words whether they can be told from noise."""
    base = comparisons.differences(comparison, metric, roles)
    fraction = metric in text.METRICS and text.METRICS[metric].fraction
    show = text.percent if fraction else text.number
    signed = text.points if fraction else text.number
    better = text.METRICS[metric].better if metric in text.METRICS else "high"
    squared = any(column.name == "squared" for column in base.columns)
    ends = text.square_points if squared else signed
    rows = []
    for row in base.rows:
        decided = row["squared"] if squared else row["difference"]
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
                "squared": ends(row["squared"]) if squared else None,
                "interval": f"{ends(row['low'])} to {ends(row['high'])}",
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
        *([Column("squared", "Squared L2, difference", "text")] if squared else []),
        Column("interval", "95 % interval of it" if squared else "95 % interval", "text"),
        Column("verdict", "Verdict"),
        Column("n", "n", "count"),
    ]
    return Table(columns, rows)
