"""Bring data by the browser: a folder chosen from registered ones, or a zip dropped on the page.

Either way the form's own field then names it, as if somebody had typed it.
"""

from pathlib import PurePath

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from calift_core.errors import CaliftError
from calift_core.schema.wire.service import FolderInside, FolderList, UploadedData
from frontend import api, text

#: Keys of the session: the box, where it is, and the zip that was dropped with what came of it.
_OPEN, _AT, _DROPPED = "bring-open", "bring-at", "bring-dropped"
#: Folders of the newest runs that are offered.
_USED = 4


def offer(key: str) -> None:
    """Offer both ways.

    Args:
        key: of the widget that names the data; it is drawn after this.
    """
    if api.locked("submit"):
        return
    with st.expander("Choose a folder, or bring a zip", icon=":material/drive_folder_upload:"):
        folder, dropped = st.columns(2, gap="large")
        with folder:
            choose(key)
        with dropped:
            _drop(key)


def choose(key: str) -> None:
    """A registered folder for the widget of a key, which is drawn before or after this."""
    at: str | None = st.session_state.get(_AT)
    try:
        found = api.folders(at)
    except CaliftError as error:
        st.warning(text.md_prose(error.message), icon=":material/folder_off:")
        st.button("Back to the first folders", on_click=_go, args=(None,), key="bring-top")
        return
    if found.path is None and not found.folders:
        st.caption(
            "No folder is registered here. Whoever runs the service names them in "
            "`CALIFT_DATA_ROOTS`; a path can be typed below."
        )
        return
    if found.path is None and len(found.folders) == 1:
        _go(found.folders[0].path)
        choose(key)
        return
    if found.path is None or found.parent is None:
        _used(key)
    st.markdown(f"**{text.md(found.path or 'Where folders are')}**")
    names = {f.path: _words(f, top=found.path is None) for f in found.folders}
    st.selectbox(
        "Open a folder",
        list(names),
        index=None,
        format_func=lambda path: names.get(path, path),
        placeholder=_placeholder(found),
        key=_OPEN,
        on_change=_go_in,
        disabled=not names,
    )
    if not found.whole:
        st.caption("There are more folders than are listed; a path can be typed below.")
    if found.path is None:
        return
    with st.container(horizontal=True):
        st.button(
            "Use this folder",
            icon=":material/check:",
            on_click=_use,
            args=(key, f"folder:{found.path}"),
            key="bring-use",
        )
        st.button(
            "Up",
            icon=":material/arrow_upward:",
            on_click=_go,
            args=(found.parent,),
            key="bring-up",
            disabled=found.parent is None and _is_alone(),
        )


def _used(key: str) -> None:
    """Folders that the newest runs are on, one click away."""
    runs = api.act("list the suites", lambda: api.client().suites()) or []
    used = [one.suite for one in runs if one.suite.startswith("folder:")][:_USED]
    if used:
        st.caption("Recently used")
        with st.container(horizontal=True, gap="small"):
            for suite in used:
                name = text.short_suite(suite).removeprefix("folder:")
                st.button(name, key=f"used-{suite}", on_click=_use, args=(key, suite), help=suite)


def _is_alone() -> bool:
    """Whether there is one registered folder only, so that nothing is above it."""
    return len(api.folders(None).folders) == 1


def _placeholder(found: FolderList) -> str:
    if not found.folders:
        return f"no folders, {found.images:,} images" if found.images else "no folders"
    return f"{len(found.folders):,} folder{'' if len(found.folders) == 1 else 's'}"


def _words(folder: FolderInside, *, top: bool) -> str:
    """A folder's name and what it seems to hold."""
    if top:
        return folder.path
    more = "" if folder.whole else "at least "
    inside = f"{folder.folders:,} folder{'' if folder.folders == 1 else 's'}"
    return f"{folder.name} · {inside}, {more}{folder.images:,} images"


def _go(path: str | None) -> None:
    st.session_state[_AT] = path
    st.session_state[_OPEN] = None  # not only forgotten: the box itself would keep showing it


def _go_in() -> None:
    chosen = st.session_state.get(_OPEN)
    if chosen:
        _go(chosen)


def _use(key: str, suite: str) -> None:
    st.session_state[key] = suite


def _drop(key: str) -> None:
    given = st.file_uploader(
        "A zip of class folders",
        type="zip",
        key="bring-zip",
        help="One folder of images for each class, or train/, val/, test/ … folders of them. It is "
        "kept on the service's machine as it is, and read there.",
    )
    if given is None:
        st.session_state.pop(_DROPPED, None)
        return
    file_id, outcome = st.session_state.get(_DROPPED, (None, None))
    if file_id != given.file_id:  # once: something else may be chosen afterwards
        with st.spinner("Bringing it to the service"):
            outcome = _taken(given)
        st.session_state[_DROPPED] = (given.file_id, outcome)
        if isinstance(outcome, UploadedData):
            _use(key, outcome.suite)
    if isinstance(outcome, UploadedData):
        st.success(
            f"{text.md(outcome.name)}: {outcome.images:,} images of {outcome.n_classes:,} classes.",
            icon=":material/check:",
        )
    elif outcome is not None:
        api.problem(outcome, "bring the zip")


def _taken(given: UploadedFile) -> UploadedData | CaliftError:
    try:
        return api.client().upload_zip(given, PurePath(given.name).name)
    except CaliftError as error:
        return error
