"""The studies' tests draw the same examples everywhere, and a loaded machine is no failure."""

from hypothesis import settings

settings.register_profile(
    "research", derandomize=True, database=None, deadline=None, max_examples=30
)
settings.load_profile("research")
