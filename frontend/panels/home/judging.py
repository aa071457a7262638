"""Predictions that a visitor drops: how far they can be trusted, in three sentences and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from calift_core.errors import CaliftError
from calift_core.judging.page import page as html_page
from calift_core.judging.sets import JudgedSet
from calift_core.schema.wire.judging import Judged
from frontend import api, figures, page, text
from frontend.tables import Column, Table

_TYPES = ("npz", "parquet", "csv", "jsonl")
#: As much as the service takes by default.
_MOST_MIB = 512
_KEPT = 8
_COLUMNS = [
    Column("name", "Data"),
    Column("n", "n", "count"),
    Column("accuracy", "Accuracy", "percent"),
    Column("mean_confidence", "Confidence", "percent"),
    Column("ece", "ECE", "percent"),
    Column("null_mean", "Floor", "percent"),
    Column("nll", "NLL", "number"),
    Column("brier", "Brier", "number"),
    Column("low", "ECE, 95 % low", "percent"),
    Column("high", "ECE, 95 % high", "percent"),
]


@st.fragment
def draw() -> None:
    """The card with its drop zone, and the answer below."""
    with st.container(border=True, gap="small", key="judge"):
        given: list[UploadedFile] = st.file_uploader(
            "**Judge predictions you have**",
            type=list(_TYPES),
            accept_multiple_files=True,
            key="judge-files",
            max_upload_size=_MOST_MIB,
            help="Labels with probabilities or logits: `label,probs_cat,probs_dog` in a CSV, "
            "`labels` and `probs` in an NPZ. Further files are shifts, or another model. A process "
            "with limits reads them, and nothing is stored.",
        )
        if not given:
            st.caption(
                "NPZ, Parquet, CSV or JSON lines with labels and probabilities: how often it is "
                "right, how sure it is, and what would help."
            )
            return
        own, other = _parts(given)
        found = _judged(own, other)
        if isinstance(found, CaliftError):
            api.problem(found, "judge the predictions")
            return
        _answer(found)


def _parts(given: Sequence[UploadedFile]) -> tuple[list[UploadedFile], UploadedFile | None]:
    """The model's own data before its shifts, and another model's file."""
    if len(given) == 1:
        return list(given), None
    left, right = st.columns(2)
    places = range(len(given))
    with left:
        first = st.selectbox(
            "The model's own data",
            places,
            format_func=lambda at: given[at].name,
            help="The other files are shifts of it",
        )
    with right:
        rival = st.selectbox(
            "Another model on the same samples",
            [at for at in places if at != first],
            index=None,
            format_func=lambda at: given[at].name,
            placeholder="None",
        )
    shifts = [given[at] for at in places if at not in (first, rival)]
    return [given[first], *shifts], None if rival is None else given[rival]


def _judged(own: Sequence[UploadedFile], other: UploadedFile | None) -> Judged | CaliftError:
    """The service's answer, asked for once in a session."""
    kept: dict[tuple[str, ...], Judged | CaliftError] = st.session_state.setdefault("judged", {})
    key = (*(file.file_id for file in own), "", other.file_id if other else "")
    if key not in kept:
        for file in (*own, *([other] if other else ())):
            file.seek(0)
        with st.spinner("Reading the predictions"):
            try:
                kept[key] = api.client().judge(
                    [(file.name, file) for file in own],
                    against=(other.name, other) if other else None,
                )
            except CaliftError as error:
                kept[key] = error
    while len(kept) > _KEPT:
        kept.pop(next(iter(kept)))
    return kept[key]


def _answer(found: Judged) -> None:
    diagrams = [one.diagram() for one in found.sets]
    rows = [
        {**one.model_dump(), "low": one.interval[0], "high": one.interval[1]} for one in found.sets
    ]
    single = len(diagrams) == 1
    left, right = st.columns(2, gap="large") if single else (st.container(), st.container())
    below = st.container() if single else left
    with left:
        for sentence in found.sentences:
            st.markdown(text.md_prose(sentence))
        st.download_button(
            "Answer, HTML",
            lambda: _page(found),
            f"{PurePath(found.sets[0].name).name}-judgement.html",
            "text/html",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
        )
    with below:
        page.table(Table(_COLUMNS, rows), caption="Each data set")
    with right:
        page.chart(
            figures.reliability.diagram(diagrams[0], title=text.esc(diagrams[0].dataset))
            if single
            else figures.reliability.grid(diagrams, titles=[d.dataset for d in diagrams]),
            figures.reliability.bins_table(diagrams),
            name="judged",
            data=found.model_dump_json,
            wide=not single,
        )


def _page(found: Judged) -> str:
    """The page that `calift judge` writes."""
    sets = [
        JudgedSet(one.name, one.role, one.model_dump(), one.accuracy_interval) for one in found.sets
    ]
    return html_page(found.sentences, sets, title=f"How far {found.sets[0].name} can be trusted")
