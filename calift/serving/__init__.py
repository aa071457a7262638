"""`calift serve`: one model behind HTTP."""
