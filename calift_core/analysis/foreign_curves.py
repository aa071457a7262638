"""Curves as a wide CSV file, as W&B exports them: a column of steps, a column for each series.

A column is named `RUN - SERIES`, or `SERIES` where the file is of one run. Columns that end in
`__MIN` or `__MAX` are left out, and cells that are empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping

from calift_core.errors import DataError
from calift_core.schema.wire.runs import Metrics, MetricSeries

#: What a column of steps is called, in lower case.
_STEPS = ("step", "_step", "global_step", "trainer/global_step", "epoch")
_BETWEEN = " - "
#: Columns of a file that somebody opens on a page.
_MOST_COLUMNS = 2_000


def metrics_of(series: Mapping[str, Mapping[int, float]]) -> Metrics:
    """Curves of points by name and step, in the order of their steps."""
    made = [
        MetricSeries(name=name, steps=sorted(points), values=[points[s] for s in sorted(points)])
        for name, points in series.items()
        if points
    ]
    return Metrics(series=made, last_step=max((s.steps[-1] for s in made), default=-1))


def to_csv(runs: Mapping[str, Metrics]) -> str:
    """Curves of runs by name, a line for each step; numbers as they are."""
    columns = [(run, series) for run, found in runs.items() for series in found.series]
    cells: dict[int, dict[int, float]] = {}
    for place, (_, series) in enumerate(columns):
        for step, value in zip(series.steps, series.values, strict=True):
            cells.setdefault(step, {})[place] = value
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Step", *(f"{run}{_BETWEEN}{series.name}" for run, series in columns)])
    for step in sorted(cells):
        writer.writerow([step, *(cells[step].get(place, "") for place in range(len(columns)))])
    return out.getvalue()


def from_csv(content: str, *, name: str) -> dict[str, Metrics]:
    """Runs by name, with their curves.

    Args:
        content: of the file.
        name: of the run, where the columns name none.

    Raises:
        DataError: the file has no column of steps, no curve, or a cell that is no number.
    """
    rows = csv.reader(io.StringIO(content.removeprefix("\ufeff")))
    try:
        header = next(rows)
    except (StopIteration, csv.Error):
        raise DataError("the CSV file must have a line of names, got an empty file") from None
    if len(header) > _MOST_COLUMNS:
        raise DataError(
            f"the CSV file must have at most {_MOST_COLUMNS} columns, got {len(header)}"
        )
    lower = [column.strip().lower() for column in header]
    at = next((lower.index(known) for known in _STEPS if known in lower), None)
    if at is None:
        raise DataError(
            f"the CSV file must have a column Step, got {', '.join(header[:8]) or 'none'}"
        )
    columns: dict[int, tuple[str, str]] = {}
    for place, column in enumerate(header):
        if place != at and not column.endswith(("__MIN", "__MAX")):
            run, between, series = column.partition(_BETWEEN)
            columns[place] = (run, series) if between else (name, column)
    points: dict[tuple[str, str], dict[int, float]] = {key: {} for key in columns.values()}
    for line, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        step = int(_number(row[at] if at < len(row) else "", line, header[at]))
        for place, key in columns.items():
            if place < len(row) and row[place].strip():
                points[key][step] = _number(row[place], line, header[place])
    found: dict[str, dict[str, dict[int, float]]] = {}
    for (run, series), some in points.items():
        if some:
            found.setdefault(run, {})[series] = some
    if not found:
        raise DataError("the CSV file must have a curve beside its steps, got none")
    return {run: metrics_of(series) for run, series in found.items()}


def _number(cell: str, line: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"line {line}, column {column!r}: must be a finite number, got {cell!r}")
    return value
