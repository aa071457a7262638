"""One image: as each data set shows it, and every run's answer to it."""

from typing import Any
from urllib.parse import urlencode

import streamlit as st

from calift_core.client import Client
from calift_core.errors import CaliftError
from calift_core.schema.wire.results import Evaluation, Sample, SampleHistory
from calift_core.schema.wire.runs import RunSummary
from frontend import address, api, components, figures, page, pickers, state, text
from frontend.panels import gallery, tagging
from frontend.tables import Column, Run, Table

#: Pixels of the image; asked about in the same size that is shown, so the service draws it once.
_SIZE = 512


def _runs(evaluation: Evaluation) -> dict[str, RunSummary]:
    """Runs whose answers are shown: a picker of those that judged the same samples."""
    others = gallery.others(evaluation)
    names = {evaluation.run_id: evaluation.run_name} | {e.run_id: e.run_name for e in others}
    chosen = state.multi_choice(
        st.multiselect,
        "Runs",
        name="runs",
        options=list(names),
        default=list(names)[:5],
        format_func=names.__getitem__,
        max_selections=pickers.MAX_RUNS,
        placeholder="Choose runs",
    )
    return {run.id: run for run in pickers.named_runs(chosen or [evaluation.run_id])}


def _turn(evaluation: Evaluation, sample: str) -> None:
    """To the images before and after this one, as the gallery has them that it was opened in."""
    now = gallery.chosen_samples()
    if now is None or now.evaluation != evaluation.id or now.doubtful:
        now = gallery.Chosen(evaluation=evaluation.id)
    order = state.param("first") or gallery.default_order(now)
    try:
        query = gallery.query_of(now, order, top=0, limit=3, around=sample)
        found = api.answer(Client.samples, evaluation.id, tagging.version(evaluation), query)
    except CaliftError:  # of an address that was changed, or a tag that was taken off
        return
    at = next(k for k, one in enumerate(found.items) if one.id == sample)
    before = found.items[at - 1].id if at else None
    after = found.items[at + 1].id if at + 1 < len(found.items) else None
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for label, icon, key, target in (
            ("Previous", "chevron_left", "Left", before), ("Next", "chevron_right", "Right", after),
        ):  # fmt: skip
            st.button(
                label, icon=f":material/{icon}:", shortcut=key, disabled=target is None,
                on_click=address.put, args=({"sample": target},),
            )  # fmt: skip
        st.caption(
            f"{text.count(found.offset + at + 1)} of {text.count(found.n_matching)}, "
            f"{text.md(gallery.words(evaluation, now))}"
        )


def _history(evaluation: Evaluation, sample: str, run: RunSummary) -> SampleHistory:
    return api.ask(
        f"load the answers of {run.name}",
        api.sample_answers,
        evaluation.id,
        sample,
        run.id,
        run.revision,
    )


def _facts(evaluation: Evaluation, own: Sample) -> None:
    """What the evaluation's run says, and the ways back."""
    page.stats(
        [
            ("Label", own.label_name, own.id),
            ("Prediction", own.predicted_name, "right" if own.correct else "wrong"),
            ("Confidence", text.percent(own.confidence), f"rank of the label {own.rank + 1}"),
        ]
    )
    page.table(
        Table(
            [Column("name", "Most probable"), Column("probability", "Probability", "percent")],
            [c.model_dump() for c in own.top],
        ),
        caption="Most probable classes",
    )
    here = {"run": evaluation.run_id, "dataset": evaluation.dataset, "view": "images"}
    alike = urlencode({"evaluation": evaluation.id, "like": own.id})
    same = urlencode({"evaluation": evaluation.id, "where": f"label == {own.label}"})
    taken = urlencode({"evaluation": evaluation.id, "where": f"predicted == {own.predicted}"})
    with st.container(horizontal=True, gap="small"):
        for label, icon, query in (
            ("Diagram", "target", {**here, "view": "diagram"}),
            ("Images like this", "image_search", {**here, "images": alike}),
            (f"All {own.label_name}", "grid_view", {**here, "images": same}),
            (f"All taken for {own.predicted_name}", "grid_view", {**here, "images": taken}),
        ):
            st.page_link(
                "views/calibration.py", label=text.md(label), icon=f":material/{icon}:",
                query_params=query, width="content",
            )  # fmt: skip
        st.page_link(
            "views/run.py", label="Run", icon=":material/science:",
            query_params={"id": evaluation.run_id}, width="content",
        )  # fmt: skip


@st.cache_data(ttl=60, max_entries=400, show_spinner=False)
def _without_image(evaluation_id: str, sample_id: str) -> str:
    """Why an image cannot be shown; empty where it can."""
    try:
        api.client().thumbnail(evaluation_id, sample_id, size=_SIZE)
    except CaliftError as error:
        return error.message
    return ""


def _item(e: Evaluation, sample: Sample) -> dict[str, Any]:
    at = urlencode({"evaluation": e.id, "sample": sample.id})
    title = text.evaluation_title(e)
    return {
        "href": f"/sample?{at}",
        "src": f"/thumbnail?{at}&size=224",
        "alt": f"{sample.label_name} under {title}",
        "label": title,
        "answers": [
            {
                "by": "",
                "words": f"{sample.predicted_name}, {text.percent(sample.confidence)}",
                "correct": sample.correct,
            }
        ],
        "marks": [],
        "top": [],
    }


def main() -> None:
    evaluation_id, sample_id = state.param("evaluation"), state.param("sample")
    if evaluation_id is None or sample_id is None:
        page.head("Image", "One image and every run's answer to it.")
        page.empty("No image is named", "Images are opened from a gallery, such as that of a bin.")
        st.page_link("views/calibration.py", label="Open a diagram", icon=":material/target:")
        return
    evaluation = api.ask("load the evaluation that has the image", api.evaluation, evaluation_id)
    (run,) = pickers.named_runs([evaluation.run_id]) or [None]
    if run is None:
        st.stop()
    history = _history(evaluation, sample_id, run)
    sets = {e.id: e for e in api.evaluations(run)}
    own = next((i.sample for i in history.items if i.source.evaluation_id == evaluation.id), None)
    page.head(
        "Image" if own is None else f"Image of {own.label_name}",
        f"{evaluation.run_name} on {text.evaluation_title(evaluation)}",
    )
    if own is None:
        page.empty("No such sample", f"{evaluation.dataset} has no sample of this name.")
        return
    _turn(evaluation, sample_id)
    left, right = st.columns([2, 3], gap="large")
    with left:
        why = _without_image(evaluation.id, sample_id)
        if why:
            page.empty("No image", why[:1].upper() + why[1:])
        else:
            at = urlencode({"evaluation": evaluation.id, "sample": sample_id})
            page.picture(f"/thumbnail?{at}&size={_SIZE}", f"{own.label_name}, as the model saw it")
    with right:
        _facts(evaluation, own)
    chosen = _runs(evaluation)
    labels = {r.id: r.label for r in pickers.as_runs(chosen)}
    histories = {run_id: _history(evaluation, sample_id, one) for run_id, one in chosen.items()}
    answers = {
        run_id: {str(i.source.dataset): i.sample for i in found.items}
        for run_id, found in histories.items()
    }
    shown = sorted(
        (sets[i.source.evaluation_id] for i in history.items if i.source.evaluation_id in sets),
        key=text.evaluation_order,
    )
    evaluation_of = {
        (run_id, str(i.source.dataset)): str(i.source.evaluation_id)
        for run_id, found in histories.items()
        for i in found.items
    }
    rows = [(Run(run_id, labels[run_id]), answer) for run_id, answer in answers.items()]
    page.chart(
        figures.sample.grid(rows, shown, label=own.label_name),
        figures.sample.table(rows, shown),
        name="answers",
        wide=len(shown) > 6,
        select=lambda cell: address.put({"evaluation": evaluation_of[cell[0], cell[1]]}),
    )
    page.table(figures.sample.table(rows, shown), caption="Every run's answer", limit=100)
    st.header("As the model saw it", anchor=False)
    by_set = {i.source.evaluation_id: i.sample for i in history.items}
    components.gallery(
        {"items": [_item(e, by_set[e.id]) for e in shown], "missing": "no image"},
        key="sample-sets",
        opened=lambda at: address.put({"evaluation": shown[at].id}),
    )


main()
