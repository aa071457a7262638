"""Predictions in the columns of a table: Parquet, and what CSV shares with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calift_core.errors import PredictionsError
from calift_core.predictions.foreign.source import (
    Array,
    ForeignSource,
    Kind,
    damaged_file,
    pick_kind,
    too_large,
)
from calift_core.predictions.types import MAX_TEXT

_SINGULAR = {"labels": "label", "ids": "id", "clusters": "cluster"}


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are what.

    `values` is one list column, C numbered or named ones, or one of a binary probability; `classes`
    are the names where columns have some.
    """

    labels: str
    kind: Kind
    values: tuple[str, ...]
    ids: str | None
    clusters: str | None
    classes: tuple[str, ...] | None = None

    @property
    def all(self) -> list[str]:
        """The names of all of them."""
        return [self.labels, *self.values, *(c for c in (self.ids, self.clusters) if c)]


def find_columns(path: Path, names: Sequence[str], *, lists: bool) -> _Columns:
    """Which columns hold what.

    Raises:
        PredictionsError: one is missing, named twice or left out of a numbered row.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise PredictionsError(f"{path} must name each column once, got {twice!r} twice")
    numbered: dict[str, dict[int, str]] = {"probs": {}, "logits": {}}
    named: dict[str, dict[str, str]] = {"probs": {}, "logits": {}}
    for name in names:
        stem, _, ending = name.partition("_")
        if stem in numbered and re.fullmatch(r"0|[1-9][0-9]{0,6}", ending):
            numbered[stem][int(ending)] = name
        elif stem in named and ending:
            named[stem][ending] = name
    # One column of numbers is the probability of the second of two classes.
    alone = {"probs": "probs" in names, "logits": lists and "logits" in names}
    has = {stem: bool(numbered[stem] or named[stem] or alone[stem]) for stem in numbered}
    kind = pick_kind(path, has["probs"], has["logits"], names)
    found = {
        plural: next((name for name in (plural, singular) if name in names), None)
        for plural, singular in _SINGULAR.items()
    }
    if found["labels"] is None:
        raise PredictionsError(f"{path} must have a column labels, got {', '.join(names[:12])}")
    columns = numbered[kind]
    if not columns and len(named[kind]) > 1:
        classes = tuple(named[kind])
        return _Columns(
            found["labels"],
            kind,
            tuple(named[kind].values()),
            found["ids"],
            found["clusters"],
            classes,
        )
    missing = [index for index in range(len(columns)) if index not in columns]
    if missing:
        raise PredictionsError(
            f"{path} must have the columns {kind}_0 to {kind}_{max(columns)}, got no "
            f"{kind}_{missing[0]}"
        )
    values = tuple(columns[index] for index in range(len(columns))) or (kind,)
    return _Columns(found["labels"], kind, values, found["ids"], found["clusters"])


def from_table(path: Path, table: pa.Table, columns: _Columns) -> ForeignSource:
    """What the columns of a table hold.

    Raises:
        PredictionsError: the table is empty or a value is missing.
    """
    if not table.num_rows:
        raise PredictionsError(f"{path} must hold at least one sample, got none")
    for name in columns.all:
        if table.column(name).null_count:
            raise PredictionsError(f"column {name} must have a value in every row, got nulls")
    binary = pa.types.is_floating(table.column(columns.values[0]).type)
    if columns.values == (columns.kind,) and binary:
        values = table.column(columns.kind).to_numpy()
    elif columns.values == (columns.kind,):
        values = _matrix(path, columns.kind, table.column(columns.kind))
    else:
        for name in columns.values:
            if not pa.types.is_floating(table.column(name).type):
                raise PredictionsError(
                    f"column {name} must hold floats, got {table.column(name).type}"
                )
        wide = any(table.column(name).type == pa.float64() for name in columns.values)
        values = np.empty((table.num_rows, len(columns.values)), np.float64 if wide else np.float32)
        for index, name in enumerate(columns.values):
            values[:, index] = table.column(name).to_numpy()
    return ForeignSource(
        labels=_labels(columns.labels, table),
        values=values,
        kind=columns.kind,
        ids=_text_column(columns.ids, table),
        clusters=_text_column(columns.clusters, table),
        class_names=columns.classes,
    )


def _labels(name: str, table: pa.Table) -> Array:
    if pa.types.is_boolean(table.column(name).type):
        return cast("Array", table.column(name).to_numpy(zero_copy_only=False).astype(np.int64))
    found = _text_column(name, table)
    assert found is not None
    return found


def _text_column(name: str | None, table: pa.Table) -> Array | None:
    if name is None:
        return None
    column = table.column(name)
    if pa.types.is_integer(column.type):
        return cast("Array", column.to_numpy())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise PredictionsError(f"column {name} must hold strings or integers, got {column.type}")
    longest = pc.max(pc.utf8_length(column)).as_py()
    if longest > MAX_TEXT:
        raise PredictionsError(
            f"column {name} must hold at most {MAX_TEXT} characters a row, got {longest}"
        )
    return np.array(column.to_pylist(), dtype=np.str_)


def _matrix(path: Path, name: str, column: pa.ChunkedArray) -> Array:
    kind = column.type
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise PredictionsError(f"column {name} must hold lists of floats, got {kind}")
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise PredictionsError(
            f"every list of column {name} must have the same length ≥ 1, got "
            f"{', '.join(map(str, sorted(lengths)[:5]))}"
        )
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise PredictionsError(f"column {name} must have a value everywhere, got nulls")
    return cast("Array", flat.to_numpy().reshape(len(column), lengths[0]))


def is_ours(path: Path, max_bytes: int) -> bool:
    """Whether calift wrote a Parquet file, after its declared sizes were found to be bearable."""
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            declared = _declared_bytes(parquet.metadata)
            metadata = parquet.schema_arrow.metadata or {}
    except MemoryError:  # pyarrow's own is one of its exceptions too
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_file(path, "Parquet", error) from error
    if declared > max_bytes:
        raise too_large(path, declared, max_bytes)
    return b"calift" in metadata


def _declared_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes that the columns take once decoded: a run of equal values may be stored as one."""
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            width = 4 if column.physical_type in ("FLOAT", "INT32") else 8
            total += max(column.total_uncompressed_size, column.num_values * width)
    return total


def read_parquet(path: Path, max_bytes: int) -> ForeignSource:
    """What a Parquet file that is not calift's own holds.

    Raises:
        PredictionsError: it is too large, damaged or lacks a column.
    """
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            columns = find_columns(path, parquet.schema_arrow.names, lists=True)
            return from_table(path, parquet.read(columns=columns.all), columns)
    except MemoryError:  # pyarrow's own is one of its exceptions too
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_file(path, "Parquet", error) from error
