"""Likely label errors, decided one by one by a person: out comes a corrected manifest."""

import csv
import io
from collections.abc import Sequence

import streamlit as st

from calift_core.errors import CaliftError
from calift_core.schema.wire.results import DoubtfulLabels, Evaluation, LabelCorrection
from calift_core.untrusted import mark_formula
from frontend import api, text

#: What stands for an image that is of no class.
OUT = "(leave the image out)"


def draw(evaluation: Evaluation, found: DoubtfulLabels) -> None:
    """Draw the list of decisions, and what comes of them."""
    st.subheader("Correct labels", anchor=False)
    st.caption(
        "Tick what is wrong indeed, and change the suggestion where it is another class. The "
        "source stays as it is: you get a manifest that lies beside it."
    )
    rows = [
        {
            "Accept": False,
            "Image": sample.id,
            "Label": sample.label_name,
            "Right class": sample.predicted_name,
        }
        for sample in found.items
    ]
    offered = [*classes_of(evaluation, found), OUT]
    edited = st.data_editor(
        rows,
        key=f"corrections-{evaluation.id}",
        hide_index=True,
        width="stretch",
        disabled=["Image", "Label"],
        column_config={
            "Accept": st.column_config.CheckboxColumn(width="small"),
            "Right class": st.column_config.SelectboxColumn(options=offered, required=True),
        },
    )
    corrections = decided(edited)
    if not corrections:
        st.caption("Nothing is ticked yet.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button(
            "List of corrections, CSV",
            corrections_csv(corrections),
            "corrections.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
            help="What `calift data relabel SOURCE corrections.csv --out FILE` takes",
        )
        wanted = st.button(
            f"Make the corrected manifest ({text.count(len(corrections))})",
            icon=":material/edit_note:",
            type="primary",
            key="make-corrected",
        )
    if not wanted:
        return
    made = api.act(
        f"correct labels of {evaluation.dataset}",
        lambda: api.client().correct_labels(evaluation.id, corrections),
    )
    if made is None:
        return
    st.markdown(
        f"Labels changed: {text.count(made.changed)}; images left out: "
        f"{text.count(made.dropped)}. Put the manifest into the folder of the images, where a new "
        "run then names it:"
    )
    st.code(f"manifest:{made.folder}/corrected.csv", language=None)
    st.download_button(
        "Corrected manifest, CSV",
        made.manifest,
        "corrected.csv",
        "text/csv",
        icon=":material/download:",
        on_click="ignore",
        key="download-corrected",
    )


def classes_of(evaluation: Evaluation, found: DoubtfulLabels) -> list[str]:
    """The run's classes as its samples are told, else those that the doubted images have."""
    try:
        names = [str(n) for n in api.client().report(evaluation.run_id).data.get("classes", [])]
    except CaliftError:
        names = []
    seen = [n for s in found.items for n in (s.label_name, s.predicted_name)]
    known = {name.replace("_", " ") for name in seen}
    rest = [name for name in names if name.replace("_", " ") not in known]
    return sorted({*seen, *rest}, key=str.casefold)


def decided(rows: Sequence[dict[str, object]]) -> list[LabelCorrection]:
    """The corrections that somebody accepted, of the rows of the list."""
    return [
        LabelCorrection(
            sample=str(row["Image"]),
            label=str(row["Label"]),
            suggested="" if row["Right class"] == OUT else str(row["Right class"]),
        )
        for row in rows
        if row["Accept"]
    ]


def corrections_csv(corrections: Sequence[LabelCorrection]) -> str:
    """As `calift data relabel` reads it."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(("sample", "label", "suggested"))
    writer.writerows(
        (mark_formula(one.sample), mark_formula(one.label), mark_formula(one.suggested))
        for one in corrections
    )
    return file.getvalue()
