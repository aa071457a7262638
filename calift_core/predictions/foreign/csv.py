"""Predictions in a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from calift_core.errors import PredictionsError
from calift_core.predictions.foreign.source import HEADER_BYTES, ForeignSource, json_of, too_large
from calift_core.predictions.foreign.table import find_columns, from_table
from calift_core.untrusted import unmark_formula


def read_csv(path: Path, max_bytes: int) -> ForeignSource:
    """What a CSV file holds.

    Raises:
        PredictionsError: it is too large, damaged or lacks a column.
    """
    size = path.stat().st_size
    if size > 4 * max_bytes:  # a number takes some four times as many bytes as text
        raise too_large(path, size, 4 * max_bytes)
    described, header, skip = _csv_head(path)
    columns = find_columns(path, header, lists=False)
    types = dict.fromkeys(columns.values, pa.float64())
    types |= {name: pa.string() for name in (columns.ids, columns.clusters) if name}
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(
                skip_rows=skip, block_size=HEADER_BYTES, use_threads=False
            ),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=types,
                include_columns=columns.all,
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except MemoryError:
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        message = str(error).removeprefix("CSV parse error: ").removeprefix("In ")
        raise PredictionsError(f"{path} must be a CSV table, got: {message[:300]}") from error
    source = from_table(path, table, columns)
    source.described = described
    if described is not None:  # we wrote it
        for texts in (source.ids, source.clusters):
            if texts is not None and texts.dtype.kind == "U":
                texts[:] = [unmark_formula(one) for one in texts.tolist()]
    return source


def _csv_head(path: Path) -> tuple[dict[str, Any] | None, list[str], int]:
    """Metadata of the first line, column names, and the lines before those."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline(HEADER_BYTES)
            described = None
            if first.startswith("# calift "):
                described = json_of(path, first.removeprefix("# calift "))
                first = file.readline(HEADER_BYTES)
        except UnicodeDecodeError as error:
            raise PredictionsError(f"{path} must be UTF-8 text, got: {error}") from error
    try:
        header = next(csv.reader([first]), [])
    except csv.Error as error:
        raise PredictionsError(f"{path} must begin with column names, got: {error}") from error
    return described, header, 0 if described is None else 1
