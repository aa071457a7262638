"""The frontier: what is drawn is what the numbers say."""

from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.report import Summary
from frontend import figures
from frontend.tables import Run
from tests.frontend.examples import ROWS, TUNED, path_of

points_2d = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda p: (p[0] / 5, p[1] / 5)), min_size=1
)


ways = st.tuples(st.sampled_from(["high", "low"]), st.sampled_from(["high", "low"]))


@given(points_2d, ways)
def test_pareto__keeps_just_what_no_other_point_beats(points, better):
    signs = [1 if way == "high" else -1 for way in better]

    def beats(a, b):
        gains = [s * (x - y) for s, x, y in zip(signs, a, b, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    front = figures.frontier.pareto(points, better=better)
    assert any(front)
    for point, kept in zip(points, front, strict=True):
        assert kept == (not any(beats(other, point) for other in points))
    # The best of each axis is on it, and equal points share their fate.
    best = max(range(len(points)), key=lambda i: (signs[0] * points[i][0], signs[1] * points[i][1]))
    assert front[best]


def test_frontier__path_runs_by_alpha_and_the_front_is_marked():
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


def test_frontier__calibration_has_floors_and_low_is_better():
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


def test_frontier__long_paths_name_some_alphas_and_always_the_kept_one():
    rows = [(i / 100, 0.5 + i / 1000, 0.6 - i / 1000) for i in range(101)]
    figure = figures.frontier.figure([(Run("w", "w"), Summary())], {"w": path_of("w", rows, 0.37)})
    path = next(t for t in figure.data if t.name == "w, path")
    named = [words for words in path.text if words]
    assert {"0", "1", "0.37"} <= set(named)
    assert len(named) < 9


def test_frontier__runs_without_a_number_are_left_out():
    runs = [(Run("a", "tuned"), TUNED), (Run("b", "no shifts"), Summary(id_accuracy=0.5))]
    figure = figures.frontier.figure(runs, {})
    for axis in (figure.layout.xaxis, figure.layout.yaxis):  # whole percents name neighbours alike
        assert axis.tickformat == figures.style.SHARE
    assert "no shifts" not in {t.name for t in figure.data}
    empty = figures.frontier.figure(runs[1:], {})
    assert not empty.data
    assert "no run here has both numbers" in figures.style.alt_text(empty)
