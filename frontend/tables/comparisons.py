"""Runs against a baseline as tables, for pages and commands alike."""

from collections.abc import Sequence

from calift_core.calibration.confidence_sets import on_border
from calift_core.schema.wire.results import Comparison, ConfidenceSet
from frontend import text
from frontend.tables import Column, Table


def differences(
    comparison: Comparison,
    metric: str | None = None,
    roles: Sequence[str] = ("id", "shift", "corruption"),
) -> Table:
    """One row per run, data set and metric: run minus baseline on the same samples.

    An ECE has a column more: the difference of the squared errors, which is what is decided on.
    """
    chosen = [
        (column.run.name, d)
        for column in comparison.runs
        for d in column.differences
        if (metric is None or d.metric == metric) and d.role in roles
    ]
    rows = []
    for run, d in chosen:
        low, high = (d.squared.interval if d.squared else d.interval) or (None, None)
        rows.append(
            {
                "run": run,
                "dataset": d.dataset,
                "metric": text.METRICS[d.metric].title if d.metric in text.METRICS else d.metric,
                "baseline": d.baseline,
                "value": d.value,
                "difference": d.difference,
                "squared": d.squared.difference if d.squared else None,
                "low": low,
                "high": high,
                "distinguishable": d.distinguishable,
                "n": d.n,
            }
        )
    fraction = metric in text.METRICS and text.METRICS[metric].fraction
    plain, signed = ("percent", "points") if fraction else ("number", "number")
    squared = any(d.squared for _, d in chosen)
    ends = "square_points" if squared and metric is not None else signed
    return Table(
        [
            Column("run", "Run"),
            Column("dataset", "Data"),
            Column("baseline", "Baseline", plain),
            Column("value", "Run's value", plain),
            Column("difference", "Difference", signed),
            *([Column("squared", "Squared L2, difference", "square_points")] if squared else []),
            Column("low", "95 % low", ends),
            Column("high", "95 % high", ends),
            Column("distinguishable", "Distinguishable", "yes"),
            Column("n", "n", "count"),
        ],
        rows,
    )


def parameters(comparison: Comparison) -> Table:
    """One row per setting that differs, one column per run."""
    names = [c.run.name for c in comparison.runs]
    rows = [
        {
            "parameter": pointer.strip("/").replace("/", " › "),
            **{str(i): None if v is None else text.plain(v) for i, v in enumerate(values)},
        }
        for pointer, values in comparison.parameters.items()
    ]
    return Table(
        [Column("parameter", "Setting"), *(Column(str(i), n) for i, n in enumerate(names))], rows
    )


def confidence_sets(comparison: Comparison, metric: str) -> Table:
    """One row per data set: the runs that may be the best, and those ruled out with how surely."""
    names = {c.run.id: c.run.name for c in comparison.runs}

    def member(run: str, found: ConfidenceSet) -> str:
        near = on_border(found.p_values[run], found.n_resamples)
        return names[run] + (f" ({p(run, found)})" if near else "")

    def p(run: str, found: ConfidenceSet) -> str:
        return text.p_value(found.p_values[run], found.n_resamples)

    rows = [
        {
            "dataset": found.dataset,
            "members": ", ".join(member(run, found) for run in found.members),
            "excluded": ", ".join(f"{names[run]} ({p(run, found)})" for run in found.excluded),
            "n": found.n,
        }
        for found in comparison.confidence_sets
        if found.metric == metric
    ]
    return Table(
        [
            Column("dataset", "Data"),
            Column("members", "Statistically tied for best"),
            Column("excluded", "Ruled out"),
            Column("n", "n", "count"),
        ],
        rows,
    )
