"""The dashboard's own components: what they are given, what they give back, that they are there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.components.v2.manifest_scanner import scan_component_manifests

from calift_core.analysis.reliability import reliability_numbers, smooth_curve
from calift_core.calibration import Binning, score_samples
from calift_core.schema.wire.results import Reliability
from frontend import components, figures
from frontend.panels import gallery
from tests.conftest import example_predictions

ROOT = Path(__file__).parents[2]


def test_files__are_found_by_streamlit_and_packed() -> None:
    found = {c.name: (root / str(c.asset_dir)) for m, root in scan_component_manifests()
             if m.name == "calift" for c in m.components}  # fmt: skip
    assert set(found) == {"reliability", "gallery", "page", "chart", "rows"}
    for name, folder in found.items():
        assert {f"{name}.js", f"{name}.css"} <= {p.name for p in folder.iterdir()}
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {"pyproject.toml", "components/*"} <= set(packed["package-data"]["calift"])


def test_scripts__have_the_types_that_they_say() -> None:
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("no TypeScript on this machine; the workflow of the repository has it")
    checked = subprocess.run(
        [tsc, "--project", str(Path(__file__).parent / "tsconfig.json")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(ANYTHING)
def test_edges__are_two_fractions_in_order_or_none(sent: Any) -> None:
    found = components._edges(sent)
    assert found is None or (0 <= found[0] <= found[1] <= 1)


@given(ANYTHING, st.integers(0, 5))
def test_places__are_those_of_rows_that_are_there(sent: Any, n: int) -> None:
    found = components._places(sent, n)
    assert found == sorted(set(found))
    assert all(0 <= place < n for place in found)
    assert components._places([sent, *range(n)], n) == list(range(n))


@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_edges__of_a_diagram_are_taken_as_they_are(a: float, b: float) -> None:
    assert components._edges(sorted([a, b])) == tuple(sorted([a, b]))


@given(ANYTHING, st.text(max_size=8))
def test_mark__of_another_figure_or_of_no_plain_values_is_none(sent: Any, of: str) -> None:
    assert components._mark(sent, of) == []
    assert components._mark({"of": of + "x", "mark": ["a"]}, of) == []
    found = components._mark({"of": of, "mark": sent}, of)
    assert all(isinstance(value, str | int | float) for value in found)
    assert components._mark({"of": of, "mark": ["run", 0.5]}, of) == ["run", 0.5]


def test_chart__is_drawn_by_the_script_that_plotly_published_with_its_licence() -> None:
    vendor = ROOT / "frontend" / "vendor"
    script = (vendor / components.PLOTLY).read_text("utf-8")
    assert hashlib.sha256(script.encode()).hexdigest() == components.PLOTLY_SHA256
    assert "MIT License" in (vendor / "plotly.LICENSE").read_text()
    assert {trace.type for trace in (go.Bar(), go.Heatmap(), go.Scatter())} == components.DRAWN


@pytest.mark.parametrize("scheme", ["equal_mass", "equal_width"])
def test_diagram_payload__says_of_each_bin_what_the_numbers_say(scheme: Any) -> None:
    predictions = example_predictions(0)
    scores = score_samples(predictions.logits, predictions.labels)
    curve = smooth_curve(scores)
    diagram = Reliability(
        evaluation_id="e", run_id="r", run_name="a run", method="flyp", dataset="sketch",
        role="shift", temperature=1.0,
        **reliability_numbers(scores, Binning(5, scheme), smooth=curve),
    )  # fmt: skip
    made = figures.reliability.diagram_payload(
        diagram, title="a run", colour="#000000", chosen=(0.2, 0.9)
    )
    assert [b["count"] for b in made["bins"]] == [b.count for b in diagram.bins]
    for given_bin, b in zip(made["bins"], diagram.bins, strict=True):
        inside = b.interval_low <= b.mean_confidence <= b.interval_high
        assert (given_bin["clear"] == 0) == inside
        if not inside:
            assert given_bin["clear"] * (b.mean_confidence - b.accuracy) > 0
    # Bins of equal mass would all be as high as each other.
    assert (made["density"] is not None) == (scheme == "equal_mass")
    assert made["error"]["floor"] == diagram.null_mean
    after = figures.reliability.diagram_payload(
        diagram.model_copy(update={"in_sample": True}), title="", colour=""
    )
    assert after["error"] is None


CHOSEN = st.builds(
    gallery.Chosen,
    evaluation=st.text("abcdef0123456789-", min_size=1, max_size=40),
    where=st.text(max_size=60).map(str.strip),
    lower=st.none() | st.floats(0, 1),
    upper=st.none() | st.floats(1e-9, 1),
    outcome=st.sampled_from(list(gallery.OUTCOMES)),
    against=st.text("abcdef0123456789-", min_size=1, max_size=40),
    temperature=st.none() | st.floats(0.25, 4),
    doubtful=st.booleans(),
)


@given(CHOSEN)
def test_chosen__is_what_the_address_says_again(chosen: gallery.Chosen) -> None:
    assert gallery.from_text(gallery.as_text(chosen)) == chosen


@given(st.text(max_size=200))
def test_chosen__any_text_is_a_choice_or_none(sent: str) -> None:
    found = gallery.from_text(sent)
    assert found is None or found.evaluation
