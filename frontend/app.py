"""The dashboard's entry: `streamlit run frontend/app.py`. Names the pages and their addresses."""

from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from calift_core import __version__
from frontend import api, components, page, text

HERE = Path(__file__).parent


def view(name: str, title: str, icon: str, **more: Any) -> StreamlitPage:
    """The page of `views/NAME.py`, at the address NAME, with an icon of Material Symbols."""
    address = more.pop("url_path", name)
    icon = f":material/{icon}:"
    return st.Page(f"views/{name}.py", title=title, icon=icon, url_path=address, **more)


#: A new page is its file in views/ and its line here.
PAGES = {
    "Runs": [
        view("overview", "Overview", "home", url_path="", default=True),
        # Where links of people and machines say it by its name.
        view("overview", "Overview", "home", visibility="hidden"),
        view("runs", "Runs", "list"),
        view("new", "New run", "add_circle"),
        view("run", "Run", "science", visibility="hidden"),
        view("sweeps", "Sweeps", "account_tree"),
        view("sweep", "Sweep", "account_tree", visibility="hidden"),
    ],
    "Explore": [
        view("compare", "Compare", "compare_arrows"),
        view("calibration", "Calibration", "target"),
        view("decide", "Selective prediction", "rule"),
        view("frontier", "Trade-offs", "scatter_plot"),
        view("shifts", "Shifts", "grid_on"),
        view("sample", "Image", "image", visibility="hidden"),
        view("picture", "Try a picture", "add_photo_alternate"),
        view("curves", "Curves", "timeline"),
        view("spectra", "Spectra", "show_chart"),
        view("bound", "Theory bound", "bubble_chart"),
        view("plan", "Sample size", "calculate"),
    ],
    "Machine": [view("data", "Data and models", "database"), view("tokens", "Tokens", "key")],
}

st.set_page_config(
    page_title="calift",
    # A file of ours: an icon by name would be fetched from a public font server.
    page_icon=str(HERE / "icon.svg"),
    layout="wide",
    initial_sidebar_state="auto",
    menu_items={"About": f"calift {__version__}: calibration explorer and training backend."},
)
st.html(HERE / "style.css")
components.browser()
opened = st.navigation(PAGES, expanded=True)  # or the last pages hide behind "View more"
st.logo(HERE / "logo.svg", size="large", link=None)
me = api.visitor()
who = me.name if me.name == me.scope else f"{me.name} · {me.scope}"
with st.sidebar:
    st.html(
        f'<div class="calift-visitor"><span>{text.esc(who)}</span>'
        '<a href="/logout" target="_self">Log out</a></div>'
    )
    st.caption(f"Version {__version__}")
page.show_flash()
opened.run()
