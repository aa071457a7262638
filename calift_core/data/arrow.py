"""Images in Arrow files, as `datasets` writes them: a row is read where it lies. Torch-free.

The files are mapped into memory, so that a process holds the rows that it reads and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from calift_core.data.packed import PackedSource
from calift_core.data.sources import file_state
from calift_core.errors import DataError, reason_of
from calift_core.untrusted import parse_json


def open_table(files: Sequence[Path]) -> pa.Table:
    """The rows of Arrow files, one after the other; none is read.

    Raises:
        DataError: one is not such a file, or has other columns than the first.
    """
    tables = []
    for path in files:
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
                tables.append(reader.read_all())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{str(path)!r} is not a readable Arrow file: {reason_of(error)}"
            ) from None
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(
            f"{str(files[0])!r} and the files beside it have different columns: {reason_of(error)}"
        ) from None


def features_of(table: pa.Table) -> Mapping[str, Mapping[str, Any]]:
    """Column → what `datasets` says of it: `_type`, and `names` of a `ClassLabel`."""
    try:
        features = parse_json((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {
        name: about for name, about in dict(features).items() if isinstance(about, Mapping)
    }  # a list or a nested column is neither picture nor label


def encoded_column(table: pa.Table, column: str, what: str) -> pa.ChunkedArray:
    """The bytes of a column of encoded images.

    Args:
        column: of bytes, or of what `datasets` calls an Image.

    Raises:
        DataError: the column holds something else, or only names files.
    """
    found = table.column(column)
    if pa.types.is_struct(found.type):
        names = [found.type.field(i).name for i in range(found.type.num_fields)]
        if "bytes" in names:
            found = pa.chunked_array(
                [chunk.flatten()[names.index("bytes")] for chunk in found.chunks],
                found.type.field("bytes").type,
            )
    if not (pa.types.is_binary(found.type) or pa.types.is_large_binary(found.type)):
        raise DataError(
            f"{what}: the column {column!r} must hold encoded images, it holds {found.type}"
        )
    try:
        found.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{what}: the column {column!r} is damaged: {reason_of(error)}") from None
    if found.null_count:
        first = int(np.flatnonzero(pc.is_null(found).to_numpy())[0])
        raise DataError(
            f"{what}: {found.null_count:,} of {len(found):,} rows hold no image, the first is row "
            f"{first}.",
            hint="A data set that only names its files is written whole by `save_to_disk`.",
        )
    return found


@dataclass(frozen=True)
class ArrowSource(PackedSource):
    """Encoded images in a column of Arrow files.

    Attributes:
        rows: (N,) which row each image is.
    """

    files: tuple[Path, ...]
    column: str
    rows: NDArray[np.int64]
    what: str
    side: int = 0
    border: int = 0

    def __getstate__(self) -> dict[str, Any]:
        # Each process maps the files itself.
        return {k: v for k, v in self.__dict__.items() if k not in ("_chunks", "_starts")}

    @cached_property
    def _chunks(self) -> list[pa.Array]:
        return encoded_column(open_table(self.files), self.column, self.what).chunks  # type: ignore[no-any-return]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(chunk) for chunk in self._chunks)])

    def __len__(self) -> int:
        return len(self.rows)

    def _name(self, index: int) -> str:
        return f"{self.what}: row {self.rows[index]}"

    def _buffer(self, index: int) -> pa.Buffer:
        row = int(self.rows[index])
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[at][row - int(self._starts[at])].as_buffer()

    def _size(self, index: int) -> int:
        return int(self._buffer(index).size)

    def _bytes(self, index: int) -> bytes:
        return self._buffer(index).to_pybytes()  # type: ignore[no-any-return]

    def _state(self, indices: NDArray[np.int64]) -> str:
        state = hashlib.sha256(f"arrow;{self.column};".encode())
        for path in self.files:
            state.update(f"{file_state(path)};".encode())
        state.update(self.rows[indices].astype("<i8").tobytes())
        return state.hexdigest()

    def only(self, indices: NDArray[np.int64]) -> ArrowSource:
        """The images at these positions, as a source of their own."""
        return replace(self, rows=self.rows[indices])
