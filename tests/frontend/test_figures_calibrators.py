"""Calibrators: what is drawn is what the numbers say."""

from typing import Any

import numpy as np
import pytest

from calift_core.schema.wire.results import Source, TransferCell, TransferMatrix, TransferRow
from frontend import figures
from frontend.tables import analysis
from tests.frontend.examples import effect_of


def matrix_of(**changes: Any) -> TransferMatrix:
    def cells(*errors):
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


@pytest.mark.parametrize("oracle", [False, True])
def test_calibrator__overlay_tells_before_from_after_and_an_oracle(oracle):
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
    rows = analysis.calibrator_effect(effect).rows
    assert [row["ece"] for row in rows] == [effect.before.ece, effect.after.ece]


def test_transfer__oracle_rows_are_framed_and_named_as_such():
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
    twin = analysis.transfer(matrix).rows
    assert [row["ece"] for row in twin] == [c.ece for row in matrix.rows for c in row.cells]
    assert [row["oracle"] for row in twin] == [None, None, False, False, True, True]


def test_transfer__is_evaluated_by_proper_scores_and_in_sample_cells_have_no_floor():
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
    twin = analysis.transfer(matrix).rows
    assert [row["null_mean"] for row in twin] == [0.02] * 4 + [None] * 2


def test_calibrator__an_in_sample_view_has_no_floor_and_no_interval():
    effect = effect_of(oracle=False)
    after = effect.after.model_copy(update={"in_sample": True})
    effect = effect.model_copy(update={"after": after})
    figure = figures.calibrators.overlay(effect)
    names = [t.name for t in figure.data if t.name and t.name.startswith(("before", "after"))]
    assert "floor" in names[0]
    assert "in-sample: no floor" in names[1]
    assert "no floor holds" in figures.style.alt_text(figure)
    assert [row["high"] is None for row in analysis.calibrator_effect(effect).rows] == [False, True]
    assert not any("95" in fact for fact in figures.reliability.facts(after)[:2])


def test_transfer__nothing_to_test_on_is_reported():
    assert "evaluated on nothing" in figures.style.alt_text(
        figures.calibrators.transfer(matrix_of(rows=[]))
    )
