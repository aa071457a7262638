"""The check of a new run by the API as it is filled in, and the button that submits it."""

from collections.abc import Mapping
from typing import Any

import streamlit as st
import yaml

from calift_core.schema.wire.runs import Validation
from frontend import api, page, text


def submit(spec: dict[str, Any], titles: dict[str, str], slots: dict[str, Any]) -> None:
    """Say what the API says of a spec, and submit it when somebody wants that.

    Args:
        titles: of the fields, by JSON pointer.
        slots: places below the fields for what is wrong with them, by JSON pointer.
    """
    locked = api.locked("submit")
    if locked:
        st.info(locked, icon=":material/lock:")
    validation = None if locked else api.act("check the run", lambda: api.validate(spec))
    if validation is not None and not validation.valid:
        _faults(validation, titles, slots)
    elif validation is not None:
        _estimate(validation)
        page.needs(validation)
    with st.container(horizontal=True, vertical_alignment="center"):
        ready = validation is not None and validation.valid and not validation.blocking
        if st.button(
            "Submit",
            type="primary",
            icon=":material/play_arrow:",
            disabled=not ready,
            help=None if ready else "What is red above has to be mended first",
        ) and (run := api.act("submit the run", lambda: api.client().submit(spec))):
            page.flash(f"{run.name} is queued")
            st.switch_page("views/run.py", query_params={"id": run.id})
    document = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, default_flow_style=None)
    with st.expander("As a file for `calift train` and `calift submit`"):
        st.code(document, language="yaml", wrap_lines=True)
        st.download_button(
            "RunSpec, YAML",
            document,
            "run.yaml",
            "application/yaml",
            icon=":material/download:",
            on_click="ignore",
        )


def _faults(validation: Validation, titles: dict[str, str], slots: dict[str, Any]) -> None:
    """Every fault above the button, and once more below the field that it is of."""
    lines = []
    for fault in validation.errors:
        pointer = fault.get("pointer", "").replace("#/spec/", "#/")
        message = text.md_prose(fault.get("message", ""))
        place = titles.get(pointer) or pointer.removeprefix("#/").replace("/", " › ")
        lines.append(f"- **{text.md(place)}**: {message}")
        while pointer and pointer not in slots:
            pointer = pointer.rpartition("/")[0]
        if pointer:
            slots[pointer].markdown(f":red[:material/error: {message}]")
    st.error("Not valid yet:\n\n" + "\n".join(lines), icon=":material/rule:")


def _phases(seconds: Mapping[str, float]) -> str:
    """`start and saving 12 s, training 40 s, evaluation 20 s`."""
    return ", ".join(f"{name} {text.duration(s)}" for name, s in seconds.items())


def _estimate(validation: Validation) -> None:
    e = validation.estimate
    shifts, far = (sum(n or 0 for n in sets.values()) for sets in (e.shifts, e.ood))
    evaluated = [("test", e.parts.get("test")), ("shifts", shifts),
              ("corruptions", e.corrupted_images), ("far sets", far)]  # fmt: skip
    cards = [
        ("Training images", text.count(e.train_images), ""),
        ("Steps", text.count(e.steps), ""),
        (
            "Images to evaluate",
            text.count(e.evaluation_images),
            ", ".join(f"{name} {n:,}" for name, n in evaluated if n) if len(e.parts) else "",
        ),
        ("To choose and calibrate on", text.count(e.selection_images), "ID images, predicted too"),
        ("Time", text.duration(e.seconds), _phases(e.phases) or "known after a first run like it"),
        (
            "Disk",
            text.size(e.disk_bytes),
            "as runs of this model left"
            if e.disk_bytes
            else "known after a first run of its model",
        ),
    ]
    if e.parameters:
        cards.insert(2, ("Parameters", text.count(e.parameters), ""))
    page.stats(cards)
    if e.basis:
        st.caption(text.md(e.basis[:1].upper() + e.basis[1:] + "."))
