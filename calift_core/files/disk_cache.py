"""Folders of files that may go at any time: what was not used for longest makes room."""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from calift_core.errors import StorageError
from calift_core.files import atomic_write_bytes

log = logging.getLogger(__name__)


class DiskCache:
    """Small files in a folder, up to so many bytes. Several processes may share it.

    What cannot be written is not kept: it is made again.

    Args:
        folder: made when it is first written to.
        most_bytes: 0 keeps nothing.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes
        self._added = most_bytes  # of an earlier process, nobody knows

    def get(self, key: str) -> bytes | None:
        """What is kept under a hash, or None."""
        path = self._path(key)
        try:
            body = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep something under a hash."""
        if not self._most:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write_bytes(path, body)
        except (OSError, StorageError) as error:
            log.info("%s is not kept: %s", path, error)
            return
        self._added += len(body)
        if self._added > self._most // 10:
            self._added = 0
            # A tenth is free then, which may be added before the next look.
            make_room(self._folder.glob("*/*"), self._most * 9 // 10)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key


def make_room(files: Iterable[Path], most_bytes: int) -> None:
    """Remove the files used longest ago until the others take at most so many bytes."""
    found = []
    for path in files:
        with suppress(OSError):
            about = path.stat(follow_symlinks=False)
            found.append((about.st_mtime_ns, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        with suppress(OSError):
            path.unlink()
            total -= size
