"""Images kept decoded in memory."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.decode import at_least
from calift_core.data.images import ImageSet, Pixels
from calift_core.data.sources import EncodedSource, encoded
from calift_core.errors import DataError


class MemorySource:
    """Images in files, each decoded once and kept in memory.

    The memory is one anonymous map, which loader processes that are forked share with each other:
    whoever decodes an image first keeps it for all. A process that is started afresh (spawned)
    fills a map of its own.

    Args:
        files: where images come from at first.
        sizes: (N,) bytes that each image has when it is decoded.
    """

    def __init__(self, files: EncodedSource, sizes: NDArray[np.int64]) -> None:
        self.files, self.sizes = files, sizes
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        table = 2 * np.dtype(np.int64).itemsize * len(sizes)
        shared = mmap.mmap(-1, max(1, table + int(self.starts[-1])))
        # Height and width of each image; 0 while it is not there.
        self.shapes = np.frombuffer(shared, np.int64, 2 * len(sizes)).reshape(-1, 2)
        self.pixels = np.frombuffer(shared, np.uint8, int(self.starts[-1]), table)

    def __reduce__(self) -> tuple[type[MemorySource], tuple[EncodedSource, NDArray[np.int64]]]:
        return MemorySource, (self.files, self.sizes)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8, from memory if it was asked for before."""
        height, width = (int(n) for n in self.shapes[index])
        slot = self.pixels[self.starts[index] : self.starts[index + 1]]
        if height:
            return slot.reshape(height, width, 3)
        pixels = self.files.image(index)
        if pixels.nbytes == len(slot):  # else the file has changed since its header was read
            slot[:] = pixels.reshape(-1)
            self.shapes[index] = pixels.shape[:2]  # last: it says that the pixels are there
        return pixels

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """The fingerprint of the files."""
        return self.files.fingerprint(indices)


#: Share of the memory that is free which decoded images may take: the run needs some itself.
CACHE_SHARE = 0.7
#: Files whose headers tell about how large a set is.
_SIZE_SAMPLE = 512


def cached_in_memory(images: ImageSet, *, available: int | None = None) -> ImageSet:
    """The same set, whose images are decoded when they are first asked for and kept.

    A set that is an array already is returned as it is.

    Args:
        available: bytes of free memory; asked of the system if left out.

    Raises:
        DataError: the decoded images do not fit; says both sizes.
        UnreadableImageError: a file is no image.
    """
    source = encoded(images)
    if source is None or len(images) == 0:
        return images
    files, positions = source.only(images.indices), range(len(images))

    def size(position: int) -> int:
        return _decoded_size(files, position)

    room = int((available_memory() if available is None else available) * CACHE_SHARE)
    step = max(1, len(positions) // _SIZE_SAMPLE)
    some = [size(position) for position in positions[::step]]
    _require_room(images, sum(some) * len(positions) // len(some), room)
    with ThreadPoolExecutor(4) as pool:
        sizes = np.fromiter(pool.map(size, positions), np.int64, len(positions))
    _require_room(images, int(sizes.sum()), room)
    return replace(
        images, source=MemorySource(files, sizes), indices=np.arange(len(images), dtype=np.int64)
    )


def _decoded_size(files: EncodedSource, index: int) -> int:
    with files.opened(index) as image:
        at_least(image, files.side)
        return 3 * max(0, image.width - 2 * files.border) * max(0, image.height - 2 * files.border)


def _require_room(images: ImageSet, needed: int, room: int) -> None:
    if needed > room:
        raise DataError(
            f"the {len(images):,} images of {images.name} take about {needed / 2**20:,.0f} MiB "
            f"when they are decoded, at most {room / 2**20:,.0f} MiB of the free memory may go "
            "to them",
            hint="Set train.cache_images to false.",
        )


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except OSError:
        pass  # not Linux
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no control group, or one without a limit ("max")
    return max(0, min(free))
