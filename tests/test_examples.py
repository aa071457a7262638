"""The RunSpecs and sweeps of `examples/`: each is valid, and the table's page names them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from calift_core.schema.spec import parse_spec
from calift_core.schema.sweep import parse_sweep

ROOT = Path(__file__).parents[1]
SPECS = sorted((ROOT / "examples").rglob("*.yaml"))
ROWS = sorted(path.name for path in (ROOT / "examples" / "imagenet").glob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_example__is_valid(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    parse = parse_sweep if path.stem == "sweep" else parse_spec
    assert parse(data).name == data["name"]


def test_imagenet__rows_differ_in_what_the_page_says_alone():
    page = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
    assert [name for name in ROWS if f"`{name}`" not in page and name != "sweep.yaml"] == []
    rows = [
        parse_spec(yaml.safe_load(path.read_text(encoding="utf-8")))
        for path in SPECS
        if path.name in ROWS and path.stem != "sweep"
    ]
    assert len({row.suite.model_dump_json() for row in rows}) == 1
    assert len({row.model.model_dump_json() for row in rows}) == 1
    assert len({row.evaluation.model_dump_json() for row in rows}) == 1
    trained = [row.train for row in rows if row.method.kind != "zero_shot"]
    assert {(t.epochs, t.batch_size, t.warmup_steps, t.seed) for t in trained} == {
        (10, 512, 500, 0)
    }
