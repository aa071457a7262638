"""The list of pages: a page is a file in views/ and a line in app.py."""

import ast
import json
import subprocess
import sys
from pathlib import Path

FRONTEND = Path(__file__).parents[2] / "frontend"


def test_pages__each_file_has_its_line_and_each_line_its_file():
    calls = [
        node
        for node in ast.walk(ast.parse((FRONTEND / "app.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "view"
    ]
    named = {ast.literal_eval(call.args[0]) for call in calls}
    assert named == {p.stem for p in (FRONTEND / "views").glob("*.py")} - {"__init__"}


_PREPARED = """
import asyncio, gc, json, sys
from frontend.__main__ import prepared

async def first() -> None:
    async with prepared(None):
        known = [name for name in sys.modules if name.startswith("frontend.")]
        print(json.dumps([gc.get_freeze_count(), len(gc.get_objects()), known]))

asyncio.run(first())
"""


def test_prepared__modules_are_no_garbage_and_no_page_is_drawn():
    """What is searched after each run of a page is what visitors made, and little of it."""
    done = subprocess.run(
        [sys.executable, "-c", _PREPARED], capture_output=True, text=True, timeout=120, check=True
    )
    frozen, searched, known = json.loads(done.stdout)
    assert frozen > 100_000
    assert searched < frozen / 20
    assert {"frontend.panels.gallery", "frontend.figures.style"} <= set(known)
    assert not [name for name in known if name.startswith(("frontend.views.", "frontend.app"))]
