"""Text of strangers: documents that nest without end, cells that a spreadsheet runs as formulas."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

#: How deep lists and mappings that somebody brings may nest; what calift writes has ten levels.
MAX_DEPTH = 64
_NESTS = (Mapping, list, tuple)
TOO_DEEP = f"lists and mappings nest at most {MAX_DEPTH} levels deep"

_Value = TypeVar("_Value")
#: Whatever is marked already is marked once more, so that the mark can be taken off again.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def check_depth(value: _Value) -> _Value:
    """Return a decoded document unless it nests deeper than functions may that walk through it.

    Raises:
        ValueError: it has more than `MAX_DEPTH` levels, or holds itself.
    """
    level: list[Any] = [value] if isinstance(value, _NESTS) else []
    for _ in range(MAX_DEPTH):
        # By identity: a YAML document may hold one mapping in many places.
        inner = {
            id(v): v
            for nest in level
            for v in (nest.values() if isinstance(nest, Mapping) else nest)
            if isinstance(v, _NESTS)
        }
        level = list(inner.values())
    if level:
        raise ValueError(TOO_DEEP)
    return value


def parse_json(text: str | bytes) -> Any:
    """Decode JSON that somebody brings.

    Raises:
        ValueError: it is no JSON, or nests too deep.
    """
    try:
        return check_depth(json.loads(text))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def mark_formula(cell: _Value) -> _Value | str:
    """Put `'` before a text that begins like a formula; numbers and other texts stay."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unmark_formula(text: str) -> str:
    """The text that `mark_formula` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
