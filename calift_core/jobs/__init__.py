"""One run from its folder: what the worker's runner and `calift train` both call."""
