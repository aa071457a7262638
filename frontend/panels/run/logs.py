"""Tab Logs: the end of the log, followed as it grows."""

from functools import partial

import streamlit as st

from calift_core.client import Client
from calift_core.schema.wire.runs import LogPage, RunDetail
from frontend import api, page

LOG_BYTES = 65_536

#: Lines of a log that are shown.
LOG_LINES = 500


def draw(run: RunDetail) -> None:
    body, begins_at = _log_end(run)
    if not body.strip():
        page.empty(
            "The log is empty",
            "Lines appear when a worker has taken the run; they follow by themselves."
            if api.is_working(run.phase)
            else "The run left no line.",
        )
        return
    lines = body.splitlines()[-LOG_LINES:]
    if begins_at or len(lines) == LOG_LINES:
        st.caption(f"The last {len(lines):,} lines; the file has all.")
    # It stays at its end as lines come, until somebody scrolls up.
    with st.container(
        height=min(480, 60 + 21 * len(lines)), autoscroll=True, border=False, key="log-end"
    ):
        st.code("\n".join(lines), language=None, wrap_lines=True)
    st.download_button(
        "Log, text",
        # Called when somebody clicks, outside of any visitor's page: so with this one's client.
        partial(_whole_log, api.client(), run.id),
        f"{run.name}.log",
        "text/plain",
        icon=":material/download:",
        on_click="ignore",
    )


def _log_end(run: RunDetail) -> tuple[str, int]:
    """The end of the log, and the byte that it begins at; only what is new is asked for."""
    kept: dict[str, LogPage] = st.session_state.setdefault("log-ends", {})
    known = kept.get(run.id)

    def read(start: int) -> LogPage:
        return api.fetch(
            "read the log",
            lambda: api.client().logs(run.id, offset=start, limit=LOG_BYTES),
            key=f"logs-{run.id}",
        )

    got = read(-LOG_BYTES if known is None else known.next_offset)
    if got.size_bytes - got.next_offset >= LOG_BYTES:  # much has come since: to the end at once
        got, known = read(-LOG_BYTES), None
    if known is None:
        known = got
    elif got.offset == known.next_offset:  # what an earlier look gave is not added again
        body = known.text + got.text
        more = {"text": body[-2 * LOG_BYTES :], "next_offset": got.next_offset}
        known = known.model_copy(update=more)
    kept.clear()  # of one run: the one that is looked at
    kept[run.id] = known
    return known.text, known.offset


def _whole_log(client: Client, run_id: str) -> str:
    pieces: list[str] = []
    offset = 0
    while True:
        got = client.logs(run_id, offset=offset, limit=1 << 20)
        pieces.append(got.text)
        if got.complete or got.next_offset <= offset:
            return "".join(pieces)
        offset = got.next_offset
