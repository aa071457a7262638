"""Tags on images: those that there are, as filters and as a file, and how they are changed."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import streamlit as st

from calift_core.errors import CaliftError
from calift_core.schema.wire.queries import SampleFilter
from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.tags import ImageTag, ImageTags
from frontend import api, tables, text
from frontend.tables import analysis

#: Tags that are offered as filters.
_OFFERED = 12


@st.cache_data(ttl=5, max_entries=200, show_spinner=False)
def _of(evaluation_id: str) -> ImageTags:
    return api.client().image_tags(evaluation_id)


def items(evaluation: Evaluation) -> list[ImageTag]:
    """All tags; none where they cannot be had, which is told of what is more than they are."""
    try:
        return _of(evaluation.id).items
    except CaliftError:
        return []


def version(evaluation: Evaluation) -> str:
    """What answers about single images change with: predictions do not change, tags do."""
    listing = repr(items(evaluation)).encode("utf-8", "surrogatepass")
    return f"{evaluation.predictions_sha256}-{zlib.crc32(listing):x}"


def draw(evaluation: Evaluation, where: str | None, choose: Callable[[str], None]) -> None:
    """Offer the tags as filters and as CSV; nothing where there is none.

    Args:
        choose: called with the condition that takes the place of `where`.
    """
    found = items(evaluation)
    if not found:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for tag, n in Counter(one.tag for one in found).most_common(_OFFERED):
            own = f'tag == "{tag}"'
            st.button(
                f"{text.md(tag)} {text.count(n)}",
                icon=":material/label:",
                type="primary" if own in (where or "") else "secondary",
                key=f"tag-{tag}",
                on_click=choose,
                args=(_toggled(where or "", own),),
            )
        st.download_button(
            "Tags, CSV",
            lambda: tables.to_csv(analysis.image_tags(evaluation.dataset, found)),
            "tags.csv",
            "text/csv",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
        )


def _toggled(where: str, own: str) -> str:
    """The next condition: with the tag; it alone where it was a part; none where it was all."""
    if where == own:
        return ""
    return f"({where}) and {own}" if where and own not in where else own


def tag_names(evaluation: Evaluation) -> list[str]:
    return sorted({one.tag for one in items(evaluation)})


def change(
    evaluation: Evaluation,
    chosen: SampleFilter,
    samples: Sequence[str] | None,
    tag: str,
    *,
    on: bool,
) -> None:
    """Put a tag on images or take it off; `samples` None: on all that are chosen."""
    api.act(
        f"tag images of {evaluation.dataset}",
        lambda: api.client().tag_images(
            evaluation.id,
            samples,
            where=chosen if samples is None else None,
            **{"add" if on else "remove": [tag]},
        ),
    )
    _of.clear()
