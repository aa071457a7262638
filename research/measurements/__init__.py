"""Measurements that were made once, for the documents; `benchmarks/` has what a user may time."""
