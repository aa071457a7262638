"""The table twin of each chart: rows of plain values, their columns; HTML, CSV and JSON of them.

Rows hold fractions under the names that the API uses, so an export can be computed with; percent
is made only by `to_html`, by a column's kind. Every value is escaped unless it is `Markup`, which
only code of this package makes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from calift_core.schema.report import EvaluationReport, Summary
from calift_core.schema.wire import (
    CalibratorEffect,
    Comparison,
    Frontier,
    MeasureSet,
    Metrics,
    Reliability,
    SlicePage,
    Spectrum,
    TransferMatrix,
)
from frontend import text
from frontend.charts import (
    Run,
    RunEvaluations,
    frontier_marks,
    shift_points,
    transfer_names,
)

Row = Mapping[str, Any]


class Markup(str):
    """HTML that is safe because this package made it from escaped parts."""

    __slots__ = ()


class Column(NamedTuple):
    """One column: the rows' key, its heading, and how its values read.

    Kinds: `text`, `percent`, `points`, `square_points`, `number`, `count`, `yes`.
    """

    name: str
    label: str
    kind: str = "text"


_SAYS: dict[str, Callable[[Any], str]] = {
    "text": text.plain,
    "percent": text.percent,
    "points": text.points,
    "square_points": text.square_points,
    "number": text.number,
    "count": text.count,
    "yes": lambda value: "yes" if value else "no",
}


class Table(NamedTuple):
    """Rows with the columns that are shown, in order. An export holds the same columns."""

    columns: Sequence[Column]
    rows: Sequence[Row]


def to_html(
    table: Table, *, caption: str, limit: int = 500, classes: str = "", stick: bool = True
) -> Markup:
    """A table that screen readers can walk; it scrolls inside itself where the page is narrow.

    Args:
        table: what to show.
        caption: names the table for those who do not see the chart beside it.
        limit: rows shown; a last line counts the rest.
        classes: more CSS classes.
        stick: keep the first column in sight while the rest scrolls.
    """
    numeric = {"percent", "points", "square_points", "number", "count"}
    head = "".join(
        f'<th scope="col" class="{"num" if c.kind in numeric else ""}">{text.esc(c.label)}</th>'
        for c in table.columns
    )
    body = []
    for row in table.rows[:limit]:
        cells = []
        for index, column in enumerate(table.columns):
            value = row.get(column.name)
            if isinstance(value, Markup):
                words: str = value
            elif value is None or value == "":
                words = text.DASH
            else:
                words = text.esc(_SAYS[column.kind](value))
            tag = 'th scope="row"' if index == 0 else "td"
            kind = "num" if column.kind in numeric else "txt"
            cells.append(f'<{tag} class="{kind}">{words}</{tag[:2]}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    rest = len(table.rows) - limit
    if rest > 0:
        body.append(
            f'<tr><td colspan="{len(table.columns)}" class="rest">and {rest:,} more rows in the '
            "CSV export</td></tr>"
        )
    return Markup(
        f'<div class="calift-table {"stick" if stick else ""} {classes}" tabindex="0" role="region"'
        f' aria-label="{text.esc(caption)}"><table><caption>{text.esc(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def to_csv(table: Table) -> str:
    """Comma-separated values, names in the first line, fractions as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([_cell(row.get(column.name)) for column in table.columns])
    return out.getvalue()


def to_json(table: Table) -> str:
    """A JSON list with one object a row."""
    rows = [{c.name: row.get(c.name) for c in table.columns} for row in table.rows]
    return json.dumps(rows, ensure_ascii=False, indent=1)


def _cell(value: Any) -> Any:
    # A cell that a spreadsheet would run as a formula is kept from it; numbers stay numbers.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value


def reliability(diagrams: Sequence[Reliability]) -> Table:
    """One row per bin that holds samples."""
    rows = [
        {"run": d.run_name, "dataset": d.dataset, **b.model_dump()}
        for d in diagrams
        for b in d.bins
    ]
    columns = [
        Column("lower", "From", "number"),
        Column("upper", "To", "number"),
        Column("count", "Samples", "count"),
        Column("mean_confidence", "Confidence", "percent"),
        Column("accuracy", "Accuracy", "percent"),
        Column("interval_low", "95 % low", "percent"),
        Column("interval_high", "95 % high", "percent"),
        Column("band_low", "Calibrated low", "percent"),
        Column("band_high", "Calibrated high", "percent"),
    ]
    if len({d.dataset for d in diagrams}) > 1:
        columns.insert(0, Column("dataset", "Data"))
    if len({d.run_id for d in diagrams}) > 1:
        columns.insert(0, Column("run", "Run"))
    return Table(columns, rows)


def reliability_summary(diagrams: Sequence[Reliability]) -> Table:
    """One row per diagram: the numbers beside the picture."""
    rows = [
        {
            "run": d.run_name,
            "n": d.n,
            "accuracy": d.accuracy,
            "mean_confidence": d.mean_confidence,
            "ece": d.ece,
            "null_mean": d.null_mean,
            "null_q95": d.null_q95,
            "interval_low": d.interval[0],
            "interval_high": d.interval[1],
            "debiased": d.debiased,
            "nll": d.nll,
            "brier": d.brier,
            "dataset": d.dataset,
            "n_bins": d.n_bins,
            "scheme": d.scheme,
            "norm": d.norm,
            "temperature": d.temperature,
        }
        for d in diagrams
    ]
    error = "MCE" if diagrams and diagrams[0].norm == "max" else "ECE"
    return Table(
        [
            Column("run", "Run"),
            Column("n", "n", "count"),
            Column("accuracy", "Accuracy", "percent"),
            Column("mean_confidence", "Confidence", "percent"),
            Column("ece", error, "percent"),
            Column("null_mean", "Floor", "percent"),
            Column("null_q95", "Floor, 95 %", "percent"),
            Column("interval_low", "95 % low", "percent"),
            Column("interval_high", "95 % high", "percent"),
            Column("debiased", "Debiased", "percent"),
            Column("nll", "NLL", "number"),
            Column("brier", "Brier", "number"),
        ],
        rows,
    )


def evaluations(found: Sequence[EvaluationReport]) -> Table:
    """One row per data set with the numbers that a run is judged by."""
    order = {"id": 0, "shift": 1, "corruption": 2}
    rows = [
        {
            "title": text.evaluation_title(e),
            "dataset": e.dataset,
            "role": text.ROLES[e.role],
            "n": e.n,
            "accuracy": e.accuracy,
            "mean_confidence": e.mean_confidence,
            "ece": e.ece.value,
            "ece_null_mean": e.ece.null_mean,
            "ece_null_q95": e.ece.null_q95,
            "ece_low": e.ece.interval[0],
            "ece_high": e.ece.interval[1],
            "ece_debiased": e.ece.debiased,
            "smooth_ece": e.smooth_ece,
            "ece_batch_averaged": e.ece_batch_averaged,
            "nll": e.nll,
            "brier": e.brier,
            "aurc": e.aurc,
        }
        for e in sorted(
            found, key=lambda e: (order[e.role], e.corruption or e.dataset, e.severity or 0)
        )
    ]
    return Table(
        [
            Column("title", "Data"),
            Column("role", "Role"),
            Column("n", "n", "count"),
            Column("accuracy", "Accuracy", "percent"),
            Column("mean_confidence", "Confidence", "percent"),
            Column("ece", "ECE", "percent"),
            Column("ece_null_mean", "Floor", "percent"),
            Column("ece_low", "95 % low", "percent"),
            Column("ece_high", "95 % high", "percent"),
            Column("ece_debiased", "Debiased", "percent"),
            Column("smooth_ece", "Smooth ECE", "percent"),
            Column("ece_batch_averaged", "Batch-averaged (paper-compatible)", "percent"),
            Column("nll", "NLL", "number"),
            Column("brier", "Brier", "number"),
            Column("aurc", "AURC", "number"),
        ],
        rows,
    )


def shifts(runs: RunEvaluations, metric: str) -> Table:
    """One row per run and data set, as the shift charts draw them."""
    look = text.METRICS[metric]
    kind = "percent" if look.fraction else "number"
    rows = [
        {"run": run.label, "metric": metric, **row._asdict()}
        for run, found in runs
        for row in shift_points(found, metric)
    ]
    columns = [
        Column("run", "Run"),
        Column("dataset", "Data"),
        Column("role", "Role"),
        Column("value", look.title, kind),
    ]
    if metric in ("accuracy", "ece"):
        columns += [Column("low", "95 % low", kind), Column("high", "95 % high", kind)]
    if metric == "ece":
        columns += [
            Column("floor", "Floor", kind),
            Column("above_floor", "Above the floor", "yes"),
        ]
    return Table([*columns, Column("n", "n", "count"), Column("parts", "Sets averaged")], rows)


def corruptions(runs: RunEvaluations, metric: str) -> Table:
    """One row per run, corruption and severity."""
    look = text.METRICS[metric]
    rows = [
        {
            "run": run.label,
            "corruption": (e.corruption or "clean").replace("_", " "),
            "severity": e.severity or 0,
            "value": text.metric_value(e, metric),
            "floor": e.ece.null_mean if metric == "ece" else None,
            "n": e.n,
        }
        for run, found in runs
        for e in sorted(found, key=lambda e: (e.corruption or "", e.severity or 0))
        if e.role != "shift"
    ]
    columns = [
        Column("run", "Run"),
        Column("corruption", "Corruption"),
        Column("severity", "Severity", "count"),
        Column("value", look.title, "percent" if look.fraction else "number"),
    ]
    if metric == "ece":
        columns.append(Column("floor", "Floor", "percent"))
    return Table([*columns, Column("n", "n", "count")], rows)


def singular_values(spectra: Sequence[tuple[Run, Spectrum]]) -> Table:
    """One row per run and index."""
    rows = [
        {"run": run.label, "step": s.step, "index": index, "singular_value": value}
        for run, s in spectra
        for index, value in enumerate(s.singular_values, 1)
    ]
    return Table(
        [
            Column("run", "Run"),
            Column("step", "Step", "count"),
            Column("index", "Index", "count"),
            Column("singular_value", "Singular value", "number"),
        ],
        rows,
    )


def spectra(series: Sequence[tuple[Run, Sequence[Spectrum]]]) -> Table:
    """One row per run and measured step."""
    rows = [
        {
            "run": run.label,
            "step": s.step,
            "final": s.final,
            "sigma_min": s.sigma_min,
            "effective_rank": s.effective_rank,
            "condition_number": s.condition_number,
            "n": s.n,
            "n_features": s.n_features,
            "n_constant_features": s.n_constant_features,
            "projection_gram_distance": s.projection_gram_distance,
        }
        for run, found in series
        for s in sorted(found, key=lambda s: (s.final, s.step))
    ]
    return Table(
        [
            Column("run", "Run"),
            Column("step", "Step", "count"),
            Column("final", "Final", "yes"),
            Column("sigma_min", "σ_min", "number"),
            Column("effective_rank", "Effective rank", "number"),
            Column("condition_number", "Condition number", "number"),
            Column("n", "Samples", "count"),
            Column("n_features", "Features", "count"),
            Column("n_constant_features", "Constant features", "count"),
            Column("projection_gram_distance", "‖W_vᵀW_v − 1‖", "number"),
        ],
        rows,
    )


def curves(metrics: Metrics, names: Sequence[str] | None = None) -> Table:
    """One row per step, one column per series."""
    series = [s for s in metrics.series if names is None or s.name in names]
    by_step: dict[int, dict[str, Any]] = {}
    for one in series:
        for step, value in zip(one.steps, one.values, strict=True):
            by_step.setdefault(step, {"step": step})[one.name] = value
    columns = [Column("step", "Step", "count")]
    columns += [Column(one.name, one.name.replace("_", " "), "number") for one in series]
    return Table(columns, [by_step[step] for step in sorted(by_step)])


def paired(
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


def summaries(runs: Sequence[tuple[Run, Summary]]) -> Table:
    """One row per run: the headline."""
    return Table(
        [
            Column("run", "Run"),
            Column("id_accuracy", "ID accuracy", "percent"),
            Column("ood_accuracy", "OOD accuracy", "percent"),
            Column("id_ece", "ID ECE", "percent"),
            Column("id_ece_floor", "floor", "percent"),
            Column("ood_ece", "OOD ECE", "percent"),
            Column("ood_ece_floor", "floor", "percent"),
            Column("sigma_min", "σ_min", "number"),
        ],
        [{"run": run.label, **s.model_dump()} for run, s in runs],
    )


def frontier(
    runs: Sequence[tuple[Run, Summary]], paths: Mapping[str, Frontier], *, x: str, y: str
) -> Table:
    """One row per model of `charts.frontier`: a run, or an α of its path."""
    columns = [
        Column("run", "Run"),
        Column("alpha", "α"),
        Column("kept", "The run's own", "yes"),
        Column(x, text.HEADLINES[x].title, "percent"),
        Column(y, text.HEADLINES[y].title, "percent"),
    ]
    marks = frontier_marks(runs, paths, x=x, y=y)
    if any(mark.floor is not None for mark in marks):
        columns.append(Column("floor", "floor", "percent"))
    columns.append(Column("best", "On the Pareto front", "yes"))
    return Table(
        columns,
        [
            {
                "run": mark.run.label,
                "alpha": "" if mark.alpha is None else mark.alpha,
                "kept": mark.kept,
                x: mark.x,
                y: mark.y,
                "floor": mark.floor,
                "best": mark.best,
            }
            for mark in marks
        ],
    )


def path(frontier: Frontier) -> Table:
    """One row per α of a path, with the validation values that an α may be chosen on."""
    return Table(
        [
            Column("alpha", "α"),
            Column("id_accuracy", "ID accuracy", "percent"),
            Column("ood_accuracy", "OOD accuracy", "percent"),
            Column("id_ece", "ID ECE", "percent"),
            Column("id_ece_floor", "floor", "percent"),
            Column("ood_ece", "OOD ECE", "percent"),
            Column("ood_ece_floor", "floor", "percent"),
            Column("id_nll", "ID NLL", "number"),
            Column("ood_nll", "OOD NLL", "number"),
            Column("val_accuracy", "Validation accuracy", "percent"),
            Column("val_ece", "Validation ECE", "percent"),
            Column("val_ece_floor", "floor", "percent"),
            Column("val_nll", "Validation NLL", "number"),
        ],
        [point.model_dump(exclude={"datasets"}) for point in frontier.points],
    )


def slices(pages: Sequence[tuple[Run, SlicePage]]) -> Table:
    """One row per run and slice; a slice that is too small says so and has no error."""
    rows = [
        {
            "run": run.label,
            **s.model_dump(exclude={"gap_interval", "interval", "accuracy_interval"}),
            "gap_low": s.gap_interval[0] if s.gap_interval else None,
            "gap_high": s.gap_interval[1] if s.gap_interval else None,
            "low": s.interval[0] if s.interval else None,
            "high": s.interval[1] if s.interval else None,
            "verdict": _slice_verdict(s.ece, s.null_q95),
        }
        for run, page in pages
        for s in page.items
    ]
    columns = [
        Column("title", "Slice"),
        Column("n", "n", "count"),
        Column("accuracy", "Accuracy", "percent"),
        Column("mean_confidence", "Confidence", "percent"),
        Column("gap", "Gap", "points"),
        Column("gap_low", "95 % low", "points"),
        Column("gap_high", "95 % high", "points"),
        Column("ece", "ECE", "percent"),
        Column("null_mean", "Floor", "percent"),
        Column("null_q95", "Floor, 95 %", "percent"),
        Column("low", "95 % low", "percent"),
        Column("high", "95 % high", "percent"),
        Column("n_bins", "Bins", "count"),
        Column("verdict", "Reads"),
    ]
    if len(pages) > 1:
        columns.insert(0, Column("run", "Run"))
    return Table(columns, rows)


def _slice_verdict(ece: float | None, null_q95: float | None) -> str:
    if ece is None or null_q95 is None:
        return "too small"
    return "above the floor" if ece > null_q95 else "not above the floor"


def calibrator(effect: CalibratorEffect) -> Table:
    """Before and after a calibrator, one row each."""
    rows = [
        {
            "state": name,
            "accuracy": d.accuracy,
            "mean_confidence": d.mean_confidence,
            "ece": d.ece,
            "null_mean": None if d.in_sample else d.null_mean,
            "low": None if d.in_sample else d.interval[0],
            "high": None if d.in_sample else d.interval[1],
            "nll": d.nll,
            "brier": d.brier,
            "in_sample": d.in_sample,
            "oracle": effect.calibrator.oracle if name == "after" else None,
        }
        for name, d in (("before", effect.before), ("after", effect.after))
    ]
    return Table(
        [
            Column("state", "Predictions"),
            Column("accuracy", "Accuracy", "percent"),
            Column("mean_confidence", "Confidence", "percent"),
            Column("ece", "MCE" if effect.after.norm == "max" else "ECE", "percent"),
            Column("null_mean", "Floor", "percent"),
            Column("low", "95 % low", "percent"),
            Column("high", "95 % high", "percent"),
            Column("nll", "NLL", "number"),
            Column("brier", "Brier", "number"),
            Column("oracle", "Oracle", "yes"),
            Column("in_sample", "In-sample", "yes"),
        ],
        rows,
    )


def transfer(matrix: TransferMatrix) -> Table:
    """One row per fit and data set that it was tested on."""
    rows = [
        {
            "fitted_on": name,
            "oracle": row.calibrator.oracle if row.calibrator else None,
            **cell.model_dump(),
            **({"null_mean": None, "null_q95": None} if cell.in_sample else {}),
        }
        for name, row in zip(transfer_names(matrix), matrix.rows, strict=True)
        for cell in row.cells
    ]
    return Table(
        [
            Column("fitted_on", "Fitted on"),
            Column("oracle", "Oracle", "yes"),
            Column("dataset", "Tested on"),
            Column("ece", "MCE" if matrix.norm == "max" else "ECE", "percent"),
            Column("null_mean", "Floor", "percent"),
            Column("null_q95", "Floor, 95 %", "percent"),
            Column("gain", "Taken off the ECE", "points"),
            Column("nll", "NLL", "number"),
            Column("nll_gain", "Taken off", "number"),
            Column("brier", "Brier", "number"),
            Column("brier_gain", "Taken off", "number"),
            Column("in_sample", "In-sample", "yes"),
            Column("accuracy", "Accuracy", "percent"),
            Column("n", "n", "count"),
        ],
        rows,
    )


def estimators(sets: Sequence[tuple[Run, MeasureSet]]) -> Table:
    """One row per run and estimator, with its floor and how it reads."""
    rows = [
        {
            "run": run.label,
            "name": m.name,
            "title": m.title,
            "value": m.value,
            "null_mean": m.null_mean,
            "null_q95": m.null_q95,
            "low": m.interval[0] if m.interval else None,
            "high": m.interval[1] if m.interval else None,
            "debiased": m.debiased,
            "note": m.note,
        }
        for run, found in sets
        for m in found.measures
    ]
    columns = [
        Column("title", "Estimator"),
        Column("value", "Value", "percent"),
        Column("null_mean", "Floor", "percent"),
        Column("null_q95", "Floor, 95 %", "percent"),
        Column("low", "95 % low", "percent"),
        Column("high", "95 % high", "percent"),
        Column("debiased", "Debiased", "percent"),
        Column("note", "Reads"),
    ]
    if len(sets) > 1:
        columns.insert(0, Column("run", "Run"))
    return Table(columns, rows)


def confidence_sets(comparison: Comparison, metric: str) -> Table:
    """One row per data set: the runs that may be the best, and those ruled out with how surely."""
    names = {c.run.id: c.run.name for c in comparison.runs}
    rows = [
        {
            "dataset": found.dataset,
            "members": ", ".join(names[run] for run in found.members),
            "excluded": ", ".join(
                f"{names[run]} ({text.p_value(found.p_values[run])})" for run in found.excluded
            ),
            "n": found.n,
        }
        for found in comparison.confidence_sets
        if found.metric == metric
    ]
    return Table(
        [
            Column("dataset", "Data"),
            Column("members", "May be the best"),
            Column("excluded", "Ruled out"),
            Column("n", "n", "count"),
        ],
        rows,
    )
