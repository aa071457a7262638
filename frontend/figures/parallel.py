"""Parallel coordinates of runs: a line for each through an axis for each column.

Drawn of plain lines, and not by Plotly's own kind, which needs WebGL: so in every browser, and in
SVG and PDF as on the page.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from frontend import tables, text
from frontend.figures.style import (
    INK,
    MUTED,
    PALETTE,
    RULE,
    SYMBOLS,
    blank,
    empty_figure,
    legend_below,
)
from frontend.tables import Column, Table

#: Lines that are drawn at most, each a trace of its own; the table has the rest.
MOST = 200
#: Where a row stands on an axis that it has no value on: below it.
MISSING = -0.14
#: Colours that are told apart by a legend.
_KINDS = 12
#: Shares of an axis that two of its labels are apart, at least.
_APART = 0.055
_LINE_PX = 18
_LETTER_PX = 6.5
_LONGEST = {True: 26, False: 14}
#: Kind of a column → what its values are multiplied by, and what is said behind them.
_UNITS = {"percent": (100, "%"), "points": (100, "pp"), "square_points": (10_000, "pp²")}


class _Axis(NamedTuple):
    """An axis, whose lower end is at 0 and whose upper one is at 1.

    Attributes:
        places: of the rows; None where a row has no value.
    """

    label: str
    places: list[float | None]
    ticks: list[tuple[float, str]]
    tells: bool


def figure(
    table: Table,
    *,
    colour: str,
    order: Sequence[str] = (),
    names: str = "run",
    title: str = "Parallel coordinates",
) -> go.Figure:
    """A line for each row through an axis for each column that has a value; at most `MOST` lines.

    Columns of text have a place for each value, numbers by their size and names by the alphabet,
    the first on top; a learning rate's axis is logarithmic. A value that all rows share stands in
    the middle. A row without a value stands below the axis.

    Args:
        colour: the column that colours the lines, one of text.
        order: its values in theirs, which gives them their colours; those that are not in it
            follow.
        names: the field of the rows that holds their names.
    """
    heading = title or "Parallel coordinates"
    every = [row for row in table.rows if any(v is not None for v in row.values())]
    rows = every[:MOST]
    axes = [
        a
        for column in table.columns
        if (a := _axis(column, rows, order if column.name == colour else ())) is not None
    ]
    if len(rows) < 2 or len(axes) < 2 or not any(one.tells for one in axes):
        return empty_figure(heading, "two runs that differ are needed")
    kinds = [
        *dict.fromkeys(order),
        *sorted({str(row.get(colour)) for row in rows} - set(order), key=_ordered),
    ]
    called = next((c.label.lower() for c in table.columns if c.name == colour), colour)
    says = [f"a line is a run, its colour the {called} · point at a line for its values"]
    if len(kinds) <= _KINDS:
        says.append("a click on a name below hides its lines, a double click all others")
    if len(every) > len(rows):
        says.append(f"the first {len(rows)} of {len(every)} runs")
    drawn = blank(
        title=title,
        subtitle=says,
        alt=f"{heading}: {len(rows)} runs over {len(axes)} columns; the table has them.",
        height=max(380, 90 + _LINE_PX * max(len(one.ticks) for one in axes)),
        legend=False,
    )
    drawn.add_traces(_lines(rows, axes, table.columns, colour, kinds, names))
    _draw_axes(drawn, axes)
    if len(kinds) <= _KINDS:
        legend_below(drawn, math.ceil(len(kinds) / 4))
        # There is no axis below the lines, which the legend would stand under.
        drawn.update_layout(legend={"y": -0.02})
    return drawn


def _lines(
    rows: Sequence[Mapping[str, Any]],
    axes: Sequence[_Axis],
    columns: Sequence[Column],
    colour: str,
    order: Sequence[str],
    names: str,
) -> list[go.Scatter]:
    """A line for each row, coloured and marked by its kind; the first of a kind is its legend."""
    kinds = [str(row.get(colour)) for row in rows]
    return [
        go.Scatter(
            x=list(range(len(axes))),
            y=[MISSING if (y := one.places[at]) is None else y for one in axes],
            mode="lines+markers",
            name=text.esc(kind),
            legendgroup=text.esc(kind),
            legendrank=order.index(kind) + 1,
            showlegend=kinds.index(kind) == at,
            opacity=0.8,
            cliponaxis=False,
            line={"color": PALETTE[order.index(kind) % len(PALETTE)], "width": 1.75},
            marker={"symbol": SYMBOLS[order.index(kind) % len(SYMBOLS)], "size": 7},
            hovertext=_hover(columns, row, names),
            hoverinfo="text",
        )
        for at, (row, kind) in enumerate(zip(rows, kinds, strict=True))
    ]


def _hover(columns: Sequence[Column], row: Mapping[str, Any], names: str) -> str:
    head = [f"<b>{text.esc(row[names])}</b>"] if row.get(names) else []
    lines = [f"{text.esc(c.label)}: {text.esc(_said(c, row.get(c.name)))}" for c in columns]
    return "<br>".join([*head, *lines])


def _said(column: Column, value: Any) -> str:
    if column.name == "lr" and value is not None:
        return f"{value:g}"
    return tables.cell_text(column, value) or text.DASH


def _ordered(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, then names by the alphabet."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def _axis(column: Column, rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> _Axis | None:
    """The axis of a column; None where no row has a value."""
    values = [row.get(column.name) for row in rows]
    if column.kind not in tables.NUMERIC:
        return _of_words(column, [None if v in (None, "") else str(v) for v in values], order)
    numbers = [None if v is None or not math.isfinite(v) else float(v) for v in values]
    return _of_rates(column, numbers) if column.name == "lr" else _of_numbers(column, numbers)


def _of_words(column: Column, values: Sequence[str | None], order: Sequence[str]) -> _Axis | None:
    found = {v for v in values if v is not None}
    known = [v for v in order if v in found]
    known += sorted(found - set(known), key=_ordered)
    if not known:
        return None
    if order or _ordered(known[-1])[0]:
        known.reverse()  # names are read from the top
    place = {v: _share(i, 0, len(known) - 1) for i, v in enumerate(known)}
    return _Axis(
        column.label,
        [None if v is None else place[v] for v in values],
        [(place[v], v) for v in known],
        len(known) > 1,
    )


def _of_rates(column: Column, values: Sequence[float | None]) -> _Axis | None:
    """Logarithmic; each rate that fits is a label, and a rate that is not positive is no value."""
    logs = [math.log10(v) if v is not None and v > 0 else None for v in values]
    known = sorted({v for v in logs if v is not None})
    if not known:
        return None
    low, high = known[0], known[-1]
    ticks: list[tuple[float, str]] = []
    for value in [low, *reversed(known[1:])]:  # both ends first: they are always labelled
        at = _share(value, low, high)
        if all(abs(at - other) >= _APART for other, _ in ticks):
            ticks.append((at, f"{10**value:.4g}"))
    places = [None if v is None else _share(v, low, high) for v in logs]
    return _Axis(column.label, places, sorted(ticks), high > low)


def _of_numbers(column: Column, values: Sequence[float | None]) -> _Axis | None:
    """From one round number to another, which hold all values between them."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    least, most = min(known), max(known)
    if most <= least:
        places = [None if v is None else 0.5 for v in values]
        return _Axis(column.label, places, [(0.5, _said(column, least))], False)
    step = _round_step((most - least) / 4)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    low, high = first * step, last * step
    scale, unit = _UNITS.get(column.kind, (1, ""))
    digits = max(0, -math.floor(math.log10(scale * step) + 1e-9))
    ticks = []
    for k in range(first, last + 1):
        words = f"{scale * k * step:.{digits}f}".replace("-", "−")
        ticks.append((_share(k, first, last), f"{words}{text.NBSP}{unit}" if unit else words))
    return _Axis(
        column.label,
        [None if v is None else min(1.0, max(0.0, _share(v, low, high))) for v in values],
        ticks,
        True,
    )


def _round_step(raw: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not less than `raw`, which is > 0."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def _share(value: float, low: float, high: float) -> float:
    """Where a value is between two others; the middle where these are the same."""
    return 0.5 if high <= low else (value - low) / (high - low)


def _draw_axes(figure: go.Figure, axes: Sequence[_Axis]) -> None:
    """Lines, names and labels of the axes, and the room that the outermost labels need."""
    lacking = any(place is None for one in axes for place in one.places)
    lines = [
        {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "layer": "below",
         "line": {"color": RULE, "width": 1.5}}
        for at in range(len(axes))
    ]  # fmt: skip
    written: list[dict[str, Any]] = []
    for at, one in enumerate(axes):
        written.append(
            {"x": at, "y": 1, "yshift": 12, "yanchor": "bottom", "showarrow": False,
             "text": "<br>".join(map(text.esc, _broken(one.label))),
             "font": {"size": 12, "color": INK}}
        )  # fmt: skip
        missing = [(MISSING, "none")] if None in one.places else []
        for y, words in [*one.ticks, *missing]:
            first = at == 0
            written.append(
                {"x": at, "y": y, "showarrow": False, "borderpad": 1,
                 "xshift": -8 if first else 8, "xanchor": "right" if first else "left",
                 "text": text.esc(_cut(words, _LONGEST[first])),
                 "bgcolor": "rgba(255,255,255,0.75)",
                 "font": {"size": 11, "color": INK if y >= 0 else MUTED}}
            )  # fmt: skip
    letters = max(len(_cut(words, _LONGEST[True])) for _, words in axes[0].ticks)
    last = max(len(_cut(words, _LONGEST[False])) for _, words in axes[-1].ticks)
    figure.update_layout(
        shapes=lines,
        annotations=written,
        margin={
            "l": 16 + math.ceil(_LETTER_PX * max(letters, 6)),
            "r": 16 + math.ceil(_LETTER_PX * max(last, 6)),
            "t": figure.layout.margin.t + 44,
            "b": 16,
        },
        height=figure.layout.height + 44,
        hovermode="closest",
        xaxis={"visible": False, "range": [-0.02, len(axes) - 0.98], "fixedrange": True},
        yaxis={
            "visible": False,
            "range": [MISSING - 0.06 if lacking else -0.05, 1.04],
            "fixedrange": True,
        },
    )


def _broken(label: str) -> list[str]:
    """A name in two lines at most, where it has words to break it at."""
    words = label.split()
    if len(label) <= 8 or len(words) < 2:
        return [label]
    at = min(range(1, len(words)), key=lambda i: abs(2 * len(" ".join(words[:i])) - len(label)))
    return [" ".join(words[:at]), " ".join(words[at:])]


def _cut(words: str, letters: int) -> str:
    return words if len(words) <= letters else f"{words[: letters - 1]}…"
