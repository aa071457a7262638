"""Decoded logits beside their file: a temperature that is slid over reads them a second time.

A Parquet file is decoded in longer than its logits are scored in. What was decoded is kept as one
NumPy array that is mapped into memory, not read into it, and may be removed at any time.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.errors import StorageError
from calift_core.files import atomic_path

#: Bytes that a folder of decoded logits may take; what was made first goes.
_MOST_BYTES = 2 << 30


def open_decoded(place: Path, shape: tuple[int, int]) -> npt.NDArray[Any] | None:
    """Logits (N, C) that were kept at a place, or None."""
    with contextlib.suppress(OSError, ValueError):
        found: npt.NDArray[Any] = np.load(place, mmap_mode="r", allow_pickle=False)
        if found.shape == shape and found.dtype in (np.float16, np.float32, np.float64):
            return found
    return None


def write_decoded(
    place: Path, shape: tuple[int, int], chunks: Iterable[npt.NDArray[Any]]
) -> Iterator[npt.NDArray[Any]]:
    """Pass on chunks of logits (N, C) and keep them at a place once all have come.

    A full disk is no reason to fail: then nothing is kept.
    """
    remaining = iter(chunks)
    with contextlib.suppress(OSError, StorageError), atomic_path(place) as temporary:
        first = next(remaining)
        _make_room(place.parent, first.dtype.itemsize * shape[0] * shape[1])
        with temporary.open("wb") as file:
            about = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
            for chunk in itertools.chain([first], remaining):
                try:
                    file.write(np.ascontiguousarray(chunk).data)
                finally:
                    yield chunk
    yield from remaining  # what was not kept is passed on all the same


def _make_room(folder: Path, wanted: int) -> None:
    known = []
    for path in folder.glob("*.npy"):
        with contextlib.suppress(OSError):
            about = path.stat()
            known.append((about.st_mtime, about.st_size, path))
    left = sum(size for _, size, _ in known) + wanted
    for _, size, path in sorted(known):
        if left <= _MOST_BYTES:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            left -= size
