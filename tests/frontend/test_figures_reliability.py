"""Reliability diagrams: what is drawn is what the numbers say."""

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.analysis.reliability import reliability_numbers, smooth_curve
from calift_core.calibration import Binning, score_samples
from calift_core.schema.wire.results import Reliability
from frontend import figures
from tests.conftest import example_predictions
from tests.frontend.examples import BINS, effect_of, make_bin, make_reliability, named


def gaps(figure: go.Figure) -> list[tuple[float, float, str]]:
    """(bottom, top, side) of every gap bar."""
    return [
        (float(base), float(base) + float(height), side)
        for side in ("over-confident", "under-confident")
        for base, height in zip(
            named(figure, side).base or (), named(figure, side).y or (), strict=True
        )
    ]


def test_reliability__bars_points_and_counts_are_those_of_the_bins():
    figure = figures.reliability.diagram(make_reliability(BINS))
    bars, counts = named(figure, "accuracy"), named(figure, "samples per bin")
    assert list(bars.y) == [b.accuracy for b in BINS]
    assert list(bars.width) == pytest.approx([b.upper - b.lower for b in BINS])
    assert list(bars.x) == pytest.approx([(b.lower + b.upper) / 2 for b in BINS])
    assert (list(counts.y), counts.xaxis) == ([b.count for b in BINS], bars.xaxis)
    points = named(figure, "accuracy, 95 % interval")
    assert list(points.x) == [b.mean_confidence for b in BINS]
    ends = [y + up for y, up in zip(points.y, points.error_y.array, strict=True)]
    assert ends == pytest.approx([b.interval_high for b in BINS])


def test_reliability__diagonal_of_a_square_and_counts_below_it():
    figure = figures.reliability.diagram(make_reliability(BINS))
    line, layout = named(figure, "perfect calibration"), figure.layout
    assert list(line.x) == list(line.y) == [0, 1]
    assert (layout.yaxis.scaleanchor, layout.yaxis.scaleratio) == ("x", 1)
    for axis in (layout.xaxis, layout.yaxis):
        assert axis.range[0] <= 0 < 1 <= axis.range[1]
    assert layout.yaxis2.domain[1] < layout.yaxis.domain[0]


def test_reliability__gap_reaches_from_accuracy_to_confidence_on_its_side():
    figure = figures.reliability.diagram(make_reliability(BINS))
    expected = [(0.2, 0.35, "over"), (0.65, 0.69, "under"), (0.8, 0.97, "over")]
    for one, other in zip(sorted(gaps(figure)), expected, strict=True):
        assert one[:2] == pytest.approx(other[:2])
        assert one[2] == f"{other[2]}-confident"
    over, under = (named(figure, f"{side}-confident").marker for side in ("over", "under"))
    assert over.line.color != under.line.color
    assert over.pattern.shape != under.pattern.shape
    assert gaps(figures.reliability.diagram(make_reliability([], n=0))) == []
    names = [[t.name for t in figures.reliability.diagram(make_reliability(BINS), band=on).data]
             for on in (True, False)]  # fmt: skip
    assert ["calibrated at this n (95 %)" in some for some in names] == [True, False]


@given(
    st.floats(0, 0.99), st.floats(0.001, 1), st.floats(0, 1), st.floats(0, 1)
)  # fmt: skip
def test_reliability__gap_bar_stays_inside_its_bin(lower, width, share, accuracy):
    upper = min(1.0, lower + width)
    b = make_bin(lower, upper, lower + share * (upper - lower), accuracy)
    low, high = figures.square.gap_span(b)
    assert lower <= low <= high <= upper
    assert low - 1e-9 <= b.mean_confidence <= high + 1e-9
    assert high - low == pytest.approx(min(upper - lower, figures.square.GAP_WIDTH))


def test_reliability__picture_says_what_it_shows_and_holds_every_run():
    title = figures.reliability.diagram(make_reliability(BINS)).layout.title.text
    for fact in ("n = 30", "15 bins", "equal mass", "L1", "T = 1", "3.1\u00a0% (floor 1.2\u00a0%)"):
        assert fact in title
    largest = figures.reliability.diagram(make_reliability(BINS, norm="max", temperature=1.5))
    assert "MCE" in largest.layout.title.text
    assert "ECE" not in largest.layout.title.text
    assert "T = 1.5" in largest.layout.title.text
    many = [make_reliability(BINS, run_id=f"r{i}", run_name=f"run {i}") for i in range(5)]
    grid = figures.reliability.grid(many)
    assert sum(trace.name == "accuracy" for trace in grid.data) == 5
    assert len({trace.xaxis for trace in grid.data}) == 5
    overlay = figures.reliability.overlay(many)
    assert sum(str(t.name).startswith("run ") for t in overlay.data if t.showlegend is None) == 5


def test_smooth__curve_is_drawn_on_request_with_gaps():
    diagram = effect_of(oracle=False).before
    plain, smooth = (figures.reliability.diagram(diagram, smooth=on) for on in (False, True))
    assert len(smooth.data) == len(plain.data) + 1
    line = next(t for t in smooth.data if t.name.startswith("smooth"))
    assert list(line.y) == diagram.smooth.accuracy
    assert not line.connectgaps


@pytest.mark.parametrize("scheme", ["equal_mass", "equal_width"])
def test_reliability__says_of_each_bin_and_of_the_error_what_the_numbers_say(scheme):
    predictions = example_predictions(0)
    scores = score_samples(predictions.logits, predictions.labels)
    numbers = reliability_numbers(scores, Binning(5, scheme), smooth=smooth_curve(scores))
    shown = Reliability.model_validate(make_reliability([]).model_dump() | numbers)
    made = figures.reliability.diagram(shown)
    for one, b in zip(figures.reliability.bin_fields(shown), shown.bins, strict=True):
        inside = b.interval_low <= b.mean_confidence <= b.interval_high
        assert (one["clear"] == 0) == inside == ("within noise" in one["words"])
        if not inside:
            assert one["clear"] * (b.mean_confidence - b.accuracy) > 0
    assert 0 < len(named(made, "accuracy").y) == len(shown.bins)
    # Bins of equal mass would all be as high as each other.
    names = {trace.name for trace in made.data}
    assert {"density", "samples per bin"} & names == {
        "density" if scheme == "equal_mass" else "samples per bin"
    }
    error = made.data[-1]
    assert list(error.x) == [shown.null_mean, shown.ece]
    assert error.x[1] + error.error_x.array[1] == pytest.approx(max(shown.ece, shown.interval[1]))
    without = figures.reliability.diagram(shown.model_copy(update={"in_sample": True}))
    assert len(without.data) == len(made.data) - 2
