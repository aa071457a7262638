"""The images behind a number: thumbnails, what the model says of each, what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from calift_core.errors import CaliftError
from calift_core.schema.wire.results import Evaluation, Reliability, Sample, SharedTrait
from frontend import api, page, state, text
from frontend.tables import Column, Table

_ON_A_PAGE, _ACROSS, _SIZE = 24, 6, 160
#: Images in a row that could not be had before the others are not asked for.
_PATIENCE = 3
#: Larger adjusted p-values are not told as something that samples share.
_MOST_P = 0.05

ORDERS = {
    "-gap": "most over-confident",
    "gap": "most under-confident",
    "-nll": "largest NLL",
    "-confidence": "most confident",
    "stored": "as stored",
}


def of_bins(
    evaluation: Evaluation,
    diagram: Reliability,
    *,
    temperature: float,
    picked: Sequence[Sequence[float]],
) -> None:
    """Let a visitor choose a bin of a diagram, in it or by its name, and show its images.

    Args:
        evaluation: what the diagram is of.
        diagram: with its bins.
        temperature: that it was asked at.
        picked: the marks that are selected in the chart; each begins with its bin's lower edge.
    """
    names = {
        f"{b.lower:.6g}": f"{b.lower:.3f} to {b.upper:.3f}: {text.count(b.count)} samples, "
        f"confidence {text.percent(b.mean_confidence)}, accuracy {text.percent(b.accuracy)}"
        for b in diagram.bins
    }
    _follow(f"picked-{evaluation.id}", [f"{mark[0]:.6g}" for mark in picked if mark], names)
    chosen = state.choice(
        st.selectbox,
        "Images of a bin",
        name="bin",
        options={"": "none", **names},
        help="Or click a bar or a point of the diagram",
    )
    found = next((b for b in diagram.bins if f"{b.lower:.6g}" == chosen), None)
    if found is not None:
        show(evaluation, temperature=temperature, lower=found.lower, upper=found.upper)


def _follow(key: str, marks: Sequence[str], names: dict[str, str]) -> None:
    """Take over what was selected in the chart just now; an older selection counts no more."""
    now = marks[0] if marks else None
    if now != st.session_state.get(key):
        st.session_state[key] = now
        if now in names:
            st.query_params["bin"] = now


def show(evaluation: Evaluation, *, temperature: float, **which: Any) -> None:
    """Show the samples that are meant, a page at a time.

    Args:
        evaluation: whose samples.
        temperature: divides its logits.
        **which: the client's own filters of samples.
    """
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        order = state.choice(st.selectbox, "Order of images", name="images", options=ORDERS)
    with right:
        top = state.bound(
            st.toggle,
            "Top five classes",
            name="top",
            default=False,
            decode=lambda given: {"1": True, "0": False}.get(given),
            encode=lambda on: "1" if on else "0",
        )
    asked = {
        **which,
        "sort": order.removeprefix("-"),
        "descending": order.startswith("-"),
        "temperature": temperature,
    }
    question = f"{evaluation.id}-{sorted(asked.items(), key=str)}"
    cursors = _cursors(question)
    found = api.fetch(
        f"load samples of {evaluation.run_name} on {evaluation.dataset}",
        lambda: api.samples(
            evaluation.id,
            evaluation.predictions_sha256,
            **asked,
            top=5 if top else 0,
            cursor=cursors[-1],
            limit=_ON_A_PAGE,
        ),
        key=f"samples-{question}-{top}-{cursors[-1]}",
    )
    if not found.items:
        page.empty("No image", "No sample meets the condition.")
        return
    last = found.offset + len(found.items)
    st.caption(
        f"{text.count(found.offset + 1)} to {text.count(last)} of {text.count(found.n_matching)} "
        f"samples, of {text.count(found.n)} in all."
    )
    _grid(evaluation, found.items)
    _turn(cursors, found.next_cursor)
    _shared(evaluation, temperature=temperature, **which)


def _cursors(question: str) -> list[str | None]:
    """Where the pages that were turned begin; another question begins anew."""
    held: dict[str, Any] = st.session_state.setdefault("gallery", {})
    if held.get("question") != question:
        held.update(question=question, cursors=[None])
    cursors: list[str | None] = held["cursors"]
    return cursors


def _turn(cursors: list[str | None], following: str | None) -> None:
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Back",
            icon=":material/chevron_left:",
            disabled=len(cursors) == 1,
            on_click=cursors.pop,
            key="gallery-back",
        )
        st.button(
            "Next",
            icon=":material/chevron_right:",
            disabled=following is None,
            on_click=lambda: cursors.append(following),
            key="gallery-next",
        )


def _grid(evaluation: Evaluation, items: Sequence[Sample]) -> None:
    """Thumbnails in rows; where none can be had, the reason once and the words alone."""
    failed, why = 0, ""
    for start in range(0, len(items), _ACROSS):
        for place, sample in zip(st.columns(_ACROSS), items[start : start + _ACROSS], strict=False):
            with place:
                if failed < _PATIENCE:
                    try:
                        body = api.thumbnail(
                            evaluation.id, evaluation.predictions_sha256, sample.id, _SIZE
                        )
                        st.image(body, width="stretch")
                        failed = 0
                    except CaliftError as error:
                        failed, why = failed + 1, error.message
                        st.caption("no image")
                st.markdown(_words(sample))
    if why:
        st.caption(f"Not every image can be shown: {text.md_prose(why)}")


def _words(sample: Sample) -> str:
    """What a sample is and what the model says of it."""
    mark = "✓" if sample.correct else "✗"
    said = f"{mark} {text.md(sample.predicted_name)}, {text.percent(sample.confidence)}"
    lines = [f"**{text.md(sample.label_name)}**", said]
    lines += [f":small[{text.md(one.name)} {text.percent(one.probability)}]" for one in sample.top]
    return "  \n".join(lines)


# ---- What they share ---------------------------------------------------------------------------


def _shared(evaluation: Evaluation, **asked: Any) -> None:
    found = api.fetch(
        "find what the samples share",
        lambda: api.sample_traits(evaluation.id, evaluation.predictions_sha256, **asked),
        key=f"traits-{evaluation.id}-{sorted(asked.items())}",
    )
    st.markdown("**What they share**")
    told = [trait for trait in found.items if trait.p <= _MOST_P]
    if not told:
        st.caption(
            "No class is more frequent among them than among the rest of the data, at p ≤ "
            f"{_MOST_P:g}."
        )
        return
    page.table(traits_table(told), caption="Classes that are more frequent among these samples")
    st.caption(
        "Fisher's exact test against the rest of the data set, one-sided; p is adjusted for the "
        "number of classes (Holm)."
    )


def traits_table(traits: Sequence[SharedTrait]) -> Table:
    """One row per class, with its share here and elsewhere."""
    kinds = {"label": "true class", "predicted": "predicted class"}
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
                "p": "< 0.001" if t.p < 0.001 else f"{t.p:.3f}",
            }
            for t in traits
        ],
    )
