"""Charts: what is drawn is what the numbers say."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.calibration import evaluate_all, reliability_curve, softmax
from calift_core.schema.report import EvaluationReport, FrontierPoint, Summary
from calift_core.schema.wire import (
    ComparedRun,
    Comparison,
    ConfidenceSet,
    Frontier,
    Metrics,
    MetricSeries,
    PairedDifference,
    Reliability,
    ReliabilityBin,
    RunSummary,
    Spectrum,
)
from frontend import figures, tables, text
from frontend.figures.style import Run
from tests.frontend import seed


def make_bin(lower: float, upper: float, confidence: float, accuracy: float) -> ReliabilityBin:
    return ReliabilityBin(
        lower=lower,
        upper=upper,
        count=10,
        mean_confidence=confidence,
        accuracy=accuracy,
        interval_low=max(0.0, accuracy - 0.1),
        interval_high=min(1.0, accuracy + 0.1),
        band_low=max(0.0, confidence - 0.05),
        band_high=min(1.0, confidence + 0.05),
    )


def make_reliability(bins: list[ReliabilityBin], **changes: Any) -> Reliability:
    values = {
        "evaluation_id": "e1",
        "run_id": "r1",
        "run_name": "a run",
        "method": "carot",
        "dataset": "sketch",
        "role": "shift",
        "n": sum(b.count for b in bins),
        "n_bins": 15,
        "scheme": "equal_mass",
        "norm": "l1",
        "temperature": 1.0,
        "accuracy": 0.7,
        "mean_confidence": 0.8,
        "nll": 0.9,
        "brier": 0.4,
        "ece": 0.031,
        "null_mean": 0.012,
        "null_q95": 0.02,
        "interval": (0.02, 0.04),
        "debiased": 0.025,
        "bins": bins,
    }
    return Reliability.model_validate(values | changes)


BINS = [make_bin(0.2, 0.4, 0.35, 0.2), make_bin(0.6, 0.7, 0.65, 0.69), make_bin(0.9, 1, 0.97, 0.8)]


@pytest.fixture(scope="module")
def real() -> Reliability:
    """A diagram of predictions, by the code that the API uses."""
    made = seed.predictions(seed.KINDS["fine-tuning"], "sketch", "shift", n=1000, harm=0.3, seed=1)
    curve = reliability_curve(softmax(made.logits), made.labels, n_bins=10, scheme="equal_width")
    numbers = curve.to_dict()
    rows = [
        ReliabilityBin.model_validate(
            {name: numbers[source][k] for name, source in _sources(numbers).items()}
        )
        for k in range(len(curve.count))
        if curve.count[k]
    ]
    return make_reliability(rows, scheme="equal_width", n_bins=10)


def _sources(numbers: dict[str, Any]) -> dict[str, str]:
    return {name: name for name in ReliabilityBin.model_fields if name in numbers}


def named(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def gaps(figure: go.Figure) -> list[tuple[float, float, str]]:
    """(bottom, top, side) of every gap bar."""
    return [
        (float(base), float(base) + float(height), side)
        for side in ("over-confident", "under-confident")
        for base, height in zip(
            named(figure, side).base or (), named(figure, side).y or (), strict=True
        )
    ]


def test_reliability__accuracy_bars_stand_on_their_bins_and_are_as_high_as_accuracy() -> None:
    bars = named(figures.reliability.diagram(make_reliability(BINS)), "accuracy")
    assert list(bars.y) == [b.accuracy for b in BINS]
    assert list(bars.width) == pytest.approx([b.upper - b.lower for b in BINS])
    assert list(bars.x) == pytest.approx([(b.lower + b.upper) / 2 for b in BINS])


def test_reliability__gap_reaches_from_accuracy_to_confidence_on_its_side() -> None:
    found = sorted(gaps(figures.reliability.diagram(make_reliability(BINS))))
    expected = [
        (0.2, 0.35, "over-confident"),
        (0.65, 0.69, "under-confident"),
        (0.8, 0.97, "over-confident"),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one[:2] == pytest.approx(other[:2])
        assert one[2] == other[2]


def test_reliability__sides_differ_in_colour_and_in_pattern() -> None:
    figure = figures.reliability.diagram(make_reliability(BINS))
    over, under = (named(figure, f"{side}-confident").marker for side in ("over", "under"))
    assert over.line.color != under.line.color
    assert over.pattern.shape != under.pattern.shape


@given(
    st.floats(0, 0.99), st.floats(0.001, 1), st.floats(0, 1), st.floats(0, 1)
)  # fmt: skip
def test_reliability__gap_bar_stays_inside_its_bin(
    lower: float, width: float, share: float, accuracy: float
) -> None:
    upper = min(1.0, lower + width)
    b = make_bin(lower, upper, lower + share * (upper - lower), accuracy)
    low, high = figures.square.gap_span(b)
    assert lower <= low <= high <= upper
    assert low - 1e-9 <= b.mean_confidence <= high + 1e-9
    assert high - low == pytest.approx(min(upper - lower, figures.square.GAP_WIDTH))


def test_reliability__counts_share_the_x_axis_below() -> None:
    figure = figures.reliability.diagram(make_reliability(BINS))
    counts = named(figure, "samples per bin")
    assert list(counts.y) == [b.count for b in BINS]
    assert counts.xaxis == named(figure, "accuracy").xaxis
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]


def test_reliability__axes_are_square_and_cover_the_unit_interval() -> None:
    layout = figures.reliability.diagram(make_reliability(BINS)).layout
    assert (layout.yaxis.scaleanchor, layout.yaxis.scaleratio) == ("x", 1)
    for axis in (layout.xaxis, layout.yaxis):
        assert axis.range[0] <= 0
        assert axis.range[1] >= 1


def test_reliability__identity_line_is_the_diagonal() -> None:
    line = named(figures.reliability.diagram(make_reliability(BINS)), "perfect calibration")
    assert list(line.x) == list(line.y) == [0, 1]


def test_reliability__points_sit_at_mean_confidence_with_their_interval() -> None:
    points = named(figures.reliability.diagram(make_reliability(BINS)), "accuracy, 95 % interval")
    assert list(points.x) == [b.mean_confidence for b in BINS]
    assert [y + up for y, up in zip(points.y, points.error_y.array, strict=True)] == pytest.approx(
        [b.interval_high for b in BINS]
    )


def test_reliability__every_bin_with_samples_is_drawn_and_no_other(real: Reliability) -> None:
    figure = figures.reliability.diagram(real)
    assert 0 < len(real.bins) < real.n_bins  # this model leaves low bins empty
    assert len(named(figure, "accuracy").y) == len(real.bins)
    assert sum(named(figure, "samples per bin").y) == real.n == 1000


def test_reliability__band_can_be_left_out() -> None:
    names = [t.name for t in figures.reliability.diagram(make_reliability(BINS), band=False).data]
    assert "calibrated at this n (95 %)" not in names


def test_reliability__no_bin_is_no_fault() -> None:
    assert gaps(figures.reliability.diagram(make_reliability([], n=0))) == []


def test_reliability__picture_says_what_it_shows() -> None:
    title = figures.reliability.diagram(make_reliability(BINS)).layout.title.text
    for fact in ("n = 30", "15 bins", "equal mass", "L1", "T = 1", "3.1\u00a0% (floor 1.2\u00a0%)"):
        assert fact in title
    largest = figures.reliability.diagram(make_reliability(BINS, norm="max", temperature=1.5))
    assert "MCE" in largest.layout.title.text
    assert "ECE" not in largest.layout.title.text
    assert "T = 1.5" in largest.layout.title.text


def test_reliability__grid_and_overlay_hold_every_run() -> None:
    many = [make_reliability(BINS, run_id=f"r{i}", run_name=f"run {i}") for i in range(5)]
    grid = figures.reliability.grid(many)
    assert sum(trace.name == "accuracy" for trace in grid.data) == 5
    assert len({trace.xaxis for trace in grid.data}) == 5
    overlay = figures.reliability.overlay(many)
    assert sum(str(t.name).startswith("run ") for t in overlay.data if t.showlegend is None) == 5


# ---- Styles ------------------------------------------------------------------------------------


@given(st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8))
def test_styles__up_to_eight_runs_differ_in_every_way(ids: set[str]) -> None:
    styles = figures.style.run_styles(ids)
    for part in zip(*styles.values(), strict=True):
        assert len(set(part)) == len(ids)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20, unique=True), st.data())
def test_styles__order_does_not_matter(ids: list[str], data: st.DataObject) -> None:
    assert figures.style.run_styles(ids) == figures.style.run_styles(
        data.draw(st.permutations(ids))
    )


@given(
    st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8, unique=True),
    st.lists(st.text(min_size=1, max_size=12), max_size=8),
)
def test_styles__a_known_run_keeps_its_own_when_others_come(
    before: list[str], more: list[str]
) -> None:
    known = figures.style.run_slots(before)
    now = figures.style.run_slots([*before, *more], known)
    assert {run: now[run] for run in before} == known


def test_styles__palette_is_okabe_ito() -> None:
    okabe_ito = {
        "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
        "#999999",
    }  # fmt: skip
    assert set(figures.style.PALETTE) < okabe_ito


# ---- The other charts --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluations() -> list[EvaluationReport]:
    found = []
    for dataset, role, harm, corruption, severity in seed._sets(seed.SMALL):
        made = seed.predictions(seed.KINDS["FLYP"], dataset, role, n=120, harm=harm, seed=1)
        numbers = evaluate_all(made.probs(), made.labels, n_resamples=20)
        found.append(
            EvaluationReport.model_validate(
                numbers
                | {
                    "dataset": dataset,
                    "role": role,
                    "n_classes": 10,
                    "corruption": corruption,
                    "severity": severity,
                }
            )
        )
    return found


def test_shift_points__id_first_and_severities_averaged(
    evaluations: list[EvaluationReport],
) -> None:
    rows = figures.shifts.points(evaluations, "accuracy")
    assert [row.role for row in rows] == ["id", *["shift"] * 3, *["corruption"] * 2]
    noise = next(row for row in rows if row.dataset == "gaussian noise")
    parts = [e.accuracy for e in evaluations if e.corruption == "gaussian_noise"]
    assert noise.value == pytest.approx(sum(parts) / 2)
    assert noise.low is None


def test_wilson__agrees_with_scipy(evaluations: list[EvaluationReport]) -> None:
    from scipy.stats import binomtest

    expected = binomtest(37, 50).proportion_ci(method="wilson")
    evaluation = evaluations[0].model_copy(update={"accuracy": 37 / 50, "n": 50})
    (row,) = figures.shifts.points([evaluation], "accuracy")
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_accuracy_by_shift__one_mark_per_run_and_set(evaluations: list[EvaluationReport]) -> None:
    runs = [(Run("a", "one"), evaluations), (Run("b", "two"), evaluations[:3])]
    figure = figures.shifts.dots(runs)
    assert len(named(figure, "one").x) == 6
    assert len(named(figure, "two").x) == 3
    with_floor = figures.shifts.dots(runs, metric="ece")
    floors = [t for t in with_floor.data if t.marker.symbol == "line-ns-open"]
    assert list(floors[0].x) == [r.floor for r in figures.shifts.points(evaluations, "ece")]


def test_heatmap__cells_hold_the_values_and_leave_gaps_empty(
    evaluations: list[EvaluationReport],
) -> None:
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


def test_corruptions__severity_zero_is_the_clean_test_set(
    evaluations: list[EvaluationReport],
) -> None:
    figure = figures.shifts.severity_lines([(Run("a", "one"), evaluations)])
    line = named(figure, "one")
    assert list(line.x) == [0, 1, 5]
    assert line.y[0] == evaluations[0].accuracy
    heat = figures.shifts.by_severity(evaluations).data[0]
    assert (len(heat.y), len(heat.x)) == (2, 2)


def spectrum_of(values: list[float], **changes: Any) -> Spectrum:
    base = {
        "run_id": "a",
        "step": 10,
        "final": True,
        "singular_values": values,
        "sigma_min": values[-1],
        "condition_number": None,
        "effective_rank": 2.0,
        "n": 100,
        "n_features": len(values),
        "n_constant_features": 0,
    }
    return Spectrum.model_validate(base | changes)


def test_singular_values__all_are_drawn_and_zero_is_left_out() -> None:
    figure = figures.spectra.singular_values([(Run("a", "one"), spectrum_of([3.0, 1.0, 0.5]))])
    assert list(figure.data[0].y) == [3.0, 1.0, 0.5]
    assert figure.layout.yaxis.type == "log"
    zero = figures.spectra.singular_values(
        [(Run("a", "one"), spectrum_of([3.0, 0.0], sigma_min=None))]
    )
    assert list(zero.data[0].y) == [3.0]
    assert len(zero.data) == 1  # no mark for a σ_min that says nothing
    assert "undefined" in figures.style.alt_text(zero)


def test_sigma_over_steps__undefined_is_said_and_not_plotted() -> None:
    short = spectrum_of([3.0, 0.0], sigma_min=None, n=1)
    figure = figures.spectra.over_steps([(Run("a", "one"), [short])])
    assert not figure.data
    assert "fewer samples than features" in figures.style.alt_text(figure)
    path = [spectrum_of([2.0, s / 10], step=s, final=s == 3) for s in (3, 1, 2)]
    drawn = figures.spectra.over_steps([(Run("a", "one"), path)])
    assert list(drawn.data[0].x) == [1, 2]
    assert list(drawn.data[1].y) == [0.3]


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


@pytest.fixture
def comparison() -> Comparison:
    def column(run_id: str, differences: list[PairedDifference]) -> ComparedRun:
        run = RunSummary.model_validate(
            {
                "id": run_id, "name": f"run {run_id}", "phase": "SUCCEEDED", "method": "flyp",
                "model": "m", "suite": "s", "seed": 0, "tags": [],
                "created_at": "2026-01-01T00:00:00Z",
            }
        )  # fmt: skip
        return ComparedRun(run=run, evaluations=[], differences=differences)

    def difference(dataset: str, role: str, value: float, clear: bool) -> PairedDifference:
        return PairedDifference.model_validate(
            {
                "dataset": dataset, "role": role, "metric": "accuracy", "baseline": 0.5,
                "value": 0.5 + value, "difference": value,
                "interval": (value - 0.01, value + 0.01), "distinguishable": clear, "n": 100,
            }
        )  # fmt: skip

    found = [difference("art", "shift", 0.005, False), difference("photo", "id", 0.05, True)]
    return Comparison(
        baseline="a",
        runs=[column("a", []), column("b", found)],
        parameters={"/train/seed": [0, 1]},
    )


def test_paired__open_marks_are_those_that_could_be_noise(comparison: Comparison) -> None:
    marks = figures.compare.differences(comparison).data[0]
    assert list(marks.x) == [0.005, 0.05]
    assert [symbol.endswith("-open") for symbol in marks.marker.symbol] == [True, False]
    assert len(figures.compare.differences(comparison, roles=("id",)).data[0].x) == 1


def test_paired__an_ece_is_drawn_as_the_difference_of_squared_errors(
    comparison: Comparison,
) -> None:
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
    asked = comparison.model_copy(
        update={
            "runs": columns,
            "confidence_sets": [
                ConfidenceSet(
                    dataset="photo", role="id", metric="ece", n=100, level=0.95, members=["a"],
                    excluded=["b"], p_values={"a": 1.0, "b": 0.004},
                )
            ],
        }
    )  # fmt: skip
    marks = figures.compare.differences(asked, metric="ece").data[0]
    assert list(marks.x) == pytest.approx([16])
    assert list(marks.error_x.array) == pytest.approx([12])
    table = figures.compare.differences_table(asked, "ece")
    assert table.rows[0]["difference"] == 0.02
    assert (table.rows[0]["low"], table.rows[0]["squared"]) == (0.0004, 0.0016)
    assert "+16.0\N{NO-BREAK SPACE}pp²" in tables.to_html(table, caption="x")
    sets = figures.compare.confidence_sets_table(asked, "ece")
    assert sets.rows == [
        {"dataset": "photo", "members": "run a", "excluded": "run b (p < 0.01)", "n": 100}
    ]
    assert figures.compare.confidence_sets_table(asked, "nll").rows == []


def test_scatter__floor_is_drawn_for_each_point() -> None:
    summary = Summary(
        id_accuracy=0.9, id_ece=0.03, id_ece_floor=0.01, ood_accuracy=0.6, ood_ece=0.1,
        ood_ece_floor=0.02,
    )  # fmt: skip
    figure = figures.compare.scatter([(Run("a", "one"), summary)])
    assert list(figure.data[0].y) == [0.03, 0.1]
    assert list(figure.data[1].y) == [0.01, 0.02]
    empty = figures.compare.scatter([(Run("a", "one"), Summary())])
    assert not empty.data


points_2d = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda p: (p[0] / 5, p[1] / 5)), min_size=1
)
ways = st.tuples(st.sampled_from(["high", "low"]), st.sampled_from(["high", "low"]))


@given(points_2d, ways)
def test_pareto__keeps_just_what_no_other_point_beats(
    points: list[tuple[float, float]], better: tuple[str, str]
) -> None:
    signs = [1 if way == "high" else -1 for way in better]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        gains = [s * (x - y) for s, x, y in zip(signs, a, b, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    front = figures.frontier.pareto(points, better=better)
    assert any(front)
    for point, kept in zip(points, front, strict=True):
        assert kept == (not any(beats(other, point) for other in points))
    # The best of each axis is on it, and equal points share their fate.
    best = max(range(len(points)), key=lambda i: (signs[0] * points[i][0], signs[1] * points[i][1]))
    assert front[best]


def path_of(run_id: str, rows: list[tuple[float, float, float]], kept: float) -> Frontier:
    """A path of (α, ID accuracy, OOD accuracy); the ECEs fall with α."""
    points = [
        FrontierPoint(
            alpha=alpha, id_accuracy=own, ood_accuracy=out, id_ece=0.1, id_ece_floor=0.01,
            id_nll=1.0, ood_ece=0.2 - alpha / 10, ood_ece_floor=0.02, ood_nll=2.0, datasets=[],
        )
        for alpha, own, out in rows
    ]  # fmt: skip
    return Frontier(run_id=run_id, run_name="wise", input_run="tuned", alpha=kept, points=points)


ROWS = [(0.0, 0.6, 0.6), (0.5, 0.8, 0.7), (1.0, 0.9, 0.5)]
TUNED = Summary(id_accuracy=0.85, ood_accuracy=0.45, id_ece=0.1, ood_ece=0.3, ood_ece_floor=0.02)


def test_frontier__path_runs_by_alpha_and_the_front_is_marked() -> None:
    wise = Summary(id_accuracy=0.8, ood_accuracy=0.7)
    runs = [(Run("a", "tuned"), TUNED), (Run("w", "between"), wise)]
    paths = {"w": path_of("w", ROWS, 0.5)}
    figure = figures.frontier.figure(runs, paths)
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    assert list(by_name["between, path"].x) == [0.6, 0.8, 0.9]
    assert list(by_name["between, path"].text) == ["0", "0.5", "1"]
    assert (list(by_name["between"].x), list(by_name["between"].y)) == ([0.8], [0.7])
    assert list(by_name["Pareto front"].x) == [0.8, 0.9]
    assert list(by_name["tuned"].y) == [0.45]
    alt = figures.style.alt_text(figure)
    assert "On the Pareto front: between at α = 0.5, between at α = 1." in alt
    table = figures.frontier.table(runs, paths, x="id_accuracy", y="ood_accuracy")
    assert [row["best"] for row in table.rows] == [False, False, True, True]
    assert [row["alpha"] for row in table.rows] == ["", 0.0, 0.5, 1.0]
    assert [row["kept"] for row in table.rows] == [True, False, True, False]
    assert len(figures.frontier.path_table(paths["w"]).rows) == 3


def test_frontier__calibration_has_floors_and_low_is_better() -> None:
    runs = [(Run("a", "tuned"), TUNED), (Run("w", "between"), Summary())]
    paths = {"w": path_of("w", ROWS, 0.5)}
    figure = figures.frontier.figure(runs, paths, x="ood_accuracy", y="ood_ece")
    front = next(t for t in figure.data if t.name == "Pareto front")
    # (0.6, .20) is beaten by (0.7, .15); (0.5, .10) has the lowest error.
    assert sorted(zip(front.x, front.y, strict=True)) == [(0.5, 0.1), (0.7, 0.15000000000000002)]
    ticks = [t for t in figure.data if t.marker.symbol == "line-ew-open"]
    assert [list(t.y) for t in ticks] == [[0.02], [0.02] * 3]
    assert "tick: floor" in figure.layout.title.text
    assert "lower right is better" in figure.layout.title.text


def test_frontier__long_paths_name_some_alphas_and_always_the_kept_one() -> None:
    rows = [(i / 100, 0.5 + i / 1000, 0.6 - i / 1000) for i in range(101)]
    figure = figures.frontier.figure([(Run("w", "w"), Summary())], {"w": path_of("w", rows, 0.37)})
    path = next(t for t in figure.data if t.name == "w, path")
    named = [words for words in path.text if words]
    assert {"0", "1", "0.37"} <= set(named)
    assert len(named) < 9


def test_frontier__runs_without_a_number_are_left_out() -> None:
    runs = [(Run("a", "tuned"), TUNED), (Run("b", "no shifts"), Summary(id_accuracy=0.5))]
    figure = figures.frontier.figure(runs, {})
    assert "no shifts" not in {t.name for t in figure.data}
    empty = figures.frontier.figure(runs[1:], {})
    assert not empty.data
    assert "no run here has both numbers" in figures.style.alt_text(empty)


def all_figures(
    evaluations: list[EvaluationReport], comparison: Comparison, label: str = "one"
) -> list[go.Figure]:
    run = Run("a", label)
    summary = Summary(id_accuracy=0.9, id_ece=0.03)
    diagram = make_reliability(BINS, run_name=label)
    metrics = Metrics(series=[MetricSeries(name="loss", steps=[1], values=[1.0])], last_step=1)
    return [
        figures.reliability.diagram(diagram),
        figures.reliability.grid([diagram]),
        figures.reliability.overlay([diagram]),
        figures.shifts.dots([(run, evaluations)], metric="ece"),
        figures.shifts.by_run([(run, evaluations)]),
        figures.shifts.by_severity(evaluations),
        figures.shifts.severity_lines([(run, evaluations)]),
        figures.spectra.singular_values([(run, spectrum_of([2.0, 1.0]))]),
        figures.spectra.over_steps([(run, [spectrum_of([2.0, 1.0])])]),
        figures.curves.figure(metrics),
        figures.compare.differences(comparison),
        figures.compare.scatter([(run, summary)]),
        figures.frontier.figure([(run, TUNED)], {"a": path_of("a", ROWS, 0.5)}),
        figures.shifts.by_run([]),
    ]


def test_alt_text__every_figure_says_what_it_shows(
    evaluations: list[EvaluationReport], comparison: Comparison
) -> None:
    for figure in all_figures(evaluations, comparison):
        assert len(figures.style.alt_text(figure)) > 20


def test_labels__what_people_typed_is_escaped(
    evaluations: list[EvaluationReport], comparison: Comparison
) -> None:
    for figure in all_figures(evaluations, comparison, label="<a href='x'>b</a>"):
        body = figure.to_dict()
        body["layout"].pop("meta")  # the description is plain text
        assert "<a href" not in str(body)


def test_export__html_needs_no_network_and_has_its_description() -> None:
    page = figures.style.to_html(figures.reliability.diagram(make_reliability(BINS)), title="a <b>")
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?:', page)
    assert "Reliability diagram of a run on sketch" in page
    assert "<title>a &lt;b&gt;</title>" in page


def test_import__charts_load_neither_streamlit_nor_torch() -> None:
    code = (
        "import sys, frontend.figures, frontend.tables\n"
        "print(sorted({'streamlit', 'torch', 'pandas', 'fastapi'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- Tables ------------------------------------------------------------------------------------


def test_table__twin_holds_the_numbers_of_the_diagram() -> None:
    table = figures.reliability.bins_table([make_reliability(BINS)])
    assert [row["accuracy"] for row in table.rows] == [b.accuracy for b in BINS]
    html = tables.to_html(table, caption="bins")
    assert html.count("<tr>") == 1 + len(BINS)
    assert "35.0\u00a0%" in html


def test_table__html_escapes_everything_but_markup() -> None:
    table = tables.Table(
        [tables.Column("a", "<b>"), tables.Column("b", "B")],
        [{"a": "<script>", "b": tables.Markup("<i>ours</i>")}],
    )
    html = tables.to_html(table, caption='"><x')
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<x" not in html
    assert "<i>ours</i>" in html


def test_table__csv_keeps_fractions_and_disarms_formulas() -> None:
    columns = [tables.Column("x", "X", "percent"), tables.Column("name", "Name")]
    table = tables.Table(columns, [{"x": -0.0312345, "name": "=1+1"}, {"x": None, "name": "a,b"}])
    assert tables.to_csv(table) == 'x,name\n-0.0312345,\'=1+1\n,"a,b"\n'


def test_table__long_ones_say_how_much_is_left_out() -> None:
    table = tables.Table([tables.Column("x", "X", "count")], [{"x": i} for i in range(7)])
    assert "and 4 more rows" in tables.to_html(table, caption="numbers", limit=3)


# ---- Words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (text.percent(0.0312), "3.1 %"),
        (text.percent(-0.0001), "0.0 %"),
        (text.percent(-0.02), "−2.0 %"),
        (text.percent(None), "–"),
        (text.points(0.012), "+1.2 pp"),
        (text.ece_with_floor(0.031, 0.012), "3.1 % (floor 1.2 %)"),
        (text.number(0.13), "0.130"),
        (text.number(123.4), "123"),
        (text.size(2_700_000), "2.7 MB"),
        (text.duration(7500), "2 h 05 min"),
        (text.duration(59.7), "1 min 00 s"),
    ],
)
def test_text__reads_as_people_write(said: str, expected: str) -> None:
    assert said.replace("\u00a0", " ") == expected


@given(st.text(alphabet="ab`*_[]()<>#$:~|!-\\", max_size=20))
def test_text__markdown_of_what_people_typed_formats_nothing(typed: str) -> None:
    escaped = text.md(typed)
    assert re.sub(r"\\(.)", r"\1", escaped) == typed.replace("\n", " ")
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[<$]", escaped)


def test_metrics__names_are_fields_of_an_evaluation() -> None:
    assert set(text.METRICS) <= set(EvaluationReport.model_fields)
