"""Tables in a page, between marks that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def refreshed(text: str, made: Mapping[str, Sequence[str]]) -> str:
    """A page with what stands between its marks made anew."""
    for name, lines in made.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, begun, rest = text.partition(first)
        _, ended, tail = rest.partition(last)
        if begun and ended:
            text = "\n".join([head + first, "", *lines, "", last + tail])
    return text
