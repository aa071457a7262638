"""The fits of `benchmarks/scale.py`, and that its table is in its document."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scale  # noqa: E402


@pytest.mark.parametrize(
    ("kind", "slope", "law"),
    [
        ("flat", 0.0, lambda x: 5.0 + 0 * x),
        ("log", 3.0, lambda x: 1.0 + 3.0 * np.log2(x)),
        ("linear", 0.01, lambda x: 2.0 + 0.01 * x),
    ],
)
def test_fit__finds_the_law_under_a_little_noise(kind, slope, law):
    sizes = np.array([100.0, 300.0, 1000.0, 3000.0])
    noise = 1 + 0.02 * np.array([1, -1, 1, -1])
    found = scale.fit(sizes, law(sizes) * noise)  # type: ignore[operator]
    assert found.kind == kind
    assert found.slope == pytest.approx(slope, rel=0.15, abs=1e-12)


def test_fit__needs_four_sizes():
    with pytest.raises(ValueError, match="four sizes, got 3"):
        scale.fit([1, 2, 3], [1, 2, 3])


def test_table__is_put_between_its_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "d.md"
    path.write_text(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    measured = scale.Measured()
    for size in (1000, 2000, 4000, 8000):
        measured.add("runs", size, "list", size / 1000)
        measured.add("runs", size, "database", 1024.0 * size, "B")
    scale.put(scale.table(measured), path)
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "| runs | list | 1 ms at 1,000 | 8 ms at 8,000 | linear | 1 ms per 1,000 |" in lines
    stored = "1,000 KiB at 1,000 | 7.8 MiB at 8,000 | linear | 1,000 KiB per 1,000 |"
    assert lines[5].endswith(f"| database | {stored}")
    path.write_text("no marks")
    with pytest.raises(ValueError, match="must hold"):
        scale.put([], path)


def test_document__has_what_the_script_measures():
    body = scale.DOCUMENT.read_text(encoding="utf-8")
    _, begin, rest = body.partition(scale.BEGIN)
    shown, end, _ = rest.partition(scale.END)
    assert begin
    assert end
    for more in ("runs", "evaluations", "waiting runs", "workers", "users who wait", "watchers"):
        assert f"| {more} |" in shown


@pytest.mark.parametrize(
    ("part", "share"),
    [
        ("runs", 0.02), ("points", 0.05), ("queue", 0.02), ("users", 0.02), ("watchers", 0.05),
        *(pytest.param(part, share, marks=pytest.mark.thorough)
          for part, share in (("images", 0.02), ("classes", 0.1), ("workers", 0.3))),
    ],
)  # fmt: skip
def test_part__is_measured_at_a_toy_size(part, share):
    measured = scale.Measured()
    scale.PARTS[part](measured, share)
    assert len(scale.table(measured)) >= 3
