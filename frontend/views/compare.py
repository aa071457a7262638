"""Compare: what differs between runs, and which differences are more than noise."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from calift_core.schema.wire.results import Comparison
from frontend import api, figures, page, pickers, state, tables, text
from frontend.panels.evaluate import form, jobs
from frontend.tables import Column, Table

MOST = 8


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


def _paired(comparison: Comparison, metric: str, roles: tuple[str, ...]) -> Table:
    """Differences with intervals, and in words whether they can be told from noise."""
    base = figures.compare.differences_table(comparison, metric, roles)
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


def main() -> None:
    """Draw the page."""
    page.head(
        "Compare",
        "Runs on the same samples, in pairs: a difference counts when its interval excludes zero.",
    )
    chosen = pickers.pick_runs("ids", most=MOST)
    runs = pickers.as_runs(chosen)
    labels = {run.id: run.label for run in runs}
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
    comparison = api.fetch(
        "compare the runs",
        lambda: api.client().compare(list(chosen), baseline=baseline),
        key=f"compare-{sorted(chosen)}-{baseline}",
    )
    # The names shown tell equal names apart, which the stored ones do not.
    comparison = comparison.model_copy(
        update={
            "runs": [
                c.model_copy(
                    update={"run": c.run.model_copy(update={"name": labels.get(c.run.id, "?")})}
                )
                for c in comparison.runs
            ]
        }
    )
    form.button([c.run for c in comparison.runs])
    jobs.under_way(list(chosen))
    for warning in comparison.warnings:
        st.warning(text.md_prose(warning), icon=":material/warning:")
    opened, _ = page.grid(
        _headline(comparison, labels),
        key=f"headline-{baseline}",
        caption="Headline numbers of the compared runs",
    )
    if opened is not None:
        st.switch_page("views/run.py", query_params={"id": comparison.runs[opened].run.id})

    styles = state.styles(list(chosen))
    _settings(comparison)
    _accuracy_against_calibration(comparison, styles)
    _paired_differences(comparison, styles)


def _settings(comparison: Comparison) -> None:
    """Which settings differ between the runs."""
    st.subheader("What differs", anchor=False)
    if comparison.parameters:
        page.table(
            figures.compare.parameters_table(comparison),
            caption="Settings that differ between the runs",
        )
    else:
        st.caption("The runs have the same settings.")


def _accuracy_against_calibration(
    comparison: Comparison, styles: Mapping[str, figures.style.RunStyle]
) -> None:
    """A mark for each run on its ID data and one on shifted data."""
    st.subheader("Accuracy against calibration", anchor=False)
    points = [
        (figures.style.Run(c.run.id, c.run.name), c.run.summary)
        for c in comparison.runs
        if c.run.summary is not None
    ]
    page.chart(
        figures.compare.scatter(points, styles=styles, title=""),
        figures.compare.scatter_table(points),
        name="accuracy-calibration",
    )


def _paired_differences(
    comparison: Comparison, styles: Mapping[str, figures.style.RunStyle]
) -> None:
    """Each run minus the baseline by a metric, on the data sets that a visitor chooses."""
    st.subheader("Paired differences", anchor=False)
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
        figures.compare.differences_table(comparison, metric, roles),
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
    shown = figures.compare.confidence_sets_table(comparison, metric)
    if not shown.rows:
        return
    title = text.METRICS[metric].title if metric in text.METRICS else metric
    st.subheader(f"Which run is best by {title}?", anchor=False)
    st.caption(
        "Any run of the set may be the best; the others are ruled out. The set holds the best run "
        "in 95 of 100 repeats, however many runs are compared, so it can keep runs that a pair "
        "above tells apart (a model confidence set)."
    )
    page.table(shown, caption=f"Runs that may be the best by {title}")


main()
