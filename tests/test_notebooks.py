"""The notebooks of `examples/`: each runs from its first cell to its last, at a small size."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.core.conftest import write_classes

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
#: In the place of what the cell tagged `parameters` sets, as papermill does it. The server of the
#: third has tests of its own, which start it for many more questions.
SMALL: dict[str, dict[str, Any]] = {
    "judge-any-model": {"LIMIT": 2000, "RESAMPLES": 20},
    "fine-tune-and-compare": {"SUITE": None, "EPOCHS": 1, "RESAMPLES": 20},
    "from-run-to-served-model": {"SUITE": None, "RESAMPLES": 20, "SERVE": False},
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """120 pictures of three classes and a shift of them, for the embedded model."""
    root = tmp_path_factory.mktemp("pictures")
    photos = write_classes(root / "photos")
    art = write_classes(root / "art", n=8, seed=1, gain=0.5)
    return {"id": f"folder:{photos}", "shifts": {"art": f"folder:{art}"}, "templates": "photo"}


def cells_of(path: Path) -> list[dict[str, Any]]:
    book = json.loads(path.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    return list(book["cells"])


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; its last expression's value."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__its_outputs_are_stripped_and_its_parameters_are_those_of_the_test(path):
    parameters = []
    for cell in cells_of(path):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            if "parameters" in cell["metadata"].get("tags", []):
                parameters.append("".join(cell["source"]))
    (source,) = parameters
    assert {*SMALL[path.stem]} <= {
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__runs_to_its_end(path, suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALIFT_HOME", str(tmp_path / "home"))
    namespace: dict[str, Any] = {"__name__": path.stem}
    last = None
    for cell in cells_of(path):
        if cell["cell_type"] != "code":
            continue
        last = run_cell("".join(cell["source"]), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            small = SMALL[path.stem]
            namespace |= small | ({"SUITE": suite} if "SUITE" in small else {})
    if path.stem != "from-run-to-served-model":
        assert last is not None
        assert type(last).__name__ == "Figure"
