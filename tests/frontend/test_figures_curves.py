"""Curves of training: what is drawn is what the numbers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.wire.runs import Metrics, MetricSeries
from frontend import figures
from frontend.figures.style import Run


def test_curves__long_series_are_drawn_by_webgl() -> None:
    def metrics(n: int) -> Metrics:
        steps = list(range(1, n + 1))
        series = MetricSeries(name="loss", steps=steps, values=[1 / s for s in steps])
        return Metrics(series=[series], last_step=n)

    assert figures.curves.figure(metrics(50)).data[0].type == "scatter"
    assert (
        figures.curves.figure(metrics(figures.style.WEBGL_POINTS + 1)).data[0].type == "scattergl"
    )
    assert list(figures.curves.figure(metrics(3), ["loss", "absent"]).data[0].y) == [
        1,
        1 / 2,
        1 / 3,
    ]


def _constant(name: str, value: float) -> Metrics:
    series = MetricSeries(name=name, steps=[1, 2, 3], values=[value] * 3)
    return Metrics(series=[series], last_step=3)


@given(st.floats(0, 1), st.sampled_from(["val_accuracy", "val_ece", "shift/art/ece"]))
def test_curves__shares_that_stay_the_same_are_shown_between_0_and_100(
    value: float, name: str
) -> None:
    metrics = _constant(name, value)
    for figure in (
        figures.curves.figure(metrics),
        figures.curves.overlay([(Run("a1", "first"), metrics)], name),
    ):
        low, high = figure.layout.yaxis.range
        assert -0.002 <= low < value + 1e-9
        assert value - 1e-9 < high <= 1.002
        assert 0.05 <= high - low <= 0.1 + 1e-9
        assert figure.layout.yaxis.tickformat.endswith("%")
        assert "%" in figure.data[0].hovertemplate.split(":")[1]
        assert f"{100 * value:.1f}" in figures.style.alt_text(figure)


def test_curves__shares_that_change_are_bounded_and_a_loss_is_no_share() -> None:
    series = MetricSeries(name="val_accuracy", steps=[1, 2], values=[0.2, 0.9])
    axis = figures.curves.figure(Metrics(series=[series], last_step=2)).layout.yaxis
    assert axis.range is None
    assert (axis.autorangeoptions.clipmin, axis.autorangeoptions.clipmax) == pytest.approx(
        (-0.03, 1.03)
    )
    assert figures.curves.figure(_constant("loss", 1.0)).layout.yaxis.tickformat is None


def test_curves__shares_beside_a_loss_have_an_axis_of_numbers() -> None:
    both = [*_constant("val_nll", 1.0).series, *_constant("val_accuracy", 0.5).series]
    axis = figures.curves.figure(Metrics(series=both, last_step=3)).layout.yaxis
    assert axis.tickformat is None
    assert axis.range is None
