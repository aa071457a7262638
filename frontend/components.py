"""The dashboard's own components: charts, whose bins can be chosen, gallery, rows, browser.

Their files are plain modules in `calift/components`, which `calift/pyproject.toml` declares to
Streamlit: its own scripts alone may run, and a component's text is no script of ours until it is
served as a file. What they are given is numbers and words of the server; they make text of words
and never markup.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import plotly
import plotly.graph_objects as go
import streamlit as st

#: Plotly's own part with bars, heat-maps and points, as its project publishes it; see `vendor`.
PLOTLY = "plotly-cartesian-4.1.1.min.js"
#: As `plotly.js-cartesian-dist-min` of npm has it.
PLOTLY_SHA256 = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
#: What that part draws; all of Plotly, three times as large, is loaded for the other kinds.
DRAWN = frozenset({"bar", "heatmap", "scatter"})
WHOLE = f"plotly-{plotly.__version__}.min.js"


@cache
def _component(name: str, *, apart: bool = True) -> Callable[..., Any]:
    # Not when this module is imported: Streamlit looks for files when it runs.
    return st.components.v2.component(
        f"calift.{name}", css=f"{name}.css", js=f"{name}.js", isolate_styles=apart
    )


def browser() -> None:
    """What every page needs of its browser; see `page.js`. It takes no room."""
    with st.container(key="calift-browser"):
        scheme = st.context.theme.type or ""
        _component("page")(key="browser", data={"scheme": scheme}, on_scheme_change=_nothing)


def _nothing() -> None:
    """Rerun the page: the visitor's colours arrived with the request."""


class Bins(NamedTuple):
    """Bins of a reliability diagram that can be chosen.

    Attributes:
        items: edges, `clear` and words of each; see `bins.js`.
        choose: called before the page is drawn again, with the edges that somebody chose, or None
            when they let go, while the page still shows the figure that they were chosen in.
    """

    label: str
    items: Sequence[Mapping[str, Any]]
    chosen: tuple[float, float] | None
    choose: Callable[[tuple[float, float] | None], None]


def chart(
    figure: go.Figure,
    *,
    key: str,
    alt: str,
    config: Mapping[str, Any],
    select: Callable[[list[Any]], None] | None = None,
    bins: Bins | None = None,
    area: Callable[[str], None] | None = None,
) -> None:
    """A chart of Plotly's, drawn once it is near what a visitor sees.

    Args:
        alt: describes it to those who do not see it.
        config: Plotly's.
        select: called before the page is drawn again, with the `customdata` of the mark that
            somebody selected, while the page still shows the figure that it was selected in.
        area: the same with the corners of a lasso or a box, as `SampleFilter.area` has them.
    """
    drawn = figure.to_json()
    of = f"{zlib.crc32(drawn.encode()):08x}"
    script = PLOTLY if {trace.type for trace in figure.data} <= DRAWN else WHOLE

    def selected() -> None:
        mark = _mark(st.session_state[key].get("mark"), of)
        if select is not None and mark:
            select(mark)

    def ranged() -> None:
        given = st.session_state[key].get("range")
        if bins is not None and isinstance(given, Mapping) and given.get("of") == of:
            bins.choose(_edges(given.get("edges")))

    def drawn_around() -> None:
        given = st.session_state[key].get("area")
        if area is not None and isinstance(given, Mapping) and given.get("of") == of:
            corners = _corners(given.get("corners"))
            if corners:
                area(corners)

    _component("chart", apart=False)(
        key=key,
        data={
            "figure": drawn,
            "config": dict(config),
            "script": f"/scripts/{script}",
            "alt": alt,
            "selects": select is not None,
            "areas": area is not None,
            "of": of,
            "bins": bins and {"bins": bins.items, "chosen": bins.chosen, "label": bins.label},
            "away": "The chart could not be loaded: its numbers are in the table below.",
        },
        on_mark_change=selected,
        on_range_change=ranged,
        on_area_change=drawn_around,
    )


def _mark(given: Any, of: str) -> list[Any]:
    """What a selected mark stands for; nothing where a browser sent another figure's, or else."""
    if not isinstance(given, Mapping) or given.get("of") != of:
        return []
    mark = given.get("mark")
    plain = isinstance(mark, list) and all(isinstance(v, str | int | float) for v in mark)
    return list(mark) if plain and isinstance(mark, list) else []


def _corners(given: Any) -> str:
    """Three to eighty points within the map as text; empty for anything else."""
    if not isinstance(given, Sequence) or not 3 <= len(given) <= 80:
        return ""
    if not all(
        isinstance(c, Sequence) and len(c) == 2
        and all(isinstance(v, int | float) and abs(v) < 10 for v in c)
        for c in given
    ):  # fmt: skip
        return ""
    return " ".join(f"{x:.3f},{y:.3f}" for x, y in given)


def _edges(given: Any) -> tuple[float, float] | None:
    """Two fractions in order; None for anything else that a browser sent."""
    if not isinstance(given, Sequence) or len(given) != 2:
        return None
    if not all(isinstance(v, int | float) and 0 <= v <= 1 for v in given):
        return None
    return (float(given[0]), float(given[1])) if given[0] <= given[1] else None


def gallery(
    data: Mapping[str, Any],
    *,
    key: str,
    opened: Callable[[int], None],
    alike: Callable[[int], None] = lambda _: None,
    tagged: Callable[[list[int] | None, str, bool], None] | None = None,
) -> None:
    """Images with what is said of each.

    Args:
        data: see `gallery.js`.
        opened: called before the page is drawn again, with the place of the image that somebody
            opened.
        alike: the same of the image that others are to be like.
        tagged: the same with the places of images, None for all that are chosen, a tag, and whether
            it is put there or taken off.
    """

    def call_with_place(name: str, call: Callable[[int], None]) -> None:
        at = st.session_state[key].get(name)
        if isinstance(at, int) and 0 <= at < len(data["items"]):
            call(at)

    def on_tag() -> None:
        given = st.session_state[key].get("tag")
        if tagged is None or not isinstance(given, Mapping):
            return
        at, tag = given.get("at"), given.get("tag")
        places = None if given.get("all") is True else _places(at, len(data["items"]))
        if isinstance(tag, str) and tag.strip() and places != []:
            tagged(places, tag.strip(), given.get("on") is True)

    _component("gallery")(
        key=key,
        data=data,
        on_open_change=lambda: call_with_place("open", opened),
        on_alike_change=lambda: call_with_place("alike", alike),
        on_tag_change=on_tag,
    )


def rows(
    data: Mapping[str, Any],
    *,
    key: str,
    opened: Callable[[int], None],
    chosen: Callable[[list[int]], None],
    sort: Callable[[str], None],
) -> None:
    """Rows that are opened, chosen and put in order.

    Args:
        data: see `rows.js`.
        opened: called before the page is drawn again, with the place of the row that somebody
            opened, while the page still shows these rows.
        chosen: the same for the places of all that are ticked.
        sort: the same for the order that somebody asked for, one of those that headings have.
    """
    names = [c["sort"].removeprefix("-") for c in data["columns"] if c["sort"]]

    def event(name: str) -> Any:
        given = st.session_state[key].get(name)
        same = isinstance(given, Mapping) and given.get("of") == data["of"]
        return given.get("at") if same else None

    def on_open() -> None:
        if found := _places([event("open")], len(data["rows"])):
            opened(found[0])

    def on_choose() -> None:
        if (given := event("choose")) is not None:
            chosen(_places(given, len(data["rows"])))

    def on_sort() -> None:
        given = event("sort")
        if isinstance(given, str) and given.removeprefix("-") in names:
            sort(given)

    _component("rows")(
        key=key,
        data=data,
        on_open_change=on_open,
        on_choose_change=on_choose,
        on_sort_change=on_sort,
    )


def _places(given: Any, n: int) -> list[int]:
    """The places below `n` among what a browser sent, each once, in order."""
    if not isinstance(given, list):
        return []
    return sorted({v for v in given if type(v) is int and 0 <= v < n})
