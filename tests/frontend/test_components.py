"""The dashboard's own components: what they are given, what they give back, that they are there."""

import hashlib
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import get_args

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.components.v2.manifest_scanner import scan_component_manifests

from calift_core.schema.wire.queries import Outcome
from frontend import components
from frontend.panels import gallery

ROOT = Path(__file__).parents[2]


def test_files__are_found_by_streamlit_and_packed():
    found = {c.name: (root / str(c.asset_dir)) for m, root in scan_component_manifests()
             if m.name == "calift" for c in m.components}  # fmt: skip
    assert set(found) == {"gallery", "page", "chart", "rows"}
    for name, folder in found.items():
        assert {f"{name}.js", f"{name}.css"} <= {p.name for p in folder.iterdir()}
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {"pyproject.toml", "components/*"} <= set(packed["package-data"]["calift"])


def test_scripts__have_the_types_that_they_say():
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
def test_edges__are_two_fractions_in_order_or_none(sent):
    found = components._edges(sent)
    assert found is None or (0 <= found[0] <= found[1] <= 1)


@given(ANYTHING, st.integers(0, 5))
def test_places__are_those_of_rows_that_are_there(sent, n):
    found = components._places(sent, n)
    assert found == sorted(set(found))
    assert all(0 <= place < n for place in found)
    assert components._places([sent, *range(n)], n) == list(range(n))


@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_edges__of_a_diagram_are_taken_as_they_are(a, b):
    assert components._edges(sorted([a, b])) == tuple(sorted([a, b]))


@given(ANYTHING, st.text(max_size=8))
def test_mark__of_another_figure_or_of_no_plain_values_is_none(sent, of):
    assert components._mark(sent, of) == []
    assert components._mark({"of": of + "x", "mark": ["a"]}, of) == []
    found = components._mark({"of": of, "mark": sent}, of)
    assert all(isinstance(value, str | int | float) for value in found)
    assert components._mark({"of": of, "mark": ["run", 0.5]}, of) == ["run", 0.5]


def test_chart__is_drawn_by_the_script_that_plotly_published_with_its_licence():
    vendor = ROOT / "frontend" / "vendor"
    script = (vendor / components.PLOTLY).read_text("utf-8")
    assert hashlib.sha256(script.encode()).hexdigest() == components.PLOTLY_SHA256
    assert "MIT License" in (vendor / "plotly.LICENSE").read_text()
    assert {trace.type for trace in (go.Bar(), go.Heatmap(), go.Scatter())} == components.DRAWN


CHOSEN = st.builds(
    gallery.Chosen,
    evaluation=st.text("abcdef0123456789-", min_size=1, max_size=40),
    where=st.none() | st.text(min_size=1, max_size=60),
    lower=st.none() | st.floats(0, 1),
    upper=st.none() | st.floats(1e-9, 1),
    outcome=st.none() | st.sampled_from(get_args(Outcome)),
    against=st.text("abcdef0123456789-", min_size=1, max_size=40),
    temperature=st.none() | st.floats(0.25, 4),
    doubtful=st.booleans(),
    text=st.none() | st.text(min_size=1, max_size=40),
    like=st.none() | st.text(min_size=1, max_size=40),
)


@given(CHOSEN)
def test_chosen__is_what_the_address_says_again(chosen):
    assert gallery.from_text(gallery.as_text(chosen)) == chosen


@given(st.text(max_size=200))
def test_chosen__any_text_is_a_choice_or_none(sent):
    found = gallery.from_text(sent)
    assert found is None or found.evaluation
