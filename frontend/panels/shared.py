"""What samples share: classes and clusters that are more frequent among them, and how they look."""

from collections.abc import Sequence

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.queries import SampleFilter
from calift_core.schema.wire.results import Evaluation, SampleLooks, SharedTrait
from frontend import api, page, state, text
from frontend.panels import tagging
from frontend.tables import Column, Table

#: Larger adjusted p-values are not told as something that samples share.
_MOST_P = 0.05


def draw(evaluation: Evaluation, filters: SampleFilter, looks: SampleLooks | None) -> None:
    """Show what the chosen samples of an evaluation share.

    Args:
        looks: how their images look, where somebody asked for it.
    """
    found = api.act(
        "find what the samples share",
        lambda: api.answer(
            Client.sample_traits, evaluation.id, tagging.version(evaluation), filters
        ),
    )
    if found is None:
        return
    st.markdown("**What they share**")
    significant = [trait for trait in found.items if trait.p <= _MOST_P]
    if significant:
        page.table(
            traits_table(significant), caption="Classes that are more frequent among these samples"
        )
        st.caption(
            "Fisher's exact test against the rest of the data set, one-sided; p is adjusted for "
            "the number of classes or clusters (Holm). Clusters: k-means of the model's features "
            "of all images, named by the classes that they hold most."
        )
    else:
        st.caption(
            "No class or cluster is more frequent among them than among the rest of the data, at "
            f"p ≤ {_MOST_P:g}."
        )
    state.toggle(
        st,
        "Brightness, contrast, sharpness, near-duplicates",
        name="looks",
        help="Measures up to 60 of these images and 60 of the others",
    )
    if looks is None:
        return
    if looks.items:
        page.table(looks_table(looks), caption="How these images look against the rest")
    missing = f" {text.count(looks.n_missing)} could not be had." if looks.n_missing else ""
    st.caption(
        f"{text.count(looks.n)} of these images and {text.count(looks.n_rest)} of the others were "
        f"measured, luminance at a longer side of 128 pixels; Mann-Whitney test, two-sided, p "
        f"adjusted for three properties (Holm). {_near_words(looks)}{missing}"
    )


def _near_words(looks: SampleLooks) -> str:
    if not looks.near:
        return "No two of these are near-duplicates."
    pairs = "; ".join(f"{text.md(a)} and {text.md(b)}" for a, b in looks.near[:5])
    more = f" and {len(looks.near) - 5} more pairs" if len(looks.near) > 5 else ""
    return f"Near-duplicates: {pairs}{more}."


def looks_table(looks: SampleLooks) -> Table:
    return Table(
        [
            Column("name", "What"),
            Column("mean", "Mean here", "number"),
            Column("rest_mean", "Mean of the rest", "number"),
            Column("p", "p, adjusted"),
        ],
        [
            {"name": one.name, "mean": one.mean, "rest_mean": one.rest_mean, "p": _p_words(one.p)}
            for one in looks.items
        ],
    )


def _p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def traits_table(traits: Sequence[SharedTrait]) -> Table:
    """One row per class, with its share here and elsewhere."""
    kinds = {
        "label": "true class",
        "predicted": "predicted class",
        "cluster": "cluster of alike images",
    }
    return Table(
        [
            Column("kind", "What"),
            Column("title", "Class"),
            Column("n", "Samples", "count"),
            Column("share", "Share here", "percent"),
            Column("rest_share", "Share of the rest", "percent"),
            Column("p", "p, adjusted"),
        ],
        [
            {
                "kind": kinds[t.column],
                "title": t.title,
                "n": t.n,
                "share": t.share,
                "rest_share": t.rest_share,
                "p": _p_words(t.p),
            }
            for t in traits
        ],
    )
