"""Every figure: one look for a run everywhere, a description, escaped words, an export."""

import re
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.report import Summary
from calift_core.schema.wire.runs import Metrics, MetricSeries
from frontend import figures
from frontend.figures.marks import marks
from frontend.tables import Run
from tests.frontend.examples import (
    BINS,
    ROWS,
    TUNED,
    make_bin,
    make_reliability,
    path_of,
    spectrum_of,
)


@given(st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8))
def test_styles__up_to_eight_runs_differ_in_every_way(ids):
    styles = figures.style.run_styles(ids)
    for part in zip(*styles.values(), strict=True):
        assert len(set(part)) == len(ids)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20, unique=True), st.data())
def test_styles__order_does_not_matter(ids, data):
    assert figures.style.run_styles(ids) == figures.style.run_styles(
        data.draw(st.permutations(ids))
    )


@given(
    st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8, unique=True),
    st.lists(st.text(min_size=1, max_size=12), max_size=8),
)
def test_styles__a_known_run_keeps_its_own_when_others_come(before, more):
    known = figures.style.run_slots(before)
    now = figures.style.run_slots([*before, *more], known)
    assert {run: now[run] for run in before} == known


def all_figures(evaluations, comparison, label="one"):
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
        figures.curves.terms(metrics, ["loss"], own=figures.style.style_of_slot(0)),
        figures.compare.differences(comparison),
        figures.compare.scatter([(run, summary)]),
        figures.frontier.figure([(run, TUNED)], {"a": path_of("a", ROWS, 0.5)}),
        figures.shifts.by_run([]),
    ]


def test_alt_text__every_figure_says_what_it_shows(evaluations, comparison):
    for figure in all_figures(evaluations, comparison):
        assert len(figures.style.alt_text(figure)) > 20


def test_labels__what_people_typed_is_escaped(evaluations, comparison, pages, sets):
    evil = "<a href='x'>b</a>"
    more = [
        figures.slices.gaps([(Run("a", evil), pages[0][1])]),
        figures.estimators.figure([(Run("a", evil), sets[0][1])]),
    ]
    for figure in all_figures(evaluations, comparison, label=evil) + more:
        body = figure.to_dict()
        body["layout"].pop("meta")  # the description is plain text
        assert "<a href" not in str(body)


def test_export__html_needs_no_network_and_has_its_description():
    page = figures.style.to_html(figures.reliability.diagram(make_reliability(BINS)), title="a <b>")
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?:', page)
    assert "Reliability diagram of a run on sketch" in page
    assert "<title>a &lt;b&gt;</title>" in page


def test_import__charts_load_neither_streamlit_nor_torch():
    code = (
        "import sys, frontend.figures, frontend.tables\n"
        "print(sorted({'streamlit', 'torch', 'pandas', 'fastapi'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_dark__colours_change_and_words_stay(evaluations, comparison):
    name = "a run called #1c2733 of style=#5b6875 and #ffffff"
    for figure in all_figures(evaluations, comparison, label=name):
        before, after = str(figure.to_dict()), str(figures.style.on_dark(figure).to_dict())
        assert after.count(name) == before.count(name)
        left = re.sub(re.escape(name), "", after).lower()
        for colour in (figures.style.INK, figures.style.MUTED, "#e8ecf0"):
            assert colour not in left, colour


def test_marks__are_called_by_the_words_of_their_hover(evaluations):
    run = Run("a", "<b>one</b>")
    cells = marks(figures.shifts.by_run([(run, evaluations)]))
    assert len(cells) == 6
    first = evaluations[0]
    assert cells[0].stands_for == ["a", first.dataset]
    assert cells[0].words.startswith("<b>one</b> · ")
    assert f"{100 * first.accuracy:.1f}" in cells[0].words
    found = make_reliability(BINS)
    assert "accuracy 69.0\xa0%" in marks(figures.reliability.overlay([found, found]))[1].words
    grid = marks(figures.shifts.by_severity(evaluations))
    assert len(grid) == 4
    assert {tuple(m.stands_for) for m in grid} == {
        (e.dataset,) for e in evaluations if e.corruption
    }
    assert "severity 1" in grid[0].words
    assert len({m.words for m in grid}) == 4


def test_axis__of_shares_ends_at_none_and_all_and_one_of_differences_does_not():
    for shares in (
        figures.style.axis(tickformat=figures.style.SHARE),
        figures.style.axis(tickformat="$.0%"),
        figures.style.values_axis("accuracy"),
        figures.style.values_axis("ece", rangemode="tozero"),
    ):
        ends = shares["autorangeoptions"]
        # A mark at either end is drawn whole, and no tick stands behind it; few marks that lie near
        # each other are not drawn small on a whole axis.
        assert set(ends) == {"clipmin", "clipmax"}
        assert -0.05 < ends["clipmin"] < 0
        assert 1 < ends["clipmax"] < 1.05
    for other in (
        figures.style.axis(tickformat="+.1%"),
        figures.style.values_axis("nll"),
        figures.style.axis(tickformat="$.0%", type="log"),
    ):
        assert "autorangeoptions" not in other


def test_captioned__has_its_words_in_lines_that_fit_and_a_square_alone_is_narrow():
    words = "accuracy against confidence " * 20
    square = figures.reliability.diagram(make_reliability([make_bin(0, 1, 0.5, 0.5)]))
    for figure, width in ((square, 620), (figures.style.empty_figure("a", "b"), 1000)):
        found = figures.style.captioned(figure, words)
        lines = found.layout.annotations[-1].text.split("<br>")
        assert " ".join(lines) == words.strip()
        assert max(map(len, lines)) <= 0.13 * width
        assert found.layout.height - figure.layout.height >= 17 * len(lines)
        assert (found.layout.width or 1000) == width
