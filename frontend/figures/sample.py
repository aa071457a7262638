"""What runs say of one image: how probable its class is to each, on all that was made of it."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calift_core.schema.wire.results import Evaluation, Sample
from frontend import text
from frontend.figures.style import blank, cells, cells_axis, empty_figure, heatmap
from frontend.tables import Column, Run, Table

#: What a run says, by data set.
Answers = Mapping[str, Sample]


def of_true_class(sample: Sample) -> float:
    return math.exp(-sample.nll)


def grid(
    runs: Sequence[tuple[Run, Answers]], sets: Sequence[Evaluation], *, label: str
) -> go.Figure:
    """Runs down, data sets across; each cell is the probability of the true class.

    Args:
        sets: one evaluation of each data set, in order.
        label: the true class.
    """
    heading = f"Probability of {label}"
    if not runs or not sets:
        return empty_figure(heading, "no run has seen this image")
    across = [text.evaluation_title(e) for e in sets]
    found = [[answers.get(e.dataset) for e in sets] for _, answers in runs]
    values = [[None if s is None else of_true_class(s) for s in row] for row in found]
    words = [["" if s is None else _cell(s) for s in row] for row in found]
    worst = min(
        (
            (v, run.label, title)
            for (run, _), row in zip(runs, values, strict=True)
            for v, title in zip(row, across, strict=True)
            if v is not None
        ),
        default=None,
    )
    figure = blank(
        title=heading,
        subtitle=["stronger blue is better · ✗: another class was predicted"],
        alt=f"{heading}, {len(runs)} runs on {len(sets)} data sets."
        + (
            f" Lowest: {text.percent(worst[0])} by {worst[1]} on {worst[2]}."
            if worst is not None
            else ""
        ),
        height=110 + 34 * len(runs) + 6 * max(map(len, across)),
        legend=False,
    )
    rows = [run.label for run, _ in runs]
    figure.add_trace(
        heatmap(values, words, columns=across, rows=rows, metric="accuracy", limits=(0.0, 1.0))
    )
    figure.add_trace(
        cells(
            columns=across,
            rows=rows,
            marks=[
                (r, c, f"{text.percent(of_true_class(s))}, says {text.esc(s.predicted_name)}",
                 [runs[r][0].id, sets[c].dataset])
                for r, row in enumerate(found)
                for c, s in enumerate(row)
                if s is not None
            ],
            size=26,
        )
    )  # fmt: skip
    figure.update_layout(
        xaxis=cells_axis(tickangle=-40 if len(across) > 5 else 0),
        yaxis=cells_axis(autorange="reversed", type="category"),
        margin={"b": 12},
        hoverdistance=1000,
    )
    return figure


def _cell(sample: Sample) -> str:
    return f"{100 * of_true_class(sample):.0f}{'' if sample.correct else ' ✗'}"


def table(runs: Sequence[tuple[Run, Answers]], sets: Sequence[Evaluation]) -> Table:
    """One row per data set, with each run's answer in words."""
    rows = []
    for e in sets:
        row: dict[str, str] = {"on": text.evaluation_title(e)}
        for k, (_, answers) in enumerate(runs):
            if (answer := answers.get(e.dataset)) is not None:
                mark = "✓" if answer.correct else "✗"
                row[str(k)] = f"{mark} {answer.predicted_name}, {text.percent(answer.confidence)}"
        rows.append(row)
    names = [Column(str(k), run.label) for k, (run, _) in enumerate(runs)]
    return Table([Column("on", "On"), *names], rows)
