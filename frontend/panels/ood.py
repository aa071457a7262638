"""Out-of-distribution detection of a run: the answer, both densities, images at the threshold."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.ood import OodDetection
from calift_core.schema.wire.queries import OodQuery
from calift_core.schema.wire.runs import RunSummary
from frontend import api, components, figures, page, state, text
from frontend.tables import Run, ood

_OPENED = "ood-sample"


def draw(chosen: Mapping[str, RunSummary], runs: Sequence[Run]) -> None:
    """How well a run's scores tell its ID test images from its shifts and far sets."""
    run = runs[0]
    if len(runs) > 1:
        labels = {one.id: one.label for one in runs}
        run_id = state.choice(st.selectbox, "Run", name="of", options=labels)
        run = next(one for one in runs if one.id == run_id)
    found = api.fetched(
        f"hold the shifts and far sets of {run.label} against its ID test images",
        Client.ood, run.id, chosen[run.id].revision, OodQuery(),
    )  # fmt: skip
    with st.container(border=True, gap="xsmall"):
        st.markdown(f"**{text.md(run.label)}**: {text.md_prose(ood.answer(found))}")
        for note in found.notes:
            st.caption(text.md_prose(note))
    if found.sets:
        _one_set(found)
        st.header("Every score on every set", anchor=False)
        page.table(ood.table(found), caption="How well each score tells sets from ID test images")
        st.caption(_how(found))


def _how(found: OodDetection) -> str:
    after = "" if found.calibrator == "none" else f" after {text.calibrator(found.calibrator)}"
    return (
        f"Maximum softmax is of the run's probabilities{after}, energy and MCM are of its logits. "
        "FPR95: the share of a set that is accepted where 95 % of the ID test images are. AUPR "
        "counts images of the set as positives. Far sets, of none of the classes, are those of "
        "`suite.ood`; folders of other images: `calift analyse ood RUN FOLDER`."
    )


def _one_set(found: OodDetection) -> None:
    sets = {one.dataset: ood.set_name(one) + " (far)" * (one.role == "far") for one in found.sets}
    left, right = st.columns(2)
    with left:
        name = state.choice(st.selectbox, "Set", name="beside", options=sets)
    one = next(s for s in found.sets if s.dataset == name)
    scores = {row.score: ood.TITLES[row.score] for row in one.scores}
    with right:
        score = state.choice(
            st.selectbox, "Score", name="score", options=scores, default=ood.best_score(found.sets)
        )
    row = ood.of_score(one, score)
    page.chart(
        figures.ood.densities(found, one, row),
        figures.ood.densities_table(row),
        name=f"ood-{name}-{score}",
    )
    title = ood.TITLES[score]
    place = {"evaluation": one.evaluation_id}
    if one.evaluation_id is None:
        place = {"run": found.run.run_id, "dataset": one.dataset}
    for samples, where in ((row.above, "accepted: {} above"), (row.below, "rejected: {} below")):
        heading = where.format(f"images of {sets[name]}")
        _images(place, samples, f"Just {heading} the threshold of {title}")
    if (sample := st.session_state.pop(_OPENED, None)) is not None:
        if "run" in place:
            _enlarged(place, sample)
        else:
            st.switch_page("views/sample.py", query_params={**place, "sample": sample})


_Place = Mapping[str, str | None]


@st.dialog("Image of a far set")
def _enlarged(place: _Place, sample: str) -> None:
    at = urlencode({**place, "sample": sample})
    page.picture(f"/thumbnail?{at}&size=512", f"{sample}, an image of {place['dataset']}")
    st.caption(text.md(sample))


def _images(place: _Place, samples: Sequence[str], heading: str) -> None:
    st.subheader(text.md(heading), anchor=False)
    if not samples:
        st.caption("None.")
        return
    components.gallery(
        {"items": [_item(place, sample) for sample in samples], "missing": "no image"},
        key=f"ood-{heading.split(':')[0]}",
        opened=lambda at: st.session_state.update({_OPENED: samples[at]}),
    )


def _item(place: _Place, sample: str) -> dict[str, Any]:
    at = urlencode({**place, "sample": sample})
    return {
        "href": f"/thumbnail?{at}&size=512" if "run" in place else f"/sample?{at}",
        "src": f"/thumbnail?{at}&size=160",
        "alt": f"{sample}, an image at the threshold",
        "label": "/".join(sample.split("/")[-2:]),
        "answers": [],
        "marks": [],
        "top": [],
    }
