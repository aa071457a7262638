"""What a copy of a run changes, as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

import streamlit as st

from calift_core.errors import SpecError
from calift_core.schema.spec import parse_spec
from frontend import page, text
from frontend.tables import Column, Table

#: Not settings: they change no result.
_WORDS = ("name", "tags", "notes")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each setting that differs, defaults filled in.

    Args:
        after: another; what is not valid yet is compared as it stands.
    """
    old, new = (dict(_leaves(_whole(spec))) for spec in (before, after))
    return [
        {"setting": place, "before": _said(old.get(place)), "after": _said(new.get(place))}
        for place in dict.fromkeys([*old, *new])
        if old.get(place) != new.get(place) and place.split(" › ")[0] not in _WORDS
    ]


def show(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> None:
    rows = changes(before, after)
    if not rows:
        st.caption(f"Nothing is changed: this is {text.md(name)} once more.")
        return
    columns = [Column("setting", "Setting"), Column("before", name), Column("after", "This copy")]
    page.table(Table(columns, rows), caption=f"What differs from {name}")


def _whole(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return parse_spec(dict(spec)).model_dump(mode="json")
    except SpecError:
        return spec


def _leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*place, str(key)))
    elif place:
        yield " › ".join(place), value


def _said(value: Any) -> str:
    return text.plain(value)
