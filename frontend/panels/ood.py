"""Out-of-distribution detection of a run: the answer, both densities, images at the threshold."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.ood import OodDetection, OodSet
from calift_core.schema.wire.queries import OodQuery
from calift_core.schema.wire.runs import RunSummary
from frontend import api, components, figures, page, state, text
from frontend.tables import Run, ood

_OPENED = "ood-sample"


def draw(chosen: Mapping[str, RunSummary], runs: Sequence[Run]) -> None:
    """How well a run's scores tell its ID test images from its shifts."""
    run = runs[0]
    if len(runs) > 1:
        labels = {one.id: one.label for one in runs}
        run_id = state.choice(st.selectbox, "Run", name="of", options=labels)
        run = next(one for one in runs if one.id == run_id)
    found = api.fetched(
        f"hold the shifts of {run.label} against its ID test images",
        Client.ood, run.id, chosen[run.id].revision, OodQuery(),
    )  # fmt: skip
    with st.container(border=True, gap="xsmall"):
        st.markdown(f"**{text.md(run.label)}**: {text.md_prose(ood.answer(found))}")
        for note in found.notes:
            st.caption(text.md_prose(note))
    if found.sets:
        _one_set(found)
        st.header("Every score on every shift", anchor=False)
        page.table(ood.table(found), caption="How well each score tells shifts from ID test images")
        st.caption(_how(found))


def _how(found: OodDetection) -> str:
    after = "" if found.calibrator == "none" else f" after {text.md(found.calibrator)}"
    return (
        f"Maximum softmax is of the run's probabilities{after}, energy and MCM are of its logits. "
        "FPR95: the share of a shift that is accepted where 95 % of the ID test images are. AUPR "
        "counts images of the shift as positives. Folders of other images: `calift analyse ood RUN "
        "FOLDER`."
    )


def _one_set(found: OodDetection) -> None:
    sets = {one.dataset: ood.set_name(one) for one in found.sets}
    left, right = st.columns(2)
    with left:
        name = state.choice(st.selectbox, "Shift", name="beside", options=sets)
    one = next(s for s in found.sets if s.dataset == name)
    scores = {row.score: ood.TITLES[row.score] for row in one.scores}
    with right:
        score = state.choice(
            st.selectbox, "Score", name="score", options=scores, default=ood.best_score(found)
        )
    row = ood.of_score(one, score)
    page.chart(
        figures.ood.densities(found, one, row),
        figures.ood.densities_table(row),
        name=f"ood-{name}-{score}",
    )
    title = ood.TITLES[score]
    _images(one, row.above, f"Just accepted: images of {sets[name]} above the threshold of {title}")
    _images(one, row.below, f"Just rejected: images of {sets[name]} below the threshold of {title}")
    if (sample := st.session_state.pop(_OPENED, None)) is not None:
        query = {"evaluation": one.evaluation_id or "", "sample": sample}
        st.switch_page("views/sample.py", query_params=query)


def _images(one: OodSet, samples: Sequence[str], heading: str) -> None:
    st.subheader(text.md(heading), anchor=False)
    if not samples or one.evaluation_id is None:
        st.caption("None.")
        return
    components.gallery(
        {"items": [_item(one, sample) for sample in samples], "missing": "no image"},
        key=f"ood-{heading.split(':')[0]}",
        opened=lambda at: st.session_state.update({_OPENED: samples[at]}),
    )


def _item(one: OodSet, sample: str) -> dict[str, Any]:
    at = urlencode({"evaluation": one.evaluation_id or "", "sample": sample})
    return {
        "href": f"/sample?{at}",
        "src": f"/thumbnail?{at}&size=160",
        "alt": f"{sample}, an image of {one.dataset}",
        "label": "/".join(sample.split("/")[-2:]),
        "answers": [],
        "marks": [],
        "top": [],
    }
