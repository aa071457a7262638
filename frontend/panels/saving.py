"""A file that is made when somebody asks for it, and why where it cannot be."""

from collections.abc import Callable
from typing import Literal

import streamlit as st

from calift_core.errors import CaliftError
from frontend import api

#: Key of the session: what was made last, as (what it is of, its bytes).
_MADE = "file-made"


def offer(
    label: str,
    save: str,
    make: Callable[[], bytes],
    name: str,
    mime: str,
    *,
    of: tuple[object, ...],
    key: str,
    width: Literal["stretch", "content"] = "content",
) -> None:
    """Show a button that has a file made, and then in its place one that saves it.

    In two steps: what goes wrong while Streamlit asks for a file is shown to nobody. Of a visitor's
    files the newest alone is kept.

    Args:
        label: of the first button.
        save: of the second.
        make: the file's bytes; raises a `CaliftError` where it cannot be made.
        of: everything that the bytes depend on.
    """
    place, identity = st.empty(), (key, *of)
    found, data = st.session_state.get(_MADE, (None, b""))
    if found != identity:
        if not place.button(label, icon=":material/draft:", width=width, key=f"make-{key}"):
            return
        try:
            with st.spinner(f"Making {name} …"):
                data = make()
        except CaliftError as error:
            api.problem(error, f"make {name}")
            return
        st.session_state[_MADE] = (identity, data)
    place.download_button(
        save,
        data,
        name,
        mime,
        icon=":material/download:",
        on_click="ignore",
        type="primary",
        width=width,
        key=f"save-{key}",
    )
