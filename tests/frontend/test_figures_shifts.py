"""Runs over shifted data: what is drawn is what the numbers say."""

import pytest

from frontend import figures
from frontend.tables import Run
from tests.frontend.examples import named


def test_shift_points__id_first_and_severities_averaged(evaluations):
    rows = figures.shifts.points(evaluations, "accuracy")
    assert [row.role for row in rows] == ["id", *["shift"] * 3, *["corruption"] * 2]
    noise = next(row for row in rows if row.dataset == "gaussian noise")
    parts = [e.accuracy for e in evaluations if e.corruption == "gaussian_noise"]
    assert noise.value == pytest.approx(sum(parts) / 2)
    assert noise.low is None


def test_wilson__agrees_with_scipy(evaluations):
    from scipy.stats import binomtest

    expected = binomtest(37, 50).proportion_ci(method="wilson")
    evaluation = evaluations[0].model_copy(update={"accuracy": 37 / 50, "n": 50})
    (row,) = figures.shifts.points([evaluation], "accuracy")
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_accuracy_by_shift__one_mark_per_run_and_set(evaluations):
    runs = [(Run("a", "one"), evaluations), (Run("b", "two"), evaluations[:3])]
    figure = figures.shifts.dots(runs)
    assert len(named(figure, "one").x) == 6
    assert len(named(figure, "two").x) == 3
    with_floor = figures.shifts.dots(runs, metric="ece")
    floors = [t for t in with_floor.data if t.marker.symbol == "line-ns-open"]
    assert list(floors[0].x) == [r.floor for r in figures.shifts.points(evaluations, "ece")]


def test_heatmap__cells_hold_the_values_and_leave_gaps_empty(evaluations):
    runs = [(Run("a", "same name"), evaluations), (Run("b", "same name"), evaluations[:1])]
    heat = figures.shifts.by_run(runs).data[0]
    assert len(set(heat.y)) == 2  # equal labels must not fall into one row
    assert heat.z[0][0] == evaluations[0].accuracy
    assert list(heat.z[1][1:]) == [None] * 5
    ece = figures.shifts.by_run(runs, metric="ece").data[0]
    for value, words, row in zip(
        ece.z[0], ece.text[0], figures.shifts.points(evaluations, "ece"), strict=True
    ):
        assert words.strip("()") == f"{100 * value:.1f}"
        assert words.startswith("(") is (row.above_floor is False)


def test_by_run__many_data_sets_stand_one_below_another(evaluations):
    shifts = [
        evaluations[0].model_copy(update={"dataset": f"shift-{k:02d}", "role": "shift"})
        for k in range(50)
    ]
    runs = [(Run(str(k), "same name"), [evaluations[0], *shifts[k:]]) for k in range(3)]
    figure = figures.shifts.by_run(runs)
    heat, marks = figure.data
    assert (len(heat.y), len(set(heat.x))) == (51, 3)
    assert [len(line) for line in heat.z] == [3] * 51
    assert heat.y[1:3] == ("shift-00", "shift-01")
    assert list(heat.z[1]) == [shifts[0].accuracy, None, None]
    # A row has room for its letters, and a mark opens the cell that it lies on.
    assert (figure.layout.height - figure.layout.margin.t) / 51 > 20
    for x, y, stands_for in zip(marks.x, marks.y, marks.customdata, strict=True):
        assert list(stands_for) == [str(heat.x.index(x)), y]


def test_corruptions__severity_zero_is_the_clean_test_set(evaluations):
    figure = figures.shifts.severity_lines([(Run("a", "one"), evaluations)])
    line = named(figure, "one")
    assert list(line.x) == [0, 1, 5]
    assert line.y[0] == evaluations[0].accuracy
    heat = figures.shifts.by_severity(evaluations).data[0]
    assert (len(heat.y), len(heat.x)) == (2, 2)
