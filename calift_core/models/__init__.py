"""CLIP-like models: the only room that knows open_clip."""
