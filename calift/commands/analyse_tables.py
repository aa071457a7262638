"""What `calift analyse` shows, for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from calift_core.schema.wire.answers import Decision, Ledger, PromiseTest
from calift_core.schema.wire.results import (
    Budget,
    CalibratorEffect,
    FittedCalibrator,
    MeasureSet,
    SlicePage,
    Source,
    TransferCell,
    TransferMatrix,
)

# ---- Tables for people -------------------------------------------------------------------------


def _say(shown: Table | str) -> None:
    from calift.commands.console import out

    if isinstance(shown, str):
        out.print(shown, markup=False)
    else:
        out.print(shown)


def print_model(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def percent(value: float | None) -> str:
    """A fraction in percent, with two decimals."""
    return "–" if value is None else f"{100 * value:.2f} %"


def _range(interval: tuple[float, float] | None, scale: float = 100.0) -> str:
    return "–" if interval is None else f"{scale * interval[0]:.2f} … {scale * interval[1]:.2f}"


def _of(source: Source) -> str:
    where = f"{source.run_name} on {source.dataset}" if source.dataset else source.run_name
    return f"{where} ({source.role})" if source.role else where


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=index >= left)
    return table


def show_measures(found: MeasureSet, as_json: bool, *, notes: bool = False) -> None:
    """Write measures; `notes` adds what each reads."""
    if as_json:
        print_model(found.model_dump(mode="json"))
        return
    title = f"{_of(found.source)}, n = {found.n:,}, T = {found.temperature:g}"
    names = ["measure", "value", "floor", "floor, 95 %", "95 % interval", "debiased"]
    table = _table(title, *names, *(["reads"] if notes else []))
    if notes:
        table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for m in found.measures:
        fraction = m.unit == "fraction"
        value = "–" if m.value is None else percent(m.value) if fraction else f"{m.value:.4f}"
        table.add_row(
            Text(m.title),
            value,
            percent(m.null_mean),
            percent(m.null_q95),
            _range(m.interval) if fraction else _range(m.interval, 1.0),
            percent(m.debiased),
            *([Text(m.note)] if notes else []),
        )
    _say(table)
    _say("Floor: what a perfectly calibrated model would read on average, and at most 19 times in "
         "20.")  # fmt: skip


def show_slices(page: SlicePage, as_json: bool) -> None:
    """Write slices."""
    if as_json:
        print_model(page.model_dump(mode="json"))
        return
    title = f"{_of(page.source)}, by {page.by}, T = {page.temperature:g}"
    if page.where:
        title += f", where {page.where}"
    table = _table(
        title, "slice", "n", "accuracy", "confidence", "gap", "95 %", "ECE", "floor, 95 %", "",
    )  # fmt: skip
    for s in page.items:
        verdict = "too small"
        if s.ece is not None and s.null_q95 is not None:
            verdict = "above floor" if s.ece > s.null_q95 else "not above"
        table.add_row(
            Text(s.title), f"{s.n:,}", percent(s.accuracy), percent(s.mean_confidence),
            f"{100 * s.gap:+.2f}", _range(s.gap_interval), percent(s.ece),
            percent(s.null_q95), verdict,
        )  # fmt: skip
    _say(table)
    _say(
        f"{page.n_matching:,} of {page.n:,} samples, slices {page.offset + 1 if page.items else 0} "
        f"to {page.offset + len(page.items)} of {page.total}. Gap: confidence minus accuracy. One "
        "in twenty calibrated slices is above its floor by chance."
    )


def show_effect(effect: CalibratorEffect, as_json: bool) -> None:
    """Write the errors before and after a calibrator."""
    if as_json:
        print_model(effect.model_dump(mode="json"))
        return
    c = effect.calibrator
    table = _table(
        f"{c.kind}, fitted on {_fitted_on(c)}", "", "accuracy", "confidence", "ECE", "floor",
        "95 % interval", "NLL", "Brier",
    )  # fmt: skip
    for name, d in (("before", effect.before), ("after", effect.after)):
        table.add_row(
            name, percent(d.accuracy), percent(d.mean_confidence), percent(d.ece),
            "in-sample" if d.in_sample else percent(d.null_mean),
            "–" if d.in_sample else _range(d.interval), f"{d.nll:.4f}", f"{d.brier:.4f}",
        )  # fmt: skip
    _say(table)
    before, after = effect.before, effect.after
    _say(
        f"Taken off by it: NLL {before.nll - after.nll:+.4f}, Brier "
        f"{before.brier - after.brier:+.4f}. {_PROPER}"
    )
    if after.in_sample:
        _say(_IN_SAMPLE)
    if "temperature" in c.parameters:
        _say(f"T = {c.parameters['temperature']:.4f}")
    if c.oracle:
        _say(_ORACLE)


_PROPER = "Judge a calibrator by these two: an ECE also falls where confidence says less."
_IN_SAMPLE = (
    "in-sample: fitted on the very samples it is shown on. Its error reads too low, about 0 after "
    "isotonic or histogram, so that floor and interval do not hold."
)
_ORACLE = (
    "oracle: fitted on data other than the ID calibration split, which nobody has before the shift."
)


def _fitted_on(c: FittedCalibrator) -> str:
    return f"{c.fitted_on.dataset} (n = {c.fitted_on.n:,}){', ORACLE' if c.oracle else ''}"


def show_transfer(matrix: TransferMatrix, as_json: bool) -> None:
    """Write a table for each measure of a transfer."""
    if as_json:
        print_model(matrix.model_dump(mode="json"))
        return
    datasets = [cell.dataset for cell in matrix.rows[0].cells]
    name = matrix.source.run_name
    shown: tuple[tuple[str, Callable[[TransferCell], str]], ...] = (
        ("ECE (floor)", lambda c: f"{percent(c.ece)} "
         f"({'in-sample' if c.in_sample else f'{100 * c.null_mean:.2f}'})"),
        ("NLL (taken off)", lambda c: f"{c.nll:.4f} ({c.nll_gain:+.4f})"),
        ("Brier (taken off)", lambda c: f"{c.brier:.4f} ({c.brier_gain:+.4f})"),
    )  # fmt: skip
    for title, say in shown:
        table = _table(
            f"{matrix.kind}: {title} of {name}, fitted on the row, tested on the column",
            "fitted on", *datasets,
        )  # fmt: skip
        for row in matrix.rows:
            fitted = "nothing" if row.calibrator is None else _fitted_on(row.calibrator)
            table.add_row(Text(fitted), *(say(cell) for cell in row.cells))
        _say(table)
    _say(_PROPER)
    if any(cell.in_sample for row in matrix.rows for cell in row.cells):
        _say(_IN_SAMPLE)
    for note in matrix.notes:
        _say(note)
    if any(row.calibrator is not None and row.calibrator.oracle for row in matrix.rows):
        _say(_ORACLE)


def show_ledger(found: Ledger, as_json: bool) -> None:
    """Write what was gained and lost on each data set."""
    if as_json:
        print_model(found.model_dump(mode="json"))
        return
    table = _table(
        f"{found.run.run_name} against {found.against.run_name}",
        "data set", "n", "gained", "lost", "net, points (95 %)", "forgotten of what was right",
    )  # fmt: skip
    for one in found.sets:
        low, high = (100 * end for end in one.interval)
        ends = one.forgotten_interval
        table.add_row(
            Text(one.dataset),
            f"{one.n:,}",
            f"{one.gained:,}",
            f"{one.lost:,}",
            f"{100 * one.difference:+.2f} ({low:+.2f} to {high:+.2f})",
            "–" if one.forgotten is None or ends is None
            else f"{percent(one.forgotten)} ({percent(ends[0])} to {percent(ends[1])})",
        )  # fmt: skip
    _say(table)
    for note in found.warnings:
        _say(note)


def show_decision(found: Decision, as_json: bool) -> None:
    """Write a threshold with its promise, and what it keeps of each data set."""
    if as_json:
        print_model(found.model_dump(mode="json"))
        return
    split = found.chosen_on
    if found.test is not None:
        _say(f"{found.run.run_name}: {_tested(found.test, found.risk)}")
    if found.threshold is None:
        _say(
            f"{found.run.run_name}: at most {percent(found.risk)} errors cannot be promised by any "
            f"threshold, from {split.n:,} samples of {split.dataset}."
        )
    else:
        _say(
            f"{found.run.run_name}: keep predictions whose confidence is at least "
            f"{found.threshold:.6g}. At most {percent(found.risk)} of them are wrong on data like "
            f"{split.dataset} (n = {split.n:,}), in {100 * found.level:g} of 100 repeats of it."
        )
    own = found.calibrator == "none"
    _say(f"Confidences are {'its own' if own else f'after its calibrator, {found.calibrator}'}.")
    table = _table("What that gives", "data set", "role", "n", "kept", "errors (95 %)", "holds",
                   left=2)  # fmt: skip
    for one in found.sets:
        ends = "" if one.risk_interval is None else f" ({_range(one.risk_interval)})"
        table.add_row(
            Text(one.dataset),
            one.role,
            f"{one.n:,}",
            percent(one.coverage),
            f"{percent(one.risk)}{ends}",
            {True: "yes", False: "no", None: "open"}[one.holds],
        )
    _say(table)
    for note in found.warnings:
        _say(note)
    _say("It was promised for ID data alone; shifts are shown for what they are.")


def _tested(test: PromiseTest, risk: float) -> str:
    """Whether the promise holds on the ID test set; in doubt why, and what would hold."""
    wrong = (
        "nothing is kept" if test.risk is None else f"{percent(test.risk)} of what is kept is wrong"
    )
    if test.risk_interval is not None:
        wrong += f" ({_range(test.risk_interval)})"
    said = {
        True: f"The promise holds on {test.dataset}: {wrong}.",
        None: f"It is open whether the promise holds on {test.dataset}: {wrong}.",
        False: f"The promise is broken on {test.dataset}: {wrong}, not at most {percent(risk)}.",
    }[test.holds]
    if not (test.distinguishable or (test.risk is not None and test.risk > risk)):
        return said
    low, high = test.interval
    alike = "are not alike" if test.distinguishable else "do not differ beyond chance in accuracy"
    remedy = (
        f"No threshold can promise it from {test.dataset} itself."
        if test.threshold is None
        else f"By the same rule {test.dataset} itself asks for {test.threshold:.6g}."
    )
    return (
        f"{said} The samples it was chosen on and the test samples {alike}: "
        f"{percent(test.chosen_on_accuracy)} of the former are right and "
        f"{percent(test.accuracy)} of the latter, a difference of "
        f"{100 * test.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}). {remedy}"
    )


def show_budget(found: Budget, as_json: bool) -> None:
    """Write how many samples a difference needs."""
    if as_json:
        print_model(found.model_dump(mode="json"))
        return
    kind = "in pairs, on the same samples" if found.paired else "each model on samples of its own"
    squared = found.metric == "ece"
    what = "L2 calibration error" if squared else found.metric
    _say(
        f"{_of(found.source)}: a difference of {found.difference:g} in {what} takes "
        f"{found.needed:,} samples ({kind}; level {found.level:g}, power {found.power:g})."
    )
    said = "enough" if found.enough else "too few"
    least = "none" if found.detectable is None else f"{found.detectable:.4g}"
    _say(f"There are {found.n:,}: {said}. They show a difference of {least}.")
    if found.observed is not None:
        _say(f"Observed: {found.observed:+.4g}.")
    if squared:
        _say("Two models' calibration is compared by their debiased squared L2 errors; this is how "
             "many samples that takes.")  # fmt: skip
