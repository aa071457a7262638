"""One file a page; `frontend.app` names them and their addresses."""
