"""The dashboard's entry: `streamlit run frontend/app.py`. Names the pages and their addresses."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from calift_core import __version__
from frontend import text, ui

HERE = Path(__file__).parent

st.set_page_config(
    page_title="calift",
    # A file of ours: an icon by name would be fetched from a public font server.
    page_icon=str(HERE / "icon.svg"),
    layout="wide",
    initial_sidebar_state="auto",
    menu_items={"About": f"calift {__version__}: calibration explorer and training backend."},
)
st.html(HERE / "style.css")

pages = {
    "Runs": [
        st.Page(
            "views/overview.py",
            title="Overview",
            icon=":material/home:",
            url_path="",
            default=True,
        ),
        # Where links of people and machines say it by its name.
        st.Page(
            "views/overview.py",
            title="Overview",
            icon=":material/home:",
            url_path="overview",
            visibility="hidden",
        ),
        st.Page("views/runs.py", title="Runs", icon=":material/list:", url_path="runs"),
        st.Page("views/new.py", title="New run", icon=":material/add_circle:", url_path="new"),
        st.Page(
            "views/run.py",
            title="Run",
            icon=":material/science:",
            url_path="run",
            visibility="hidden",
        ),
    ],
    "Explore": [
        st.Page(
            "views/compare.py",
            title="Compare",
            icon=":material/compare_arrows:",
            url_path="compare",
        ),
        st.Page(
            "views/calibration.py",
            title="Calibration",
            icon=":material/target:",
            url_path="calibration",
        ),
        st.Page(
            "views/frontier.py",
            title="Frontier",
            icon=":material/scatter_plot:",
            url_path="frontier",
        ),
        st.Page("views/shifts.py", title="Shifts", icon=":material/grid_on:", url_path="shifts"),
        st.Page(
            "views/spectra.py", title="Spectra", icon=":material/show_chart:", url_path="spectra"
        ),
    ],
    "Machine": [
        st.Page(
            "views/data.py", title="Data and models", icon=":material/database:", url_path="data"
        ),
    ],
}
page = st.navigation(pages)
st.logo(HERE / "logo.svg", size="large", link=None)
me = ui.visitor()
who = me.name if me.name == me.scope else f"{me.name} · {me.scope}"
with st.sidebar:
    st.html(
        f'<div class="calift-visitor"><span>{text.esc(who)}</span>'
        '<a href="/logout" target="_self">Log out</a></div>'
    )
    st.caption(f"Version {__version__}")
ui.show_flash()
page.run()
