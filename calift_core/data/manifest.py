"""A table of image files with their labels: CSV, JSON lines or Parquet. Torch-free.

Columns are `path` and `label`, and `split`, `domain` and `group` where the table says more.
"""

from __future__ import annotations

import csv
import os
import posixpath
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.listing import EXTENSIONS, PARTS, ScanBudget, part_named
from calift_core.data.names import Names
from calift_core.errors import DataError, DataUnavailableError, reason_of
from calift_core.untrusted import parse_json
from calift_core.words import percent

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
#: Up to this share of a manifest's images may be missing. They are named and left out.
MISSING_SHARE = 0.01
_NO_HEADER = "A manifest has the columns path and label, and may have split, domain and group."


@dataclass(frozen=True)
class CodedColumn:
    """A column of few different texts.

    Attributes:
        codes: (N,) positions in `names`; -1 where the cell is empty.
        names: each text once, sorted.
    """

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def take(self, positions: NDArray[np.int64]) -> CodedColumn:
        """The cells at some positions, with the names that are left."""
        used, codes = np.unique(self.codes[positions], return_inverse=True)
        empty = int(len(used) > 0 and used[0] < 0)
        names = tuple(self.names[int(i)] for i in used[empty:])
        return CodedColumn((codes - empty).astype(np.int32), names)

    def of(self, name: str) -> NDArray[np.bool_]:
        """Which cells (N,) hold this text."""
        at = self.names.index(name) if name in self.names else len(self.names)
        return np.equal(self.codes, np.int32(at))


@dataclass(frozen=True)
class Manifest:
    """N images, in the order of their labels and then their paths.

    Attributes:
        labels: none is empty.
        splits: of `PARTS`.
        groups: images that must not be torn apart.
    """

    file: Path
    paths: Names
    labels: CodedColumn
    splits: CodedColumn
    domains: CodedColumn
    groups: CodedColumn
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, keep: NDArray[np.bool_]) -> Manifest:
        """The images (N,) that are to be kept."""
        at = np.flatnonzero(keep)
        return Manifest(
            self.file,
            self.paths.take(at),
            self.labels.take(at),
            self.splits.take(at),
            self.domains.take(at),
            self.groups.take(at),
            self.notes,
        )


def read_manifest(file: Path, budget: ScanBudget | None = None) -> Manifest:
    """Read a table and look whether its images are there; none is opened.

    Raises:
        DataUnavailableError: there is no such file, or too many of its images are missing.
        DataError: it is no such table; names the row.
        TooManyFilesError: the budget is spent.
    """
    if not file.is_file():
        raise DataUnavailableError(
            f"there is no manifest {str(file)!r}.", hint=f"{_NO_HEADER} Paths start here."
        )
    rows = _Rows(file)
    for number, row in _rows_of(file):
        if budget is not None:
            budget.take(1)
        rows.add(number, row)
    return _present(rows.finished())


def _rows_of(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]]] = {
        ".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows, ".parquet": _parquet_rows
    }  # fmt: skip
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"a manifest ends in {', '.join(SUFFIXES)}, got {file.name!r}.", hint=_NO_HEADER
        )
    try:
        yield from reader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file.name} is not readable as {file.suffix[1:]}: {error}") from None


def _require_columns(file: Path, columns: Iterable[Any]) -> None:
    have = [str(c) for c in columns]
    for name in ("path", "label"):
        if name not in have:
            found = ", ".join(have[:12]) or "none"
            raise DataError(
                f"{file.name} has no column {name!r}, its columns are: {found}.", hint=_NO_HEADER
            )


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, strict=True)
        _require_columns(file, reader.fieldnames or ())
        for row in reader:
            if None in row:
                raise DataError(
                    f"{file.name}, line {reader.line_num}: {len(reader.fieldnames or ())} cells "
                    "are expected, there are more; put quotes around a cell that holds a comma"
                )
            yield reader.line_num, row


def _json_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(encoding="utf-8-sig") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{file.name}, line {number} is no JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{file.name}, line {number}: expected an object, got {line[:60]}")
            _require_columns(file, row)
            yield number, row


def _parquet_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            have = table.schema_arrow.names
            _require_columns(file, have)
            columns = [c for c in ("path", "label", "split", "domain", "group") if c in have]
            number = 0
            for batch in table.iter_batches(8192, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.name} is not a readable Parquet file: {reason_of(error)}") from None


@dataclass
class _Coded:
    """A column that is being read."""

    codes: array[int] = field(default_factory=lambda: array("i"))
    known: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        self.codes.append(self.known.setdefault(text, len(self.known)) if text else -1)

    def column(self, order: NDArray[np.int64], key: Callable[[str], Any] = str) -> CodedColumn:
        names = sorted(self.known, key=key)
        new = np.empty(len(names) + 1, dtype=np.int32)
        new[[self.known[name] for name in names]] = np.arange(len(names))
        new[-1] = -1
        return CodedColumn(new[np.frombuffer(self.codes, dtype=np.int32)][order], tuple(names))


def is_number(text: str) -> bool:
    """Whether a label is a number and no word."""
    return text.replace(".", "", 1).removeprefix("-").isdecimal()


class _Rows:
    """Rows that are being read, each checked as it comes."""

    def __init__(self, file: Path) -> None:
        self.file, self.folder = file, file.parent.absolute()
        self.paths: dict[str, int] = {}
        self.columns = {name: _Coded() for name in ("label", "split", "domain", "group")}
        self.number: tuple[int, str] | None = None
        self.word: tuple[int, str] | None = None

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        cells = {name: self._cell(number, name, row.get(name)) for name in ("path", *self.columns)}
        path = self._path(number, cells["path"])
        if path in self.paths:
            raise self._wrong(
                number, f"{path!r} is there already, in row {self.paths[path]}: name it once"
            )
        label = cells["label"]
        if not label:
            raise self._wrong(number, f"{path!r} has no label")
        if is_number(label):
            self.number = self.number or (number, label)
        else:
            self.word = self.word or (number, label)
        if self.number and self.word:
            raise self._wrong(
                self.number[0],
                f"the label is the number {self.number[1]}, in row {self.word[0]} it is the word "
                f"{self.word[1]!r}; labels are all words or all numbers",
            )
        if cells["split"]:
            cells["split"] = self._split(number, cells["split"])
        self.paths[path] = number
        for name, coded in self.columns.items():
            coded.add(cells[name])

    def finished(self) -> Manifest:
        """What was read, sorted."""
        if not self.paths:
            raise DataError(f"{self.file.name} has no rows.", hint=_NO_HEADER)

        def key(text: str) -> tuple[float, str]:
            return (float(text) if self.number else 0.0), text

        everything = np.arange(len(self.paths))
        labels = self.columns["label"].column(everything, key).codes
        paths = list(self.paths)
        # Folder by folder, as class folders are listed, whatever the order of the rows.
        order = np.array(
            sorted(everything.tolist(), key=lambda i: (labels[i], paths[i].split("/"))), np.int64
        )
        return Manifest(
            self.file,
            Names.of(paths[int(i)] for i in order),
            self.columns["label"].column(order, key),
            self.columns["split"].column(order),
            self.columns["domain"].column(order),
            self.columns["group"].column(order),
        )

    def _wrong(self, number: int, what: str) -> DataError:
        return DataError(f"{self.file.name}, row {number}: {what}")

    def _cell(self, number: int, name: str, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self._wrong(number, f"{name} must be a text or a number, got {value!r}"[:300])
        if isinstance(value, float):
            if not np.isfinite(value):
                return ""  # how tables of numbers say that a cell is empty
            value = int(value) if value.is_integer() else value
        return str(value).strip()

    def _path(self, number: int, text: str) -> str:
        if not text:
            raise self._wrong(number, "there is no path")
        if "://" in text:
            raise self._wrong(number, f"images are files, nothing is fetched, got {text[:200]!r}")
        if "\0" in text:
            raise self._wrong(number, f"no file is called {text[:200]!r}")
        path = text
        if os.path.isabs(text):
            path = os.path.relpath(os.path.normpath(text), self.folder)
        path = posixpath.normpath(path.replace(os.sep, "/"))
        if path == ".." or path.startswith("../"):
            raise self._wrong(
                number, f"{text[:200]!r} leads out of the manifest's folder {str(self.folder)!r}"
            )
        if not path.lower().endswith(EXTENSIONS):
            raise self._wrong(number, f"images end in {', '.join(EXTENSIONS)}, got {text[:200]!r}")
        return path

    def _split(self, number: int, text: str) -> str:
        part = part_named(text)
        if part is None:
            raise self._wrong(
                number, f"split is one of {', '.join(PARTS)} or a common name of one, got {text!r}"
            )
        return part


def _present(manifest: Manifest) -> Manifest:
    """The manifest without images that are not there."""
    folder = manifest.file.parent
    here = np.fromiter((_is_there(folder / p) for p in manifest.paths), np.bool_, len(manifest))
    if here.all():
        return manifest
    lacking = np.flatnonzero(~here)
    named = ", ".join(repr(manifest.paths[int(i)]) for i in lacking[:3])
    more = f" and {len(lacking) - 3:,} more" if len(lacking) > 3 else ""
    summary = (
        f"{len(lacking):,} of the {len(manifest):,} images of {manifest.file.name} are missing or "
        f"empty: {named}{more}"
    )
    if len(lacking) > MISSING_SHARE * len(manifest):
        raise DataUnavailableError(
            f"{summary}.",
            hint=f"Up to {percent(MISSING_SHARE, 0)} may be missing. Paths start from "
            f"{str(folder)!r}.",
        )
    return replace(manifest.take(here), notes=(f"{summary}; they are left out",))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False
