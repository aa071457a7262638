"""What pages are made of: headings, marks, cards, tables, charts with their twins and exports."""

import importlib.util
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import plotly.graph_objects as go
import streamlit as st

from calift_core.schema.wire.runs import JobSummary, RunSummary, SortKey, Spread, Validation
from calift_core.schema.wire.sweeps import SweepValidation
from frontend import address, components, pictures, tables, text
from frontend.figures import style
from frontend.figures.marks import Mark, marks
from frontend.gains import Gain
from frontend.tables import Column, Markup, Row, Table, runs

_A_DOZEN = 12
_NO_CHROME = (
    "PNG and SVG need Chrome and kaleido on the dashboard's machine; the chart's camera makes SVG"
)
#: Seconds between two looks at a run that works.
LIVE_S = 2.0


def is_dark() -> bool:
    """Whether the visitor sees the pages in dark colours."""
    return bool(st.context.theme.type == "dark")


def head(title: str, lead: str = "") -> None:
    note = f"<p>{text.esc(lead)}</p>" if lead else ""
    st.html(f'<div class="calift-head"><h1>{text.esc(title)}</h1>{note}</div>')


def pill(phase: str) -> Markup:
    """A run's phase as symbol, word and colour."""
    return mark(text.phase_mark(phase))


def mark(shown: text.Mark) -> Markup:
    """A word with a symbol on a coloured ground; the symbol is not read out."""
    return Markup(
        f'<span class="calift-pill {text.esc(shown.colour)}"><span aria-hidden="true">'
        f"{text.esc(shown.symbol)}</span>{text.esc(shown.word)}</span>"
    )


def tags(names: Sequence[str]) -> Markup:
    return Markup("".join(f'<span class="calift-tag">{text.esc(n)}</span>' for n in names))


def needs(found: Validation | SweepValidation) -> None:
    """What stands in the way of a job, and what should be looked at before it is queued."""
    for sentence in found.missing:
        show = st.error if sentence in found.blocking else st.warning
        show(text.md_prose(sentence), icon=":material/inventory_2:")
    for sentence in found.warnings:
        st.warning(text.md_prose(sentence), icon=":material/warning:")


def picture(src: str, alt: str) -> None:
    """An image of one of the dashboard's own addresses."""
    st.html(f'<img class="calift-picture" src="{text.esc(src)}" alt="{text.esc(alt)}">')


def stats(items: Sequence[tuple[str, str, str]]) -> None:
    """Cards of label, value and a small note; the note may be `Markup`."""
    cells = "".join(
        f"<div><dt>{text.esc(label)}</dt><dd>{text.esc(value)}"
        f"<small>{note if isinstance(note, Markup) else text.esc(note)}</small></dd></div>"
        for label, value, note in items
    )
    st.html(f'<dl class="calift-stats">{cells}</dl>')


def empty(title: str, why: str) -> None:
    """An empty state: what is missing and why. The next action follows as a page link."""
    st.html(f'<div class="calift-empty"><strong>{text.esc(title)}</strong>{text.esc(why)}</div>')


def table(shown: Table, *, caption: str, **options: Any) -> None:
    st.html(tables.to_html(shown, caption=caption, **options))


class Picked(NamedTuple):
    """What somebody did in a grid: the row that they opened just now, the rows that they chose."""

    opened: int | None
    rows: list[int]


def grid(
    shown: Table, *, key: str, caption: str, several: bool = False, most_px: int | None = None
) -> Picked:
    """Show rows that can be opened, sorted and searched, without a page being loaded anew.

    Args:
        shown: the rows; columns of the kinds `open`, `mark` and `share` are for this alone.
        key: of the widget. Chosen rows are known by their place, so a key that stays must stand for
            rows that stay.
        caption: describes the table to those who do not see it.
        most_px: its height where it has more than a dozen rows, which then scroll inside it; for
            tables whose rows open something below them. Default: it is as high as its rows.
    """
    found = st.dataframe(
        [{c.name: _grid_value(c, row.get(c.name)) for c in shown.columns} for row in shown.rows],
        key=key,
        alt=caption,
        hide_index=True,
        height=most_px if most_px and len(shown.rows) > _A_DOZEN else "content",
        placeholder=text.DASH,
        column_config={c.name: _grid_column(c, shown, key) for c in shown.columns},
        on_select="rerun" if several else "ignore",
        selection_mode="multi-row",
    )
    click = st.session_state.get(f"{key}-open")
    opened = None if click is None else int(click["row"])
    return Picked(opened, list(found["selection"]["rows"]) if several else [])


class Order(NamedTuple):
    """An order that rows have already, and what asks for another.

    Attributes:
        by: column → what a first click into its heading asks for, `-` for the largest first.
    """

    now: str
    by: Mapping[str, str]
    choose: Callable[[str], None]


def rows(
    shown: Table,
    *,
    key: str,
    caption: str,
    links: Sequence[str],
    several: bool = False,
    order: Order | None = None,
    kept: Mapping[str, str] | None = None,
) -> list[int]:
    """Show rows that open by a click anywhere in them, and are put in order by their headings.

    The order stands in the address under `KEY-sort`.

    Args:
        shown: the rows; the column of the kind `open` holds their names. A row is put in order by
            its value in a column, or by what it has under the column's name with `_by`.
        caption: describes the table to those who do not see it.
        links: the address that each row opens, empty where it opens nothing.
        several: let people choose rows. They stay chosen while the same addresses are shown.
        order: that of rows which are more than those that are shown; None: of any column.
        kept: `name` and `value` of a cookie that the visitor's browser is to keep.

    Returns:
        The places of the rows that are chosen.
    """
    name, reordered = f"{key}-sort", f"{key}-reordered"
    if st.session_state.pop(reordered, False):
        st.rerun()  # what was asked for before a fragment began is asked for anew
    places = list(range(len(shown.rows)))
    if order is None:
        requested = address.get(name) or ""
        order = Order(requested, _orders(shown), lambda wanted: address.put({name: wanted}))
        places = _sorted(shown, requested)
    shown, links = Table(shown.columns, [shown.rows[k] for k in places]), [links[k] for k in places]

    def reorder(wanted: str) -> None:
        order.choose(wanted)
        st.session_state[reordered] = True

    held, click = f"{key}-chosen", f"{key}-opened"
    of = f"{zlib.crc32(repr(list(links)).encode()):08x}"
    if st.session_state.get(held, ("", []))[0] != of:
        st.session_state[held] = (of, [])
    chosen: list[int] = st.session_state[held][1]
    names = {c.name for c in shown.columns}
    # A floor is a note below its error: the columns must fit side by side.
    noted = {f"{name}_floor" for name in names} & names
    columns = [c for c in shown.columns if c.name not in noted]
    components.rows(
        {
            "of": of,
            "caption": caption,
            "columns": [
                {
                    "name": c.name,
                    "label": c.label,
                    "kind": _row_kind(c),
                    "sort": order.by.get(c.name, ""),
                }
                for c in columns
            ],
            "sorted": order.now,
            "kept": dict(kept) if kept else None,
            "rows": [
                {"href": link, "cells": {c.name: _row_cell(c, row, noted) for c in columns}}
                for row, link in zip(shown.rows, links, strict=True)
            ],
            "several": several,
            "chosen": chosen,
            "dash": text.DASH,
        },
        key=key,
        opened=lambda at: st.session_state.update({click: at}),
        chosen=lambda ticked: st.session_state.update({held: (of, ticked)}),
        sort=reorder,
    )
    opened = st.session_state.pop(click, None)
    if opened is not None and links[opened]:
        place, _, query = links[opened].removeprefix("/").partition("?")
        st.switch_page(f"views/{place}.py", query_params=dict(parse_qsl(query)))
    return [places[k] for k in chosen]


def run_order(default: SortKey) -> Order:
    """The order of runs that the API is to give, which stands in the address under `sort`."""
    given = address.get("sort")
    now = given if given in runs.SORTS else default

    def choose(wanted: str) -> None:
        address.put({"sort": None if wanted == default else wanted})

    return Order(now, runs.ORDERS, choose)


#: Of a page of more rows than it shows, which cannot be put in order.
AS_GIVEN = Order("", {}, lambda _: None)


def pager(trail: list[str], words: str, next_cursor: str | None) -> None:
    """Where a list is, and buttons to its next page and back.

    Args:
        trail: the server's cursors that led here.
    """
    st.caption(words, width="content")
    if trail and st.button("Back", icon=":material/chevron_left:", type="tertiary"):
        trail.pop()
        st.rerun()
    if next_cursor and st.button(
        "Next", icon=":material/chevron_right:", icon_position="right", type="tertiary"
    ):
        trail.append(next_cursor)
        st.rerun()


def _orders(shown: Table) -> dict[str, str]:
    """What a first click into each heading asks for: names and words from the first letter on."""
    from_below = ("open", "mark", "text", "prose")
    return {c.name: c.name if c.kind in from_below else f"-{c.name}" for c in shown.columns}


def _sorted(shown: Table, requested: str) -> list[int]:
    """Places of the rows in an order that was asked for; those without a value come last."""
    name, down = requested.removeprefix("-"), requested.startswith("-")

    def value(k: int) -> Any:
        row = shown.rows[k]
        found = row.get(f"{name}_by", row.get(name))
        return found.word if isinstance(found, text.Mark) else _mean(found)

    every = range(len(shown.rows))
    known = [k for k in every if value(k) not in (None, "")]
    if len({isinstance(value(k), str) for k in known}) > 1:
        return list(every)
    return [*sorted(known, key=value, reverse=down), *(k for k in every if k not in set(known))]


def _mean(value: Any) -> Any:
    return value.mean if isinstance(value, Spread) else value


def _row_kind(column: Column) -> str:
    if column.kind in tables.NUMERIC:
        return "number"
    return column.kind if column.kind in ("open", "mark", "share") else "text"


def _row_cell(column: Column, row: Row, noted: Collection[str]) -> Any:
    value = row.get(column.name)
    if value is None or value == "":
        return None
    floor = row.get(f"{column.name}_floor")
    notes = [] if floor is None else [f"floor {tables.cell_text(column, floor)}"]
    if isinstance(value, Spread) and value.se is not None:
        notes = [f"± {tables.cell_text(column, value.se)}", *notes]
    if f"{column.name}_floor" in noted or isinstance(value, Spread):
        return {"words": tables.cell_text(column, _mean(value)), "note": ", ".join(notes)}
    match column.kind:
        case "mark":
            return {"symbol": value.symbol, "word": value.word, "colour": value.colour}
        case "share":
            return float(value)
    return tables.cell_text(column, value)


def _grid_value(column: Column, value: Any) -> Any:
    match column.kind:
        case "percent" | "points":
            # Rounded as everywhere else: a browser rounds halves another way.
            return None if value is None else float(f"{100 * value:.1f}")
        case "mark":
            return [] if value is None else [f"{value.symbol} {value.word}"]
        case "number" | "count" | "open" | "share":
            return value
    return None if value in (None, "") else text.plain(value)


def _grid_column(column: Column, shown: Table, key: str) -> Any:
    kinds = st.column_config
    match column.kind:
        case "open":
            return kinds.ButtonColumn(
                column.label, type="secondary", alignment="left", key=f"{key}-open"
            )
        case "mark":
            looks = {f"{v.symbol} {v.word}": v.colour for row in shown.rows
                     if (v := row.get(column.name)) is not None}  # fmt: skip
            return kinds.MultiselectColumn(
                column.label, options=list(looks), color=list(looks.values()) or None
            )
        case "share":
            return kinds.ProgressColumn(
                column.label, min_value=0.0, max_value=1.0, format="percent"
            )
        case "percent":
            return kinds.NumberColumn(column.label, format=f"%.1f{text.NBSP}%%")
        case "points":
            return kinds.NumberColumn(column.label, format=f"%+.1f{text.NBSP}pp")
        case "number":
            return kinds.NumberColumn(column.label, format="%.3g")
        case "count":
            return kinds.NumberColumn(column.label, format="localized")
    return kinds.TextColumn(column.label)


def flash(message: str) -> None:
    """Say something after the next rerun."""
    st.session_state["flash"] = message


def show_flash() -> None:
    """Show what `flash` left."""
    message = st.session_state.pop("flash", None)
    if message:
        st.toast(text.md(message), icon=":material/check:")


def chart(
    figure: go.Figure,
    twin: Table,
    *,
    name: str,
    key: str = "",
    data: Callable[[], str] | None = None,
    wide: bool = False,
    select: Callable[[list[Any]], None] | None = None,
    by_name: bool = True,
    bins: components.Bins | None = None,
    area: Callable[[str], None] | None = None,
) -> None:
    """Show a figure with its description, its table and its exports.

    Args:
        figure: from `frontend.figures`.
        name: of the exported files.
        key: of the widgets, unique on the page; default: `name`. One that stays while people choose
            what is shown has a browser draw the same chart again, much faster than another one.
        data: JSON for the export; default: the twin's rows.
        wide: on a narrow screen, scroll the figure sideways rather than squeeze it.
        select: called before the page is drawn again, with what the mark that somebody selected
            stands for (its `customdata`).
        area: the same with the polygon of a lasso, as `SampleFilter.area` has it.
        by_name: offer the marks by name as well, for the keyboard; False: the page does.
    """
    key, alt = key or name, style.alt_text(figure)
    config = {
        **style.CONFIG,
        "toImageButtonOptions": {**style.CONFIG["toImageButtonOptions"], "filename": key},
    }
    shown = style.on_dark(figure) if is_dark() else figure
    with st.container(key=f"wide-{key}") if wide else nullcontext():
        components.chart(
            shown, key=f"chart-{key}", alt=alt, config=config, select=select, bins=bins, area=area
        )
    choose = marks(figure) if select and by_name else ()
    with st.container(horizontal=True, gap="small", key=f"below-{key}"):
        if select is not None and choose:
            with st.popover(
                "Choose", icon=":material/ads_click:", type="tertiary", key=f"opn-{key}"
            ):
                _choose(choose, name, select)
        with st.popover("Table", icon=":material/table_rows:", type="tertiary", key=f"tbl-{key}"):
            table(twin, caption=alt or name, limit=100)
        _exports(figure, twin, name, key, data)


def _choose(found: Sequence[Mark], name: str, select: Callable[[list[Any]], None]) -> None:
    """What a click into a chart chooses, by the keyboard and for screen readers."""
    key = f"mark-{name}"

    def chosen() -> None:
        at = st.session_state[key]
        if at is not None and at < len(found):
            select(found[at].stands_for)

    st.selectbox(
        "A mark of the chart",
        range(len(found)),
        index=None,
        format_func=lambda at: found[at].words,
        key=key,
        on_change=chosen,
        placeholder=f"{len(found):,} to choose from",
        width=420,
    )


def _exports(
    figure: go.Figure, twin: Table, name: str, key: str, data: Callable[[], str] | None
) -> None:
    """A button for each kind of file; figures and CSV have the description in them."""
    alt = style.alt_text(figure)
    offered: list[tuple[str, Callable[[], str | bytes], str]] = [
        (kind, partial(_drawn, figure, alt, kind), mime)
        for kind, mime in (("png", "image/png"), ("svg", "image/svg+xml"))
        if can_draw()
    ]
    offered += [
        ("html", partial(style.to_html, figure, title=name), "text/html"),
        ("csv", lambda: f"# {alt}\n{tables.to_csv(twin)}", "text/csv"),
        ("json", data or partial(tables.to_json, twin), "application/json"),
    ]
    for kind, make, mime in offered:
        st.download_button(
            kind.upper(), make, f"{name}.{kind}", mime, key=f"{kind}-{key}", on_click="ignore",
            type="tertiary", help=None if offered[0][0] == "png" else _NO_CHROME,
        )  # fmt: skip


def _drawn(figure: go.Figure, caption: str, kind: str) -> bytes:
    return pictures.one(style.captioned(figure, caption), kind)


@st.cache_resource(show_spinner=False)
def can_draw() -> bool:
    """Whether figures and pages can be drawn on this machine: by kaleido and a Chrome."""
    return bool(importlib.util.find_spec("kaleido")) and pictures.browser() is not None


def progress_bar(job: JobSummary, unit: str, *more: str) -> None:
    """How far a working job is, over all its phases where that is known.

    Args:
        unit: what its phases count: `step`, `image`.
        more: said behind it.
    """
    p = job.progress
    assert p is not None
    share = job.fraction_done
    if share is None:
        share = p.step / p.total_steps if p.total_steps else 0.0
    words = [text.md(w) for w in (p.phase or "working", p.detail) if w]
    words += [f"{unit} {p.step:,} of {p.total_steps:,}"] if p.total_steps else []
    words += [f"{p.samples_per_s:,.0f} images/s"] if p.samples_per_s else []
    words += [f"{text.percent(share)} of all"] if job.fraction_done is not None else []
    words += [w for w in (runs.left_words(job), *more) if w]
    st.progress(min(1.0, max(0.0, share)), text=" · ".join(words))


def headline_cards(
    run: RunSummary, gained: Mapping[str, Gain | None], clear: Mapping[str, bool]
) -> list[tuple[str, str, str]]:
    """A run's headline as cards, with the differences to its zero-shot model.

    Args:
        gained: of `gains`.
        clear: of `clear_gains`; no other difference is called better or worse.
    """
    s = run.summary
    if s is None:
        return []
    cards = []
    for name in ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece"):
        look, value = text.HEADLINES[name], getattr(s, name)
        gain = _gain(gained.get(name), look.better, clear.get(name))
        if name.endswith("_ece"):
            floor = text.esc(f"floor {text.percent(getattr(s, f'{name}_floor'))}")
            gain = Markup(f"{floor}<br>{gain}" if gain else floor)
        cards.append((look.title, text.percent(value), gain))
    cards.append(("Lowest accuracy", text.percent(s.worst_shift_accuracy), text.worst_shift(s)))
    if s.sigma_min is not None:
        cards.append(("σ_min", text.number(s.sigma_min), "smallest singular value"))
    return cards


def _gain(found: Gain | None, better: str, clear: bool | None) -> Markup:
    """The difference to the zero-shot model in words, empty where there is none.

    A sign that the test does not confirm has no colour: of an ECE, its square is tested.
    """
    if found is None:
        return Markup()
    gain = found.value if better == "high" else -found.value
    tone, verdict = "", ", not distinguishable"
    if clear is not None and gain and clear == (gain > 0):
        tone, verdict = ("up", " (better)") if clear else ("down", " (worse)")
    words = f"{text.points(found.value)} to zero-shot{verdict}"
    if found.common < found.all:
        words += f", on {found.common} of {found.all} sets"
    return Markup(f'<span class="{tone}">{text.esc(words)}</span>')
