"""Artifacts in folders and buckets, and whether there is room for them."""
