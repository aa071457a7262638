"""JSON schema to widgets and back. The schema is the only source: a new field needs no code here.

`fields_of` flattens an object schema to `Field`s, `to_widget` and `from_widget` translate between
a JSON value and what a widget holds, `draw` shows the widget, `build` makes the nested document.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from calift_core.errors import SpecError

Path = tuple[str, ...]
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One leaf of a schema and the widget it gets.

    Attributes:
        path: keys from the document's root.
        help: what it means, its unit and what `none` means.
        kind: `integer`, `number`, `boolean`, `choice`, `text`, `notes`, `lines` (a text or a list
            of texts, one a line), `texts` (a list), `numbers` (choices of small integers), `values`
            (a list of numbers), `pair` (two numbers), `map` (text to text), `counts` (number per
            known key).
        default: as JSON; `required` fields have none.
        nullable: empty means null.
        minimum: inclusive bound, or none.
        maximum: inclusive bound, or none.
        options: of a choice, the items of `numbers`, the keys of `counts`.
        required: must be given.
    """

    path: Path
    title: str
    help: str
    kind: str
    default: Any
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    options: tuple[Any, ...] = ()
    required: bool = False
    max_length: int | None = None

    @property
    def pointer(self) -> str:
        """JSON pointer, as validation problems name it."""
        return "#/" + "/".join(self.path)


def fields_of(schema: Schema, *, path: Path = (), root: Schema | None = None) -> list[Field]:
    """The leaves of an object schema, in its order; unions told apart by a tag are left out.

    Raises:
        SpecError: a part of the schema has a form that no widget is known for.
    """
    root = schema if root is None else root
    found: list[Field] = []
    for name, raw in _resolve(schema, root).get("properties", {}).items():
        part = _resolve(raw, root)
        here = (*path, name)
        if "const" in part or "discriminator" in part:
            continue
        if "properties" in part:
            found += fields_of(part, path=here, root=root)
        else:
            required = name in schema.get("required", ())
            found.append(_leaf(here, part, root, required))
    return found


def _resolve(part: Schema, root: Schema) -> dict[str, Any]:
    """Follow a `$ref`; what stands beside it wins."""
    if "$ref" not in part:
        return dict(part)
    target: Any = root
    for key in part["$ref"].removeprefix("#/").split("/"):
        target = target[key]
    return {**_resolve(target, root), **{k: v for k, v in part.items() if k != "$ref"}}


def _leaf(path: Path, part: dict[str, Any], root: Schema, required: bool) -> Field:
    choices = [_resolve(option, root) for option in part.get("anyOf", [])]
    nullable = any(option.get("type") == "null" for option in choices)
    choices = [option for option in choices if option.get("type") != "null"]
    kind_of = part if not choices else {**part, **choices[0]}
    common: dict[str, Any] = {
        "path": path,
        "title": part.get("title", path[-1].replace("_", " ").capitalize()),
        "help": part.get("description", ""),
        "nullable": nullable,
        "required": required,
        "default": part.get("default", _empty(kind_of)),
    }
    if len(choices) == 2 and choices[1].get("type") == "array":
        # A text, or a list of texts: `openai_imagenet`, or sentences.
        return Field(kind="lines", options=tuple(choices[0].get("enum", ())), **common)
    if len(choices) > 1:
        raise SpecError(f"no widget is known for the union at {'/'.join(path)}")
    if "enum" in kind_of:
        return Field(kind="choice", options=tuple(kind_of["enum"]), **common)
    match kind_of.get("type"):
        case "boolean":
            return Field(kind="boolean", **common)
        case "integer" | "number" as kind:
            return Field(kind=kind, **_bounds(kind_of), **common)
        case "string":
            length = kind_of.get("maxLength")
            kind = "notes" if (length or 0) > 1000 else "text"
            return Field(kind=kind, max_length=length, **common)
        case "array":
            return _array(kind_of, root, common)
        case "object":
            keys = _resolve(kind_of.get("propertyNames", {}), root).get("enum")
            if keys:
                values = _resolve(kind_of["additionalProperties"], root)
                return Field(kind="counts", options=tuple(keys), **_bounds(values), **common)
            return Field(kind="map", **common)
    raise SpecError(f"no widget is known for {kind_of.get('type')!r} at {'/'.join(path)}")


def _array(part: dict[str, Any], root: Schema, common: dict[str, Any]) -> Field:
    if "prefixItems" in part:
        first = _resolve(part["prefixItems"][0], root)
        return Field(kind="pair", **_bounds(first), **common)
    items = _resolve(part["items"], root)
    if items.get("type") == "integer" and {"minimum", "maximum"} <= set(items):
        options = tuple(range(items["minimum"], items["maximum"] + 1))
        return Field(kind="numbers", options=options, **common)
    if items.get("type") in ("integer", "number"):
        return Field(kind="values", **_bounds(items), **common)
    return Field(kind="texts", **common)


def _empty(part: Schema) -> Any:
    return {"array": [], "object": {}, "string": "", "boolean": False}.get(str(part.get("type")))


def _bounds(part: Schema) -> dict[str, float | None]:
    whole = part.get("type") == "integer"
    low, high = part.get("minimum"), part.get("maximum")
    if low is None and "exclusiveMinimum" in part:
        low = part["exclusiveMinimum"] + 1 if whole else part["exclusiveMinimum"]
    if high is None and "exclusiveMaximum" in part:
        high = part["exclusiveMaximum"] - 1 if whole else part["exclusiveMaximum"]
    return {"minimum": low, "maximum": high}


# ---- Values ------------------------------------------------------------------------------------


def get(document: Mapping[str, Any], path: Path, default: Any = None) -> Any:
    here: Any = document
    for key in path:
        if not isinstance(here, Mapping) or key not in here:
            return default
        here = here[key]
    return here


def build(values: Mapping[Path, Any], fields: Iterable[Field]) -> dict:
    """The nested document of the values; what equals its default is left out.

    What is required and still empty is left out too, so that validation says that it is missing.
    """
    document: dict[str, Any] = {}
    for field in fields:
        value = values.get(field.path, field.default)
        if not field.required and value == field.default:
            continue
        if field.required and value in ("", [], None):
            continue
        here = document
        for key in field.path[:-1]:
            here = here.setdefault(key, {})
        here[field.path[-1]] = value
    return document


def to_widget(field: Field, value: Any) -> Any:
    match field.kind:
        case "integer":
            return None if value is None else int(value)
        case "number":
            return None if value is None else float(value)
        case "text" | "notes":
            return "" if value is None else str(value)
        case "lines":
            return value if isinstance(value, str) else "\n".join(value or ())
        case "texts":
            return "\n".join(value or ())
        case "numbers":
            return [int(v) for v in value or ()]
        case "values":
            return ", ".join(str(v) for v in value or ())
        case "pair":
            return (float(value[0]), float(value[1]))
        case "map":
            return "\n".join(f"{name}: {words}" for name, words in (value or {}).items())
        case "counts":
            return {key: (value or {}).get(key) for key in field.options}
    return value


def from_widget(field: Field, held: Any) -> Any:
    """The JSON value of what the widget holds.

    Raises:
        SpecError: a line of a map has no `name: value`, or a list of numbers holds another word.
    """
    match field.kind:
        case "text" | "notes":
            words = str(held or "").strip()
            return None if field.nullable and not words else words
        case "lines":
            lines = _lines(held) if isinstance(held, str) else [str(v) for v in held or ()]
            alone = len(lines) == 1 and "{}" not in lines[0]
            if alone and (not field.options or lines[0] in field.options):
                return lines[0]
            return lines
        case "texts":
            return _lines(held) if isinstance(held, str) else [str(v) for v in held or ()]
        case "values":
            return [_number_of(field, part) for part in re.split(r"[,;\s]+", held or "") if part]
        case "numbers":
            return sorted(int(v) for v in held or ())
        case "pair":
            return [float(held[0]), float(held[1])]
        case "map":
            return dict(_pair_of(field, line) for line in _lines(held))
        case "counts":
            return {key: int(n) for key, n in (held or {}).items() if n is not None}
        case "integer":
            return None if held is None else int(held)
    return held


def untouched(field: Field, value: Any) -> Any:
    """The JSON value of the field's widget when nobody has touched it.

    A value that the widget cannot hold stays as it is.
    """
    try:
        return from_widget(field, to_widget(field, value))
    except SpecError:
        return value


def _lines(held: str | None) -> list[str]:
    return [line.strip() for line in (held or "").splitlines() if line.strip()]


def _number_of(field: Field, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"{field.title}: expected numbers with commas, got {word!r}")
    return value


def _pair_of(field: Field, line: str) -> tuple[str, str]:
    name, colon, words = line.partition(":")
    if not colon or not name.strip() or not words.strip():
        raise SpecError(f"{field.title}: a line must read 'name: value', got {line!r}")
    return name.strip(), words.strip()


# ---- Widgets -----------------------------------------------------------------------------------


def draw(
    field: Field,
    value: Any,
    *,
    key: str,
    placeholder: str = "",
    choices: Mapping[str, str] | None = None,
    step: float | None = None,
) -> Any:
    """Show the field's widget and return the JSON value that it holds now.

    Args:
        placeholder: shown while a field that may be empty is.
        choices: known values of a text and what they are; others may still be typed.
        step: of a number's buttons; default: by the size of its default.
    """
    held = to_widget(field, value)
    words: dict[str, Any] = {"key": key, "help": field.help or None}
    match field.kind:
        case "boolean":
            out = st.toggle(field.title, value=bool(held), **words)
        case "choice":
            index = field.options.index(held) if held in field.options else 0
            out = st.selectbox(field.title, field.options, index=index,
                               format_func=lambda v: str(v).replace("_", " "), **words)  # fmt: skip
        case "integer" | "number":
            out = _number(field, held, placeholder, step, words)
        case "text" | "notes" if choices:
            # What was typed, or put here by a button, is offered from then on.
            now = st.session_state.get(key)
            known = dict.fromkeys([*([held] if held else []), *choices, *([now] if now else [])])
            out = st.selectbox(
                field.title,
                list(known),
                index=0 if held else None,
                accept_new_options=True,
                placeholder=placeholder or "none",
                format_func=lambda v: f"{v} · {choices[v]}" if choices.get(v) else str(v),
                **words,
            )
        case "texts" | "lines" if choices:
            given = [value] if isinstance(value, str) else [str(v) for v in value or ()]
            out = st.multiselect(
                field.title,
                list(dict.fromkeys([*given, *choices])),
                default=given,
                accept_new_options=True,
                placeholder=placeholder or "none",
                format_func=lambda v: f"{v} · {choices[v]}" if choices.get(v) else str(v),
                **words,
            )
        case "text" | "values":
            out = st.text_input(field.title, held, max_chars=field.max_length,
                                placeholder=placeholder or None, **words)  # fmt: skip
        case "notes" | "lines" | "texts" | "map":
            out = st.text_area(
                field.title,
                held,
                height=68 if field.kind in ("lines", "texts") else 92,
                max_chars=field.max_length,
                placeholder=placeholder or _EXAMPLES.get(field.kind),
                **words,
            )
        case "numbers":
            out = st.multiselect(field.title, field.options, default=held, **words)
        case "pair":
            columns = st.columns(2, wrap=False)
            out = tuple(
                _number_box(
                    columns[i], f"{field.title}, {'first' if i == 0 else 'second'}", held[i],
                    field, 0.01, {**words, "key": f"{key}-{i}"},
                )
                for i in (0, 1)
            )  # fmt: skip
        case "counts":
            st.caption(f"{field.title}: {field.help}" if field.help else field.title)
            boxes = st.columns(len(field.options))
            out = {
                name: box.number_input(
                    name.capitalize(), value=held[name], min_value=_whole(field.minimum), step=1,
                    placeholder="all", key=f"{key}-{name}",
                )
                for name, box in zip(field.options, boxes, strict=True)
            }  # fmt: skip
        case _:
            raise SpecError(f"no widget is known for the kind {field.kind!r}")
    return from_widget(field, out)


_EXAMPLES = {"map": "name: value", "lines": "one a line", "texts": "one a line"}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _number(
    field: Field, held: Any, placeholder: str, step: float | None, words: dict[str, Any]
) -> Any:
    if field.kind == "integer":
        return st.number_input(
            field.title,
            value=held if held is not None or field.nullable else 0,
            min_value=_whole(field.minimum),
            max_value=_whole(field.maximum),
            step=1,
            placeholder=placeholder or None,
            **words,
        )
    size = step or _step(field.default)
    return _number_box(st, field.title, held, field, size, {**words, "placeholder": placeholder})


def _number_box(
    place: Any, label: str, held: Any, field: Field, step: float, words: dict[str, Any]
) -> Any:
    return place.number_input(
        label,
        value=held,
        min_value=None if field.minimum is None else float(field.minimum),
        max_value=None if field.maximum is None else float(field.maximum),
        step=step,
        format="%g",
        **words,
    )


def hint_of(field: Field) -> str:
    """What an empty field means, from `none: …` in its description."""
    _, none, meaning = field.help.partition("none: ")
    return meaning.partition(" [")[0].strip() if none and field.nullable else ""


def _step(default: Any) -> float:
    """A tenth of the default's leading digit: 0.2 moves by 0.01, 1e-8 by 1e-9."""
    if not isinstance(default, int | float) or default == 0:
        return 0.01
    return float(10.0 ** (math.floor(math.log10(abs(default))) - 1))
