"""Images in a zip, each read by its place: nothing is unpacked. Torch-free."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.listing import EXTENSIONS, ScanBudget, SkippedFiles, TooManyFilesError
from calift_core.data.names import Names
from calift_core.data.packed import PackedSource
from calift_core.data.sources import file_state
from calift_core.errors import DataError, DataUnavailableError, UnreadableImageError, reason_of

#: An image that unpacks to more than this is refused: a small zip can hold petabytes.
MAX_IMAGE_BYTES = 256 * 2**20
#: Bytes that an entry of a zip's table takes, generously; a table of more entries than a budget has
#: is not read, unless it is small.
_ENTRY_BYTES, _SMALL_TABLE = 128, 1 << 20
#: Longest name in a zip, in characters, and the most folders that an image may lie in.
MAX_NAME, MAX_DEPTH = 1024, 32
#: A zip of a stranger may unpack to so many times its size; encoded images hardly shrink.
_MAX_GROWTH, _ANY_GROWTH_BYTES = 50, 64 * 2**20
_HEADER = struct.Struct("<4s22xHH")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class ZipSource(PackedSource):
    """Images in a zip.

    Attributes:
        starts: (N,) first byte of each one's header.
        packed: (N,) bytes that each takes.
        sizes: (N,) bytes that each is unpacked.
        crcs: (N,) what its bytes must sum up to (CRC-32).
    """

    file: Path
    names: Sequence[str]
    starts: NDArray[np.int64]
    packed: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crcs: NDArray[np.int64]
    side: int = 0
    border: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def _name(self, index: int) -> str:
        return f"{self.file}:{self.names[index]}"

    def _bytes(self, index: int) -> bytes:
        start, packed, size = (int(c[index]) for c in (self.starts, self.packed, self.sizes))
        try:
            with self.file.open("rb", buffering=0) as file:
                head = os.pread(file.fileno(), _HEADER.size, start)
                mark, name, extra = _HEADER.unpack(head)
                at = start + _HEADER.size + name + extra
                found = os.pread(file.fileno(), packed, at)
        except (OSError, struct.error) as error:
            raise UnreadableImageError(
                f"{self._name(index)!r} cannot be read: {reason_of(error)}"
            ) from None
        if mark != b"PK\x03\x04" or len(found) < packed:
            raise UnreadableImageError(f"{self._name(index)!r} is cut short or damaged")
        method = struct.unpack_from("<H", head, 8)[0]
        if method == zipfile.ZIP_DEFLATED:
            try:
                found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, size + 1)
            except zlib.error as error:
                raise UnreadableImageError(f"{self._name(index)!r} is damaged: {error}") from None
        if len(found) != size or zlib.crc32(found) != int(self.crcs[index]):
            raise UnreadableImageError(
                f"{self._name(index)!r} is damaged: its bytes are others than the zip says"
            )
        return found

    def _size(self, index: int) -> int:
        return int(self.sizes[index])

    def _state(self, indices: NDArray[np.int64]) -> str:
        state = hashlib.sha256(f"zip;{file_state(self.file)};".encode())
        state.update(self.starts[indices].astype("<i8").tobytes())
        return state.hexdigest()

    def only(self, indices: NDArray[np.int64]) -> ZipSource:
        """The images at these positions, as a source of their own."""
        return replace(
            self,
            names=Names.of(self.names[int(i)] for i in indices),
            starts=self.starts[indices],
            packed=self.packed[indices],
            sizes=self.sizes[indices],
            crcs=self.crcs[indices],
        )


def open_zip(
    file: Path, budget: ScanBudget | None = None, skipped: SkippedFiles | None = None
) -> ZipSource:
    """The images of a zip, by what its table says; none is read.

    Args:
        skipped: receives the members that are no images.

    Raises:
        DataUnavailableError: there is no such file.
        DataError: it is no whole zip, a name leads out of it, comes twice, is too long or too deep,
            or an image is encrypted, packed otherwise or very large.
        TooManyFilesError: the budget is spent.
    """
    if not file.is_file():
        raise DataUnavailableError(f"there is no zip {str(file)!r}.")
    try:
        with _Table(file, budget) as table, zipfile.ZipFile(table) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise DataError(f"{file.name} is no whole zip: {reason_of(error)}") from None
    if budget is not None:
        budget.take(len(members))
    images, seen = list[zipfile.ZipInfo](), set[str]()
    for member in members:
        _require_inside(file, member.filename)
        steps = member.filename.split("/")
        is_hidden = any(step.startswith(".") or step == "__MACOSX" for step in steps)
        if member.is_dir() or is_hidden:
            continue
        if not member.filename.lower().endswith(EXTENSIONS):
            if skipped is not None:
                skipped.add(member.filename, steps[-1])
            continue
        if member.filename in seen:
            raise DataError(f"{file.name}: {member.filename!r} is in it twice")
        seen.add(member.filename)
        _require_readable(file, member)
        images.append(member)
    if not images:
        raise DataError(f"{file.name} holds no images, they end in {', '.join(EXTENSIONS)}")

    def column(name: str) -> NDArray[np.int64]:
        return np.array([getattr(member, name) for member in images], dtype=np.int64)

    return ZipSource(
        file,
        Names.of(member.filename for member in images),
        column("header_offset"),
        column("compress_size"),
        column("file_size"),
        column("CRC"),
    )


def require_bounded_size(source: ZipSource) -> None:
    """See that a zip from elsewhere is what it says: its images lie apart and hardly shrink.

    Raises:
        DataError: it would unpack to many times its size, or its images share bytes.
    """
    size = source.file.stat().st_size
    packed, unpacked = int(source.packed.sum()), int(source.sizes.sum())
    if packed > size:
        raise DataError(
            f"{source.file.name}: its images would take {packed:,} bytes and the whole zip has "
            f"{size:,}: they share bytes, as in a zip that is made to explode"
        )
    if unpacked > max(_MAX_GROWTH * size, _ANY_GROWTH_BYTES):
        raise DataError(
            f"{source.file.name} would unpack to {unpacked:,} bytes, {unpacked // size:,} times "
            f"its size; at most {_MAX_GROWTH} times are taken",
            hint="Encoded images (JPEG, PNG) hardly shrink in a zip.",
        )


class _Table(io.FileIO):
    """A zip of which a budget says how large its table may be: it is read in one piece."""

    def __init__(self, file: Path, budget: ScanBudget | None) -> None:
        super().__init__(file, "rb")
        self._budget = budget

    def read(self, size: int | None = -1) -> bytes:
        budget = self._budget
        if budget is not None and (size or 0) > max(_SMALL_TABLE, budget.left * _ENTRY_BYTES):
            raise TooManyFilesError(f"more than {budget.entries:,.0f} files")
        return super().read(-1 if size is None else size) or b""


def _require_inside(file: Path, name: str) -> None:
    if len(name) > MAX_NAME or name.count("/") > MAX_DEPTH:
        raise DataError(
            f"{file.name}: names in a zip have at most {MAX_NAME:,} characters and {MAX_DEPTH} "
            f"folders, got {len(name):,} and {name.count('/'):,} in {name[:40]!r}…",
            hint="Pack the folder anew, with names below it.",
        )
    steps = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in steps or (":" in steps[0]):
        raise DataError(
            f"{file.name}: {name[:200]!r} leads out of the zip; nothing of it is read.",
            hint="Pack the folder anew, with names below it.",
        )


def _require_readable(file: Path, member: zipfile.ZipInfo) -> None:
    what = f"{file.name}: {member.filename!r}"
    if member.flag_bits & 1:
        raise DataError(f"{what} is encrypted")
    if member.compress_type not in _METHODS:
        raise DataError(f"{what} is packed in a way ({member.compress_type}) that is not read")
    if member.file_size > MAX_IMAGE_BYTES:
        raise DataError(
            f"{what} would unpack to {member.file_size:,} bytes, at most {MAX_IMAGE_BYTES:,} are "
            "read"
        )
