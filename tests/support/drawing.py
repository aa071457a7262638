"""The processes that draw thumbnails, shared by services: each start takes most of a second."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from backend.services import thumbnails


@contextmanager
def shared_drawers(lines: int = 1) -> Iterator[None]:
    """Let every service of this process draw by the same so many children, of the first's home."""
    made: list[Any] = []
    turn = itertools.cycle(range(lines))
    begin = thumbnails._ThumbnailWorker

    def worker(environment: Mapping[str, str]) -> Any:
        at = next(turn)
        if at == len(made):
            one = begin(environment)
            one.ends = one.drawer.stop, one.thread.shutdown
            # Another service goes on with it.
            one.drawer.stop, one.thread.shutdown = lambda: None, lambda **_: None
            made.append(one)
        return made[at]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thumbnails, "_LINES", lines)
        patch.setattr(thumbnails, "_ThumbnailWorker", worker)
        yield
    for one in made:
        for end in one.ends:
            end()
