"""The button that makes a report of runs, as files that need nothing else to be read."""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.runs import RunSummary
from frontend import api, page
from frontend.panels import saving
from frontend.reports import files
from frontend.reports.contents import contents
from frontend.reports.document import to_html
from frontend.reports.gathered import from_service

Kind = Literal["html", "pdf", "zip"]


def button(runs: Sequence[RunSummary], *, baseline: str | None = None) -> None:
    """Offer a report of finished runs; nothing is made before somebody asks for it."""
    run_ids = tuple(run.id for run in runs)
    name = f"report-{run_ids[0]}" + (f"-and-{len(run_ids) - 1}-more" if len(run_ids) > 1 else "")
    with st.popover("Report", icon=":material/description:"):
        st.caption(
            "Figures with captions that stand alone, tables, and the numbers behind them. "
            "The page works without a network."
        )
        kinds: dict[Kind, tuple[str, str, str]] = {
            "html": ("Page, HTML", "Save the page", "text/html")
        }
        if page.can_draw():
            kinds |= {
                "pdf": ("PDF", "Save the PDF", "application/pdf"),
                "zip": ("Everything, ZIP", "Save everything", "application/zip"),
            }
        for kind, (label, save, mime) in kinds.items():
            saving.offer(
                label,
                save,
                partial(_made, api.client(), run_ids, baseline, kind),
                f"{name}.{kind}",
                mime,
                of=(*((run.id, run.revision) for run in runs), baseline, kind),
                key=f"report-{kind}",
                width="stretch",
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
