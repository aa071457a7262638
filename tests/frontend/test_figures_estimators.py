"""Estimators: what is drawn is what the numbers say."""

import pytest

from frontend import figures
from frontend.tables import analysis


def test_estimators__each_mark_has_its_own_floor(sets):
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
    twin = analysis.measures(sets)
    assert len(twin.rows) == 2 * len(first)
    assert twin.columns[0].name == "run"
