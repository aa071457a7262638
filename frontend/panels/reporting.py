"""The button that makes a report of runs, as files that need nothing else to be read."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import streamlit as st

from calift_core.client import Client
from frontend import api, page
from frontend.reports import files
from frontend.reports.contents import contents
from frontend.reports.document import to_html
from frontend.reports.gathered import from_service

Kind = Literal["html", "pdf", "zip"]


def button(run_ids: Sequence[str], *, baseline: str | None = None) -> None:
    """Offer a report of finished runs; nothing is made before somebody asks for it."""
    name = f"report-{run_ids[0]}" + (f"-and-{len(run_ids) - 1}-more" if len(run_ids) > 1 else "")
    with st.popover("Report", icon=":material/description:"):
        st.caption(
            "Figures with captions that stand alone, tables, and the numbers behind them. "
            "The page works without a network."
        )
        kinds: dict[Kind, tuple[str, str]] = {"html": ("Page, HTML", "text/html")}
        if page.can_draw():
            kinds |= {
                "pdf": ("PDF", "application/pdf"),
                "zip": ("Everything, ZIP", "application/zip"),
            }
        for kind, (label, mime) in kinds.items():
            st.download_button(
                label,
                # Called when somebody clicks, outside of any visitor's page: so with this client.
                partial(_made, api.client(), tuple(run_ids), baseline, kind),
                f"{name}.{kind}",
                mime,
                on_click="ignore",
                width="stretch",
                key=f"report-{kind}",
            )
        if len(kinds) == 1:
            st.caption(
                "PDF, SVG and PNG need Chrome and kaleido on the dashboard's machine; "
                "`calift report` makes them on yours."
            )


def _made(client: Client, run_ids: Sequence[str], baseline: str | None, kind: Kind) -> bytes:
    made = contents(from_service(client, run_ids, baseline=baseline))
    if kind == "html":
        return to_html(made).encode()
    if kind == "pdf":
        return files.to_pdf(made)
    with tempfile.TemporaryDirectory(prefix="calift-report-") as folder:
        files.write(made, Path(folder) / "report")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))
        return packed.getvalue()
