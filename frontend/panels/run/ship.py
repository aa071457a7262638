"""The button that takes a run's model away: calibrated, as a folder that stands alone."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.runs import RunDetail
from frontend import api

#: Kind → what it is called; those that read the initial model too cannot be shipped.
CALIBRATORS = {
    "auto": "The best on ID validation",
    "none": "None: the model's own probabilities",
    "temperature": "Temperature",
    "histogram": "Histogram",
    "isotonic": "Isotonic",
    "svs": "Structured vector scaling",
    "vector": "Vector",
}


def button(run: RunDetail) -> None:
    """Offer the model of a finished run; nothing is made before somebody asks for it."""
    with st.popover("Ship", icon=":material/inventory_2:"):
        kind = st.selectbox(
            "Calibrator", list(CALIBRATORS), format_func=CALIBRATORS.__getitem__, key="ship-kind"
        )
        st.caption(
            "Fitted on the run's ID calibration images. The folder holds the model as open_clip "
            "reads it, head, calibrator, thresholds and a model card; making it takes seconds."
        )
        st.download_button(
            "Model, ZIP",
            # Called when somebody clicks, outside of any visitor's page: so with this client.
            partial(_made, api.client(), run.id, kind),
            f"model-{run.id}.zip",
            "application/zip",
            on_click="ignore",
            width="stretch",
            key="ship-zip",
        )
        st.caption("Unpacked, it answers over HTTP:")
        st.code("calift serve model", language="sh")


def _made(client: Client, run_id: str, kind: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="calift-ship-") as folder:
        path = client.download_model(run_id, Path(folder) / "model.zip", calibrator=kind)
        return path.read_bytes()
