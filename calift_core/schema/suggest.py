"""Which field was meant by one that a document's schema does not have."""

import difflib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from calift_core.errors import UnknownNameError


def unknown_field(
    root: type[BaseModel], place: Sequence[str | int], tagged: Mapping[str, type[BaseModel]]
) -> str:
    """A sentence on a field that is none, with the one that was probably meant.

    Args:
        root: the schema of the whole document.
        place: of the field, as pydantic names it.
        tagged: schemas by the tags that stand in places of unions.
    """
    name = str(place[-1])
    where = root
    for step in place[:-1]:
        found = tagged.get(str(step)) or _inner(where, str(step))
        where = found or where
    if (plain := _plain(name)) in (titles := _titles(where)):
        return f"unknown field {name!r}. Did you mean {titles[plain]!r}?"
    if difflib.get_close_matches(name, where.model_fields, n=1):
        return UnknownNameError("field", name, where.model_fields).message
    elsewhere = next((path for word, path in _paths(root) if _plain(word) == plain), None)
    if elsewhere is not None:
        return f"unknown field {name!r} here. Did you mean {elsewhere}?"
    return UnknownNameError("field", name, where.model_fields).message


def _plain(text: str) -> str:
    return text.casefold().replace("_", "").replace("-", "").replace(" ", "")


def _inner(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = model.model_fields.get(name)
    kind = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _titles(model: type[BaseModel]) -> dict[str, str]:
    """Title → field: what a page calls `lr` is `Learning rate`."""
    return {_plain(f.title): name for name, f in model.model_fields.items() if f.title}


def _paths(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Names and titles of all fields below a schema, with their places."""
    for name, field in model.model_fields.items():
        inner = _inner(model, name)
        if inner is not None:
            yield from _paths(inner, f"{place}{name}.")
        elif place:
            yield from ((word, f"{place}{name}") for word in (name, field.title) if word)
