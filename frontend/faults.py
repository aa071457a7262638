"""What a visitor sees of an error that no page expected: a card, and nothing of its cause."""

import logging
import secrets

import streamlit as st
from streamlit.errors import FragmentHandledException

log = logging.getLogger(__name__)


def unexpected(error: Exception) -> bool:
    """Write an error to the log and show its request id in place of what could not be drawn.

    Returns:
        True: Streamlit shows nothing of its own.
    """
    if isinstance(error, FragmentHandledException):
        return True  # a fragment within another has shown its card
    request_id = secrets.token_hex(8)
    log.error("request %s: a page could not be drawn", request_id, exc_info=error)
    st.error(
        "**This could not be drawn.** An unexpected error has been written to the dashboard's log "
        "under the request id below. Load the page again; if it stays, pass the id on to whoever "
        f"runs this service.\n\n:small[request id {request_id}]",
        icon=":material/error:",
    )
    return True
