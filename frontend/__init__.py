"""The dashboard: Streamlit pages over the REST API.

`figures`, `tables` and `text` are pure: wire models in; figures, rows and words out; they load no
Streamlit. `api` asks the service, `page` and `pickers` are what pages are made of, `forms` and
`state` turn schemas and URLs into widgets and back. `views/` holds one file a page, `panels/` the
parts of the larger ones. `authentication` stands before all of it, `login` lets visitors in.
"""
