"""The button “Evaluate on …” and the form that it opens."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import streamlit as st

from calift_core.schema.suite import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS
from calift_core.schema.wire.runs import RunSummary, Validation
from frontend import api, page, text


def can_be_evaluated(run: RunSummary) -> bool:
    return run.phase == "SUCCEEDED" and run.method != "imported"


def button(runs: Sequence[RunSummary]) -> None:
    """Draw it, for runs that can be judged; nothing where there are none."""
    chosen = [run for run in runs if can_be_evaluated(run)]
    locked = api.locked("submit")
    if not chosen:
        return
    with st.popover(
        "Evaluate on …",
        icon=":material/fact_check:",
        disabled=bool(locked),
        help=locked or "Evaluate the finished model on more data, without training",
    ):
        _form(chosen)


def _form(runs: Sequence[RunSummary]) -> None:
    key = "-".join(run.id for run in runs)[:60]
    if len(runs) > 1:
        st.caption(
            f"{len(runs)} runs; those whose models are alike see each image in one pass. The "
            "results appear under each run."
        )
    with st.form(f"evaluate-{key}", border=False):
        folders = st.text_area(
            "Folders",
            key=f"evaluate-folders-{key}",
            placeholder="art=/data/pacs/art_painting",
            help="One a line, with the runs' classes as its folders: a path, or NAME=path",
        )
        suites = st.multiselect(
            "Suites",
            _suites(),
            key=f"evaluate-suites-{key}",
            help="Suites of the same classes: their test images, own shifts, stored corruptions",
            placeholder="none",
            accept_new_options=True,
        )
        corruptions = st.multiselect(
            "Corruptions",
            ["benchmark", "all", *BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS],
            key=f"evaluate-corruptions-{key}",
            help="Of each run's own test images",
            placeholder="none",
        )
        severities = st.multiselect(
            "Severities", [1, 2, 3, 4, 5], [1, 3, 5], key=f"evaluate-severities-{key}"
        )
        with st.container(horizontal=True):
            check = st.form_submit_button("Check", icon=":material/rule:")
            go = st.form_submit_button("Evaluate", type="primary", icon=":material/play_arrow:")
    if not (check or go):
        return
    names: Any = corruptions[0] if corruptions[:1] in (["all"], ["benchmark"]) else corruptions
    params: dict[str, Any] = {
        "runs": [run.id for run in runs],
        "suites": suites,
        **read_folders(folders),
        "corruptions": {"names": names, "severities": severities} if corruptions else {},
    }
    if check:
        found = api.act("check the evaluation", lambda: api.client().validate_evaluation(params))
        if found is not None:
            _say(found)
    elif job := api.act("submit the evaluation", lambda: api.client().evaluate(**params)):
        page.flash(f"{job.name}: queued")
        st.rerun()


def read_folders(lines: str) -> dict[str, Any]:
    """What is written in the field for folders, as `shifts` and `folders`."""
    shifts, folders = {}, []
    for line in filter(None, map(str.strip, lines.splitlines())):
        name, equals, path = line.partition("=")
        if equals and name.strip() and not PurePath(name).is_absolute():
            shifts[name.strip()] = path.strip()
        else:
            folders.append(line)
    return {"shifts": shifts, "folders": folders}


def _suites() -> list[str]:
    found = api.ask("list the data", api.client().datasets)
    return [d.id for d in found if d.available]


def _say(found: Validation) -> None:
    for fault in found.errors:
        place = fault.get("pointer", "").removeprefix("#/").replace("/", " › ")
        st.error(f"**{text.md(place)}**: {text.md_prose(fault.get('message', ''))}")
    for sentence in (*found.missing, *found.warnings):
        st.warning(text.md_prose(sentence))
    if found.valid:
        e = found.estimate
        words = [f"{text.count(e.evaluation_images)} images to predict"]
        words += [f"about {text.duration(e.seconds)}"] if e.seconds else []
        st.success(f"{', '.join(words)}. {text.md(e.basis[:1].upper() + e.basis[1:])}.")
