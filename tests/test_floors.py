"""On how many floors a package stands: who imports whom, by room and by file, and no circles.

`python tests/test_floors.py [PACKAGE] [--files]` prints the floors. A room is a module or a
sub-package right below the package; what imports nothing of the package is on floor 1, everything
else one above the highest that it imports. Imports inside functions count, those for type checkers
only do not.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("calift_core", "calift", "backend", "worker", "frontend")

Graph = dict[str, set[str]]


def modules_of(package: str) -> dict[str, Path]:
    """Dotted name → file, of all modules; a package is its `__init__.py`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that happen when the program runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(body=child.orelse, type_ignores=[]))
        else:
            yield from statements(child)


def imports(package: str) -> Graph:
    """Module → modules of the same package that it imports."""
    modules = modules_of(package)
    graph: Graph = {name: set() for name in modules}
    for name, path in modules.items():
        for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            else:
                wanted = []
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    wanted.append(inner if inner in modules else str(node.module))
            graph[name] |= {module for module in wanted if module in modules} - {name}
    return graph


def room_of(module: str) -> str:
    """The module or sub-package right below the package that a module belongs to."""
    return ".".join(module.split(".")[:2])


def rooms(graph: Mapping[str, set[str]]) -> Graph:
    """The same imports between rooms; the package's own `__init__.py` is none."""
    found: Graph = {room_of(module): set() for module in graph if "." in module}
    for module, imported in graph.items():
        for other in imported:
            if "." in module and "." in other and room_of(module) != room_of(other):
                found[room_of(module)].add(room_of(other))
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Floor of each node, from 1; nodes of a circle share the floor that all of them need."""
    group_of = {node: tuple(group) for group in circles(graph) for node in group}
    known: dict[str, int] = {}

    def floor(node: str) -> int:
        group = group_of.get(node, (node,))
        if node not in known:
            below = {o for n in group for o in graph[n]} - set(group)
            height = 1 + max((floor(other) for other in below), default=0)
            known.update(dict.fromkeys(group, height))
        return known[node]

    return {node: floor(node) for node in graph}


def table(graph: Mapping[str, set[str]]) -> str:
    """Floors from the top, and circles."""
    by_floor: dict[int, list[str]] = {}
    for node, height in floors(graph).items():
        by_floor.setdefault(height, []).append(node.partition(".")[2] or node)
    lines = [f"{height:3d}  {'  '.join(sorted(by_floor[height]))}" for height in sorted(by_floor)]
    lines += [f"circle: {'  '.join(group)}" for group in circles(graph)]
    return "\n".join(reversed(lines))


def test_floors__count_from_what_imports_nothing():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"e"}, "e": {"d", "c"}}
    assert floors(graph) == {"a": 3, "b": 2, "c": 1, "d": 2, "e": 2}
    assert circles(graph) == [["d", "e"]]


def test_statements__of_functions_count_and_those_for_type_checkers_do_not():
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d\n"
    assert [ast.unparse(s) for s in statements(ast.parse(source))] == [
        "import b",
        "from c import d",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_modules__have_no_import_circle(package):
    assert circles(imports(package)) == []


def test_rooms_of_calift_core__stand_on_nine_floors_at_most_without_a_circle():
    graph = rooms(imports("calift_core"))
    assert circles(graph) == []
    assert max(floors(graph).values()) <= 9, table(graph)


def test_rooms_of_backend__stand_on_eleven_floors_at_most_without_a_circle():
    graph = rooms(imports("backend"))
    assert circles(graph) == []
    assert len(graph) <= 15
    assert max(floors(graph).values()) <= 11, table(graph)


def test_drawing__shows_the_floors_as_they_are():
    drawing = (ROOT / "docs" / "img" / "architecture.svg").read_text(encoding="utf-8")
    drawn = {
        name: int(floor)
        for floor, row in re.findall(r'class="l">(\d+)</text>(<text.*?</text>)', drawing)
        for name in re.findall(r'class="[fh]">(\w+)<', row)
    }
    counted = floors(rooms(imports("calift_core")))
    own = {room.rpartition(".")[2]: floor for room, floor in counted.items()}
    assert drawn == {name: floor for name, floor in own.items() if name in drawn}
    assert set(own) - set(drawn) <= {"calift_core"}


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if not a.startswith("-")] or list(PACKAGES)
    for name in names:
        graph = imports(name)
        print(f"{name}\n{table(graph if '--files' in sys.argv else rooms(graph))}")  # noqa: T201
