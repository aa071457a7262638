"""The first step of a new run: a look at the data, as soon as it is named."""

import streamlit as st

from calift_core.errors import CaliftError
from calift_core.schema.wire.service import SuiteCopies, SuiteScan
from frontend import api, page, text
from frontend.tables import Column, Table


def look(suite: str, group_by: str | None = None) -> SuiteScan | None:
    """Say what the service finds in a suite: classes, numbers, a few images, what is wrong.

    Args:
        group_by: the pattern that splits are made by, as the form says it.
    """
    if not suite or suite.endswith(":") or api.locked("submit"):
        return None
    try:
        found = api.scan(suite, group_by)
    except CaliftError as error:
        st.error(text.md_prose(error.message), icon=":material/folder_off:")
        return None
    unreadable = [image for image in found.images if image.picture is None]
    counts = [c.n for c in found.classes if c.n is not None]
    opened = f"{len(found.images) - len(unreadable)} of {len(found.images)}"
    page.stats(
        [
            (
                "Classes",
                text.count(found.n_classes),
                f"{_span(counts)} per class" if counts else "",
            ),
            (
                "Images",
                text.count(sum(found.parts.values()) if found.parts else None),
                ", ".join(f"{part} {n:,}" for part, n in found.parts.items()),
            ),
            (
                "Shifts",
                text.count(len(found.shifts)),
                ", ".join(f"{name} {text.count(n)}" for name, n in found.shifts.items()),
            ),
            *([("Readable", opened, "of those opened here")] if found.images else []),
        ]
    )
    for sentence in found.problems:
        st.error(text.md_prose(sentence), icon=":material/folder_off:")
    for sentence in found.notes:
        st.caption(text.md_prose(sentence))
    for image in unreadable:
        st.warning(
            f"{text.md(image.sample)}: {text.md_prose(image.fault)}", icon=":material/broken_image:"
        )
    if unreadable:
        st.caption(
            "A run reads the beginning of every file first and names those that are damaged."
        )
    _examples(found)
    if counts and not found.problems:
        _copies(suite, group_by)
    if counts:
        with st.expander(f"Images of each class ({len(found.classes):,})"):
            page.table(
                Table(
                    [Column("name", "Class"), Column("n", "Images", "count")],
                    [c.model_dump() for c in found.classes],
                ),
                caption="Images of each class",
            )
    return found


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _copies(suite: str, group_by: str | None) -> None:
    """Look for images that are in several parts, when somebody asks for it."""
    kept: dict[tuple[str, str | None], SuiteCopies]
    kept = st.session_state.setdefault("suite-copies", {})
    pressed = st.button(
        "Check for duplicates across splits",
        icon=":material/content_copy:",
        key="look-for-copies",
        help="Equal images and near-copies; every image is decoded once",
    )
    if pressed:
        try:
            with st.spinner("Looking at every image"):
                kept[suite, group_by] = api.client().copies(suite=suite, group_by=group_by)
        except CaliftError as error:
            kept.pop((suite, group_by), None)
            st.warning(text.md_prose(error.message), icon=":material/content_copy:")
            if error.hint:
                st.caption(text.md_prose(error.hint))
    found = kept.get((suite, group_by))
    if found is None:
        return
    for one in found.copies:
        pairs = "; ".join(f"{mine} is {theirs}" for mine, theirs in one.examples[:2])
        st.warning(
            f"{text.md(one.sentence)} For example: {text.md(pairs)}.",
            icon=":material/content_copy:",
        )
    if found.unreadable:
        n = found.n_unreadable
        st.error(
            f"{n:,} image{'' if n == 1 else 's'} cannot be read", icon=":material/broken_image:"
        )
        page.table(
            Table(
                [Column("sentence", "What cannot be read", "prose")],
                [{"sentence": sentence} for sentence in found.unreadable],
            ),
            caption="Images that cannot be read",
        )
    looked = ", ".join(f"{name} {n:,}" for name, n in found.looked_at.items())
    if not found.copies:
        read = "No image that can be read is" if found.unreadable else "No image is"
        st.success(f"{read} in two parts: {text.md(looked)}.", icon=":material/check:")
    else:
        st.caption(f"Looked at: {text.md(looked)}.")


def _examples(found: SuiteScan) -> None:
    shown = [image for image in found.images if image.picture is not None]
    if not shown:
        return
    cells = "".join(
        f'<figure><img src="{text.esc(image.picture)}" alt="{text.esc(image.sample)}">'
        f"<figcaption>{text.esc(image.class_name)}</figcaption></figure>"
        for image in shown
    )
    st.html(f'<div class="calift-examples">{cells}</div>')
