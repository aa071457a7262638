"""Curves of several runs: drawn as recorded, smoothing says so, shifts must be asked for."""

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift.trackers.runs import metrics_of
from frontend.figures import curves
from frontend.tables import Run
from tests.frontend.driving import charts_of, page, three, words

A, B = Run("a1", "first"), Run("b2", "<b>second</b>")
LOSS = metrics_of({"loss": {0: 4.0, 1: 2.0, 2: -1.0}, "shift/art/ece": {2: 0.2}})

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=30), st.floats(0, 0.99))
def test_smoothed__stays_within_what_was_seen_and_keeps_constants(values, weight):
    found = curves.smoothed(values, weight)
    assert len(found) == len(values)
    for i, mean in enumerate(found):
        seen = values[: i + 1]
        slack = 1e-9 * max(1.0, *(abs(v) for v in seen))
        assert min(seen) - slack <= mean <= max(seen) + slack
    assert curves.smoothed(values, 0.0) == pytest.approx(values)
    assert curves.smoothed([3.0] * 5, weight) == pytest.approx([3.0] * 5)


def traces(figure: go.Figure) -> list[tuple[str, list[float]]]:
    return [(t.name, list(t.y)) for t in figure.data]


def test_overlay__draws_what_was_recorded_and_smoothing_says_so():
    plain = curves.overlay([(A, LOSS), (B, LOSS)], "loss")
    assert traces(plain) == [
        ("first", [4.0, 2.0, -1.0]), ("&lt;b&gt;second&lt;/b&gt;", [4.0, 2.0, -1.0])
    ]  # fmt: skip
    assert "moving average" not in plain.layout.title.text
    first, second = (trace.line for trace in plain.data)
    assert first.color != second.color
    assert first.dash != second.dash
    assert traces(curves.overlay([(A, LOSS)], "loss", smoothing=0.5)) == traces(plain)[:1]
    many = [1.0 + (-1) ** i / 2 for i in range(curves.FEW)]
    noisy = metrics_of({"loss": dict(enumerate(many))})
    smooth = curves.overlay([(A, noisy)], "loss", smoothing=0.5)
    faint, thick = smooth.data
    assert list(faint.y) == many
    assert faint.opacity < 0.5
    assert list(thick.customdata) == many
    assert max(abs(v - 1) for v in thick.y[5:]) < 0.25
    assert "moving average, weight 0.5" in smooth.layout.title.text


def test_overlay__logarithms_leave_out_what_has_none_and_shifts_say_that_nothing_is_chosen():
    figure = curves.overlay([(A, LOSS)], "loss", log_x=True, log_y=True)
    assert list(figure.data[0].x) == [1]
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    figure = curves.overlay([(A, LOSS)], "shift/art/ece")
    assert "nothing is chosen on it" in figure.layout.title.text
    assert "nothing is chosen on it" in figure.layout.meta["alt"]


def test_page__overlays_the_chosen_runs(dashboard):
    app = page("curves", ids=three(dashboard), smooth="0.9", log_y="1", series="loss,lr")
    drawn = charts_of(app)
    assert len(drawn) == 2
    assert drawn[0].startswith("Loss over steps")
    assert "FLYP on fashion-mnist" in drawn[0]
    assert "CaRot on fashion-mnist" in drawn[0]
    assert "moving average, weight 0.9" in drawn[0]
    assert "Without curves: zero-shot" in words(app).replace("\\", "")


def test_page__shifts_over_training_must_be_asked_for(dashboard, monkeypatch):
    def recorded(run_id, revision, max_points):
        return LOSS

    monkeypatch.setattr("frontend.api.curves", recorded)
    app = page("curves", ids=dashboard.ids["FLYP"])
    assert not any("shift/art" in alt for alt in charts_of(app))
    app = page("curves", ids=dashboard.ids["FLYP"], shifts="1")
    assert any("shift/art" in alt for alt in charts_of(app))
    assert "calift chooses nothing on them" in words(app)
