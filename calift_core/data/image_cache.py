"""Corrupted images as a model takes them, kept on disk: made by one run, read by those after it.

Computing a corruption takes longer than a small model's forward pass, and the runs of a sweep all
ask for the same ones. What is kept is a stretch of a set after resizing and cropping, under a hash
of the images, the corruption and the geometry; it is written as it is first used, and so costs no
pass of its own. `CALIFT_CACHE_BYTES` bounds the folder: a plan that would not fit as a whole is not
kept, and what was used longest ago goes first.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from calift_core.data.corrupted import CorruptedSource
from calift_core.data.images import ImageSet
from calift_core.data.preprocess import Preprocess
from calift_core.errors import SpecError
from calift_core.files import FREE_SPACE_FLOOR
from calift_core.files.disk_cache import make_room
from calift_core.home import cache_dir

log = logging.getLogger(__name__)

#: Bytes that the folder may hold where `CALIFT_CACHE_BYTES` says nothing.
CACHE_BYTES = 10 * 2**30
#: A part file that is older was left by a process that was killed.
_LEFT_BEHIND_S = 24 * 3600.0
_PIECE = 2**22

_Pixels = NDArray[np.uint8]


def cache_limit() -> int:
    """Bytes that kept images may take, from `CALIFT_CACHE_BYTES`; 0 keeps none.

    Raises:
        SpecError: it is not a whole number of bytes.
    """
    setting = os.environ.get("CALIFT_CACHE_BYTES", "").strip()
    if not setting:
        return CACHE_BYTES
    if not setting.isascii() or not setting.isdigit():
        raise SpecError(f"CALIFT_CACHE_BYTES must be a number of bytes, 0 or more, got {setting!r}")
    return int(setting)


@dataclass(frozen=True)
class ImageCache:
    """Images `start` to `stop` of a set, as a model of this geometry takes them.

    Attributes:
        shape: (N, S, S, 3).
        limit: bytes that the folder may hold.
    """

    path: Path
    shape: tuple[int, int, int, int]
    limit: int

    @classmethod
    def of(
        cls,
        images: ImageSet,
        preprocess: Preprocess,
        start: int,
        stop: int,
        *,
        folder: Path | None = None,
    ) -> ImageCache | None:
        """None for images that are read quickly as they are, and where a plan has no room.

        Raises:
            SpecError: `CALIFT_CACHE_BYTES` is not a number of bytes.
        """
        source, side = images.source, preprocess.size
        if not isinstance(source, CorruptedSource) or start >= stop:
            return None
        limit = cache_limit()
        if len(images) * side * side * 3 * source.copies > limit:
            return None
        described = f"{images.sha256}:{preprocess.geometry}:{start}:{stop}"
        name = hashlib.sha256(described.encode()).hexdigest()
        path = (folder or cache_dir() / "images") / f"{name}.pixels"
        return cls(path, (stop - start, side, side, 3), limit)

    def read(self) -> _Pixels | None:
        """Pixels (N, S, S, 3) uint8, or None where they are not there or are damaged."""
        left, digest = math.prod(self.shape), hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while left and (piece := file.read(min(left, _PIECE))):
                    digest.update(piece)
                    left -= len(piece)
                good = not left and file.read() == digest.digest()
            if good:
                os.utime(self.path)  # the newest are kept
                return np.memmap(self.path, np.uint8, "r", shape=self.shape)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the kept images %s cannot be read: %s", self.path.name, error)
            return None
        log.warning("the kept images %s are damaged and are made again", self.path.name)
        return None

    def batches(self, batch_size: int, make: Callable[[], Iterable[_Pixels]]) -> Iterator[_Pixels]:
        """Batches (B, S, S, 3) uint8: those that were kept, else those of `make`, kept."""
        found = self.read()
        if found is None:
            yield from self.keeping(make())
            return
        for at in range(0, len(found), batch_size):
            yield np.array(found[at : at + batch_size])

    def keeping(self, batches: Iterable[_Pixels]) -> Iterator[_Pixels]:
        """The same batches (B, S, S, 3) uint8, kept once the last one was taken.

        Where they cannot be kept, that is told in the log and costs later runs time only.
        """
        with _Part(self) as part:
            for batch in batches:
                part.add(batch)
                yield batch
            part.publish()


class _Part:
    """A file of kept images that is being written, until it cannot be."""

    def __init__(self, kept: ImageCache) -> None:
        self._kept = kept
        self._path = kept.path.with_name(f".{kept.path.stem[:16]}.{secrets.token_hex(6)}.tmp")
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with self._trying():
            self._make_room()
            self._file = self._path.open("wb")
        return self

    def add(self, batch: _Pixels) -> None:
        data = np.ascontiguousarray(batch).data
        self._digest.update(data)
        with self._trying():
            if self._file is not None:
                self._file.write(data)

    def publish(self) -> None:
        # Not forced to disk: the hash at its end tells a file that a power cut left in pieces.
        with self._trying():
            if self._file is not None:
                self._file.write(self._digest.digest())
                self._file.close()
                os.replace(self._path, self._kept.path)

    def __exit__(self, *_: object) -> None:
        with self._trying():
            self._end()

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            finally:
                self._path.unlink(missing_ok=True)

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("corrupted images are not kept: %s", error)
            with suppress(OSError):
                self._end()

    def _make_room(self) -> None:
        folder, wanted = self._kept.path.parent, math.prod(self._kept.shape)
        folder.mkdir(parents=True, exist_ok=True)
        prune(folder, self._kept.limit - wanted)
        if shutil.disk_usage(folder).free - wanted < 4 * FREE_SPACE_FLOOR:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prune(folder: Path, limit: int) -> None:
    """Remove the files used longest ago, so that the others take at most `limit` bytes.

    Part files of processes that were killed go too. A file that another process reads stays
    readable for it.
    """
    for left in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND_S:
                left.unlink()
    make_room(folder.glob("[!.]*"), limit)
