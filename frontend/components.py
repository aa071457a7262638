"""The dashboard's own components: the diagram whose bins are chosen, the gallery, the browser.

Their files are plain modules in `calift/components`, which `calift/pyproject.toml` declares to
Streamlit: its own scripts alone may run, and a component's text is no script of ours until it is
served as a file. What they are given is numbers and words of the server; they make text of words
and never markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import streamlit as st

from frontend.figures import style


@cache
def _component(name: str) -> Callable[..., Any]:
    # Not when this module is imported: Streamlit looks for files when it runs.
    return st.components.v2.component(f"calift.{name}", css=f"{name}.css", js=f"{name}.js")


def browser() -> None:
    """What every page needs of its browser; see `page.js`. It takes no room."""
    with st.container(key="calift-browser"):
        scheme = st.context.theme.type or ""
        _component("page")(key="browser", data={"scheme": scheme}, on_scheme_change=_nothing)


def _nothing() -> None:
    """The page is drawn again, and that is all: the visitor's colours came with the wish."""


def reliability(
    data: Mapping[str, Any], *, key: str, chosen: Callable[[tuple[float, float] | None], None]
) -> None:
    """A reliability diagram whose bins can be chosen.

    Args:
        data: of `figures.reliability.brushed`.
        key: of the widget.
        chosen: called before the page is drawn again, with the edges that somebody chose, or None
            when they let go.
    """

    def picked() -> None:
        given = st.session_state[key].get("range")
        chosen(_edges(given))

    both = {**data, "colour": style.both(data["colour"])}
    _component("reliability")(key=key, data=both, on_range_change=picked)


def _edges(given: Any) -> tuple[float, float] | None:
    """Two fractions in order; None for anything else that a browser sent."""
    if not isinstance(given, Sequence) or len(given) != 2:
        return None
    if not all(isinstance(v, int | float) and 0 <= v <= 1 for v in given):
        return None
    return (float(given[0]), float(given[1])) if given[0] <= given[1] else None


def gallery(data: Mapping[str, Any], *, key: str, opened: Callable[[int], None]) -> None:
    """Images with what is said of each.

    Args:
        data: see `gallery.js`.
        key: of the widget.
        opened: called before the page is drawn again, with the place of the image that somebody
            opened.
    """

    def clicked() -> None:
        at = st.session_state[key].get("open")
        if isinstance(at, int) and 0 <= at < len(data["items"]):
            opened(at)

    _component("gallery")(key=key, data=data, on_open_change=clicked)
