"""Curves of training: what is drawn is what the numbers say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.wire.runs import Metrics, MetricSeries
from frontend import figures
from frontend.tables import Run

OWN = figures.style.style_of_slot(2)


def test_curves__long_series_are_drawn_by_webgl():
    def metrics(n):
        steps = list(range(1, n + 1))
        series = MetricSeries(name="loss", steps=steps, values=[1 / s for s in steps])
        return Metrics(series=[series], last_step=n)

    def drawn(n):
        return figures.curves.terms(metrics(n), ["loss", "absent"], own=OWN).data[0]

    assert drawn(50).type == "scatter"
    assert drawn(figures.style.WEBGL_POINTS + 1).type == "scattergl"
    assert list(drawn(3).y) == [1, 1 / 2, 1 / 3]


def test_curves__a_run_has_its_own_colour_and_no_term_has_a_runs():
    names = ["loss", "contrastive", "orthogonality", "distillation"]
    series = [MetricSeries(name=n, steps=[1, 2], values=[2.0, 1.0]) for n in names]
    drawn = figures.curves.terms(Metrics(series=series, last_step=2), names, own=OWN).data
    assert drawn[0].line.color == OWN.colour
    assert not {line.line.color for line in drawn[1:]} & set(figures.style.PALETTE)
    assert len({(line.line.color, line.line.dash) for line in drawn}) == len(names)


def test_overlay__runs_of_a_configuration_share_a_colour_and_one_name():
    labels = ["flyp", "carot", "flyp", "carot", "flyp"]
    runs = [
        (Run(str(k), label), _constant("val_accuracy", k / 10)) for k, label in enumerate(labels)
    ]
    styles = {str(k): figures.style.style_of_slot(len(label)) for k, label in enumerate(labels)}
    drawn = figures.curves.overlay(runs, "val_accuracy", styles=styles, grouped=True)
    assert len(drawn.data) == len(labels)
    assert [line.name for line in drawn.data if line.showlegend] == ["flyp", "carot"]
    colours = {(line.name, line.line.color) for line in drawn.data}
    assert len(colours) == 2
    output = figures.style.alt_text(drawn).replace("\xa0", " ")
    assert "3 of flyp end between 0.0 % and 40.0 %" in output


def _constant(name: str, value: float) -> Metrics:
    series = MetricSeries(name=name, steps=[1, 2, 3], values=[value] * 3)
    return Metrics(series=[series], last_step=3)


@given(st.floats(0, 1), st.sampled_from(["val_accuracy", "val_ece", "shift/art/ece"]))
def test_curves__shares_that_stay_the_same_are_shown_between_0_and_100(value, name):
    metrics = _constant(name, value)
    figure = figures.curves.overlay([(Run("a1", "first"), metrics)], name)
    low, high = figure.layout.yaxis.range
    assert -0.002 <= low < value + 1e-9
    assert value - 1e-9 < high <= 1.002
    assert 0.05 <= high - low <= 0.1 + 1e-9
    assert figure.layout.yaxis.tickformat.endswith("%")
    assert "%" in figure.data[0].hovertemplate.split(":")[1]
    assert f"{100 * value:.1f}" in figures.style.alt_text(figure)


def test_curves__shares_that_change_are_bounded_and_a_loss_is_no_share():
    series = MetricSeries(name="val_accuracy", steps=[1, 2], values=[0.2, 0.9])
    metrics = Metrics(series=[series], last_step=2)
    axis = figures.curves.overlay([(Run("a1", "first"), metrics)], "val_accuracy").layout.yaxis
    assert axis.range is None
    assert (axis.autorangeoptions.clipmin, axis.autorangeoptions.clipmax) == pytest.approx(
        (-0.03, 1.03)
    )
    loss = figures.curves.terms(_constant("loss", 1.0), ["loss"], own=OWN)
    assert loss.layout.yaxis.tickformat is None
