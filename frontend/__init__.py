"""The dashboard: Streamlit pages over the REST API, and the charts they draw.

`charts`, `tables` and `text` are pure: wire models in, figures, rows and words out; they load no
Streamlit. `forms` and `state` turn schemas and URLs into widgets and back; `views/` holds one file
a page.
"""
