"""Runs against a baseline: what is drawn is what the numbers say."""

import pytest

from calift_core.schema.report import Summary
from calift_core.schema.wire.results import PairedDifference
from frontend import figures
from frontend.tables import Run, comparisons


def test_paired__open_marks_are_those_that_could_be_noise(comparison):
    marks = figures.compare.differences(comparison).data[0]
    assert list(marks.x) == pytest.approx([0.5, 5])
    assert "pp" in marks.hovertemplate
    assert [symbol.endswith("-open") for symbol in marks.marker.symbol] == [True, False]
    assert len(figures.compare.differences(comparison, roles=("id",)).data[0].x) == 1


def test_paired__an_ece_is_drawn_as_the_difference_of_l2_errors(comparison):
    found = PairedDifference.model_validate(
        {
            "dataset": "photo", "role": "id", "metric": "ece", "baseline": 0.03, "value": 0.05,
            "difference": 0.02, "interval": None, "distinguishable": True, "n": 100,
            "squared": {
                "baseline": 0.0005, "value": 0.0021, "difference": 0.0016,
                "interval": (0.0004, 0.0028),
            },
        }
    )  # fmt: skip
    columns = [comparison.runs[0], comparison.runs[1].model_copy(update={"differences": [found]})]
    requested = comparison.model_copy(update={"runs": columns})
    marks = figures.compare.differences(requested, metric="ece").data[0]
    root = 100 * (0.0021**0.5 - 0.0005**0.5)
    assert list(marks.x) == pytest.approx([root])
    assert list(marks.error_x.array) == pytest.approx([root * 0.75])
    (row,) = comparisons.differences(requested, "ece").rows
    assert row["difference"] == 0.02
    assert (row["l2"], row["low"]) == pytest.approx((root / 100, root / 400))


def test_scatter__floor_is_drawn_for_each_point():
    summary = Summary(
        id_accuracy=0.9, id_ece=0.03, id_ece_floor=0.01, ood_accuracy=0.6, ood_ece=0.1,
        ood_ece_floor=0.02,
    )  # fmt: skip
    figure = figures.compare.scatter([(Run("a", "one"), summary)])
    assert list(figure.data[0].y) == [0.03, 0.1]
    assert list(figure.data[1].y) == [0.01, 0.02]
    empty = figures.compare.scatter([(Run("a", "one"), Summary())])
    assert not empty.data
