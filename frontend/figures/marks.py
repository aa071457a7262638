"""The marks of a figure that stand for something, in the words that a pointer over them reads."""

import html
import re
from typing import Any, NamedTuple

import plotly.graph_objects as go

from frontend import text

_FIELD = re.compile(r"%\{(x|y|text|customdata\[(\d+)\])(?::([^}]*))?\}")
_EXTRA = re.compile(r"<extra>(.*?)</extra>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


class Mark(NamedTuple):
    """A mark that can be selected.

    Attributes:
        stands_for: its `customdata`.
    """

    words: str
    stands_for: list[Any]


def marks(figure: go.Figure) -> list[Mark]:
    """All that can be selected in a figure, trace by trace; each once."""
    found: dict[str, Mark] = {}
    for trace in figure.data:
        data = getattr(trace, "customdata", None)
        for at in range(0 if data is None else len(data)):
            stands_for = list(data[at])
            if stands_for:
                mark = Mark(_said(trace, at, stands_for), stands_for)
                found.setdefault(f"{mark.words} {stands_for}", mark)
    return list(found.values())


def _said(trace: Any, at: int, stands_for: list[Any]) -> str:
    """What its hover says, as one line."""
    template = trace.hovertemplate or "%{y}<br>%{x}<extra></extra>"
    if not isinstance(template, str):
        template = template[at]
    extra = _EXTRA.search(template)
    whole = _EXTRA.sub("", template) + (f"<br>{extra[1]}" if extra and extra[1] else "")

    def filled(field: re.Match[str]) -> str:
        if field[2] is not None:
            value = stands_for[int(field[2])]
        else:
            value = getattr(trace, field[1])
            value = value if isinstance(value, str) or value is None else value[at]
        if value is None:
            return ""
        spec = field[3] or ""
        try:
            return text.percent(value, int(spec[2])) if spec[:1] == "$" else format(value, spec)
        except (ValueError, TypeError):
            return str(value)

    lines = [_TAG.sub("", line) for line in _FIELD.sub(filled, whole).split("<br>")]
    return html.unescape(" · ".join(line.strip() for line in lines if line.strip()))
