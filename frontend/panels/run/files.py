"""Tab Artifacts: the stored files, to be downloaded."""

import tempfile
from functools import partial
from pathlib import Path

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.runs import RunDetail
from frontend import api, page, text
from frontend.panels import saving
from frontend.tables import Column, Markup, Table


def draw(run: RunDetail) -> None:
    found = api.fetch(
        "list the files", lambda: api.client().artifacts(run.id), key=f"artifacts-{run.id}"
    )
    if not found:
        page.empty(
            "No file is stored",
            "Checkpoints appear while the run trains; predictions and the report at its end."
            if api.is_working(run.phase)
            else "The run ended before it stored one.",
        )
        return
    rows = [
        {
            "name": a.name,
            "kind": a.kind,
            "size": Markup(text.esc(text.size(a.size_bytes))),
            "sha256": Markup(
                f'<code title="{text.esc(a.sha256)}">{text.esc(a.sha256[:16])}</code>'
            ),
            "attempt": a.attempt,
            "at": text.age(a.created_at),
        }
        for a in found
    ]
    columns = [
        Column("name", "File"),
        Column("kind", "Kind"),
        Column("size", "Size"),
        Column("sha256", "SHA-256"),
        Column("attempt", "Attempt", "count"),
        Column("at", "Stored"),
    ]
    page.table(Table(columns, rows), caption="Stored files of the run")
    total = sum(a.size_bytes for a in found)
    st.caption(f"{len(found)} files, {text.size(total)} in all")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sizes = {a.name: a.size_bytes for a in found}
        name = st.selectbox(
            "Download",
            list(sizes),
            format_func=lambda n: f"{n} ({text.size(sizes[n])})",
            key=f"artifact-{run.id}",
            width=420,
        )
        saving.offer(
            "Get the file",
            "Save the file",
            partial(_content, api.client(), run.id, name),
            Path(name).name,
            "application/octet-stream",
            of=(run.id, name),
            key=f"get-{run.id}",
        )


def _content(client: Client, run_id: str, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return client.download_artifact(run_id, name, Path(folder) / "file").read_bytes()
