"""Runs against a baseline as tables, for pages and commands alike."""

from collections.abc import Sequence

from calift_core.calibration.squared import rms_difference
from calift_core.schema.wire.results import Comparison, PairedDifference
from frontend import text
from frontend.tables import Column, Table


def decided(found: PairedDifference) -> tuple[float, float, float]:
    """The difference that is judged, and its 95 % ends: of an ECE that of the L2 errors."""
    if (of := found.squared) is not None:
        return rms_difference(of.value, of.baseline, of.interval)
    low, high = found.interval or (found.difference, found.difference)
    return found.difference, low, high


def differences(
    comparison: Comparison,
    metric: str | None = None,
    roles: Sequence[str] = ("id", "shift", "corruption"),
) -> Table:
    """One row per run, data set and metric: run minus baseline on the same samples.

    An ECE has a column more: the difference of the L2 errors, which the interval is of.
    """
    chosen = [
        (column.run.name, d)
        for column in comparison.runs
        for d in column.differences
        if (metric is None or d.metric == metric) and d.role in roles
    ]
    rows = []
    for run, d in chosen:
        l2, low, high = decided(d)
        rows.append(
            {
                **dict(d),
                "run": run,
                "metric": text.METRICS[d.metric].title if d.metric in text.METRICS else d.metric,
                "l2": l2 if d.squared else None,
                "low": low,
                "high": high,
            }
        )
    fraction = metric in text.METRICS and text.METRICS[metric].fraction
    plain, signed = ("percent", "points") if fraction else ("number", "number")
    return Table(
        [
            Column("run", "Run"),
            Column("dataset", "Data"),
            Column("baseline", "Baseline", plain),
            Column("value", "Run's value", plain),
            Column("difference", "Difference", signed),
            *([Column("l2", "L2 difference", signed)] if any(d.squared for _, d in chosen) else []),
            Column("low", "95 % low", signed),
            Column("high", "95 % high", signed),
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
