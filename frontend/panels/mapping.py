"""A map of a data set's image features: a lasso chooses the images that the gallery shows."""

import streamlit as st

from calift_core.errors import ServiceError
from calift_core.schema.wire.results import Evaluation
from calift_core.schema.wire.tags import FeatureMap
from frontend import api, figures, page, state, text
from frontend.panels import gallery, tagging
from frontend.tables import analysis

_POLL_S = 3.0


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
        f"All {text.count(len(found.ids))} images. Draw a lasso: the gallery below shows the "
        'images in it, which can be tagged together; a tag makes a slice (`tag == "…"`).'
    )
    if (sample := st.session_state.pop("map-image", None)) is not None:
        st.switch_page(
            "views/sample.py", query_params={"evaluation": evaluation.id, "sample": sample}
        )
    gallery.draw([evaluation])


@st.cache_data(ttl=3600, max_entries=20, show_spinner="Loading the map…")
def _ready(evaluation_id: str, _digest: str) -> FeatureMap:
    found = api.client().feature_map(evaluation_id)
    if found.state != "ready":
        raise _NotReady(found)
    return found


class _NotReady(Exception):  # noqa: N818
    """What must not be kept: it changes."""


def _map(evaluation: Evaluation) -> FeatureMap:
    try:
        return _ready(evaluation.id, evaluation.predictions_sha256)
    except _NotReady as not_ready:
        found: FeatureMap = not_ready.args[0]
        return found


@st.fragment(run_every=_POLL_S)
def _wait(evaluation: Evaluation) -> None:
    found = api.client().feature_map(evaluation.id)
    if found.state != "making":
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
