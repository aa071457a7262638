"""The bound's terms, rank statistics, the synthetic experiment and the study of finished runs."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.errors import DataError, SpecError
from calift_core.schema.report import EceReport, EvaluationReport, Report, SpectrumReport, Summary
from research.bound.__main__ import main
from research.bound.analysis import analyse
from research.bound.figure import Panel, PlotMark, scatter_svg
from research.bound.points import BoundPoint
from research.bound.runs import read_runs
from research.bound.synthetic import FULL, QUICK, draw_samples, synthetic_points
from research.bound.written import write_study

# ------------------------------------------------------------------------- the synthetic experiment


def test_draw_samples__the_shift_moves_one_mean_and_shrinks_one_scale() -> None:
    plan = replace(QUICK, n_features=20)
    x, y = draw_samples(plan, 40_000, np.random.default_rng(0), ood=False)
    shifted, labels = draw_samples(plan, 40_000, np.random.default_rng(0), ood=True)
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_allclose(shifted[:, 0], x[:, 0] + plan.mean_shift, rtol=1e-5)
    np.testing.assert_allclose(shifted[:, 1], x[:, 1] * plan.scale, rtol=1e-5)
    np.testing.assert_array_equal(shifted[:, 2:], x[:, 2:])
    sign = 2 * y - 1
    correlation = (x * sign[:, None]).mean(axis=0)
    np.testing.assert_allclose(correlation[:2], plan.separation, atol=0.03)
    np.testing.assert_allclose(correlation[2:], 0, atol=0.03)


@pytest.fixture(scope="module")
def quick_points() -> list[BoundPoint]:
    return list(synthetic_points(QUICK))


def test_synthetic__one_point_a_setting_with_a_defined_bound(
    quick_points: list[BoundPoint],
) -> None:
    assert len(quick_points) == len(QUICK.settings()) == 12
    assert {p.variant for p in quick_points} == {"plain", "L_OC", "L_SD", "both"}
    assert len({p.group for p in quick_points}) == 4
    for p in quick_points:
        assert 0 < p.sigma_min <= 1
        assert p.covariance_term == pytest.approx(p.n_features / p.sigma_min)
        assert p.rhs == pytest.approx(p.id_calibration + p.covariance_term)
        assert p.product == pytest.approx(p.covariance_term * p.id_squared)
        assert 0 <= p.ood_ece <= 1
        assert p.ood_error < 0.5


def test_synthetic__the_orthogonality_term_raises_sigma_min_in_every_repeat(
    quick_points: list[BoundPoint],
) -> None:
    by = {(p.variant, p.seed): p for p in quick_points}
    for seed in QUICK.seeds:
        assert by["L_OC", seed].sigma_min > 1.2 * by["plain", seed].sigma_min
        assert by["both", seed].sigma_min > 1.2 * by["L_SD", seed].sigma_min


def test_synthetic__the_id_error_is_the_distance_from_the_truth_and_a_noise_of_the_labels(
    quick_points: list[BoundPoint],
) -> None:
    """E(h − y)² = E(h − η)² + E η(1 − η), and the last part is of the data alone."""
    for seed in QUICK.seeds:
        noise = [p.id_error - p.id_squared for p in quick_points if p.seed == seed]
        assert min(noise) > 0
        assert np.ptp(noise) < 0.03


def test_synthetic__is_deterministic_and_repeats_differ(quick_points: list[BoundPoint]) -> None:
    plan = replace(QUICK, seeds=(1,))
    again = list(synthetic_points(plan))
    assert again == [p for p in quick_points if p.seed == 1]
    assert len({p.sigma_min for p in quick_points}) == len(quick_points)
    assert next(synthetic_points(plan, seed=1)).sigma_min != again[0].sigma_min


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 40}, "width ≤ hidden"),
        ({"n_test": 8}, "n_test > width"),
        ({"batch_size": 99}, "multiple of batch_size 99, got 400"),
        ({"n_features": 1}, "n_features must be ≥ 2"),
    ],
)
def test_synthetic__refuses_a_plan_without_a_spectrum(change: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        next(synthetic_points(replace(QUICK, **change)))


def test_full_plan__has_1000_features_four_variants_and_three_repeats() -> None:
    settings = FULL.settings()
    assert FULL.n_features == 1000
    assert {s.variant for s in settings} == {"plain", "L_OC", "L_SD", "both"}
    assert len({s.seed for s in settings}) == 3
    assert len(settings) == 96


# ----------------------------------------------------------------------------------- finished runs


def make_report(
    kind: str = "flyp",
    *,
    seed: int = 0,
    suite: str = "toys",
    sigma: float | None = 0.1,
    id_ece: float = 0.02,
    ood: float | None = 0.7,
    n: int = 100,
    **method: Any,
) -> Report:
    """A report with what the study reads."""
    error = EceReport(
        value=id_ece,
        n_bins=15,
        scheme="equal_mass",
        null_mean=0.01,
        null_q95=0.02,
        interval=(0.0, 0.1),
        debiased=0.01,
        n_resamples=1,
        seed=0,
    )
    evaluation = EvaluationReport(
        dataset=f"{suite}/test",
        role="id",
        n=n,
        n_classes=3,
        accuracy=0.8,
        mean_per_class_accuracy=0.8,
        macro_f1=0.8,
        nll=0.5,
        brier=0.3,
        mean_confidence=0.8,
        overconfidence=0.0,
        underconfidence=0.0,
        ece=error,
        ece_equal_width=error,
        ece_batch_averaged=0.05,
        mce=0.1,
        smooth_ece=0.02,
        classwise_ece=0.02,
        ks_error=0.02,
        aurc=0.1,
    )
    spec = {"method": {"kind": kind} | method, "train": {"seed": seed}, "suite": {"id": suite}}
    text = json.dumps([spec, n])
    return Report(
        run_id="local",
        name=f"{kind} seed {seed}",
        spec=spec,
        spec_sha256=sha256(text.encode()).hexdigest(),
        resolved={},
        summary=Summary(
            id_accuracy=0.8,
            id_ece=id_ece,
            ood_accuracy=ood,
            ood_ece=None if ood is None else 1 - ood,
            sigma_min=sigma,
        ),
        evaluations=[evaluation],
        spectrum=SpectrumReport(
            singular_values=[1.0, 0.1],
            sigma_min=sigma,
            condition_number=None,
            effective_rank=2.0,
            n=n,
            n_features=32,
            n_constant_features=2,
        ),
        selection={},
        model={},
        data={"suite": suite, "test_sha256": "ab"},
        timings_s={},
        environment={},
    )


def keep(report: Report, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json())
    return path


def many_reports(folder: Path, n_methods: int = 4, n_seeds: int = 3, suite: str = "toys") -> Path:
    """σ_min falls and the errors rise from method to method; seeds differ a little."""
    kinds = ("carot", "flyp", "finetune", "lp_ft", "car_ft", "lipsum_ft")[:n_methods]
    for i, kind in enumerate(kinds):
        for seed in range(n_seeds):
            report = make_report(
                kind,
                seed=seed,
                suite=suite,
                sigma=0.1 / (1 + i + 0.1 * seed),
                id_ece=0.02 + 0.01 * ((2 * i + seed) % 5),
                ood=0.8 - 0.05 * i - 0.004 * seed,
            )
            keep(report, folder / suite / f"{kind}-{seed}" / "report.json")
    return folder


def test_read_runs__takes_the_terms_from_the_report(tmp_path: Path) -> None:
    keep(make_report("carot", sigma=0.25, id_ece=0.04), tmp_path / "a" / "b" / "report.json")
    (point,), notes = read_runs([tmp_path])
    assert notes == []
    assert (point.n_features, point.covariance_term) == (30, 120)
    assert point.rhs == pytest.approx(120.04)
    assert point.id_error == pytest.approx(0.2)
    assert point.ood_error == pytest.approx(0.3)
    assert point.ood_ece == pytest.approx(0.3)
    assert point.id_squared == pytest.approx(0.3)  # the report's Brier score
    assert point.product == pytest.approx(120 * 0.3)
    assert (point.suite, point.group, point.zero_shot) == ("toys", "carot", False)


def test_analyse__ranks_within_methods_and_between_them(tmp_path: Path) -> None:
    """From method to method the error rises with D/σ_min; inside each it falls along the rates."""
    points = []
    for i in range(9):
        for j, lr in enumerate((1e-5, 1e-4, 1e-3)):
            sigma = 0.5 / (1 + i + 0.2 * j)
            report = make_report("carot", sigma=sigma, ood=0.9 - 0.05 * i + 0.01 * j)
            (point,), _ = read_runs([keep(report, tmp_path / f"{i}-{j}" / "report.json").parent])
            points.append(replace(point, group=f"method {i}", setting=f"{lr:g}"))
    found = {
        (a.scope, a.error): a.correlation
        for a in analyse("runs", points, n_resamples=100).associations
        if a.term == "product"
    }
    between, within = (found[f"toys, {how} methods", "ood_error"] for how in ("between", "within"))
    assert (between.rho, between.n) == (pytest.approx(1), 9)
    assert (within.rho, within.n, within.n_groups) == (pytest.approx(-1), 27, 27)


def test_read_runs__counts_a_run_once_by_its_newest_report(tmp_path: Path) -> None:
    for name, sigma, changed in (("a", 0.5, 1_000), ("m", 0.25, 2_000), ("x", 0.125, 1_500)):
        path = keep(make_report(sigma=sigma), tmp_path / name / "report.json")
        os.utime(path, (changed, changed))
    (point,), notes = read_runs([tmp_path, tmp_path])
    assert point.sigma_min == 0.25
    assert notes == ["5 left out: the same spec again."]


def test_read_runs__says_what_it_leaves_out(tmp_path: Path) -> None:
    keep(make_report("pretrain"), tmp_path / "p" / "report.json")
    keep(make_report("flyp", ood=None), tmp_path / "g" / "report.json")
    keep(make_report("carot", sigma=None), tmp_path / "s" / "report.json")
    keep(make_report("zero_shot"), tmp_path / "z" / "report.json")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"format_version": 1')
    points, notes = read_runs([tmp_path])
    assert [(p.group, p.zero_shot) for p in points] == [("zero_shot", True)]
    assert len(notes) == 4
    assert "1 left out: a pre-trained model" in " ".join(notes)
    assert "1 left out: not evaluated under any shift." in notes
    assert "1 left out: its report cannot be read." in notes
    assert any("σ_min is 0 by rank" in note for note in notes)


def test_read_runs__other_images_are_another_suite(tmp_path: Path) -> None:
    keep(make_report("flyp"), tmp_path / "a" / "report.json")
    keep(make_report("flyp", n=200), tmp_path / "b" / "report.json")
    points, _ = read_runs([tmp_path])
    assert sorted(p.suite for p in points) == ["toys", "toys (2)"]


def test_read_runs__suites_of_one_name_have_their_folders(tmp_path: Path) -> None:
    for folder, n in (("cats", 100), ("dogs", 200)):
        report = make_report("flyp", n=n)
        spec = report.spec | {"suite": {"id": f"manifest:/data/{folder}/suite.csv"}}
        keep(report.model_copy(update={"spec": spec}), tmp_path / folder / "report.json")
    points, _ = read_runs([tmp_path])
    assert sorted(p.suite for p in points) == ["cats/toys", "dogs/toys"]
    points, _ = read_runs([tmp_path / "cats"])
    assert [p.suite for p in points] == ["toys"]


def test_read_runs__a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no report of a finished run"):
        read_runs([tmp_path])
    with pytest.raises(DataError, match="there is no folder"):
        read_runs([tmp_path / "gone"])


def test_analyse__finds_the_order_and_names_the_units(tmp_path: Path) -> None:
    points, _ = read_runs([many_reports(tmp_path)])
    found = {(a.term, a.error): a.correlation for a in analyse("runs", points).associations}
    assert found["rhs", "ood_error"].rho == pytest.approx(1)
    assert found["covariance_term", "ood_ece"].rho == pytest.approx(1)
    assert abs(found["id_calibration", "ood_error"].rho) < 0.9
    assert (found["rhs", "ood_error"].n, found["rhs", "ood_error"].n_groups) == (12, 4)
    assert ("id_error", "ood_error") not in found  # it is the same for all, and a note says so


def test_analyse__pools_suites_by_ranks_inside_each(tmp_path: Path) -> None:
    many_reports(tmp_path, suite="toys")
    points, _ = read_runs([many_reports(tmp_path, suite="trees")])
    keep(make_report("zero_shot", sigma=0.2, ood=0.9), tmp_path / "z" / "report.json")
    points, _ = read_runs([tmp_path])
    done = analyse("runs", points)
    scopes = list(dict.fromkeys(a.scope for a in done.associations))
    pooled = "all suites, ranked inside"
    more = [f"{pooled}, {which}" for which in ("no zero-shot", "between methods")]
    assert scopes == ["toys", "trees", pooled, *more]
    sizes = {a.scope: (a.correlation.n, a.correlation.n_groups) for a in done.associations}
    assert sizes[pooled] == (25, 9)
    assert sizes[f"{pooled}, no zero-shot"] == (24, 8)


def test_analyse__refuses_fewer_than_8_models(tmp_path: Path) -> None:
    points, _ = read_runs([many_reports(tmp_path, n_methods=2)])
    with pytest.raises(SpecError, match="at least 8 models evaluated on the same data, got 6 in 1"):
        analyse("runs", points)


def test_analyse__a_small_suite_is_a_note(tmp_path: Path) -> None:
    many_reports(tmp_path, suite="trees", n_methods=2)
    points, _ = read_runs([many_reports(tmp_path, suite="toys")])
    done = analyse("runs", points)
    assert {a.scope for a in done.associations} == {"toys"}
    assert any(note.startswith("trees: a rank correlation needs at least 8") for note in done.notes)


# ------------------------------------------------------------------------------- files and figures


def test_write_study__json_csv_and_figures_say_the_same(tmp_path: Path) -> None:
    keep(make_report("zero_shot", sigma=0.2, ood=0.9), tmp_path / "z" / "report.json")
    points, notes = read_runs([many_reports(tmp_path)])
    written = write_study(
        tmp_path / "out", [analyse("runs", points, notes=notes)], about={"seed": 0}
    )
    assert [p.name for p in written] == ["bound.json", "bound.csv", "bound.md", "runs-toys.svg"]
    document = json.loads(written[0].read_text())
    part = document["parts"]["runs"]
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert len(part["points"]) == len(rows) == 13
    assert [float(r["rhs"]) for r in rows] == [p["rhs"] for p in part["points"]]
    first = part["associations"][0]
    assert {"scope", "term", "error", "rho", "low", "high", "p_value", "n", "n_groups"} <= set(
        first
    )
    assert first["term"] in document["terms"]
    table = written[2].read_text()
    shown = f"{first['rho']:+.2f} [{first['low']:+.2f}, {first['high']:+.2f}]"
    assert f"| toys | ε_ID + D/σ_min | {shown} |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    text = written[3].read_text()
    assert f"ρ = {first['rho']:+.2f}" in text
    assert "Hollow: zero-shot." in text


SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def marks_of(svg: str) -> list[dict[str, str]]:
    """Each mark's shape and the colours that it is drawn in."""
    root = ElementTree.fromstring(svg)
    shapes = {p.attrib["id"]: p.attrib["d"] for p in root.iter(f"{SVG}path") if "id" in p.attrib}
    marks = []
    for group in root.iter(f"{SVG}g"):
        if group.attrib.get("id", "").startswith("marks-"):
            (used,) = group.iter(f"{SVG}use")
            style = dict(part.split(": ") for part in used.attrib["style"].split("; "))
            marks.append({"d": shapes[used.attrib[HREF].removeprefix("#")]} | style)
    return marks


@settings(max_examples=8)  # each draws a figure
@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1e7), st.floats(0, 1), st.sampled_from("abcdefghij")),
        min_size=1,
        max_size=20,
    )
)
def test_scatter_svg__is_xml_with_one_shape_a_mark(values: list[tuple[float, float, str]]) -> None:
    marks = tuple(PlotMark(x, y, s) for x, y, s in values)
    svg = scatter_svg(
        [Panel("a < b & c", "x", "y", marks)] * 2, title="<title>", caption="long " * 60
    )
    assert len(marks_of(svg)) == 2 * len(marks)
    assert "nan" not in svg


def test_scatter_svg__zero_shot_is_hollow_and_series_differ_in_colour_and_shape() -> None:
    marks = (PlotMark(1, 0.5, "a"), PlotMark(1, 0.5, "b"), PlotMark(10, 0.7, "a", hollow=True))
    a, b, hollow = marks_of(scatter_svg([Panel("", "x", "y", marks)], title="t", caption="c"))
    assert a["stroke"] == hollow["stroke"] != b["stroke"]
    assert hollow["fill"] == "#ffffff"
    assert a["d"] != b["d"]


def test_scatter_svg__text_stays_text_and_the_same_marks_give_the_same_bytes() -> None:
    panels = [
        Panel("OOD ECE: ρ = +0.50", "ε_ID + D/σ_min", "OOD ECE", (PlotMark(20_000, 0.5, "a"),))
    ]
    svg = scatter_svg(panels, title="The bound", caption="24 models.")
    root = ElementTree.fromstring(svg)
    words = {e.text for e in root.iter(f"{SVG}text")}
    assert {"The bound", "OOD ECE: ρ = +0.50", "ε_ID + D/σ_min", "a", "24 models."} <= words
    assert root.findtext(f"{SVG}title") == "The bound"
    assert scatter_svg(panels, title="The bound", caption="24 models.") == svg


def test_scatter_svg__without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpecError, match="figures need matplotlib") as refused:
        scatter_svg([Panel("", "x", "y", (PlotMark(1, 0.5, "a"),))], title="t", caption="c")
    assert "[study]" in (refused.value.hint or "")


@pytest.mark.parametrize("marks", [(), (PlotMark(0.0, 0.5, "a"),)])
def test_scatter_svg__refuses(marks: Any) -> None:
    with pytest.raises(SpecError):
        scatter_svg([Panel("", "x", "y", marks)], title="t", caption="c")


# ------------------------------------------------------------------------------------ the command


def test_command__prints_tables_and_writes_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    many_reports(tmp_path)
    assert main(["--synthetic", "--quick", "--out", str(tmp_path / "out"), str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Rank correlations: synthetic" in text
    assert "Rank correlations: runs" in text
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["bound.csv", "bound.json", "bound.md", "runs-toys.svg", "synthetic.svg"]


def test_command__too_few_runs_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    many_reports(tmp_path, n_methods=2)
    assert main([str(tmp_path)]) == 1
    assert "needs at least 8 models evaluated on the same data, got 6" in capsys.readouterr().err
