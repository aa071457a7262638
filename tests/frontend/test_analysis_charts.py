"""Charts of slices, calibrators and estimators: what is drawn is what the numbers say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calift_core import analysis
from calift_core.calibration import score_samples
from calift_core.schema.wire import (
    CalibratorEffect,
    MeasureSet,
    Reliability,
    SlicePage,
    Source,
    TransferCell,
    TransferMatrix,
    TransferRow,
)
from calift_core.slices import Samples
from frontend import figures
from frontend.figures.style import Run
from tests.frontend import seed

RUNS = (Run("a1", "first"), Run("b2", "second"))
BINNING = analysis.Binning(n_resamples=20)


def samples_of(name: str, dataset: str = "sketch", harm: float = 0.2) -> Samples:
    made = seed.predictions(seed.KINDS[name], dataset, "shift", n=600, harm=harm, seed=1)
    return Samples(
        scores=score_samples(made.logits, made.labels), ids=made.ids,
        class_names=made.metadata.class_names,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages() -> list[tuple[Run, SlicePage]]:
    return [
        (
            run,
            analysis.slice_page(
                samples_of(name), Source(dataset="sketch", role="shift"), BINNING,
                sort="gap", min_n=55,
            ),
        )
        for run, name in zip(RUNS, ("fine-tuning", "CaRot"), strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sets() -> list[tuple[Run, MeasureSet]]:
    return [
        (
            run,
            MeasureSet(
                source=Source(dataset="sketch", role="shift"), n=600, n_classes=10,
                temperature=1.0, n_resamples=20, seed=0,
                measures=analysis.audit_of(samples_of(name).scores, n_resamples=20),
            ),
        )
        for run, name in zip(RUNS, ("fine-tuning", "CaRot"), strict=True)
    ]  # fmt: skip


def effect_of(*, oracle: bool) -> CalibratorEffect:
    made = seed.predictions(
        seed.KINDS["fine-tuning"], "cal", "shift" if oracle else "calibration", n=600, harm=0.0,
        seed=2,
    )  # fmt: skip
    calibrator, fitted = analysis.fit_calibrator("temperature", [made], oracle=oracle)
    test = seed.predictions(seed.KINDS["fine-tuning"], "sketch", "shift", n=600, harm=0.2, seed=1)
    diagrams = []
    for temperature in (1.0, calibrator.temperature):  # type: ignore[attr-defined]
        scores = score_samples(test.logits, test.labels, temperature)
        diagrams.append(
            Reliability(
                evaluation_id="e1", run_id="a1", run_name="first", method="finetune",
                dataset="sketch", role="shift", temperature=1.0,
                **analysis.reliability_numbers(
                    scores, BINNING, smooth=analysis.smooth_curve(scores)
                ),
            )
        )  # fmt: skip
    return CalibratorEffect(calibrator=fitted, before=diagrams[0], after=diagrams[1])


def matrix_of(**changes: Any) -> TransferMatrix:
    def cells(*errors: float) -> list[TransferCell]:
        return [
            TransferCell(
                dataset=dataset, role="shift", n=600, accuracy=0.7, mean_confidence=0.8, nll=1.0,
                brier=0.5, ece=ece, null_mean=0.02, null_q95=0.03, gain=0.1 - ece,
                nll_gain=0.0, brier_gain=0.0,
            )
            for dataset, ece in zip(("test", "sketch"), errors, strict=True)
        ]  # fmt: skip

    rows = [
        TransferRow(calibrator=None, cells=cells(0.1, 0.2)),
        TransferRow(calibrator=effect_of(oracle=False).calibrator, cells=cells(0.025, 0.08)),
        TransferRow(calibrator=effect_of(oracle=True).calibrator, cells=cells(0.04, 0.02)),
    ]
    values = {
        "source": Source(run_id="a1", run_name="first"), "kind": "temperature", "n_bins": 15,
        "scheme": "equal_mass", "norm": "l1", "rows": rows,
    }  # fmt: skip
    return TransferMatrix.model_validate(values | changes)


def test_slices__marks_are_filled_only_above_the_floor(pages: list[tuple[Run, SlicePage]]) -> None:
    figure = figures.slices.gaps(pages)
    assert [trace.name for trace in figure.data] == ["first", "second"]
    names = list(figure.layout.yaxis.ticktext)
    assert names == [s.title for s in pages[0][1].items]
    assert list(figure.data[0].x) == sorted(figure.data[0].x)  # the first page's own order
    for trace, (_, page) in zip(figure.data, pages, strict=True):
        places = [round(y) for y in trace.y]
        found = dict(zip(places, zip(trace.x, trace.marker.symbol, strict=True), strict=True))
        for s in page.items:
            x, symbol = found[names.index(s.title)]
            assert x == s.gap
            above = s.ece is not None and s.null_q95 is not None and s.ece > s.null_q95
            assert symbol.endswith("-open") != above
    assert any(s.too_small for s in pages[0][1].items)
    assert set(figure.data[0].marker.size) == {6, 10}
    alt = figures.style.alt_text(figure)
    assert "first: " in alt
    assert "slices above their floor" in alt


def test_slices__none_is_said() -> None:
    page = analysis.slice_page(
        samples_of("CaRot"), Source(dataset="sketch", role="shift"), BINNING, where="rank > 99"
    )
    assert "no sample" in figures.style.alt_text(figures.slices.gaps([(RUNS[0], page)]))
    assert figures.slices.table([(RUNS[0], page)]).rows == []


@pytest.mark.parametrize("oracle", [False, True])
def test_calibrator__overlay_tells_before_from_after_and_an_oracle(oracle: bool) -> None:
    effect = effect_of(oracle=oracle)
    assert effect.calibrator.oracle == oracle
    figure = figures.calibrators.overlay(effect)
    before, after = (t for t in figure.data if t.name and t.name.startswith(("before", "after")))
    assert list(before.y) == [b.accuracy for b in effect.before.bins]
    assert list(after.x) == [b.mean_confidence for b in effect.after.bins]
    assert after.line.dash == ("dot" if oracle else "solid")
    assert before.line.color != after.line.color
    assert ("oracle" in after.name) == oracle
    assert ("ORACLE" in figures.style.alt_text(figure)) == oracle
    assert ("ORACLE" in figure.layout.title.text) == oracle
    rows = figures.calibrators.overlay_table(effect).rows
    assert [row["ece"] for row in rows] == [effect.before.ece, effect.after.ece]


def test_transfer__oracle_rows_are_framed_and_named_as_such() -> None:
    matrix = matrix_of()
    figure = figures.calibrators.transfer(matrix)
    heat = figure.data[0]
    assert np.array(heat.z).tolist() == [[c.ece for c in row.cells] for row in matrix.rows]
    assert list(heat.y) == ["no calibrator", "cal", "◇ oracle: cal"]
    assert [shape.line.dash for shape in figure.layout.shapes] == ["solid", "dot"]
    # In brackets: not above the floor.
    assert [list(row) for row in heat.text] == [
        ["10.0", "20.0"],
        ["(2.5)", "8.0"],
        ["4.0", "(2.0)"],
    ]
    alt = figures.style.alt_text(figure)
    assert "cal: 2.5" in alt
    assert "1 further rows are oracles" in alt
    twin = figures.calibrators.transfer_table(matrix).rows
    assert [row["ece"] for row in twin] == [c.ece for row in matrix.rows for c in row.cells]
    assert [row["oracle"] for row in twin] == [None, None, False, False, True, True]


def test_transfer__is_judged_by_proper_scores_and_in_sample_cells_have_no_floor() -> None:
    matrix = matrix_of()
    rows = [
        row.model_copy(
            update={
                "cells": [
                    c.model_copy(
                        update={"nll": 1 + 0.1 * i, "nll_gain": -0.1 * i, "in_sample": i == 2}
                    )
                    for c in row.cells
                ]
            }
        )
        for i, row in enumerate(matrix.rows)
    ]
    matrix = matrix_of(rows=rows)
    heat = figures.calibrators.transfer(matrix, by="nll").data[0]
    assert np.array(heat.z).tolist() == [[c.nll for c in row.cells] for row in matrix.rows]
    assert [list(row) for row in heat.text] == [["1.00"] * 2, ["▲1.10"] * 2, ["▲1.20"] * 2]
    assert list(figures.calibrators.transfer(matrix).data[0].text[2]) == ["4.0*", "2.0*"]
    twin = figures.calibrators.transfer_table(matrix).rows
    assert [row["null_mean"] for row in twin] == [0.02] * 4 + [None] * 2


def test_calibrator__an_in_sample_view_has_no_floor_and_no_interval() -> None:
    effect = effect_of(oracle=False)
    after = effect.after.model_copy(update={"in_sample": True})
    effect = effect.model_copy(update={"after": after})
    figure = figures.calibrators.overlay(effect)
    names = [t.name for t in figure.data if t.name and t.name.startswith(("before", "after"))]
    assert "floor" in names[0]
    assert "in-sample: no floor" in names[1]
    assert "no floor holds" in figures.style.alt_text(figure)
    assert [row["high"] is None for row in figures.calibrators.overlay_table(effect).rows] == [
        False,
        True,
    ]
    assert not any("95" in fact for fact in figures.reliability.facts(after)[:2])


def test_transfer__nothing_to_test_on_is_said() -> None:
    assert "evaluated on nothing" in figures.style.alt_text(
        figures.calibrators.transfer(matrix_of(rows=[]))
    )


def test_estimators__each_mark_has_its_own_floor(
    sets: list[tuple[Run, MeasureSet]],
) -> None:
    figure = figures.estimators.figure(sets)
    first = sets[0][1].measures
    bars, marks = figure.data[::2], figure.data[1::2]
    for bar, trace, (_, found) in zip(bars, marks, sets, strict=True):
        for m, base, length in zip(found.measures, bar.base, bar.x, strict=True):
            assert base == m.null_mean
            assert base + length == pytest.approx(m.null_q95)
        assert list(trace.x) == [m.value for m in found.measures]
        assert list(trace.y) == list(bar.y)
    assert "of 14 above what a calibrated model shows" in figures.style.alt_text(figure)
    twin = figures.estimators.table(sets)
    assert len(twin.rows) == 2 * len(first)
    assert twin.columns[0].name == "run"


def test_smooth__curve_is_drawn_on_request_with_gaps() -> None:
    diagram = effect_of(oracle=False).before
    assert diagram.smooth is not None
    plain, smooth = (figures.reliability.diagram(diagram, smooth=on) for on in (False, True))
    assert len(smooth.data) == len(plain.data) + 1
    line = smooth.data[-1]
    assert list(line.y) == diagram.smooth.accuracy
    assert not line.connectgaps


def test_labels__what_people_typed_is_escaped(
    pages: list[tuple[Run, SlicePage]], sets: list[tuple[Run, MeasureSet]]
) -> None:
    evil = Run("a1", "<img src=x onerror=alert(1)>")
    for figure in (
        figures.slices.gaps([(evil, pages[0][1])]),
        figures.estimators.figure([(evil, sets[0][1])]),
    ):
        layout = figure.to_plotly_json()["layout"] | {"meta": None}
        assert "<img" not in str([trace.name for trace in figure.data])
        assert "<img" not in str(layout)
