"""What `calift analyse` shows, for people or as JSON."""

from functools import partial
from pathlib import Path

from calift.commands import console
from calift.commands.console import out, print_json, show
from calift_core.files import atomic_write_bytes
from calift_core.schema.wire.answers import Decision, Ledger, PromiseTest
from calift_core.schema.wire.ood import OodDetection
from calift_core.schema.wire.results import (
    Budget,
    CalibratorEffect,
    FittedCalibrator,
    MeasureSet,
    SamplePage,
    SlicePage,
    Source,
    TransferCell,
    TransferMatrix,
)
from calift_core.schema.wire.tags import FeatureMap, ImageTags
from calift_core.words import nats
from frontend import text
from frontend.tables import Column, Run, Table, analysis, ood, to_csv

percent = partial(console.percent, digits=2)


def _say(sentence: str) -> None:
    out.print(sentence, markup=False)


def _range(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.2f} … {100 * interval[1]:.2f}"


def _of(source: Source) -> str:
    where = f"{source.run_name} on {source.dataset}" if source.dataset else source.run_name
    return f"{where} ({source.role})" if source.role else where


def show_measures(found: MeasureSet, as_json: bool, *, notes: bool = False) -> None:
    """Write measures; `notes` adds what each reads."""
    if as_json:
        print_json(found)
        return
    title = f"{_of(found.source)}, n = {found.n:,}, T = {found.temperature:g}"
    show(analysis.measures([(Run("", ""), found)]), title, without=() if notes else ("note",))
    _say("Floor: what a perfectly calibrated model would read on average, and at most 19 times in "
         "20.")  # fmt: skip


def show_slices(page: SlicePage, as_json: bool) -> None:
    """Write slices."""
    if as_json:
        print_json(page)
        return
    title = f"{_of(page.source)}, by {page.by}, T = {page.temperature:g}"
    if page.where:
        title += f", where {page.where}"
    hidden = ("null_mean", "low", "high", "n_bins")
    show(analysis.slices([(Run("", ""), page)]), title, without=hidden)
    _say(
        f"{page.n_matching:,} of {page.n:,} samples, slices {page.offset + 1 if page.items else 0} "
        f"to {page.offset + len(page.items)} of {page.total}. Gap: confidence minus accuracy. One "
        "in twenty calibrated slices is above its floor by chance."
    )


def show_search(pages: list[SamplePage], most: int, as_json: bool) -> None:
    """Write the images of several data sets that are most like what was searched for."""
    if as_json:
        print_json(pages)
        return
    rows = [
        {"dataset": page.source.dataset, **one.model_dump()} for page in pages for one in page.items
    ]
    rows.sort(key=lambda row: -row["similarity"])
    columns = [
        Column("similarity", "Cosine", "number"),
        Column("dataset", "Data"),
        Column("id", "Image"),
        Column("label_name", "Label"),
        Column("predicted_name", "Prediction"),
        Column("confidence", "Confidence", "percent"),
    ]
    searched = sum(page.n_matching for page in pages)
    show(Table(columns, rows[:most]), f"Of {searched:,} images in {len(pages)} data sets")


def show_tags(found: ImageTags, out_file: Path | None, as_json: bool) -> None:
    """Write tags on images."""
    shown = analysis.image_tags(found.dataset, found.items)
    if out_file is not None:
        atomic_write_bytes(out_file, to_csv(shown).encode())
    if as_json:
        print_json(found)
    elif out_file is None:
        show(shown, without=("dataset",))
        _say(f"{len(found.items):,} tags on images of {found.dataset}.")


def write_map(found: FeatureMap, out_file: Path) -> None:
    """Write a map of image features as CSV."""
    atomic_write_bytes(out_file, to_csv(analysis.feature_map(found)).encode())
    _say(f"{len(found.ids):,} images of {found.source.dataset}: {out_file}")


def show_effect(effect: CalibratorEffect, as_json: bool) -> None:
    """Write the errors before and after a calibrator."""
    if as_json:
        print_json(effect)
        return
    c = effect.calibrator
    shown = analysis.calibrator_effect(effect)
    show(shown, f"{c.kind}, fitted on {_fitted_on(c)}", without=("oracle",))
    before, after = effect.before, effect.after
    _say(
        f"Taken off by it: NLL {nats(before.nll - after.nll, signed=True)}, Brier "
        f"{before.brier - after.brier:+.3f}. {_PROPER}"
    )
    if after.in_sample:
        _say(_IN_SAMPLE)
    if "temperature" in c.parameters:
        _say(f"T = {c.parameters['temperature']:.4f}")
    if c.oracle:
        _say(_ORACLE)


_PROPER = "Evaluate a calibrator by these two: an ECE also falls where confidence says less."
_IN_SAMPLE = (
    "in-sample: fitted on the very samples it is shown on. Its error reads too low, about 0 after "
    "isotonic or histogram, so that floor and interval do not hold."
)
_ORACLE = (
    "oracle: fitted on data other than the ID calibration split, which nobody has before the shift."
)


def _fitted_on(c: FittedCalibrator) -> str:
    return f"{c.fitted_on.dataset} (n = {c.fitted_on.n:,}){', ORACLE' if c.oracle else ''}"


def _transferred(cell: TransferCell, by: str) -> str:
    if by == "ece":
        floor = "in-sample" if cell.in_sample else text.percent(cell.null_mean)
        return f"{text.percent(cell.ece)} ({floor})"
    value, gain = getattr(cell, by), getattr(cell, f"{by}_gain")
    return f"{text.number(value)} ({gain:+.3f})"


def show_transfer(matrix: TransferMatrix, as_json: bool) -> None:
    """Write a table for each measure of a transfer."""
    if as_json:
        print_json(matrix)
        return
    name, columns = matrix.source.run_name, [Column("fitted", "fitted on")]
    columns += [Column(cell.dataset, cell.dataset, "number") for cell in matrix.rows[0].cells]
    names = analysis.transfer_names(matrix)
    for by, title in (("ece", "ECE (floor)"), ("nll", "NLL (taken off)"),
                      ("brier", "Brier (taken off)")):  # fmt: skip
        rows = [
            {"fitted": fitted, **{cell.dataset: _transferred(cell, by) for cell in row.cells}}
            for fitted, row in zip(names, matrix.rows, strict=True)
        ]
        heading = f"{matrix.kind}: {title} of {name}, fitted on the row, tested on the column"
        show(Table(columns, rows), heading)
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
        print_json(found)
        return
    title = f"{found.run.run_name} against {found.against.run_name}"
    show(analysis.ledger_sets(found.sets), title)
    for note in found.warnings:
        _say(note)


def show_decision(found: Decision, as_json: bool) -> None:
    """Write a threshold with its promise, and what it keeps of each data set."""
    if as_json:
        print_json(found)
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
    show(analysis.decisions([(Run("", ""), found)]), "What that gives", without=("run",))
    for note in found.warnings:
        _say(note)
    _say("It was promised for ID data alone; shifts are shown for what they are.")


def show_ood(found: OodDetection, as_json: bool) -> None:
    """Write how well each score tells the ID test images from each set."""
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _say(ood.answer(found))
    title = f"{found.run.run_name}: {found.dataset} (n = {found.n:,}) against each set"
    show(ood.table(found), title, without=("aupr", "aupr_ends", "n"))
    _say(
        "FPR95: the share of a set that is accepted where 95 % of the ID test images are. Maximum "
        f"softmax is of probabilities after the calibrator ({found.calibrator})."
    )
    for note in found.notes:
        _say(note)


def _tested(test: PromiseTest, risk: float) -> str:
    """Whether the promise holds on the ID test set; in doubt why, and what would hold."""
    wrong = (
        "nothing is kept" if test.risk is None else f"{percent(test.risk)} of what is kept is wrong"
    )
    if test.risk_interval is not None:
        wrong += f" ({_range(test.risk_interval)})"
    phrase = {
        True: f"The promise holds on {test.dataset}: {wrong}.",
        None: f"It is open whether the promise holds on {test.dataset}: {wrong}.",
        False: f"The promise is broken on {test.dataset}: {wrong}, not at most {percent(risk)}.",
    }[test.holds]
    if not (test.distinguishable or (test.risk is not None and test.risk > risk)):
        return phrase
    low, high = test.interval
    alike = "are not alike" if test.distinguishable else "do not differ beyond chance in accuracy"
    remedy = (
        f"No threshold can promise it from {test.dataset} itself."
        if test.threshold is None
        else f"By the same rule {test.dataset} itself asks for {test.threshold:.6g}."
    )
    return (
        f"{phrase} The samples it was chosen on and the test samples {alike}: "
        f"{percent(test.chosen_on_accuracy)} of the former are right and "
        f"{percent(test.accuracy)} of the latter, a difference of "
        f"{100 * test.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}). {remedy}"
    )


def show_budget(found: Budget, as_json: bool) -> None:
    """Write how many samples a difference needs."""
    if as_json:
        print_json(found)
        return
    kind = "in pairs, on the same samples" if found.paired else "each model on samples of its own"
    squared = found.metric == "ece"
    what = "L2 calibration error" if squared else found.metric
    _say(
        f"{_of(found.source)}: a difference of {found.difference:g} in {what} takes "
        f"{found.needed:,} samples ({kind}; level {found.level:g}, power {found.power:g})."
    )
    phrase = "enough" if found.enough else "too few"
    least = "none" if found.detectable is None else f"{found.detectable:.4g}"
    _say(f"There are {found.n:,}: {phrase}. They show a difference of {least}.")
    if found.observed is not None:
        _say(f"Observed: {found.observed:+.4g}.")
    if squared:
        _say("Two models' calibration is compared by their debiased squared L2 errors; this is how "
             "many samples that takes.")  # fmt: skip
