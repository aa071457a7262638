"""What a run has gained and lost against another: flows of samples, and their tables."""

import plotly.graph_objects as go

from calift_core.schema.wire.answers import LedgerSet
from frontend import text
from frontend.figures.style import INK, blank
from frontend.tables.analysis import MOVED, OUTCOMES

#: No run has these: tones of better and worse, and greys for what stayed.
COLOURS = {"both": "#c9d3dc", "gained": "#2f8f73", "lost": "#a3384a", "neither": "#8795a3"}
_NODE = "#5b6875"


def flows(found: LedgerSet, *, run: str, base: str, step: float) -> go.Figure:
    """Samples from right or wrong before, over what became of them, to how sure the run is now.

    Args:
        run: the run's name.
        base: that of what it is set against.
        step: by more than this a confidence has moved.
    """
    counts = {name: getattr(found, name) for name in OUTCOMES}
    starts = {"right": found.both + found.lost, "wrong": found.gained + found.neither}
    nodes = [
        f"right before: {text.count(starts['right'])}",
        f"wrong before: {text.count(starts['wrong'])}",
    ]
    nodes += [f"{words}: {text.count(counts[name])}" for name, words in OUTCOMES.items()]
    moved = {m: sum(c.n for c in found.cells if c.moved == m) for m in MOVED}
    nodes += [f"{words}: {text.count(moved[name])}" for name, words in MOVED.items()]
    first = {name: 2 + at for at, name in enumerate(OUTCOMES)}
    last = {name: 2 + len(OUTCOMES) + at for at, name in enumerate(MOVED)}
    links = [
        (0 if name in ("both", "lost") else 1, first[name], counts[name], name) for name in OUTCOMES
    ]
    links += [(first[c.outcome], last[c.moved], c.n, c.outcome) for c in found.cells]
    links = [link for link in links if link[2]]
    title = f"{run} against {base} on {found.dataset.replace('_', ' ')}"
    figure = blank(
        title=title,
        subtitle=[
            f"{text.count(found.n)} samples that both saw",
            f"surer, less sure: the confidence differs by more than {100 * step:.0f} points",
        ],
        alt=f"{title}: {sentence(found)}",
        height=320,
        legend=False,
    )
    figure.add_trace(
        go.Sankey(
            arrangement="fixed",
            textfont={"size": 12, "color": INK},
            node={
                "label": nodes,
                "color": [_NODE, _NODE, *COLOURS.values(), _NODE, _NODE, _NODE],
                "pad": 18,
                "thickness": 12,
                "line": {"width": 0},
                "hovertemplate": "%{label}<extra></extra>",
            },
            link={
                "source": [a for a, _, _, _ in links],
                "target": [b for _, b, _, _ in links],
                "value": [n for _, _, n, _ in links],
                "color": [_pale(COLOURS[name]) for *_, name in links],
                "hovertemplate": "%{source.label} → %{target.label}<br>%{value:,} samples"
                "<extra></extra>",
            },
        )
    )
    figure.update_layout(margin={"l": 8, "r": 8, "b": 16})
    return figure


def _pale(colour: str) -> str:
    r, g, b = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({r},{g},{b},0.45)"


def sentence(found: LedgerSet) -> str:
    """Gained, lost, and what that is of what was right before."""
    words = f"{text.count(found.gained)} gained and {text.count(found.lost)} forgotten"
    if found.forgotten is not None and found.forgotten_interval is not None:
        words += (
            f", {text.percent(found.forgotten)} of what was right before "
            f"({text.interval(*found.forgotten_interval)})"
        )
    return words
