"""The list of pages: a page is a file in views/ and a line in app.py."""

from __future__ import annotations

import ast
from pathlib import Path

FRONTEND = Path(__file__).parents[2] / "frontend"


def test_pages__each_file_has_its_line_and_each_line_its_file() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse((FRONTEND / "app.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "view"
    ]
    named = {ast.literal_eval(call.args[0]) for call in calls}
    assert named == {p.stem for p in (FRONTEND / "views").glob("*.py")} - {"__init__"}
