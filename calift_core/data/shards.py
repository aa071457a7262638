"""Images in WebDataset shards: tar files that are read where they lie. Torch-free.

What each tar holds is listed once and kept in the cache; an image is then read by its place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from calift_core.data.listing import EXTENSIONS, ScanBudget
from calift_core.data.names import Names
from calift_core.data.packed import PackedSource
from calift_core.data.sources import file_state, key_of_image
from calift_core.errors import DataError, StorageError, UnreadableImageError
from calift_core.files import atomic_path
from calift_core.home import cache_dir

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
#: Changes when an index is made otherwise, so that kept ones are made anew.
_INDEX_VERSION = 1
#: Larger labels are none.
_LABEL_BYTES = 64


@dataclass(frozen=True)
class ShardIndex:
    """Where the N images of one tar are.

    Attributes:
        names: of the members, as in `s0000012.jpg`.
        starts: (N,) first byte of each.
        sizes: (N,) bytes.
        labels: (N,) what the `.cls` beside each says.
    """

    names: Names
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ShardSource(PackedSource):
    """Images in tar files.

    Attributes:
        shards: (N,) which tar each image is in.
        starts: (N,) first byte of each.
        sizes: (N,) bytes.
    """

    files: tuple[Path, ...]
    names: Sequence[str]
    shards: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    side: int = 0
    border: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def _name(self, index: int) -> str:
        return f"{self.files[int(self.shards[index])]}:{self.names[index]}"

    def _read(self, index: int, at: int, n: int) -> bytes:
        path = self.files[int(self.shards[index])]
        try:
            with path.open("rb", buffering=0) as file:
                found = os.pread(file.fileno(), n, int(self.starts[index]) + at)
        except OSError as error:
            raise UnreadableImageError(f"{str(path)!r} cannot be read: {error.strerror}") from None
        if len(found) < n:
            raise UnreadableImageError(f"{self._name(index)!r} is cut short")
        return found

    def _bytes(self, index: int) -> bytes:
        return self._read(index, 0, self._size(index))

    def _size(self, index: int) -> int:
        return int(self.sizes[index])

    def _key(self, index: int) -> bytes:  # a few pieces of a large image, not all of it
        return key_of_image(self._size(index), lambda at, n: self._read(index, at, n))

    def _state(self, indices: NDArray[np.int64]) -> str:
        state = hashlib.sha256(b"shards")
        for shard in np.unique(self.shards[indices]):
            state.update(f"{file_state(self.files[int(shard)])};".encode())
        for column in (self.shards, self.starts, self.sizes):
            state.update(column[indices].astype("<i8").tobytes())
        return state.hexdigest()

    def only(self, indices: NDArray[np.int64]) -> ShardSource:
        """The images at these positions, as a source of their own."""
        return replace(
            self,
            names=Names.of(self.names[int(i)] for i in indices),
            shards=self.shards[indices],
            starts=self.starts[indices],
            sizes=self.sizes[indices],
        )


def shard_index(path: Path, budget: ScanBudget | None = None) -> ShardIndex:
    """What a tar holds, from the cache if it was listed before.

    Raises:
        DataError: it is no tar, is cut short, or holds samples without an image or a label.
        TooManyFilesError: the budget is spent.
    """
    key = hashlib.sha256(f"{_INDEX_VERSION}:{file_state(path)}".encode()).hexdigest()
    kept = cache_dir() / "shards" / f"{key}.npz"
    try:
        with np.load(kept, allow_pickle=False) as stored:
            return ShardIndex(
                Names(stored["text"], stored["bounds"]),
                stored["starts"],
                stored["sizes"],
                stored["labels"],
            )
    except (OSError, ValueError, KeyError, EOFError):
        pass  # not there, or damaged
    index = _listed(path, budget)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(kept) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                text=index.names.text,
                bounds=index.names.bounds,
                starts=index.starts,
                sizes=index.sizes,
                labels=index.labels,
            )
    except (OSError, StorageError) as error:
        log.info("the list of %s is not kept: %s", path.name, error)
    return index


def _listed(path: Path, budget: ScanBudget | None) -> ShardIndex:
    names: list[str] = []
    starts, sizes, labels = array("q"), array("q"), array("q")
    for key, members in _samples(path, budget):
        images = [m for kind, m in members.items() if f".{kind}".lower() in EXTENSIONS]
        if len(images) != 1:
            raise DataError(
                f"{str(path)!r}: the sample {key!r} must hold one image, it holds {sorted(members)}"
            )
        if "cls" not in members:
            raise DataError(
                f"{str(path)!r}: the sample {key!r} has no label (.cls), it holds {sorted(members)}"
            )
        names.append(images[0].name)
        starts.append(images[0].offset_data)
        sizes.append(images[0].size)
        labels.append(_label(path, key, members["cls"]))
    if not names:
        raise DataError(f"{str(path)!r} holds no samples")
    return ShardIndex(
        Names.of(names), *(np.frombuffer(column, np.int64) for column in (starts, sizes, labels))
    )


def _label(path: Path, key: str, member: tarfile.TarInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        text = file.read(min(member.size, _LABEL_BYTES)).decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise DataError(
            f"{str(path)!r}: the label of {key!r} must be the number of a class, got {text[:40]!r}"
        )
    return int(text)


def _samples(
    path: Path, budget: ScanBudget | None
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Members that follow each other under one key: key, ending → member."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(path):
        if budget is not None:
            budget.take(1)
        where = PurePosixPath(member.name)
        stem, _, ending = where.name.partition(".")
        if not stem or not ending:
            continue  # hidden files, and what has no kind
        mine = str(where.parent / stem)
        if members and mine != key:
            yield key, members
            members = {}
        key = mine
        members[ending] = member
    if members:
        yield key, members


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else all are kept
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"{str(path)!r} is cut short: {member.name!r} ends at byte "
                        f"{member.offset_data + member.size:,} of {size:,}"
                    )
                if member.isfile():
                    yield member
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{str(path)!r} is no whole tar: {error}") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise DataError(
                f"{str(path)!r} is cut short or damaged: at byte {end:,} of {size:,} there is "
                "neither a member nor the mark that ends a tar"
            )
