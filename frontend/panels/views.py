"""Saved views of a page: what stands in its address under a name, opened by a short link."""

from urllib.parse import urlencode

import streamlit as st

from calift_core.schema.wire.operations import Page, ViewSave
from frontend import api, page, text


def saved(name: Page) -> None:
    """A button that lists the saved views of a page and keeps what it shows now."""
    with st.popover("Views", icon=":material/bookmark:", type="tertiary"):
        found = api.ask("list the saved views", api.client().views, page=name)
        for view in found:
            st.markdown(
                f"[{text.md(view.name)}](/v/{view.id}) :small[· {text.md(view.owner)}, "
                f"{text.age(view.created_at)}]"
            )
        if not found:
            st.caption("None is saved. One keeps filters and order as they are now.")
        locked = api.locked("submit")
        words = st.text_input("Name", key=f"view-name-{name}", max_chars=120, disabled=bool(locked))
        if st.button(
            "Save this view", key=f"view-save-{name}", disabled=not words.strip() or bool(locked)
        ):
            query = urlencode(dict(st.query_params))
            made = api.act(
                "save the view",
                lambda: api.client().save_view(ViewSave(name=words, page=name, query=query)),
            )
            if made is not None:
                page.flash(f"Saved. Its address ends in /v/{made.id}")
                st.rerun()
