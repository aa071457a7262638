"""Analyses as tables, for pages and commands alike."""

from collections.abc import Sequence

from calift_core.schema.report import EvaluationReport
from calift_core.schema.wire.answers import Decision, KeptSet, LedgerSet
from calift_core.schema.wire.results import CalibratorEffect, MeasureSet, SlicePage, TransferMatrix
from calift_core.schema.wire.tags import FeatureMap, ImageTag
from frontend import text
from frontend.tables import Column, Run, Table

OUTCOMES = {
    "both": "right in both",
    "gained": "gained",
    "lost": "forgotten",
    "neither": "wrong in both",
}


MOVED = {"surer": "surer now", "alike": "about as sure", "less_sure": "less sure now"}


#: How the risk of what is kept stands to what was promised.
HOLDS = {
    True: text.Mark("holds", "✓", "green"),
    False: text.Mark("more errors", "▲", "red"),
    None: text.Mark("open", "≈", "gray"),
}


def measures(sets: Sequence[tuple[Run, MeasureSet]]) -> Table:
    """One row per run and estimator, with its floor and how it reads."""
    rows = [
        {
            **dict(m),
            "run": run.label,
            "value": _of_unit(m.value, m.unit),
            "low": _of_unit(m.interval[0] if m.interval else None, m.unit),
            "high": _of_unit(m.interval[1] if m.interval else None, m.unit),
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
        Column("note", "Reads", "prose"),
    ]
    if len(sets) > 1:
        columns.insert(0, Column("run", "Run"))
    return Table(columns, rows)


def _of_unit(value: float | None, unit: str) -> float | str | None:
    return value if value is None or unit == "fraction" else text.number(value)


def stored_measures(evaluation: EvaluationReport) -> Table:
    """What was stored with an evaluation: one row per estimator of the same predictions."""
    e = evaluation
    rows = [
        {"name": f"ECE, {e.ece.n_bins} equal-mass bins", "value": e.ece.value,
         "note": f"floor {text.percent(e.ece.null_mean)}"},
        {"name": f"ECE, {e.ece_equal_width.n_bins} equal-width bins",
         "value": e.ece_equal_width.value,
         "note": f"floor {text.percent(e.ece_equal_width.null_mean)}"},
        {"name": "Debiased calibration error (L2)", "value": e.ece.debiased,
         "note": "negative: not above the noise"},
        {"name": "Smooth ECE", "value": e.smooth_ece, "note": "has a floor too"},
        {"name": "KS calibration error", "value": e.ks_error, "note": "no bins"},
        {"name": "Class-wise ECE", "value": e.classwise_ece, "note": "mean over classes"},
        {"name": "MCE", "value": e.mce, "note": "mostly noise in small bins"},
        {"name": "Batch-averaged ECE", "value": e.ece_batch_averaged,
         "note": "paper-compatible: biased upwards, never ranked on"},
        {"name": "Over-confidence", "value": e.overconfidence, "note": "share of the ECE"},
        {"name": "Under-confidence", "value": e.underconfidence, "note": "share of the ECE"},
    ]  # fmt: skip
    columns = [
        Column("name", "Estimator"),
        Column("value", "Value", "percent"),
        Column("note", "Reads", "prose"),
    ]
    return Table(columns, rows)


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
            "verdict": _verdict(s.ece, s.null_q95),
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


def slice_rows(pages: Sequence[tuple[Run, SlicePage]]) -> Table:
    """As `slices`, for a grid whose rows can be opened."""
    shown = slices(pages)
    first, *others = shown.columns
    return Table([first._replace(kind="open"), *others], shown.rows)


def _verdict(ece: float | None, null_q95: float | None) -> str:
    if ece is None or null_q95 is None:
        return "too small"
    return "above the floor" if ece > null_q95 else "not above the floor"


def transfer_names(matrix: TransferMatrix) -> list[str]:
    """A name per row: what was fitted on, oracles marked."""
    names = []
    for row in matrix.rows:
        c = row.calibrator
        if c is None:
            names.append("no calibrator")
        else:
            names.append(f"◇ oracle: {c.fitted_on.dataset}" if c.oracle else c.fitted_on.dataset)
    return names


def calibrator_effect(effect: CalibratorEffect) -> Table:
    """Before and after a calibrator, one row each."""
    rows = [
        {
            **dict(d),
            "state": name,
            "null_mean": None if d.in_sample else d.null_mean,
            "low": None if d.in_sample else d.interval[0],
            "high": None if d.in_sample else d.interval[1],
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


def ledger_cells(found: LedgerSet) -> Table:
    """One row an outcome and movement of confidence: how many, and how sure before and after."""
    ordered = sorted(
        found.cells, key=lambda c: (list(OUTCOMES).index(c.outcome), list(MOVED).index(c.moved))
    )
    return Table(
        [
            Column("outcome", "Samples"),
            Column("moved", "Confidence"),
            Column("n", "n", "count"),
            Column("share", "Share", "percent"),
            Column("confidence_before", "Confidence before", "percent"),
            Column("confidence_after", "Confidence now", "percent"),
        ],
        [
            {
                **dict(c),
                "outcome": OUTCOMES[c.outcome],
                "moved": MOVED[c.moved],
                "share": c.n / found.n,
            }
            for c in ordered
        ],
    )


def ledger_sets(sets: Sequence[LedgerSet]) -> Table:
    """One row a data set: gained, forgotten, and the net with its interval."""
    return Table(
        [
            Column("dataset", "Data"),
            Column("n", "n", "count"),
            Column("gained", "Gained", "count"),
            Column("lost", "Forgotten", "count"),
            Column("forgotten", "Of what was right", "percent"),
            Column("forgotten_ends", "95 % interval"),
            Column("difference", "Net", "points"),
            Column("ends", "95 % interval"),
        ],
        [
            {
                **one.model_dump(include={"n", "gained", "lost", "forgotten", "difference"}),
                "dataset": one.dataset.replace("_", " "),
                "forgotten_ends": one.forgotten_interval and text.interval(*one.forgotten_interval),
                "ends": f"{text.points(one.interval[0])} to {text.points(one.interval[1])}",
            }
            for one in sets
        ],
    )


def set_name(found: KeptSet) -> str:
    """A data set as it reads in charts and tables."""
    return found.dataset.replace("_", " ")


def set_order(found: KeptSet) -> tuple[int, str]:
    """ID data first, then shifts, then corruptions."""
    return text.role_order(found.role), found.dataset


def decisions(found: Sequence[tuple[Run, Decision]]) -> Table:
    """One row a data set and a run: what is kept, how often it is wrong, with intervals."""
    rows = []
    for run, decision in found:
        for one in sorted(decision.sets, key=set_order):
            coverage = text.interval(*one.coverage_interval)
            rows.append(
                {
                    **dict(one),
                    "dataset": set_name(one),
                    "run": run.label,
                    "coverage_ends": coverage,
                    "risk_ends": one.risk_interval and text.interval(*one.risk_interval),
                    "holds": HOLDS[one.holds].word if one.risk is not None else None,
                    "key": set_order(one),
                }
            )
    rows.sort(key=lambda row: row["key"])
    return Table(
        [
            Column("dataset", "Data"),
            Column("run", "Run"),
            Column("coverage", "Kept", "percent"),
            Column("coverage_ends", "95 % interval"),
            Column("risk", "Error rate", "percent"),
            Column("risk_ends", "95 % interval"),
            Column("holds", "Promise"),
            Column("n", "n", "count"),
        ],
        rows,
    )


def evaluations(found: Sequence[EvaluationReport]) -> Table:
    """One row per data set with the numbers that a run is judged by."""
    rows = [
        {
            **dict(e),
            "title": text.evaluation_title(e),
            "role": text.ROLES[e.role],
            "ece": e.ece.value,
            "ece_null_mean": e.ece.null_mean,
            "ece_low": e.ece.interval[0],
            "ece_high": e.ece.interval[1],
            "ece_debiased": e.ece.debiased,
        }
        for e in sorted(
            found,
            key=lambda e: (text.role_order(e.role), e.corruption or e.dataset, e.severity or 0),
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


def image_tags(dataset: str, items: Sequence[ImageTag]) -> Table:
    """One row per tag on an image."""
    columns = [Column("dataset", "Data"), Column("sample", "Image"), Column("tag", "Tag")]
    return Table(columns, [{"dataset": dataset, **dict(one)} for one in items])


def feature_map(found: FeatureMap) -> Table:
    """One row per image on a map of features."""
    columns = [
        Column("id", "Image"),
        Column("label", "Label"),
        Column("predicted", "Prediction"),
        Column("confidence", "Confidence", "percent"),
        Column("x", "x", "number"),
        Column("y", "y", "number"),
    ]
    names = found.class_names
    rows = zip(
        found.ids, found.labels, found.predicted, found.confidences, found.x, found.y, strict=True
    )
    return Table(
        columns,
        [
            {"id": i, "label": names[a], "predicted": names[b], "confidence": c, "x": x, "y": y}
            for i, a, b, c, x, y in rows
        ],
    )
