"""Data and models: what this machine has, and how to get what it has not."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from calift_core.schema.wire.service import DatasetInfo
from frontend import api, page, text
from frontend.tables import Column, Markup, Table


def _state(available: bool) -> Markup:
    return page.mark(
        text.Mark("here", "✓", "green") if available else text.Mark("not here", "○", "gray")
    )


def _detail(words: str) -> Markup:
    return Markup(f'<div class="wrap">{text.html_prose(words)}</div>')


def _delete(datasets: Sequence[DatasetInfo]) -> None:
    """Offer to delete zips that the visitor brought; an admin, anybody's."""
    if gone := st.session_state.pop("deleted-zip", ""):
        st.success(f"{text.md(gone)} is deleted.", icon=":material/check:")
    me = api.visitor()
    mine = {
        d.id: d
        for d in datasets
        if d.brought_by and (me.scope == "admin" or d.brought_by == me.name)
    }
    if not mine or api.locked("submit"):
        return
    with st.popover("Delete a zip that was brought", icon=":material/delete:"):
        chosen = st.selectbox(
            "Zip",
            list(mine),
            format_func=lambda suite: f"{mine[suite].title}, {mine[suite].detail}",
            key="zip-to-delete",
        )
        st.caption(
            "Finished runs keep their numbers; their images are shown no more. It is refused "
            "while a run that is not over needs it."
        )
        if st.button("Delete it", type="primary", key="delete-zip"):
            _deleted(mine[chosen])


def _deleted(zipped: DatasetInfo) -> None:
    def call() -> bool:
        api.client().delete_zip(zipped.id)
        return True

    if api.act(f"delete {zipped.title}", call):
        st.session_state["deleted-zip"] = zipped.title
        st.session_state.pop("zip-to-delete", None)
        st.rerun()


def main() -> None:
    page.head("Data and models", "What a run can name on this machine, and how to get the rest.")
    datasets = api.ask("list the data", api.client().datasets)
    models = api.ask("list the models", api.client().models)
    st.header("Data", anchor=False)
    rows: list[dict[str, Any]] = [
        {
            "title": Markup(f"{text.esc(d.title)}<small><code>{text.esc(d.id)}</code></small>"),
            "state": _state(d.available),
            "classes": len(d.classes) or None,
            "parts": _detail(", ".join(f"{k} {n:,}" for k, n in d.parts.items()) or text.DASH),
            "detail": _detail(d.detail),
        }
        for d in datasets
    ]
    page.table(
        Table(
            [
                Column("title", "Suite"),
                Column("state", "State"),
                Column("classes", "Classes", "count"),
                Column("parts", "Images"),
                Column("detail", "Where, or how to get it"),
            ],
            rows,
        ),
        caption="Data suites",
        stack=True,
    )
    st.caption(
        "Your own data needs no registration: in a new run, name class folders as `folder:PATH`, a "
        "table of images as `manifest:FILE`, WebDataset shards as `wds:FOLDER`, a zip as "
        "`zip:FILE` or a Hugging Face data set as `hf:FOLDER`."
    )
    _delete(datasets)
    st.header("Models", anchor=False)
    rows = [
        {
            "name": Markup(
                f"{text.esc(m.name)}<small><code>{text.esc(m.pretrained or 'random weights')}"
                "</code></small>"
            ),
            "state": _state(m.available),
            "size": Markup(text.esc(text.size(m.size_bytes))),
            "sha": Markup(f"<code>{text.esc(m.sha256[:12])}</code>") if m.sha256 else None,
            "detail": _detail(m.detail),
        }
        for m in sorted(models, key=lambda m: not m.available)
    ]
    page.table(
        Table(
            [
                Column("name", "Model"),
                Column("state", "State"),
                Column("size", "Size"),
                Column("sha", "SHA-256"),
                Column("detail", "Where, or how to get it"),
            ],
            rows,
        ),
        caption="Models",
        stack=True,
        limit=200,
    )


main()
