"""Tab Config: the RunSpec, and where and with what it ran."""

from typing import Any

import streamlit as st
import yaml

from calift_core.schema.wire.runs import RunDetail
from frontend import page, text
from frontend.tables import Column, Table


def draw(run: RunDetail) -> None:
    left, right = st.columns(2)
    with left:
        st.markdown("**RunSpec**")
        document = yaml.safe_dump(
            run.spec, sort_keys=False, allow_unicode=True, default_flow_style=None
        )
        st.code(document, language=None, wrap_lines=True)
        st.download_button(
            "RunSpec, YAML",
            document,
            f"{run.name}.yaml",
            "application/yaml",
            icon=":material/download:",
            on_click="ignore",
        )
    with right:
        facts = {
            "id": run.id,
            "SHA-256 of the spec": run.spec_sha256,
            "submitted": text.moment(run.created_at),
            "started": text.moment(run.started_at),
            "finished": text.moment(run.finished_at),
            "owner": run.owner,
            "worker": run.worker,
            "priority": run.priority,
        }
        _facts("Run", facts)
        if run.cloned_from:
            st.page_link(
                "views/run.py",
                label="The run that it was cloned from",
                icon=":material/content_copy:",
                query_params={"id": run.cloned_from},
            )
        if run.resolved:
            _facts("Resolved defaults", run.resolved)
        if run.environment:
            _facts("Environment", run.environment)
        if run.notes:
            st.markdown("**Notes**")
            st.text(run.notes)


def _facts(title: str, facts: dict[str, Any]) -> None:
    st.markdown(f"**{title}**")
    rows = [
        {"name": key.replace("_", " "), "value": None if value in (None, "") else text.plain(value)}
        for key, value in facts.items()
    ]
    page.table(
        Table([Column("name", "Name"), Column("value", "Value", "prose")], rows), caption=title
    )
