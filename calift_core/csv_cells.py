"""Cells of CSV files: a text that a spreadsheet would run as a formula is marked as text."""

from __future__ import annotations

import re
from typing import TypeVar

_Cell = TypeVar("_Cell")
#: Whatever is marked already is marked once more, so that the mark can be taken off again.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def mark(cell: _Cell) -> _Cell | str:
    """Put `'` before a text that begins like a formula; numbers and other texts stay."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unmark(text: str) -> str:
    """The text that `mark` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
