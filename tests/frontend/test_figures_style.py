"""Every figure: one look for a run everywhere, a description, escaped words, an export."""

from __future__ import annotations

import re
import subprocess
import sys

import plotly.graph_objects as go
from hypothesis import given
from hypothesis import strategies as st

from calift_core.schema.report import EvaluationReport, Summary
from calift_core.schema.wire.results import Comparison, MeasureSet, SlicePage
from calift_core.schema.wire.runs import Metrics, MetricSeries
from frontend import figures
from frontend.figures.style import Run
from tests.frontend.examples import BINS, ROWS, TUNED, make_reliability, path_of, spectrum_of


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


def test_labels__of_slices_and_estimators_are_escaped(
    pages: list[tuple[Run, SlicePage]], sets: list[tuple[Run, MeasureSet]]
) -> None:
    evil = Run("a1", "<img src=x onerror=alert(1)>")
    for figure in (
        figures.slices.gaps([(evil, pages[0][1])]),
        figures.estimators.figure([(evil, sets[0][1])]),
    ):
        layout = figure.to_plotly_json()["layout"] | {"meta": None}
        assert "<img" not in str([trace.name for trace in figure.data])
        assert "<img" not in str(layout)
