"""The button that takes a run's model away: calibrated, as a folder that stands alone."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from calift_core.client import Client
from calift_core.errors import CaliftError
from calift_core.schema.wire.runs import RunDetail
from frontend import api, text

_ONE = ("temperature", "ets", "svs", "vector", "sms", "histogram", "isotonic")
_TWO = ("disagreement", "cautious", "sals", "ensemble")
#: Kind → what it is called.
CALIBRATORS = {
    "auto": "the best on ID validation",
    "none": "none: the model's own probabilities",
    **{kind: text.CALIBRATORS[kind] for kind in _ONE},
}
#: Those that read the initial model's logits as well.
TWO_TOWERS = {kind: f"{text.CALIBRATORS[kind]}, two towers" for kind in _TWO}


def button(run: RunDetail) -> None:
    """Offer the model of a finished run; nothing is made before somebody asks for it."""
    with st.popover("Export model", icon=":material/inventory_2:"):
        kinds = CALIBRATORS | ({} if run.method == "zero_shot" else TWO_TOWERS)
        kind = st.selectbox(
            "Calibrator", list(kinds), format_func=kinds.__getitem__, key="ship-kind"
        )
        initial = _initial(run) if kind in TWO_TOWERS else None
        onnx = st.segmented_control(
            "Format", [False, True], default=False, format_func=["open_clip", "ONNX"].__getitem__,
            required=True, key="ship-onnx",
            help="ONNX: a graph from pixels to calibrated probabilities, beside the same folder",
        )  # fmt: skip
        st.caption(
            "Fitted on the run's ID calibration images. The folder holds the model as open_clip "
            "reads it, head, calibrator, thresholds and a model card; making it takes up to a "
            "minute."
        )
        options = {"calibrator": kind, "initial": initial, "onnx": bool(onnx)}
        _offer(run.id, options, ready=kind not in TWO_TOWERS or initial is not None)
        st.caption("Unpacked, it answers over HTTP:")
        st.code("calift serve model", language="sh")


def _initial(run: RunDetail) -> str | None:
    """Which zero-shot run's model travels along, and what that costs; None where there is none."""
    found = api.fetch(
        "look for zero-shot runs of the start",
        lambda: api.client().initial_runs(run.id),
        key=f"ship-initial-{run.id}",
    )
    if not found:
        st.warning(
            "No finished zero-shot run of this suite holds the model that this run started from. "
            "Run zero_shot with the same model and suite, then export.",
            icon=":material/stacks:",
        )
        return None
    names = {one.id: f"{one.name}, {text.age(one.finished_at)}" for one in found}
    chosen = st.selectbox(
        "Initial model", list(names), format_func=names.__getitem__, key="ship-initial"
    )
    st.info(
        "**Two towers.** The initial model travels along and every image passes through both: "
        "twice the weights and twice the time of an answer.",
        icon=":material/stacks:",
    )
    return chosen


def _offer(run_id: str, options: dict[str, Any], *, ready: bool) -> None:
    """A button that has the model made, and then in its place one that saves it.

    In two steps: what goes wrong while Streamlit asks for a file is shown to nobody.
    """
    place = st.empty()
    made = st.session_state.get("ship-made") == (run_id, options)
    if not made and place.button(
        "Make the model", disabled=not ready, width="stretch", key="ship-make"
    ):
        try:
            with st.spinner("Making the model …"):
                api.client().make_model(run_id, **options)
        except CaliftError as error:
            api.problem(error, "make the model")
        else:
            st.session_state["ship-made"], made = (run_id, options), True
    if made:
        place.download_button(
            "Model, ZIP",
            # Called when somebody clicks, outside of any visitor's page: so with this client.
            partial(_made, api.client(), run_id, options),
            f"model-{run_id}.zip",
            "application/zip",
            icon=":material/download:",
            on_click="ignore",
            type="primary",
            width="stretch",
            key="ship-zip",
        )


def _made(client: Client, run_id: str, options: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="calift-ship-") as folder:
        return client.download_model(run_id, Path(folder) / "model.zip", **options).read_bytes()
