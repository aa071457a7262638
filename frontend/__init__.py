"""The Streamlit dashboard. Everything it shows comes through the typed client."""
