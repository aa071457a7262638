"""A map of a data set's image features: a lasso chooses a slice, and the gallery's images."""

import streamlit as st

from calift_core.client import Client
from calift_core.errors import ServiceError
from calift_core.schema.wire.queries import SlicesQuery
from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.tags import FeatureMap
from frontend import api, figures, page, state, text
from frontend.panels import gallery, tagging
from frontend.tables import Run, Table, analysis

_POLL_S = 3.0
_KEPT = "feature-map"


def draw(evaluation: Evaluation) -> None:
    """Show the map of an evaluation, or have it made, and the gallery of what is selected."""
    try:
        found = _map(evaluation)
    except ServiceError as error:
        if error.status != 404:
            raise
        st.info(text.md_prose(error.message))  # no features are stored of it
        return
    if found.state != "ready":
        _make(evaluation, found)
        return
    colour = state.choice(
        st.segmented_control, "Colour", name="colour", options=figures.feature_map.COLOURS,
        required=True,
    )  # fmt: skip
    page.chart(
        figures.feature_map.figure(found, colour, tagging.items(evaluation)),
        analysis.feature_map(found),
        name="map",
        select=lambda mark: st.session_state.update({"map-image": found.ids[int(mark[0])]}),
        by_name=False,
        area=lambda area: gallery.open_samples(
            gallery.Chosen(evaluation=evaluation.id, area=area)
        ),
    )  # fmt: skip
    st.caption(
        f"All {text.count(len(found.ids))} images. Draw a lasso: below are the slice and the "
        "gallery of the images in it, which can be tagged together."
    )
    if (sample := st.session_state.pop("map-image", None)) is not None:
        st.switch_page(
            "views/sample.py", query_params={"evaluation": evaluation.id, "sample": sample}
        )
    now = gallery.chosen_samples()
    if now is not None and now.area and now.evaluation == evaluation.id:
        _slice(evaluation, now.area)
    gallery.draw([evaluation])


def _slice(evaluation: Evaluation, area: str) -> None:
    """The images inside a lasso as a slice, above all images."""
    pages = [
        (
            Run(name, name),
            api.fetched(
                f"slice {evaluation.dataset}", Client.slices, evaluation.id,
                evaluation.predictions_sha256, SlicesQuery(by="all", area=within),
            ),
        )
        for name, within in (("inside the lasso", area), ("all images", None))
    ]  # fmt: skip
    shown = analysis.slices(pages)
    first, _, *numbers = shown.columns  # what they are, and the title of a slice of all
    columns = [first._replace(label="Images"), *numbers]
    page.table(Table(columns, shown.rows), caption="The images inside the lasso as a slice")


def _map(evaluation: Evaluation) -> FeatureMap:
    """The map; one that is ready does not change, and the session's last is kept."""
    key = (evaluation.id, evaluation.predictions_sha256)
    kept, found = st.session_state.get(_KEPT, (None, None))
    if kept == key and found is not None:
        return found
    with st.spinner("Loading the map…"):
        found = api.client().feature_map(evaluation.id)
    if found.state == "ready":
        st.session_state[_KEPT] = (key, found)
    return found


@st.fragment(run_every=_POLL_S)
def _wait(evaluation: Evaluation) -> None:
    if _map(evaluation).state != "making":
        st.rerun()
    st.caption("The map is being made; the page shows it when it is ready.")


def _make(evaluation: Evaluation, found: FeatureMap) -> None:
    if found.state == "making":
        _wait(evaluation)
        return
    if found.state == "failed":
        st.warning(f"The map was not made: {text.md_prose(found.reason)}")
    st.button(
        "Make the map of features",
        icon=":material/scatter_plot:",
        type="primary",
        disabled=bool(api.locked("submit")),
        help=api.locked("submit") or "Seconds for thousands of images, minutes for 50,000",
        on_click=lambda: api.act(
            f"make the map of {evaluation.dataset}",
            lambda: api.client().make_feature_map(evaluation.id),
        ),
    )
