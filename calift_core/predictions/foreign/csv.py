"""Predictions in a CSV file."""

import csv
from array import array
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO

import numpy as np

from calift_core.errors import PredictionsError
from calift_core.predictions.foreign.columns import find_columns
from calift_core.predictions.foreign.source import (
    HEADER_BYTES,
    Array,
    ForeignSource,
    json_of,
    too_large,
)
from calift_core.predictions.types import MAX_TEXT
from calift_core.untrusted import unmark_formula

_BOOLEANS = {"true": 1, "false": 0}


def read_csv(path: Path, max_bytes: int) -> ForeignSource:
    """What a CSV file holds.

    Raises:
        PredictionsError: it is too large, damaged or lacks a column.
    """
    size = path.stat().st_size
    if size > 4 * max_bytes:  # a number takes some four times as many bytes as text
        raise too_large(path, size, 4 * max_bytes)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, file)
    except UnicodeDecodeError as error:
        raise PredictionsError(f"{path} must be UTF-8 text, got: {error}") from error
    except csv.Error as error:
        raise PredictionsError(f"{path} must be a CSV table, got: {error}") from error


def _read(path: Path, file: IO[str]) -> ForeignSource:
    first = file.readline(HEADER_BYTES)
    described = None
    if first.startswith("# calift "):
        described = json_of(path, first.removeprefix("# calift "))
        first = file.readline(HEADER_BYTES)
    header = next(csv.reader([first], strict=True), [])
    columns = find_columns(path, header, lists=False)
    texts: dict[str, list[str]] = {
        name: [] for name in (columns.labels, columns.ids, columns.clusters) if name
    }
    values = array("d")
    pick = itemgetter(*map(header.index, columns.values))
    text_columns = [(header.index(name), cells) for name, cells in texts.items()]
    many = len(columns.values) > 1
    for number, row in _rows(path, file, len(header)):
        own = pick(row) if many else (pick(row),)
        try:
            values.extend(map(float, own))
        except ValueError:
            raise _no_number(path, number, columns.values, own) from None
        for at, cells in text_columns:
            cells.append(row[at])
    if not values:
        raise PredictionsError(f"{path} must hold at least one sample, got none")
    if described is not None:  # we wrote it
        for name in (columns.ids, columns.clusters):
            if name is not None:
                texts[name] = [unmark_formula(cell) for cell in texts[name]]
    found = np.frombuffer(values, dtype=np.float64)
    return ForeignSource(
        labels=_labels(columns.labels, texts[columns.labels]),
        values=found.reshape(-1, len(columns.values)),
        kind=columns.kind,
        ids=_strings(columns.ids, texts[columns.ids]) if columns.ids else None,
        clusters=_strings(columns.clusters, texts[columns.clusters]) if columns.clusters else None,
        class_names=columns.classes,
        described=described,
    )


def _rows(path: Path, file: IO[str], width: int) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(csv.reader(file, strict=True), start=1):
        if len(row) == width:
            yield number, row
        elif row:
            raise PredictionsError(
                f"every row of {path} must have {width} columns, row {number} has {len(row)}"
            )


def _no_number(
    path: Path, row: int, names: Sequence[str], cells: Sequence[str]
) -> PredictionsError:
    for name, cell in zip(names, cells, strict=True):
        try:
            float(cell)
        except ValueError:
            return PredictionsError(
                f"column {name} of {path} must hold a number in every row, row {row} has "
                f"{cell[:40]!r}"
            )
    raise AssertionError


def _labels(name: str, cells: list[str]) -> Array:
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    lowered = {cell.lower() for cell in cells}
    if lowered <= _BOOLEANS.keys():
        return np.array([_BOOLEANS[cell.lower()] for cell in cells], dtype=np.int64)
    return _strings(name, cells)


def _strings(name: str, cells: list[str]) -> Array:
    # NumPy gives every string the room of the longest: one long text could take all memory.
    longest = max(map(len, cells))
    if longest > MAX_TEXT:
        raise PredictionsError(
            f"column {name} must hold at most {MAX_TEXT} characters a row, got {longest}"
        )
    return np.array(cells, dtype=np.str_)
