"""Page state lives in the URL: widgets read it on arrival and write it when somebody changes them.

`bound` draws any keyed widget so. A value that equals the default is left out of the URL, which
keeps permalinks short; choices whose default depends on what is stored (which runs) are always
written, so that a link shows the same tomorrow.

Streamlit's own `bind="query-params"` serves where a widget's words are its values, as with the tabs
of a run. It would put labels into links where `bound` puts names ("equal mass" for `equal_mass`),
repeat a parameter where links hold `a,b,c`, and leave out the runs that a page chose by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

from frontend import address
from frontend.figures import style

T = TypeVar("T")
N = TypeVar("N", int, float)
_UNSEEN = object()
#: Parameters that mean the same on every page: what was chosen on one is chosen on the next.
SHARED = frozenset({"baseline", "dataset"})
#: Remembered as well, where a page has no runs that say it.
_KEPT = SHARED | {"suite"}


def param(name: str) -> str | None:
    """A query parameter; None where it is absent or empty."""
    return address.get(name) or None


def ids(name: str) -> list[str]:
    """A comma-separated query parameter, each entry once, in order."""
    return split(param(name))


def split(value: str | None) -> list[str]:
    """The entries of `a,b,c`, blanks and repetitions dropped."""
    return list(dict.fromkeys(p for p in (part.strip() for part in (value or "").split(",")) if p))


def bound(
    widget: Callable[..., Any],
    label: str,
    *,
    name: str,
    default: T,
    decode: Callable[[str], T | None],
    encode: Callable[[T], str] = str,
    always: bool = False,
    **options: Any,
) -> T:
    """Draw `widget` with its value kept in the URL under `name`.

    Args:
        widget: a Streamlit input such as `st.selectbox`.
        decode: text of the URL to a value; none when it is not one, then the default holds.
        encode: a value to the URL's text.
        always: write the parameter even at the default.
    """
    key, seen, where = f"url-{name}", f"url-{name}-seen", f"url-{name}-page"
    given = address.get(name)
    state, here = st.session_state, address.page()
    # What is not shared means something else on each page: a filter of the list of runs chooses no
    # method of a new one.
    elsewhere = name not in SHARED and state.get(where, here) != here
    if given is None and name in SHARED and key not in state:
        given = _remembered(name, decode)
    if elsewhere or key not in state or state.get(seen, _UNSEEN) != given:
        decoded = decode(given) if given is not None else None
        state[key] = default if decoded is None else decoded
    elif "options" in options and not _offered(state[key], options["options"]):
        state[key] = default
    value: T = state[key]
    if state.get(where) != here:
        # Another page's widget has held it so far, and what a browser that goes back and forward
        # sends of this page's own may be from before it was filled in.
        state[key], state[where] = value, here
    always = always or name in SHARED
    _write(name, value, default, encode, always)
    state[seen] = address.get(name)
    if name in _KEPT:
        state.setdefault("workspace", {})[name] = state[seen]

    def changed() -> None:
        _write(name, state[key], default, encode, always)
        state[seen] = address.get(name)

    drawn = widget(label, key=key, on_change=changed, **options)
    return default if drawn is None else drawn


def now(name: str) -> Any:
    """What the widget of a parameter holds, also before the page is drawn with it; else None."""
    return st.session_state.get(f"url-{name}")


def reset(name: str) -> None:
    """Have the widget of a parameter begin with its default again."""
    st.session_state.pop(f"url-{name}", None)
    address.put({name: None})


def shared(name: str) -> str | None:
    """What was chosen last of what all pages share, here or on another page."""
    known: str | None = st.session_state.get("workspace", {}).get(name)
    return param(name) or known


def arrive(own: Mapping[str, str]) -> None:
    """Put what goes along from page to page into the address of a page that was just opened."""
    wanted = {**own, **{name: shared(name) or "" for name in sorted(SHARED)}}
    address.put({k: v for k, v in wanted.items() if v and not address.has(k)})


def carried(name: str) -> str | None:
    """The same, put into the address of a page that has no widget for it: links hold all of it."""
    known = shared(name)
    if known and not address.has(name):
        address.put({name: known})
    return known


def _remembered(name: str, decode: Callable[[str], T | None]) -> str | None:
    """What was chosen on another page, if this page offers it as well."""
    known: str | None = st.session_state.get("workspace", {}).get(name)
    return known if known is not None and decode(known) is not None else None


def _offered(value: Any, options: Sequence[Any]) -> bool:
    return all(v in options for v in value) if isinstance(value, list) else value in options


def _write(name: str, value: Any, default: Any, encode: Callable[[Any], str], always: bool) -> None:
    wanted = None if value is None or (value == default and not always) else encode(value)
    if wanted == "" and not default:
        wanted = None
    address.put({name: wanted})


def choice(
    widget: Callable[..., Any],
    label: str,
    *,
    name: str,
    options: Sequence[str] | Mapping[str, str],
    default: str | None = None,
    **more: Any,
) -> str:
    """Let a visitor choose one of `options`, which stands in the URL; the first is the default.

    A mapping says how each option reads.
    """
    offered = list(options)
    first = default if default in offered else offered[0]
    return bound(
        widget,
        label,
        name=name,
        default=first,
        decode=lambda given: given if given in offered else None,
        options=offered,
        **_words(options),
        **more,
    )


def _words(options: Sequence[str] | Mapping[str, str]) -> dict[str, Any]:
    return {"format_func": options.__getitem__} if isinstance(options, Mapping) else {}


def multi_choice(
    widget: Callable[..., Any],
    label: str,
    *,
    name: str,
    options: Sequence[str] | Mapping[str, str],
    default: Sequence[str] = (),
    always: bool = False,
    **more: Any,
) -> list[str]:
    """Let a visitor choose any of `options`, which stand in the URL, comma-separated.

    What the URL names and is not offered is dropped. A mapping says how each option reads.
    """
    return bound(
        widget,
        label,
        name=name,
        default=[v for v in default if v in options],
        decode=lambda given: [v for v in split(given) if v in options],
        encode=",".join,
        always=always,
        options=list(options),
        **_words(options),
        **more,
    )


def toggle(where: Any, label: str, *, name: str, default: bool = False, **more: Any) -> bool:
    """A switch, drawn in `where`."""
    return bound(
        where.toggle,
        label,
        name=name,
        default=default,
        decode={"1": True, "0": False}.get,
        encode=lambda on: "1" if on else "0",
        **more,
    )


def words(where: Any, label: str, *, name: str, max_chars: int = 500, **more: Any) -> str:
    """A line of text, drawn in `where`."""
    return bound(
        where.text_input,
        label,
        name=name,
        default="",
        decode=lambda given: given[:max_chars],
        max_chars=max_chars,
        **more,
    )


def number(
    widget: Callable[..., Any],
    label: str,
    *,
    name: str,
    default: N,
    min_value: N,
    max_value: N,
    **more: Any,
) -> N:
    """A number from `min_value` to `max_value`, of the default's type."""

    def decode(given: str) -> N | None:
        try:
            value = type(default)(given)
        except ValueError:
            return None
        return value if min_value <= value <= max_value else None

    return bound(
        widget,
        label,
        name=name,
        default=default,
        decode=decode,
        encode=lambda value: f"{value:g}",
        min_value=min_value,
        max_value=max_value,
        **more,
    )


def remember_runs(run_ids: Sequence[str]) -> None:
    """Keep the chosen runs for the pages that are opened next."""
    if run_ids:
        st.session_state["chosen-runs"] = list(run_ids)


def remembered_runs() -> list[str]:
    return list(st.session_state.get("chosen-runs", []))


def know_colors(looks: Mapping[str, int]) -> None:
    """Take over the looks that the service gave to runs: they are the same for everybody."""
    known: dict[str, int] = st.session_state.setdefault("run-slots", {})
    known.update({run_id: look % len(style.PALETTE) for run_id, look in looks.items()})


def styles(run_ids: Sequence[str]) -> dict[str, style.RunStyle]:
    """The looks of these runs: their own, unless two that are shown would have the same."""
    known: dict[str, int] = st.session_state.setdefault("run-slots", {})
    slots = style.run_slots(run_ids, known)
    for run_id, slot in slots.items():
        known.setdefault(run_id, slot)
    return {run_id: style.style_of_slot(slot) for run_id, slot in slots.items()}
