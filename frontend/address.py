"""The page's address as this visitor's session left it, on a line of any speed.

With each act a browser sends the address that it shows. What the server wrote into it during the
act before may still be on its way then, and the address that comes is an older one. It is told from
a press of Back, which Streamlit marks, by what was written: until the browser has sent a value that
was written here, an earlier value of the same parameter is old news, and the one that was written
takes its place again.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException
from streamlit.runtime.scriptrunner import get_script_run_ctx

_KEY = "address"


@dataclass
class _Written:
    """What was written into the address of a page and that the browser has not sent yet.

    Attributes:
        page: Streamlit's name of the page.
        run: what stands for the script's run that was looked at last.
        held: values that were written, by parameter; None: it was removed.
        before: values that the browser may still send instead.
    """

    page: str = ""
    run: Any = None
    held: dict[str, str | None] = field(default_factory=dict)
    before: dict[str, set[str | None]] = field(default_factory=dict)

    def look(self, sent: Mapping[str, str], *, moved: bool) -> dict[str, str | None]:
        """Compare with what the browser sent; the values that it does not know yet.

        Args:
            moved: it went back or forward, so this is where the visitor wants to be.
        """
        late = {}
        for name, held in list(self.held.items()):
            value = sent.get(name)
            if moved:
                self.write(name, value, before=held)
            elif value not in self.before[name]:
                del self.held[name], self.before[name]  # it has arrived, or a link led elsewhere
            elif value != held:
                late[name] = held
        return late

    def write(self, name: str, value: str | None, *, before: str | None) -> None:
        """Remember that a parameter was given another value."""
        self.held[name] = value
        self.before.setdefault(name, set()).add(before)


def page() -> str:
    """Streamlit's name of the page that is drawn."""
    context = get_script_run_ctx()
    return "" if context is None else context.page_script_hash


def get(name: str) -> str | None:
    """A parameter of the address; None where it is absent."""
    _catch_up()
    return st.query_params.get(name)


def has(name: str) -> bool:
    """Whether the address names it, be it with nothing."""
    return get(name) is not None


def put(values: Mapping[str, str | None]) -> None:
    """Write parameters into the address, all in one step; None removes one."""
    written = _catch_up()
    given = st.query_params.to_dict()
    changed = {name: value for name, value in values.items() if given.get(name) != value}
    for name, value in changed.items():
        written.write(name, value, before=given.get(name))
    if changed:
        _send(changed)


def _catch_up() -> _Written:
    """Put right, once in each run of the script, an address that was on its way too long."""
    written: _Written = st.session_state.setdefault(_KEY, _Written())
    context = get_script_run_ctx()
    if context is None:
        return written
    if written.page != context.page_script_hash:
        written = st.session_state[_KEY] = _Written(context.page_script_hash)
    elif written.run is None or written.run() is not context.parallel_coordinator:
        late = written.look(st.query_params.to_dict(), moved=context.is_history_navigation)
        if late:
            _send(late)
    # Streamlit names no run of a script; each has one of these of its own.
    written.run = weakref.ref(context.parallel_coordinator)
    return written


def _send(values: Mapping[str, str | None]) -> None:
    """Change the address: each message to the browser is a step that its Back goes through."""
    wanted = {k: v for k, v in {**st.query_params.to_dict(), **values}.items() if v is not None}
    try:
        st.query_params.from_dict(wanted)
    except StreamlitAPIException:  # a widget has bound one of them by itself
        added = {name: value for name, value in values.items() if value is not None}
        if added:
            st.query_params.update(added)
        for name in values.keys() - added.keys():
            st.query_params.pop(name, None)
