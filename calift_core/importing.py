"""Predictions that people made elsewhere, and predictions that people take elsewhere. No torch.

What is read is told by the content, not by the name:

* **NPZ**: `labels` (N,) integers and either `probs` or `logits` (N, C) floats; optional are `ids`
  (N,), `class_names` (C,) and `clusters` (N,). Nothing is unpickled.
* **Parquet**: columns `labels` and either a list column `probs` or `logits` or the columns
  `probs_0` … (`logits_0` …); optional are `ids` and `clusters`. The singular names (`label`, `id`,
  `cluster`) are understood too. A predictions file of calift is read as what it is.
* **CSV**: a header with the same columns, numbered ones. A first line `# calift {…}` holds the
  metadata that `export_predictions` writes there; other readers skip it (`skiprows=1` in pandas).

Sizes that a file declares are looked at before anything is unpacked. Probabilities become logits
log p, floored at the smallest normal float32, so that softmax(logits) is what was given.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from calift_core import __version__
from calift_core.calibration.bins import check_labels, check_logits, check_probs
from calift_core.errors import CaliftError, PredictionsError, SpecError, UnknownNameError
from calift_core.files import atomic_path, atomic_write_json, storage_error
from calift_core.predictions import (
    MAX_TEXT,
    Keep,
    Predictions,
    PredictionsMetadata,
    Role,
    TopKPredictions,
    predictions_name,
    read_metadata,
    read_predictions,
    read_top_k,
    write_predictions,
)
from calift_core.reporting import evaluation_report, summarise
from calift_core.schema.imported import Imported, ImportedSpec, ImportedSuite
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.spec import EvaluationSpec

#: Bytes of one file's arrays once unpacked: 50,000 × 1,000 in float64 take 400 MB.
MAX_BYTES = 1 << 30
MAX_CLASSES = 100_000
_HEADER_BYTES = 16 << 20
_FLOOR = float(np.finfo(np.float32).tiny)
_SINGULAR = {"labels": "label", "ids": "id", "clusters": "cluster"}
_FORMATS = (".parquet", ".csv", ".npz")

Array = npt.NDArray[Any]
Kind = Literal["probs", "logits"]


@dataclass
class _Source:
    """What a file holds, before any of it is believed."""

    labels: Array
    values: Array
    kind: Kind
    ids: Array | None = None
    clusters: Array | None = None
    class_names: Sequence[str] | None = None
    described: Mapping[str, Any] | None = None


def load_predictions(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    role: Role | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Predictions | TopKPredictions:
    """Read predictions from NPZ, Parquet or CSV and check all of them.

    Args:
        path: the file; its content tells its kind.
        dataset: name of the data set; None: what the file says, else its name without ending.
        role: None: what the file says, else `id`.
        class_names: C names; None: what the file says, else `class 0` and so on.
        max_bytes: what the arrays may take once unpacked.

    Returns:
        N samples; those of a file that kept the largest logits alone as such. Without ids in the
        file they are numbered, so that two files of one set in one order can be paired.

    Raises:
        PredictionsError: the file is of another kind, damaged, too large, or breaks its contract.
        StorageError: it cannot be opened.
    """
    path = Path(path)
    kind = _kind_of(path)
    if kind == "parquet" and _is_ours(path, max_bytes):
        ours = read_metadata(path)
        stored = read_predictions(path) if ours.storage == "full" else read_top_k(path)
        return _renamed(stored, dataset=dataset, role=role, class_names=class_names)
    reader = {"npz": _read_npz, "parquet": _read_parquet, "csv": _read_csv}[kind]
    source = reader(path, max_bytes)
    if class_names is not None:
        source.class_names = class_names
    return _assembled(source, dataset=dataset or path.stem, role=role, named=dataset is not None)


def _kind_of(path: Path) -> Literal["npz", "parquet", "csv"]:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if not start:
        raise PredictionsError(f"{path} must be NPZ, Parquet or CSV, got an empty file")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"\x93NUMPY"):
        raise PredictionsError(
            f"{path} must hold labels and probs (or logits), got a single array (.npy).",
            hint="numpy.savez_compressed(FILE, labels=…, probs=…) makes one file of both.",
        )
    if b"\x00" in start or not _is_text(start):
        raise PredictionsError(
            f"{path} must be NPZ, Parquet or CSV, got another kind of file "
            f"(it begins with {start[:8]!r})"
        )
    return "csv"


def _is_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 3  # a character that the cut went through
    return True


def _renamed(
    stored: Predictions | TopKPredictions,
    *,
    dataset: str | None,
    role: Role | None,
    class_names: Sequence[str] | None,
) -> Predictions | TopKPredictions:
    given: dict[str, Any] = {"dataset": dataset, "role": role, "class_names": class_names}
    changes = {name: value for name, value in given.items() if value is not None}
    metadata = replace(stored.metadata, **changes) if changes else stored.metadata
    _check_texts(metadata)
    return replace(stored, metadata=metadata)


def _assembled(source: _Source, *, dataset: str, role: Role | None, named: bool) -> Predictions:
    values = source.values
    if values.ndim != 2:
        raise PredictionsError(f"{source.kind} must have the shape (N, C), got {values.shape}")
    n, n_classes = values.shape
    if n_classes > MAX_CLASSES:
        raise PredictionsError(f"there must be at most {MAX_CLASSES:,} classes, got {n_classes:,}")
    if source.kind == "probs":
        probs = check_probs(values)
        logits = np.log(np.maximum(probs, _FLOOR)).astype(np.float32)
    else:
        logits = np.asarray(check_logits(values), dtype=np.float32)
    labels = check_labels(source.labels, n, n_classes)
    ids = _texts("ids", source.ids, n)
    if ids is None:
        ids = np.arange(n).astype(np.str_)
    names = source.class_names
    described = dict(source.described or {})
    if names is None:
        names = described.get("class_names") or [f"class {c}" for c in range(n_classes)]
    made: dict[str, Any] = {
        "dataset": dataset,
        "role": "id",
        "logit_scale": 1.0,
        "provenance": _provenance(source.kind),
    }
    known = {item.name for item in fields(PredictionsMetadata)}
    made |= {key: value for key, value in described.items() if key in known}
    made |= {"class_names": names, "storage": "full", "k": None, "format_version": 2}
    if named:
        made["dataset"] = dataset
    if role is not None:
        made["role"] = role
    if source.kind == "probs":
        made |= {"provenance": _provenance("probs"), "logit_scale": 1.0, "temperature": 1.0}
    try:
        metadata = PredictionsMetadata(**made)
    except (TypeError, UnknownNameError) as error:
        raise PredictionsError(f"the metadata must be complete, got: {error}") from error
    _check_texts(metadata)
    return Predictions(
        ids=ids,
        labels=labels,
        logits=logits,
        metadata=metadata,
        clusters=_texts("clusters", source.clusters, n),
    )


def _provenance(kind: Kind) -> str:
    if kind == "logits":
        return f"logits imported by calift {__version__}"
    return (
        f"probabilities imported by calift {__version__}; the logits are log p, "
        f"p floored at {_FLOOR:.3g}"
    )


def _texts(name: str, values: Array | None, n: int) -> npt.NDArray[np.str_] | None:
    if values is None:
        return None
    if values.dtype.kind not in "UiuO" or values.shape != (n,):
        raise PredictionsError(
            f"{name} must be {n} strings or integers, got {values.dtype} of shape {values.shape}"
        )
    if values.dtype.kind == "U" and values.dtype.itemsize // 4 > MAX_TEXT:
        raise PredictionsError(
            f"{name} must have at most {MAX_TEXT} characters each, got room for "
            f"{values.dtype.itemsize // 4}"
        )
    found = values.astype(np.str_)
    if name == "ids" and len(np.unique(found)) < n:
        distinct, counts = np.unique(found, return_counts=True)
        raise PredictionsError(
            f"ids must be unique, got {str(distinct[counts.argmax()])!r} {counts.max()} times"
        )
    return found


def _check_texts(metadata: PredictionsMetadata) -> None:
    """What is stored and shown must be text that a database and a browser can hold."""
    if len(metadata.dataset) > 200 or not metadata.dataset.isprintable():
        raise PredictionsError(
            f"dataset must be at most 200 printable characters, got {metadata.dataset[:80]!r}"
        )
    for name in ("class_names", "templates"):
        for text in getattr(metadata, name):
            if len(text) > MAX_TEXT or not text.replace("\n", " ").isprintable():
                raise PredictionsError(
                    f"{name} must hold at most {MAX_TEXT} printable characters each, "
                    f"got {text[:80]!r}"
                )
    for name in ("source_dataset", "model_sha256", "dataset_sha256", "created_by", "provenance"):
        text = getattr(metadata, name) or ""
        if len(text) > MAX_TEXT or not text.isprintable():
            raise PredictionsError(
                f"{name} must be at most {MAX_TEXT} printable characters, got {text[:80]!r}"
            )


def _too_large(path: Path, got: int, most: int) -> PredictionsError:
    return PredictionsError(
        f"{path} must unpack to at most {most:,} bytes, it declares {got:,}.",
        hint="Store float32 in place of float64, or import the set in parts.",
    )


def _pick_kind(path: Path, has_probs: bool, has_logits: bool, names: Sequence[str]) -> Kind:
    if has_probs and has_logits:
        raise PredictionsError(
            f"{path} must hold either probs or logits, got both.", hint="Leave one of them out."
        )
    if not (has_probs or has_logits):
        raise PredictionsError(
            f"{path} must hold probs or logits, got {', '.join(names[:12]) or 'nothing'}"
        )
    return "probs" if has_probs else "logits"


# -------------------------------------------------------------------------------------------- NPZ


def _read_npz(path: Path, max_bytes: int) -> _Source:
    known = {"labels", "probs", "logits", "ids", "class_names", "clusters", "calift"}
    try:
        with zipfile.ZipFile(path) as archive:
            members: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in members:
                    raise PredictionsError(f"{path} must name each array once, got {name!r} twice")
                members[name] = info
            kind = _pick_kind(path, "probs" in members, "logits" in members, list(members))
            if "labels" not in members:
                raise PredictionsError(
                    f"{path} must hold the array labels, got {', '.join(list(members)[:12])}"
                )
            declared = sum(members[name].file_size for name in known & members.keys())
            if declared > max_bytes:
                raise _too_large(path, declared, max_bytes)
            arrays = {n: _read_member(archive, n, members[n]) for n in known & members.keys()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, "NPZ", error) from error
    except OSError as error:
        raise storage_error(error, path, "read") from error
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise PredictionsError(
            f"class_names must be strings of shape (C,), got {names.dtype} of shape {names.shape}"
        )
    described = arrays.get("calift")
    if described is not None and (described.ndim != 0 or described.dtype.kind != "U"):
        raise PredictionsError(f"calift must be one string, got {described.dtype}")
    return _Source(
        labels=arrays["labels"],
        values=arrays[kind],
        kind=kind,
        ids=arrays.get("ids"),
        clusters=arrays.get("clusters"),
        class_names=None if names is None else [str(name) for name in names],
        described=None if described is None else _json(path, str(described)),
    )


def _damaged(path: Path, kind: str, error: BaseException) -> PredictionsError:
    return PredictionsError(
        f"{path} must be a readable {kind} file, got: {str(error) or type(error).__name__}",
        hint="It is damaged or cut short; make it again.",
    )


def _read_member(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Array:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PredictionsError(
            f"{name} must be stored or deflated, got compression {info.compress_type}"
        )
    with archive.open(info) as member:
        try:
            return _read_npy(name, member, info.file_size)
        except ValueError as error:
            raise PredictionsError(f"{name} must be a NumPy array, got: {error}") from error


def _read_npy(name: str, member: IO[bytes], size: int) -> Array:
    """Read an array whose header was found to fit the declared size; never an object."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ValueError(f"format version {version[0]}.{version[1]}")
    if dtype.hasobject or dtype.kind not in "biufU":
        raise PredictionsError(
            f"{name} must be numbers or strings, got {dtype}.",
            hint="Arrays of Python objects would be unpickled, which calift never does; "
            "numpy.array(names, dtype=str) makes strings.",
        )
    wanted = dtype.itemsize
    for length in shape:
        wanted *= length
    held = size - member.tell()
    if wanted != held or any(length < 0 for length in shape):
        raise PredictionsError(
            f"{name} must hold the {wanted:,} bytes of its shape {shape}, its member has {held:,}"
        )
    data = member.read(wanted)
    if len(data) != wanted:
        raise PredictionsError(f"{name} must hold {wanted:,} bytes, got {len(data):,}")
    if not wanted:
        raise PredictionsError(f"{name} must not be empty, got shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise PredictionsError(f"calift metadata of {path} must be JSON, got: {error}") from error
    if not isinstance(found, dict):
        raise PredictionsError(
            f"calift metadata of {path} must be an object, got {type(found).__name__}"
        )
    return found


# ---------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table are what; `values` is one list column or C numbered ones."""

    labels: str
    kind: Kind
    values: tuple[str, ...]
    ids: str | None
    clusters: str | None

    @property
    def all(self) -> list[str]:
        """Their names."""
        return [self.labels, *self.values, *(c for c in (self.ids, self.clusters) if c)]


def _find_columns(path: Path, names: Sequence[str], *, lists: bool) -> _Columns:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise PredictionsError(f"{path} must name each column once, got {twice!r} twice")
    numbered: dict[str, dict[int, str]] = {"probs": {}, "logits": {}}
    for name in names:
        stem, _, number = name.rpartition("_")
        if stem in numbered and re.fullmatch(r"0|[1-9][0-9]{0,6}", number):
            numbered[stem][int(number)] = name
    has = {stem: bool(numbered[stem]) or (lists and stem in names) for stem in numbered}
    kind = _pick_kind(path, has["probs"], has["logits"], names)
    found = {
        plural: next((name for name in (plural, singular) if name in names), None)
        for plural, singular in _SINGULAR.items()
    }
    if found["labels"] is None:
        raise PredictionsError(f"{path} must have a column labels, got {', '.join(names[:12])}")
    columns = numbered[kind]
    missing = [index for index in range(len(columns)) if index not in columns]
    if missing:
        raise PredictionsError(
            f"{path} must have the columns {kind}_0 to {kind}_{max(columns)}, got no "
            f"{kind}_{missing[0]}"
        )
    values = tuple(columns[index] for index in range(len(columns))) or (kind,)
    return _Columns(found["labels"], kind, values, found["ids"], found["clusters"])


def _from_table(path: Path, table: pa.Table, columns: _Columns) -> _Source:
    if not table.num_rows:
        raise PredictionsError(f"{path} must hold at least one sample, got none")
    for name in columns.all:
        if table.column(name).null_count:
            raise PredictionsError(f"column {name} must have a value in every row, got nulls")
    if columns.values == (columns.kind,):
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
    return _Source(
        labels=_labels(columns.labels, table.column(columns.labels)),
        values=values,
        kind=columns.kind,
        ids=_text_column(columns.ids, table),
        clusters=_text_column(columns.clusters, table),
    )


def _labels(name: str, column: pa.ChunkedArray) -> Array:
    if not pa.types.is_integer(column.type):
        raise PredictionsError(f"column {name} must hold integers, got {column.type}")
    return cast("Array", column.to_numpy())


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


# ---------------------------------------------------------------------------------------- Parquet


def _is_ours(path: Path, max_bytes: int) -> bool:
    """Whether calift wrote a Parquet file, after its declared sizes were found to be bearable."""
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            declared = _declared_bytes(parquet.metadata)
            metadata = parquet.schema_arrow.metadata or {}
    except MemoryError:  # pyarrow's own is one of its exceptions too
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "Parquet", error) from error
    if declared > max_bytes:
        raise _too_large(path, declared, max_bytes)
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


def _read_parquet(path: Path, max_bytes: int) -> _Source:
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            columns = _find_columns(path, parquet.schema_arrow.names, lists=True)
            return _from_table(path, parquet.read(columns=columns.all), columns)
    except MemoryError:  # pyarrow's own is one of its exceptions too
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "Parquet", error) from error


# -------------------------------------------------------------------------------------------- CSV


def _read_csv(path: Path, max_bytes: int) -> _Source:
    size = path.stat().st_size
    if size > 4 * max_bytes:  # a number takes some four times as many bytes as text
        raise _too_large(path, size, 4 * max_bytes)
    described, header, skip = _csv_head(path)
    columns = _find_columns(path, header, lists=False)
    types = dict.fromkeys(columns.values, pa.float64()) | {columns.labels: pa.int64()}
    types |= {name: pa.string() for name in (columns.ids, columns.clusters) if name}
    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(
                skip_rows=skip, block_size=_HEADER_BYTES, use_threads=False
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
    source = _from_table(path, table, columns)
    source.described = described
    return source


def _csv_head(path: Path) -> tuple[dict[str, Any] | None, list[str], int]:
    """Metadata of the first line, column names, and the lines before those."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline(_HEADER_BYTES)
            described = None
            if first.startswith("# calift "):
                described = _json(path, first.removeprefix("# calift "))
                first = file.readline(_HEADER_BYTES)
        except UnicodeDecodeError as error:
            raise PredictionsError(f"{path} must be UTF-8 text, got: {error}") from error
    try:
        header = next(csv.reader([first]), [])
    except csv.Error as error:
        raise PredictionsError(f"{path} must begin with column names, got: {error}") from error
    return described, header, 0 if described is None else 1


# ------------------------------------------------------------------------------------------ export


def export_predictions(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a predictions file as Parquet, CSV or NPZ; `load_predictions` reads each back the same.

    Args:
        source: a predictions file of calift.
        target: ends in `.parquet`, `.csv` or `.npz`.

    Raises:
        SpecError: another ending, or CSV or NPZ of a file that keeps the largest logits alone.
        PredictionsError: the source is damaged or of another kind.
        StorageError: a file cannot be read or written.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    if suffix not in _FORMATS:
        raise SpecError(f"the target must end in {', '.join(_FORMATS)}, got {target.name!r}")
    metadata = read_metadata(source)
    if metadata.storage == "top_k":
        if suffix != ".parquet":
            raise SpecError(
                f"a file that keeps the {metadata.k} largest of {len(metadata.class_names):,} "
                f"logits is exported as Parquet, got {target.name!r}"
            )
        write_predictions(target, read_top_k(source))
        return
    predictions = read_predictions(source)
    match suffix:
        case ".parquet":
            write_predictions(target, predictions, keep="full")
        case ".csv":
            _write_csv(target, predictions)
        case _:
            _write_npz(target, predictions)


def _described(predictions: Predictions) -> str:
    return json.dumps(asdict(predictions.metadata), ensure_ascii=True, allow_nan=False)


def _write_npz(path: Path, predictions: Predictions) -> None:
    arrays: dict[str, Any] = {
        "labels": predictions.labels,
        "logits": predictions.logits,
        "ids": predictions.ids,
        "class_names": np.array(predictions.metadata.class_names),
        "calift": np.array(_described(predictions)),
    }
    if predictions.clusters is not None:
        arrays["clusters"] = predictions.clusters
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _write_csv(path: Path, predictions: Predictions) -> None:
    columns: dict[str, Any] = {"id": predictions.ids.tolist(), "label": predictions.labels}
    if predictions.clusters is not None:
        columns["cluster"] = predictions.clusters.tolist()
    for index in range(predictions.logits.shape[1]):
        columns[f"logits_{index}"] = predictions.logits[:, index]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(f"# calift {_described(predictions)}\n".encode())
        pa_csv.write_csv(pa.table(columns), file, pa_csv.WriteOptions(quoting_style="needed"))


# ------------------------------------------------------------------------------------------- runs


def imported_spec(name: str, metadata: PredictionsMetadata) -> ImportedSpec:
    """The spec of a run that begins with these predictions.

    Raises:
        SpecError: the name is not allowed, or the part is one that no run can consist of.
    """
    if metadata.split != "test":
        raise SpecError(
            f"predictions of the {metadata.role} part are added to an imported run, they do not "
            "make one.",
            hint="Import the test predictions first, then name that run with --run.",
        )
    return ImportedSpec.checked(
        name=name, method=Imported(), suite=ImportedSuite(id=metadata.dataset)
    )


def run_name(text: str) -> str:
    """A text such as a file's stem, made a run's name."""
    plain = re.sub(r"[^A-Za-z0-9 ._:+()/-]", "-", text)[:120].lstrip(" ._:+()/-")
    return plain or "imported predictions"


def judged(
    predictions: Predictions | TopKPredictions, evaluation: EvaluationSpec, sha256: str
) -> EvaluationReport | None:
    """The report of one set; None of a calibration or validation part, which is not judged."""
    if predictions.metadata.split != "test":
        return None
    return evaluation_report(predictions, evaluation, sha256=sha256)


def imported_report(
    run_id: str, spec: ImportedSpec, evaluations: Sequence[EvaluationReport]
) -> Report:
    """The `report.json` of an imported run: its evaluations and the headline from them."""
    return Report(
        run_id=run_id,
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        spec_sha256=spec.content_hash(),
        resolved={},
        summary=summarise(evaluations, None),
        evaluations=list(evaluations),
        spectrum=None,
        selection={},
        model=spec.model.model_dump(mode="json"),
        data={},
        timings_s={},
        environment={"calift": __version__},
    )


def import_into_folder(
    predictions: Predictions | TopKPredictions,
    folder: Path,
    *,
    name: str | None = None,
    keep: Keep = "auto",
) -> Report:
    """Write a folder like that of a finished run, or add a data set to one that an import made.

    Args:
        predictions: one data set.
        folder: `report.json` and `predictions/` go there.
        name: of the run; None: the folder's.
        keep: as in `write_predictions`.

    Raises:
        SpecError: the folder holds another kind of run, or this data set already.
        StorageError: it cannot be written.
    """
    dataset = predictions.metadata.dataset
    report_file = folder / "report.json"
    known: list[EvaluationReport] = []
    if report_file.is_file():
        report = Report.model_validate_json(report_file.read_bytes())
        if report.spec["method"]["kind"] != "imported":
            raise SpecError(
                f"{folder} must be empty or an imported run, got one of {report.spec['method']}"
            )
        spec, known = ImportedSpec.model_validate(report.spec), list(report.evaluations)
    else:
        spec = imported_spec(name or run_name(folder.absolute().name), predictions.metadata)
    relative = predictions_name(dataset)
    if (folder / relative).exists():
        raise SpecError(f"the run in {folder} has predictions of {dataset!r} already")
    sha256 = write_predictions(folder / relative, predictions, keep=keep)
    evaluation = judged(predictions, spec.evaluation, sha256)
    known += [evaluation] if evaluation else []
    report = imported_report(folder.absolute().name, spec, known)
    atomic_write_json(report_file, report.model_dump(mode="json"))
    return report


# -------------------------------------------------------------- the service's check of an upload


@dataclass(frozen=True)
class Checked:
    """What the check of an upload found; `stored` is a file of our own making."""

    stored: Path
    sha256: str
    metadata: PredictionsMetadata
    evaluation: EvaluationReport | None


def check_upload(folder: Path, memory_bytes: int | None) -> None:
    """Check `folder/upload`; leave `stored.parquet` and `checked.json`, or an error in the latter.

    For a process of its own: a hostile file may make the decoder take all memory that it may have,
    or end it.
    """
    if memory_bytes is not None and sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    job = json.loads((folder / "job.json").read_bytes())
    try:
        predictions = load_predictions(
            folder / "upload", dataset=job["dataset"], role=job["role"], max_bytes=MAX_BYTES
        )
        stored = folder / "stored.parquet"
        sha256 = write_predictions(stored, predictions)
        evaluation = judged(predictions, EvaluationSpec(), sha256)
        answer: dict[str, Any] = {
            "sha256": sha256,
            "metadata": asdict(predictions.metadata),
            "evaluation": evaluation.model_dump(mode="json") if evaluation else None,
        }
    except CaliftError as error:
        message = error.message.replace(f"{folder / 'upload'}", "the upload")
        answer = {"code": error.code, "message": message, "hint": error.hint}
    except MemoryError:
        answer = {
            "code": PredictionsError.code,
            "message": "the upload must be decoded within the memory that an import may take",
            "hint": "",
        }
    atomic_write_json(folder / "checked.json", answer)


def read_check(folder: Path) -> Checked:
    """Read what `check_upload` left.

    Raises:
        PredictionsError: the upload was refused, or the check left nothing.
    """
    try:
        answer = json.loads((folder / "checked.json").read_bytes())
    except FileNotFoundError:
        raise PredictionsError(
            "the upload must be a predictions file that can be decoded, got one that ended the "
            "decoder"
        ) from None
    if "code" in answer:
        raise PredictionsError(answer["message"], hint=answer["hint"])
    evaluation = answer["evaluation"]
    return Checked(
        stored=folder / "stored.parquet",
        sha256=answer["sha256"],
        metadata=PredictionsMetadata(**answer["metadata"]),
        evaluation=EvaluationReport.model_validate(evaluation) if evaluation else None,
    )


if __name__ == "__main__":
    check_upload(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
