"""Where pixels come from: arrays, NumPy files, image files."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calift_core.data.decode import decode, open_image
from calift_core.data.images import ImageSet, Pixels
from calift_core.data.names import Names
from calift_core.errors import DataError, StorageError, UnreadableImageError, reason_of
from calift_core.files import atomic_write_bytes
from calift_core.home import cache_dir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArraySource:
    """Images held in one array: (N, H, W, 3), or (N, H, W) for grey ones; a memory map, perhaps."""

    array: Pixels
    key: str

    def __len__(self) -> int:
        return len(self.array)

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8; grey images get three equal channels."""
        pixels = np.asarray(self.array[index])
        if pixels.ndim == 2:
            return np.repeat(pixels[:, :, None], 3, axis=2)
        return pixels

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """The key the array was given: a hash of its content."""
        return self.key


@dataclass(frozen=True)
class NpySource:
    """Images in one NumPy file (N, H, W, 3) uint8, mapped into memory when first asked for.

    Attributes:
        start: its position that counts as 0.
    """

    path: Path
    start: int = 0

    @cached_property
    def array(self) -> Pixels:
        """The memory map.

        Raises:
            DataError: it is no such file.
        """
        return _mapped(self.path)

    def __reduce__(self) -> tuple[type[NpySource], tuple[Path, int]]:
        return NpySource, (self.path, self.start)  # a memory map would travel as a whole array

    def __len__(self) -> int:
        return len(self.array) - self.start

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8."""
        return np.asarray(self.array[self.start + index])

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of the whole file and of which of its images are taken."""
        digest = hashlib.sha256(content_key([self.path], whole=True).encode())
        digest.update((np.asarray(indices, dtype="<i8") + self.start).tobytes())
        return digest.hexdigest()


def _mapped(path: Path) -> Pixels:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{str(path)!r} is not a readable NumPy file: {reason_of(error)}") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise DataError(
            f"{str(path)!r} must hold (N, H, W, 3) uint8, it holds {array.shape} {array.dtype}"
        )
    return array  # type: ignore[no-any-return]


class EncodedSource(Protocol):
    """Images that are decoded one by one.

    Attributes:
        border: pixels cut off at each side: data sets mark their test images with a frame.
        side: pixels that a side of an image needs; larger JPEGs are decoded smaller. 0: at full
            size.
    """

    @property
    def border(self) -> int: ...  # noqa: D102
    @property
    def side(self) -> int: ...  # noqa: D102

    def __len__(self) -> int:
        """Number of images."""

    def image(self, index: int) -> Pixels:
        """(H, W, 3) uint8."""

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """What the images at these positions hold."""

    def opened(self, index: int) -> Image.Image:
        """An image whose header has been read.

        Raises:
            UnreadableImageError: it is none.
        """

    def only(self, indices: NDArray[np.int64]) -> EncodedSource:
        """The images at these positions, as a source of their own."""

    def at_side(self, side: int) -> EncodedSource:
        """The same images, decoded for this side."""


@dataclass(frozen=True)
class FileSource:
    """Images in files.

    Attributes:
        paths: one per image, absolute or below `root`. Sets of the same file names under several
            roots share them.
    """

    paths: Sequence[Path] | Sequence[str]
    root: Path = Path()
    border: int = 0
    side: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Where image `index` is."""
        return self.root / self.paths[index]

    def opened(self, index: int) -> Image.Image:
        """An image whose header has been read; see `EncodedSource`."""
        return open_image(self.path(index))

    def only(self, indices: NDArray[np.int64]) -> FileSource:
        """The images at these positions, as a source of their own."""
        return replace(self, paths=Names.of(str(self.paths[int(i)]) for i in indices))

    def at_side(self, side: int) -> FileSource:
        """The same images, decoded for this side."""
        return replace(self, side=side)

    def image(self, index: int) -> Pixels:
        """Decode one file to (H, W, 3) uint8, upright by its EXIF orientation, without its border.

        Raises:
            UnreadableImageError: it cannot be decoded, or is all border.
        """
        pixels = decode(self.path(index), side=self.side)
        if self.border == 0:
            return pixels
        if min(pixels.shape[:2]) <= 2 * self.border:
            raise UnreadableImageError(
                f"{str(self.path(index))!r} must be larger than its border of {self.border} "
                f"pixels at each side, it has {pixels.shape[1]} × {pixels.shape[0]}"
            )
        inside = slice(self.border, -self.border)
        return pixels[inside, inside]

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Hash of what the files hold, and of the border; see `content_key`."""
        key = content_key(_Paths(self, indices))
        return key if self.border == 0 else f"{key}:border {self.border}"


class _Paths(Sequence[Path]):
    """Where some images of a source are; each path is made when it is asked for."""

    def __init__(self, source: FileSource, indices: NDArray[np.int64]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> _Paths: ...
    def __getitem__(self, index: int | slice) -> Path | _Paths:
        if isinstance(index, slice):
            return _Paths(self.source, self.indices[index])
        return self.source.path(int(self.indices[index]))


def with_draft_decoding(images: ImageSet, side: int) -> ImageSet:
    """The same set, whose JPEGs are decoded smaller where both sides stay `side` pixels or more.

    Images that are not in files, or that lose a border, stay as they are.
    """
    source = encoded(images)
    if source is None or source.border:
        return images
    return replace(images, source=source.at_side(side))


def encoded(images: ImageSet) -> EncodedSource | None:
    """Where a set is decoded from; None where its pixels are there as they are."""
    source = images.source
    return cast("EncodedSource", source) if hasattr(source, "opened") else None


_Item = TypeVar("_Item")
#: Files up to this many bytes are hashed whole; of longer ones three pieces that add up to it.
_HASHED_BYTES = 48 * 1024
#: Where more bytes than these are to be hashed, the result is kept in the cache folder.
_UNCACHED_BYTES = 16 * 2**20


def content_key(paths: Sequence[Path], *, whole: bool = False, folder: Path | None = None) -> str:
    """SHA-256 (hex) of what files hold, in their order; the same for copies of them elsewhere.

    Each file counts with its size and its bytes: all of them up to 48 KiB, else 16 KiB each from
    the start, the middle and the end. So an encoded image that was changed between these, to
    exactly as many bytes, is not told from the original. The key of a large set is kept under the
    names, sizes and times of its files: the next time only these are looked at.

    Args:
        whole: hash all bytes of every file: arrays are not encoded.
        folder: of the cache; `CALIFT_HOME/cache` if left out.

    Raises:
        UnreadableImageError: a file is gone or cannot be opened.
    """
    state, to_read = hashlib.sha256(str(whole).encode()), 0
    try:
        for path in paths:
            stat = path.stat()
            state.update(f"{path}:{stat.st_size}:{stat.st_mtime_ns};".encode())
            to_read += stat.st_size if whole else min(stat.st_size, _HASHED_BYTES)
        return cached_key(
            state.hexdigest(), to_read, lambda: _hash_of_files(paths, whole), folder=folder
        )
    except OSError as error:
        raise UnreadableImageError(f"{error.filename!r} cannot be read: {error.strerror}") from None


def cached_key(
    state: str, to_read: int, make: Callable[[], str], *, folder: Path | None = None
) -> str:
    """A key (64 hex digits) that took long to make, from the cache if it is there.

    Args:
        state: names the files, their sizes and their times.
        to_read: bytes that are read to make it; few are read again every time.
        folder: of the cache; `CALIFT_HOME/cache` if left out.
    """
    if to_read <= _UNCACHED_BYTES:
        return make()
    kept = (folder or cache_dir()) / "fingerprints" / state
    if kept.is_file() and len(key := kept.read_text("ascii")) == 64:
        return key
    key = make()
    try:
        atomic_write_bytes(kept, key.encode("ascii"))
    except StorageError as error:
        log.info("the key of files that take long to hash is not kept: %s", error)
    return key


def bytes_hashed(size: int) -> int:
    """How many of an encoded image's bytes count in its key."""
    return min(size, _HASHED_BYTES)


def key_of_image(size: int, read: Callable[[int, int], bytes]) -> bytes:
    """What one encoded image adds to the key of its set.

    Args:
        size: bytes that it has.
        read: (start, length) → bytes of it.
    """
    digest = hashlib.blake2b(size.to_bytes(8, "big"))
    if size <= _HASHED_BYTES:
        digest.update(read(0, size))
    else:
        piece = _HASHED_BYTES // 3
        for at in (0, (size - piece) // 2, size - piece):
            digest.update(read(at, piece))
    return digest.digest()


def key_of_set(items: Sequence[_Item], one: Callable[[_Item], bytes]) -> str:
    """The key (hex) of a set; several of its images are read at once.

    Args:
        items: what tells its images apart, in their order.
        one: an item → what its image adds to the key.
    """

    def several(start: int) -> bytes:
        return b"".join(map(one, items[start : start + 256]))

    total = hashlib.sha256()
    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(several, range(0, len(items), 256)):
            total.update(part)
    return total.hexdigest()


def file_state(path: Path) -> str:
    """Name, size and time of a file: changes when it does.

    Raises:
        UnreadableImageError: it is gone or cannot be looked at.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UnreadableImageError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return f"{path.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"


def _hash_of_files(paths: Sequence[Path], whole: bool) -> str:
    def one(path: Path) -> bytes:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if whole:
                digest = hashlib.blake2b(size.to_bytes(8, "big"))
                while block := file.read(2**20):
                    digest.update(block)
                return digest.digest()
            return key_of_image(size, lambda at, n: _read_at(file, at, n))

    return key_of_set(paths, one)


def _read_at(file: BinaryIO, at: int, n: int) -> bytes:
    file.seek(at)
    return file.read(n)


#: Larger sets have this many of their files looked at, evenly spread.
_HEADERS_READ = 5_000


def check_headers(images: ImageSet) -> None:
    """Open the files of a folder set and read their headers: a bad one is named at the start.

    Raises:
        UnreadableImageError: names the first files that are no images, and counts the rest.
    """
    source = encoded(images)
    if source is None:
        return

    def problem(index: int) -> str | None:
        try:
            source.opened(index).close()
        except UnreadableImageError as error:
            return error.message
        return None

    step = -(-len(images) // _HEADERS_READ) or 1
    with ThreadPoolExecutor(4) as pool:
        bad = [m for m in pool.map(problem, images.indices[::step].tolist()) if m]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UnreadableImageError(f"{images.name}: " + "; ".join(bad[:3]) + more)


@dataclass(frozen=True)
class DecodeCheck:
    """What became of a set's images when they were decoded."""

    n: int
    unreadable: Mapping[str, str]


def decode_all(images: ImageSet, *, seconds: float = 60.0) -> DecodeCheck:
    """Decode the images of a set, of a large one some evenly spread, and say which cannot be."""
    source = encoded(images)
    if source is None:
        return DecodeCheck(len(images), {})
    small = (
        source if source.border else source.at_side(1)
    )  # a JPEG shows at an eighth of its size whether it is whole
    deadline = time.monotonic() + seconds
    positions = np.linspace(0, len(images) - 1, min(_HEADERS_READ, len(images)), dtype=np.int64)

    def problem(position: int) -> str | None:
        if time.monotonic() > deadline:
            return None
        try:
            small.image(int(images.indices[position]))
        except UnreadableImageError as error:
            return error.message
        return ""

    with ThreadPoolExecutor(4) as pool:
        reasons = dict(zip(positions.tolist(), pool.map(problem, positions.tolist()), strict=True))
    return DecodeCheck(
        sum(why is not None for why in reasons.values()),
        {images.ids[position]: why for position, why in reasons.items() if why},
    )


def array_set(
    prefix: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], key: str
) -> ImageSet:
    """Images (N, H, W[, 3]) with their labels (N,); `key` stands for the pixels."""
    return ImageSet(
        name=prefix,
        source=ArraySource(images, key),
        ids=tuple(f"{prefix}/{i:05d}" for i in range(len(labels))),
        labels=labels.astype(np.int64),
        indices=np.arange(len(labels), dtype=np.int64),
    )
