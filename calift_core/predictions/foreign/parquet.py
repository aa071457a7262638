"""Predictions in a Parquet file that calift did not write. Needs pyarrow."""

from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calift_core.errors import PredictionsError
from calift_core.predictions.foreign.columns import Columns, find_columns
from calift_core.predictions.foreign.source import (
    Array,
    ForeignSource,
    damaged_file,
    too_large,
)
from calift_core.predictions.types import MAX_TEXT


def _from_table(path: Path, table: pa.Table, columns: Columns) -> ForeignSource:
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
            return _from_table(path, parquet.read(columns=columns.all), columns)
    except MemoryError:  # pyarrow's own is one of its exceptions too
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_file(path, "Parquet", error) from error
