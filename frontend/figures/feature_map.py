"""A map of image features: every image a point, coloured by what is asked for."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from calift_core.schema.wire.tags import FeatureMap, ImageTag
from frontend import text
from frontend.figures.style import OVER, PALETTE, SHARE, UNDER, WEBGL_POINTS, blank

COLOURS = {
    "correct": "right and wrong",
    "confidence": "confidence",
    "label": "true class",
    "predicted": "predicted class",
    "cluster": "cluster",
    "tag": "tag",
}
#: Groups with a colour of their own; the rest share one.
_MOST = 7
_REST = "#c9d3dc"


def figure(found: FeatureMap, colour: str, tags: Sequence[ImageTag]) -> go.Figure:
    """All points; a lasso selects some. `customdata` is an image's place and confidence."""
    title = f"Features of {found.source.dataset}, by {COLOURS[colour]}"
    n = len(found.ids)
    made = blank(
        title=title,
        subtitle=["t-SNE: what is near is alike; distances between clusters mean little."],
        alt=f"{title}: {n:,} images as points in a plane, which a lasso selects.",
        height=620,
    )
    # float32 halves what a browser is sent; places up to 16 million are exact in it.
    x, y, confidences = (np.array(v, np.float32) for v in (found.x, found.y, found.confidences))
    place = np.arange(n)
    many = n > WEBGL_POINTS
    names = [text.esc(name) for name in found.class_names]
    hover = None
    if not many:
        pairs = zip(found.labels, found.predicted, strict=True)
        hover = np.array([f"{names[a]} → {names[b]}<br>" for a, b in pairs])

    def add(at: np.ndarray, name: str, marker: dict[str, object]) -> None:
        made.add_trace(
            (go.Scattergl if many else go.Scatter)(
                x=x[at],
                y=y[at],
                text=None if hover is None else hover[at],
                customdata=np.stack([place[at], confidences[at]], axis=1, dtype=np.float32),
                mode="markers",
                name=text.esc(name),
                marker={"size": 5 if n < 10_000 else 3, "opacity": 0.75, **marker},
                hovertemplate=("" if many else "%{text}")
                + f"%{{customdata[1]:$.1%}}<extra>{text.esc(name)}</extra>",
            )
        )

    if colour == "confidence":
        bar = {"thickness": 10, "outlinewidth": 0, "tickformat": SHARE}
        scale = [[0, _REST], [1, UNDER]]
        marker = {"color": confidences, "colorscale": scale, "cmin": 0, "cmax": 1, "colorbar": bar}
        add(place, "confidence", marker)
        made.update_layout(showlegend=False)
    else:
        for name, at, drawn in _groups(found, colour, tags):
            add(at, f"{name} ({len(at):,})", {"color": drawn})
    hidden = {"visible": False, "range": [-1.05, 1.05]}
    made.update_layout(
        dragmode="lasso",
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x"},
        margin={"l": 8, "r": 8},
        legend={"y": -0.02, "itemsizing": "constant"},
    )
    return made


def _groups(
    found: FeatureMap, colour: str, tags: Sequence[ImageTag]
) -> list[tuple[str, np.ndarray, str]]:
    """Names, places (M,) and colours of the groups; the rest first, below the others."""
    labels, predicted = np.array(found.labels), np.array(found.predicted)
    if colour == "correct":
        right = labels == predicted
        groups = (("right", right, UNDER), ("wrong", ~right, OVER))
        return [(name, np.flatnonzero(at), drawn) for name, at, drawn in groups]
    if colour == "tag":
        by_id = {one: at for at, one in enumerate(found.ids)}
        most = [name for name, _ in Counter(one.tag for one in tags).most_common(_MOST)]
        members = {
            name: np.array([by_id[t.sample] for t in tags if t.tag == name and t.sample in by_id])
            for name in most
        }
    else:
        values = {"label": labels, "predicted": predicted, "cluster": np.array(found.clusters)}
        names = found.cluster_names if colour == "cluster" else found.class_names
        here = values[colour]
        counts = np.bincount(here[here >= 0], minlength=len(names))
        largest = np.argsort(-counts, kind="stable")[:_MOST].tolist()
        members = {names[k]: np.flatnonzero(here == k) for k in largest if counts[k]}
    taken = [at for at in members.values() if len(at)]
    rest = np.setdiff1d(np.arange(len(found.ids)), np.concatenate(taken) if taken else [])
    others = [("others", rest, _REST)] if len(rest) else []
    return others + [
        (name, at, drawn)
        for (name, at), drawn in zip(members.items(), PALETTE, strict=False)
        if len(at)
    ]
