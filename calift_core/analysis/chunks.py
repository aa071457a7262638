"""Stored predictions in chunks that fit into memory."""

import os
from collections.abc import Iterator

from calift_core.predictions.read import iter_chunks, read_metadata
from calift_core.predictions.types import Predictions

PathLike = str | os.PathLike[str]
CELLS_AT_ONCE = 4_000_000


def logit_chunks(path: PathLike) -> Iterator[Predictions]:
    """A file's predictions, as many rows at once as fit into memory."""
    rows = max(1, CELLS_AT_ONCE // len(read_metadata(path).class_names))
    return iter_chunks(path, rows)
