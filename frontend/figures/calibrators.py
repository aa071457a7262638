"""Before and after a calibrator, and one fitted on A and tested on B; their tables."""

from typing import Literal

import plotly.graph_objects as go

from calift_core.schema.wire.results import (
    CalibratorEffect,
    FittedCalibrator,
    TransferCell,
    TransferMatrix,
)
from frontend import text
from frontend.figures import reliability, square
from frontend.figures.style import (
    INK,
    MUTED,
    RunStyle,
    blank,
    cells_axis,
    empty_figure,
    heatmap,
    legend_below,
    run_styles,
)
from frontend.tables.analysis import transfer_names


def fitted_words(calibrator: FittedCalibrator) -> str:
    """What a calibrator was fitted on, and whether that makes it an oracle."""
    on = f"{calibrator.fitted_on.dataset}, n = {text.count(calibrator.fitted_on.n)}"
    return f"ORACLE: fitted on {on}" if calibrator.oracle else f"fitted on {on}"


def overlay(
    effect: CalibratorEffect,
    *,
    style: RunStyle | None = None,
    title: str | None = None,
    side: int = 420,
) -> go.Figure:
    """One run before and after a calibrator on one pair of axes.

    Before is grey with open marks, after has the run's colour; an oracle's line is dotted and says
    what it is.
    """
    own = style or run_styles([effect.after.run_id])[effect.after.run_id]
    before, after, c = effect.before, effect.after, effect.calibrator
    heading = title if title is not None else f"{c.kind} on {after.dataset}"
    figure = blank(
        title=heading,
        subtitle=[
            fitted_words(c),
            f"{after.n_bins} bins, {text.SCHEMES[after.scheme]} · {text.NORMS[after.norm]} · "
            f"n = {text.count(after.n)}",
        ],
        alt=f"Reliability of {after.run_name} on {after.dataset} before and after {c.kind} "
        f"({fitted_words(c)}). {reliability.error_name(before)} {text.percent(before.ece)} before, "
        f"{text.percent(after.ece)} after, "
        + (
            "in-sample, so that no floor holds."
            if after.in_sample
            else f"floor {text.percent(after.null_mean)}."
        ),
        height=round(1.3 * side) + 46,
    )
    figure.add_trace(square.identity("", ""))
    looks = (
        ("before", before, MUTED, f"{own.symbol}-open", "dash"),
        ("after, oracle" if c.oracle else "after", after, own.colour, own.symbol,
         "dot" if c.oracle else "solid"),
    )  # fmt: skip
    for name, diagram, colour, symbol, dash in looks:
        square.add_line(
            figure,
            diagram,
            legend=f"{name}: {reliability.error_words(diagram)}",
            label=name,
            colour=colour,
            symbol=symbol,
            dash=dash,
        )
    square.set_axes(figure, x=(0.0, 1.0), y=(0.0, 1.0), axes=("", "2"))
    figure.update_layout(legend={"orientation": "v"}, margin={"l": 60})
    legend_below(figure, 3)
    return figure


def _transfer_word(cell: TransferCell, by: str) -> str:
    if by != "ece":
        worse = "▲" if getattr(cell, f"{by}_gain") < 0 else ""
        return f"{worse}{text.number(getattr(cell, by))}"
    percent = f"{100 * cell.ece:.1f}"
    if cell.in_sample:
        return f"{percent}*"
    return f"({percent})" if cell.ece <= cell.null_q95 else percent


def transfer(
    matrix: TransferMatrix, *, by: Literal["ece", "nll", "brier"] = "ece", title: str | None = None
) -> go.Figure:
    """A calibrator fitted on the row and tested on the column: an error or score in each cell.

    Rows of oracles carry a ◇ and a dotted frame, the honest row a solid one. An ECE in brackets is
    not above its floor, one with a star is in-sample and has none; an NLL or Brier score with a ▲
    is worse than without a calibrator.
    """
    heading = title if title is not None else f"{matrix.kind}: fitted on A, tested on B"
    if not matrix.rows or not matrix.rows[0].cells:
        return empty_figure(heading, "the run was evaluated on nothing that this can be tested on")
    names = transfer_names(matrix)
    columns = [cell.dataset for cell in matrix.rows[0].cells]
    z: list[list[float | None]] = [[getattr(c, by) for c in row.cells] for row in matrix.rows]
    words = [[_transfer_word(c, by) for c in row.cells] for row in matrix.rows]
    honest = [r for r in matrix.rows if r.calibrator is not None and not r.calibrator.oracle]
    oracles = len(matrix.rows) - 1 - len(honest)
    phrases = [
        f"{name}: " + ", ".join(
            f"{text.metric_text(getattr(c, by), by)} on {c.dataset}" for c in row.cells
        )
        for name, row in zip(names, matrix.rows, strict=True)
        if row.calibrator is None or not row.calibrator.oracle
    ]  # fmt: skip
    marks = {
        "ece": f"{'MCE' if matrix.norm == 'max' else 'ECE'} in %, stronger blue is worse · "
        "(in brackets): not above the floor · *: in-sample",
        "nll": "NLL in nats, stronger blue is worse · ▲: worse than without a calibrator",
        "brier": "Brier score, stronger blue is worse · ▲: worse than without a calibrator",
    }
    binned = f"{matrix.n_bins} bins, {text.SCHEMES[matrix.scheme]} · {text.NORMS[matrix.norm]} · "
    figure = blank(
        title=heading,
        subtitle=[
            marks[by],
            f"{binned if by == 'ece' else ''}solid frame: honest · ◇ dotted: oracle",
        ],
        alt=f"{heading}. {'; '.join(phrases)}. {oracles} further rows are oracles.",
        height=110 + 40 * len(names) + 6 * max(map(len, columns)),
        legend=False,
    )
    figure.add_trace(heatmap(z, words, columns=columns, rows=names, metric=by))
    for index, row in enumerate(matrix.rows):
        if row.calibrator is not None:
            figure.add_shape(
                type="rect", x0=-0.48, x1=len(columns) - 0.52, y0=index - 0.44, y1=index + 0.44,
                line={"color": INK if not row.calibrator.oracle else MUTED,
                      "width": 2 if not row.calibrator.oracle else 1.25,
                      "dash": "solid" if not row.calibrator.oracle else "dot"},
            )  # fmt: skip
    figure.update_layout(
        xaxis=cells_axis(
            name="Tested on", tickangle=-40 if len(columns) > 5 else 0, type="category"
        ),
        yaxis=cells_axis(name="Fitted on", autorange="reversed", type="category"),
        margin={"b": 12},
    )
    return figure
