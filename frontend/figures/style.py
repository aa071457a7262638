"""How every figure looks, and the only place that gives a run its colour, symbol and dash.

Fractions come in and percent is made by the axes alone. Every figure carries a description for
people who do not see it (`alt_text`). The palette is Okabe and Ito's, without the yellow that
vanishes on white and the two that mark over- and under-confidence: Tol's indigo and wine stand for
these, and a violet for the grey that looks like pink to some.
"""

import re
import textwrap
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from frontend import text

INK = "#1c2733"
MUTED = "#5b6875"
GRID = "#e8ecf0"
RULE = "#c4ccd4"
BAR = "#dfe6ed"
BAND = "rgba(91,104,117,0.18)"
OVER = "#D55E00"
UNDER = "#0072B2"
FONT = '"Source Sans", "Source Sans 3", "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif'

PALETTE = ("#009E73", "#CC79A7", "#332288", "#E69F00", "#56B4E9", "#882255", "#000000", "#7766FF")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "x")
DASHES = (
    "solid",
    "dash",
    "dot",
    "dashdot",
    "longdash",
    "longdashdot",
    "2px 6px",
    "10px 3px 2px 3px",
)

#: Points above which lines are drawn by WebGL.
WEBGL_POINTS = 4000

#: Light enough at its dark end for ink to stay readable on it.
SEQUENTIAL = ((0.0, "#f6f9fc"), (0.5, "#b9d5e8"), (1.0, "#6ba6d0"))

#: What each colour of a figure is on a dark ground: the same hue, lighter, and series as far apart.
DARK: dict[str, str] = {
    "#ffffff": "#11171d",
    INK: "#e6ebf0",
    MUTED: "#a9b6c3",
    GRID: "#26313b",
    RULE: "#4a5866",
    BAR: "#33404c",
    OVER: "#f08a3c",
    UNDER: "#4aa8e8",
    **dict(
        zip(
            PALETTE,
            ("#71e2b1", "#c57694", "#4d58e7", "#e6bb1a", "#1299ce", "#af4065", "#ffffff",
             "#dcc3ec"),
            strict=True,
        )
    ),
    **dict(
        zip((c for _, c in SEQUENTIAL), ("#18222b", "#1f4560", "#2a6892"), strict=True)
    ),
    # What became of samples, and the bars of counts.
    "#c9d3dc": "#4a5866",
    "#2f8f73": "#3fb491",
    "#a3384a": "#e0707f",
    "#8795a3": "#7f8d9b",
    "#a9b5c0": "#5d6c7a",
}  # fmt: skip


class RunStyle(NamedTuple):
    """How a run is drawn everywhere."""

    colour: str
    symbol: str
    dash: str


def run_slots(run_ids: Iterable[str], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Give each run a slot of the palette.

    A run keeps the slot in `known` unless another shown run holds it; a new run takes the slot its
    id hashes to, or the next free one. The order of `run_ids` does not matter, and up to eight
    runs are all different.
    """
    ids = sorted(set(run_ids))
    known = known or {}
    slots: dict[str, int] = {}
    used: dict[int, int] = defaultdict(int)
    for run_id in [i for i in ids if i in known] + [i for i in ids if i not in known]:
        preferred = known.get(run_id, zlib.crc32(run_id.encode()) % len(PALETTE))
        candidates = [(preferred + k) % len(PALETTE) for k in range(len(PALETTE))]
        slot = min(candidates, key=lambda s: used[s])
        slots[run_id] = slot
        used[slot] += 1
    return slots


def style_of_slot(slot: int) -> RunStyle:
    return RunStyle(PALETTE[slot], SYMBOLS[slot], DASHES[slot])


def run_styles(
    run_ids: Iterable[str], known: Mapping[str, int] | None = None
) -> dict[str, RunStyle]:
    """Colour, symbol and dash per run; see `run_slots`."""
    return {run_id: style_of_slot(slot) for run_id, slot in run_slots(run_ids, known).items()}


def alt_text(figure: go.Figure) -> str:
    meta = figure.layout.meta
    return str(meta["alt"]) if meta else ""


def on_dark(figure: go.Figure) -> go.Figure:
    """The same figure for a dark ground; what is exported stays light."""
    return go.Figure(recoloured(figure.to_plotly_json()), skip_invalid=True)


def both(colour: str) -> str:
    """A run's colour for a style sheet, which knows by itself what it lies on."""
    return f"light-dark({colour}, {DARK[colour]})"


_DARKER = {light.lower(): dark for light, dark in DARK.items()}
_MIXED = re.compile(r"rgba\(\s*(\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)")
_STYLED = re.compile(r'style="[^"]*"')
_HEX = re.compile(r"#[0-9a-fA-F]{6}")


def recoloured(value: Any) -> Any:
    """A document whose colours are those of a dark ground.

    A text is a colour, or has some in its markup; in what people have written none is looked for,
    as their quotes are escaped.
    """
    if isinstance(value, dict):
        return {key: recoloured(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [recoloured(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.lower() in _DARKER:
        return _DARKER[value.lower()]
    if (mixed := _MIXED.fullmatch(value)) is not None:
        red, green, blue = (int(mixed[i]) for i in (1, 2, 3))
        dark = _DARKER.get(f"#{red:02x}{green:02x}{blue:02x}")
        if dark is None:
            return value
        red, green, blue = (int(dark[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{mixed[4]})"
    return _STYLED.sub(
        lambda found: _HEX.sub(lambda c: _DARKER.get(c[0].lower(), c[0]), found[0]), value
    )


def blank(
    *, title: str, alt: str, height: int, subtitle: Sequence[str] = (), legend: bool = True
) -> go.Figure:
    """An empty figure in calift's look. `subtitle` lines stand under the title, one a line."""
    lines = [f"<b>{text.esc(title)}</b>"] if title else []
    lines += [
        f'<span style="font-size:12px;color:{MUTED}">{text.esc(line)}</span>' for line in subtitle
    ]
    head = "<br>".join(lines)
    # The first line of several is drawn higher by plotly than a line alone.
    pad = 6 if len(lines) == 1 else 18
    top = (34 if title else 8) + (20 * len(subtitle) + 6 if subtitle else 0)
    figure = go.Figure()
    figure.update_layout(
        title={
            "text": head if title or subtitle else None,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 4, "t": pad},
            "font": {"size": 15, "color": INK},
        },
        meta={"alt": alt},
        height=height + top,
        margin={"l": 56, "r": 14, "t": top, "b": 46, "autoexpand": True},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        colorway=list(PALETTE),
        hoverlabel={
            "bgcolor": "#ffffff",
            "bordercolor": RULE,
            "font": {"family": FONT, "size": 13, "color": INK},
            "align": "left",
        },
        showlegend=legend,
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.16,
            "yanchor": "top",
            "font": {"size": 12},
            "itemwidth": 36,
            "bgcolor": "rgba(0,0,0,0)",
        },
        bargap=0,
        dragmode=False,
    )
    return figure


def legend_below(figure: go.Figure, rows: int) -> None:
    """Put the legend under the x axis's title and make room for `rows` lines of it."""
    axis, bottom = 50, 54 + 21 * rows
    plot = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    figure.update_layout(
        showlegend=True,
        height=plot + figure.layout.margin.t + bottom,
        margin={"b": bottom},
        legend={"y": -axis / plot, "yanchor": "top"},
    )


#: Of the ticks of shares: as many digits as tell one from the next, so 65.5 % beside 66 %. `$` puts
#: the currency of `CONFIG` behind in place of Plotly's own sign, which has no space before it.
SHARE = "$~%"
#: Formats of shares, which lie between 0 and 1; differences have a sign in theirs.
_SHARES = (SHARE, "$.0%", "$.1%")
#: How far an axis of shares may go on behind them, so that a mark at its end is whole.
_BEYOND = 0.03


def axis(**changes: Any) -> dict[str, Any]:
    """An axis in calift's look; `name` is its title, the rest is plotly's own.

    An axis of shares ends at 0 and 100 %, however few marks there are.
    """
    look = {
        "gridcolor": GRID,
        "linecolor": RULE,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": RULE,
        "tickfont": {"size": 12, "color": MUTED},
        "title": {"font": {"size": 13, "color": INK}, "standoff": 8},
        "automargin": True,
        "showline": True,
    }
    name = changes.pop("name", None)
    if name is not None:
        look["title"] = {**look["title"], "text": name}
    if changes.get("tickformat") in _SHARES and changes.get("type") != "log":
        look["autorangeoptions"] = {"clipmin": -_BEYOND, "clipmax": 1 + _BEYOND}
    return {**look, **changes}


#: Of shares that are all the same, so much of the axis is shown around them.
_AROUND = 0.05
#: How far it then goes on behind 0 and 100 %: a line there is whole, and no tick is beyond.
_RIM = 0.002


def shares_axis(values: Iterable[float], **changes: Any) -> dict[str, Any]:
    """An axis of shares in percent; where all are the same, of a few points around them.

    Plotly takes an axis from -50 to 150 % for one value alone.
    """
    least, most = min(found := list(values), default=0.0), max(found, default=0.0)
    changes.setdefault("tickformat", "$.1%" if most - least < 0.1 else "$.0%")
    if found and most - least < 1e-9:
        changes["range"] = [max(-_RIM, least - _AROUND), min(1 + _RIM, most + _AROUND)]
    return axis(**changes)


def names_axis(names: Sequence[str], size: int = 13) -> dict[str, Any]:
    """A y axis with a row for each name, the first on top; `size` is of the letters."""
    return axis(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[text.esc(name) for name in names],
        range=[len(names) - 0.5, -0.5],
        ticks="",
        showline=False,
        tickfont={"size": size, "color": INK},
    )


def cells_axis(**changes: Any) -> dict[str, Any]:
    """An axis of a heat-map: names without line, ticks and grid."""
    look = {"showgrid": False, "ticks": "", "showline": False}
    return axis(**{**look, "tickfont": {"size": 12, "color": INK}, **changes})


def spread(count: int) -> float:
    """Rows of a chart that are apart by 1 hold `count` marks: how far these are from each other."""
    return 0.0 if count < 2 else min(0.22, 0.6 / (count - 1))


def offset(index: int, count: int) -> float:
    """Where the mark `index` of `count` stands beside the middle of its row."""
    return (index - (count - 1) / 2) * spread(count)


def interval_bars(up: Sequence[float], down: Sequence[float], colour: str) -> dict[str, Any]:
    """An interval around a mark, as plotly's error bars: lengths to its upper and lower end."""
    return {
        "type": "data",
        "symmetric": False,
        "array": list(up),
        "arrayminus": list(down),
        "color": colour,
        "thickness": 1.25,
        "width": 0,
    }


def values_axis(metric: str, **changes: Any) -> dict[str, Any]:
    """An axis of values of one of `text.METRICS`."""
    look = text.METRICS[metric]
    if look.fraction:
        changes.setdefault("tickformat", SHARE)
    return axis(name=look.title, **changes)


def empty_figure(title: str, why: str) -> go.Figure:
    figure = blank(title=title, alt=f"{title}: {why}", height=160, legend=False)
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    figure.add_annotation(
        text=text.esc(why), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper",
        font={"color": MUTED},
    )  # fmt: skip
    return figure


def decades(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis: ticks at powers of ten, over a short span at 1, 2 and 5 times them."""
    positive = [v for v in values if v > 0]
    if not positive or max(positive) / min(positive) < 100:
        return {"type": "log", "dtick": "D2", "tickformat": ".1~e"}
    return {"type": "log", "dtick": 1, "exponentformat": "power"}


def heatmap(
    z: list[list[float | None]],
    words: list[list[str]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    metric: str,
    limits: tuple[float, float] | None = None,
) -> go.Heatmap:
    """A heat-map with its numbers in the cells; labels that repeat are kept apart by blanks."""
    fraction = text.METRICS[metric].fraction
    across, down = heatmap_labels(columns, rows)
    return go.Heatmap(
        z=z,
        x=across,
        y=down,
        text=words,
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        colorscale=[list(stop) for stop in SEQUENTIAL],
        zmin=limits[0] if limits else None,
        zmax=limits[1] if limits else None,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="%{y}<br>%{x}: " + ("%{z:$.2%}" if fraction else "%{z:.4g}")
        + "<extra></extra>",
        colorbar={
            "thickness": 8,
            "outlinewidth": 0,
            "tickformat": SHARE if fraction else None,
            "tickfont": {"size": 11, "color": MUTED},
            "len": 1.0,
            "nticks": 4,
        },
    )  # fmt: skip


def cells(
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    marks: Sequence[tuple[int, int, str, list[Any]]],
    size: int = 30,
) -> go.Scatter:
    """Marks over a heat-map's cells that can be selected, which cells themselves cannot.

    The figure's `hoverdistance` must reach over half a cell: of evenly spaced marks the nearest one
    is that of the cell under the pointer.

    Args:
        columns: of the heat-map, as it was given them.
        marks: row, column, value in words and `customdata` of each cell that stands for something.
        size: of the frame around a selected cell, in pixels.
    """
    across, down = heatmap_labels(columns, rows)
    return go.Scatter(
        x=[across[c] for _, c, _, _ in marks],
        y=[down[r] for r, _, _, _ in marks],
        text=[words for _, _, words, _ in marks],
        customdata=[data for _, _, _, data in marks],
        mode="markers",
        marker={"symbol": "square-open", "size": size, "color": INK, "line": {"width": 2},
                "opacity": 0},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
        showlegend=False,
    )  # fmt: skip


def heatmap_labels(columns: Sequence[str], rows: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels of both axes; those that repeat on one are kept apart by blanks."""
    return _apart(columns), _apart(rows)


def _apart(names: Sequence[str]) -> list[str]:
    shown: dict[str, int] = defaultdict(int)
    labels = []
    for name in names:
        labels.append(text.esc(name) + "\u200b" * shown[name])
        shown[name] += 1
    return labels


#: Pixels that a picture is wide, and one of a square alone; letters of a caption's line in it.
_WIDTH, _SQUARE, _LETTERS = 1000, 620, 130
_LINE = 17


def captioned(figure: go.Figure, caption: str) -> go.Figure:
    """The figure with its caption under it, so that its file stands alone."""
    figure = go.Figure(figure)
    if sum(axis.scaleanchor is not None for axis in figure.select_yaxes()) == 1:
        figure.update_layout(width=_SQUARE)
    width = figure.layout.width or _WIDTH
    lines = textwrap.wrap(caption, _LETTERS * width // _WIDTH)
    bottom, room = figure.layout.margin.b, 10 + _LINE * len(lines)
    figure.update_layout(
        height=figure.layout.height + room, margin={"b": bottom + room, "autoexpand": True}
    )
    figure.add_annotation(
        text="<br>".join(text.esc(line) for line in lines),
        xref="paper", yref="paper", x=0, y=0, xanchor="left", yanchor="top",
        xshift=4 - figure.layout.margin.l, yshift=-bottom, align="left", showarrow=False,
        font={"size": 12, "color": MUTED},
    )  # fmt: skip
    return figure


#: What the browser's chart bar offers; pictures are made in the browser, as SVG.
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    "toImageButtonOptions": {"format": "svg", "scale": 1},
    "locales": {"en-US": {"format": {"currency": ["", f"{text.NBSP}%"]}}},
}


def to_html(figure: go.Figure, *, title: str = "calift") -> str:
    """A page of its own that needs no network: the figure, its script and its description."""
    body = figure.to_html(full_html=False, include_plotlyjs=True, config=CONFIG)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text.esc(title)}</title></head><body>"
        f'<figure role="img" aria-label="{text.esc(alt_text(figure))}">{body}</figure>'
        f'<p style="font-family:sans-serif;color:{MUTED}">{text.esc(alt_text(figure))}</p>'
        "</body></html>"
    )
