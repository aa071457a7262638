"""Slices of the samples: where a run is too sure, and where not sure enough."""

import json
from collections.abc import Mapping

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.queries import PromptsQuery, RunSlicesQuery, SlicesQuery
from calift_core.schema.wire.results import Evaluation, SlicePage
from calift_core.schema.wire.runs import RunSummary
from frontend import api, figures, page, state, text
from frontend.panels import gallery, tagging
from frontend.panels.calibration.controls import controls
from frontend.tables import Run, analysis

GROUPINGS = {
    "class": "true class",
    "predicted": "predicted class",
    "confusion": "confusion",
    "confidence": "confidence",
    "dataset": "data set",
    "cluster": "source image",
}

ORDERS = {
    "key": "as they come",
    "-gap": "most over-confident",
    "gap": "most under-confident",
    "-ece": "largest ECE",
    "accuracy": "lowest accuracy",
    "-n": "most samples",
}


def draw(
    found: Mapping[str, Evaluation], runs: Mapping[str, RunSummary], labels: Mapping[str, str]
) -> None:
    """Show the gap of each slice; evaluations, runs and labels are by run id."""
    columns = st.columns([2, 2, 5])
    by = state.choice(columns[0].selectbox, "Slices by", name="by", options=GROUPINGS)
    order = state.choice(
        columns[1].selectbox, "Order", name="order", options=ORDERS, disabled=by == "dataset"
    )
    where = state.words(
        columns[2],
        "Only samples where",
        name="where",
        max_chars=500,
        placeholder="confidence >= 0.9 and not correct",
        help=gallery.CONDITION_HELP,
    )
    query = controls()
    pages: list[tuple[Run, SlicePage]] = []
    for run_id, evaluation in found.items():
        found_here = _slices_of(evaluation, runs[run_id], by, order, where, query, first=not pages)
        pages.append((Run(run_id, labels[run_id]), found_here))
    if not pages[0][1].items:
        page.empty("No slice", "No sample meets the condition.")
        return
    noun = GROUPINGS[by]

    def chosen(run_id: str, key: str) -> None:
        one = next(
            s for run, shown in pages for s in shown.items if (run.id, s.key) == (run_id, key)
        )
        gallery.open_samples(
            gallery.Chosen(
                evaluation=one.evaluation_id or found[run_id].id, where=one.condition or None
            )
        )

    page.chart(
        figures.slices.gaps(pages, styles=state.styles(list(found)), title=f"Gap by {noun}"),
        analysis.slices(pages),
        name=f"slices-{by}",
        data=lambda: json.dumps([one.model_dump(mode="json") for _, one in pages]),
        select=lambda mark: chosen(*mark[-2:]),
    )
    place = {s.key: at for at, s in enumerate(pages[0][1].items)}
    if len(place) > figures.slices.MOST:
        st.caption(f"The chart shows the first {figures.slices.MOST}, the tables all that follow.")
    for run, one in pages:
        shown = one.model_copy(
            update={"items": sorted(one.items, key=lambda s: place.get(s.key, len(place)))}
        )
        loaded = "" if len(one.items) == one.total else f", of which {len(one.items)} are loaded"
        st.caption(
            f"**{text.md(run.label)}.** {text.count(one.n_matching)} of {text.count(one.n)} "
            f"samples, {text.count(one.total)} slices{loaded}. "
            "One in twenty calibrated slices is above its floor by chance."
        )
        picked = page.grid(
            analysis.slice_rows([(run, shown)]),
            key=f"slices-{by}-{found[run.id].id}-{order}-{where}",
            caption=f"Slices of {run.label}: open one to see its images",
            most_px=430,
        )
        if picked.opened is not None and picked.opened < len(shown.items):
            chosen(run.id, shown.items[picked.opened].key)
    # By data set, each slice is of another evaluation.
    gallery.draw([] if by == "dataset" else list(found.values()), temperature=query.temperature)


def _slices_of(
    evaluation: Evaluation,
    run: RunSummary,
    by: str,
    order: str,
    where: str,
    query: PromptsQuery,
    *,
    first: bool,
) -> SlicePage:
    """The slices of one run; those after the first are matched to its keys, so all are loaded."""
    condition = where.strip() or None
    if by == "dataset":
        of_run = RunSlicesQuery.of(query, {"where": condition, "limit": 200})
        what = f"slice {run.name} by data set"
        version = f"{run.revision}-{tagging.version(evaluation)}"
        return api.fetched(what, Client.run_slices, run.id, version, of_run)
    query = SlicesQuery.of(
        query,
        {
            "by": by,
            "where": condition,
            "sort": order.removeprefix("-") if first else "key",
            "descending": first and order.startswith("-"),
            "limit": 200,
        },
    )
    what = f"slice {run.name} on {evaluation.dataset}"
    return api.fetched(what, Client.slices, evaluation.id, tagging.version(evaluation), query)
