"""What a widget holds on a page is that page's own."""

from streamlit.testing.v1 import AppTest

from frontend import address


def _pages() -> None:
    import streamlit as st

    from frontend import address, state

    options = ["zero_shot", "carot"]
    if address.page() == "runs":
        state.multi_choice(st.multiselect, "Method", name="method", options=options)
    else:
        state.choice(st.selectbox, "Method", name="method", options=options, default="carot")


def test_bound__an_empty_filter_of_one_page_chooses_nothing_on_another(monkeypatch):
    monkeypatch.setattr(address, "page", lambda: "runs")
    app = AppTest.from_function(_pages).run()
    assert app.multiselect(key="url-method").value == []
    monkeypatch.setattr(address, "page", lambda: "new")
    app.run()
    assert app.selectbox(key="url-method").value == "carot"
    assert "method" not in app.query_params
