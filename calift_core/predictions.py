"""Stored per-sample predictions: logits once, every metric from them.

One Parquet file per model and data set, readable by any Parquet reader. Columns, in stored order of
the samples: `id` (string, unique), `label` (int32), `logits` (fixed-size list of C float32) and,
where samples share a source, `cluster` (string). The schema metadata holds one JSON object under
the key `calift`, the fields of `PredictionsMetadata`. Pages carry checksums and are verified.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from calift_core import __version__
from calift_core.calibration import softmax
from calift_core.calibration.bins import Floats, check_labels, check_logits
from calift_core.errors import PredictionsError, UnknownNameError
from calift_core.files import atomic_path, sha256_file, storage_error

FORMAT_VERSION = 1
_KEY = b"calift"
_CELLS_PER_GROUP = 4_000_000

Role = Literal["id", "shift", "corruption", "calibration", "validation"]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class PredictionsMetadata:
    """What a predictions file says about itself.

    Attributes:
        dataset: name of the data set, such as `imagenet-c/jpeg_compression/3`.
        role: `id` (ID test), `shift`, `corruption`, or the ID parts `calibration`, `validation`.
        class_names: C names, in the order of the logits.
        logit_scale: s; the stored logits are s · ⟨I, T⟩, so they already contain it.
        temperature: at which the evaluation reported its numbers; the logits are not divided by it.
        templates: prompts that made the classifier, each with `{}`.
        source_dataset: what a corruption was made from, else None.
        model_sha256: of the weights that predicted, where known.
        dataset_sha256: of the list of samples, where known.
        created_by: program and version that wrote the file.
        format_version: of the file; 1 stores all C logits.
    """

    dataset: str
    role: Role
    class_names: tuple[str, ...]
    logit_scale: float
    temperature: float = 1.0
    templates: tuple[str, ...] = ()
    source_dataset: str | None = None
    model_sha256: str | None = None
    dataset_sha256: str | None = None
    created_by: str = field(default_factory=lambda: f"calift {__version__}")
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check types and ranges, and turn lists into tuples.

        Raises:
            UnknownNameError: the role is not known.
            PredictionsError: any other field is not valid.
        """
        if self.role not in get_args(Role):
            raise UnknownNameError("role", str(self.role), get_args(Role))
        for name in ("dataset", "created_by"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise PredictionsError(
                    f"{name} must be a non-empty string, got {getattr(self, name)!r}"
                )
        for name in ("source_dataset", "model_sha256", "dataset_sha256"):
            if not isinstance(getattr(self, name), str | None):
                raise PredictionsError(f"{name} must be a string, got {getattr(self, name)!r}")
        for name in ("class_names", "templates"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
                raise PredictionsError(f"{name} must be a list of strings, got {value!r:.80}")
            object.__setattr__(self, name, tuple(value))
        if not self.class_names:
            raise PredictionsError("class_names must hold at least one name, got none")
        for name in ("logit_scale", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PredictionsError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise PredictionsError(f"{name} must be positive and finite, got {value!r}")
            object.__setattr__(self, name, float(value))

    @property
    def split(self) -> str:
        """Part of the data set that was predicted: calibration, validation or test."""
        return self.role if self.role in ("calibration", "validation") else "test"

    @property
    def in_distribution(self) -> bool:
        """Whether the samples come from the ID data."""
        return self.role in ("id", "calibration", "validation")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of one model on one data set, in stored order; N samples, C classes.

    Attributes:
        ids: (N,) unique names of the samples, the same for every model on this data set.
        labels: (N,) int64 in [0, C).
        logits: (N, C) float32, natural-log scale, logit scale included; wider floats are narrowed.
        metadata: what the file says about itself.
        clusters: (N,) name of each sample's source image, or None when samples are independent.
    """

    ids: Strings
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    metadata: PredictionsMetadata
    clusters: Strings | None = None

    def __post_init__(self) -> None:
        """Check shapes and values, and settle the types of the arrays.

        Raises:
            PredictionsError: the arrays do not fit each other or the class names.
        """
        logits = np.ascontiguousarray(check_logits(self.logits), dtype=np.float32)
        n, n_classes = logits.shape
        if not np.isfinite(logits).all():
            raise PredictionsError("logits must fit float32, got a value beyond its range")
        if n_classes != len(self.metadata.class_names):
            raise PredictionsError(
                f"logits must have one column per class name ({len(self.metadata.class_names)}), "
                f"got {n_classes}"
            )
        object.__setattr__(self, "logits", logits)
        object.__setattr__(self, "labels", check_labels(self.labels, n, n_classes))
        object.__setattr__(self, "ids", _strings("ids", self.ids, n))
        if self.clusters is not None:
            object.__setattr__(self, "clusters", _strings("clusters", self.clusters, n))

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def probs(self, temperature: float = 1.0) -> Floats:
        """Return softmax(logits / temperature), (N, C) float32.

        Raises:
            SpecError: the temperature is not a positive finite number.
        """
        return softmax(self.logits, temperature)


def _strings(name: str, values: Any, n: int) -> Strings:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "UO" or len(array) != n:
        raise PredictionsError(
            f"{name} must be {n} strings, got {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "O" and not all(isinstance(value, str) for value in array):
        raise PredictionsError(f"{name} must be {n} strings, got other objects among them")
    return array.astype(np.str_)


def _check_unique(ids: Strings) -> None:
    distinct, counts = np.unique(ids, return_counts=True)
    if len(distinct) < len(ids):
        raise PredictionsError(
            f"ids must be unique, got {str(distinct[counts.argmax()])!r} {counts.max()} times"
        )


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> str:
    """Write a predictions file durably: the old file or the new one, never a part.

    Args:
        path: final name, by custom ending in `.parquet`.
        predictions: N samples.

    Returns:
        SHA-256 of the file, 64 hex digits.

    Raises:
        PredictionsError: ids are not unique.
        DiskFullError: no space is left; a former file at `path` is intact.
        StorageError: the file system refuses otherwise.
    """
    _check_unique(predictions.ids)
    n, n_classes = predictions.logits.shape
    columns: dict[str, pa.Array] = {
        "id": pa.array(predictions.ids.tolist(), pa.string()),
        "label": pa.array(predictions.labels.astype(np.int32)),
        "logits": pa.FixedSizeListArray.from_arrays(
            pa.array(predictions.logits.reshape(-1)), n_classes
        ),
    }
    if predictions.clusters is not None:
        columns["cluster"] = pa.array(predictions.clusters.tolist(), pa.string())
    described = json.dumps(asdict(predictions.metadata), ensure_ascii=False, allow_nan=False)
    table = pa.table(columns).replace_schema_metadata({_KEY: described.encode()})
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            pq.write_table(
                table,
                file,
                row_group_size=max(1, _CELLS_PER_GROUP // n_classes),
                compression="zstd",
                use_dictionary=["cluster"],
                # Grouping the bytes of floats by significance is what lets them compress.
                use_byte_stream_split=["logits.list.element"],
                write_page_checksum=True,
            )
        return sha256_file(temporary)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[pq.ParquetFile, PredictionsMetadata]]:
    """Open a predictions file and name whatever goes wrong while it is read."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - only failures to open are storage errors
    except OSError as error:
        raise storage_error(error, path, "read") from error
    with file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            yield parquet, _metadata(parquet)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise storage_error(error, path, "read") from error
            raise PredictionsError(
                f"{os.fspath(path)} must be a readable Parquet file, got: {error}",
                hint="It is damaged, cut short or of another kind; evaluate or export it again.",
            ) from error


def _metadata(parquet: pq.ParquetFile) -> PredictionsMetadata:
    schema = parquet.schema_arrow
    raw = (schema.metadata or {}).get(_KEY)
    if raw is None:
        raise PredictionsError(
            "a predictions file must carry calift metadata in its schema, got a Parquet file "
            f"without it (columns {', '.join(schema.names[:8])})"
        )
    try:
        stored = json.loads(raw)
    except ValueError as error:
        raise PredictionsError(f"calift metadata must be JSON, got: {error}") from error
    if not isinstance(stored, dict):
        raise PredictionsError(f"calift metadata must be an object, got {type(stored).__name__}")
    version = stored.get("format_version")
    if version != FORMAT_VERSION:
        raise PredictionsError(
            f"format_version must be {FORMAT_VERSION}, got {version!r}.",
            hint="A newer calift wrote this file; update to read it.",
        )
    known = {item.name for item in fields(PredictionsMetadata)}
    try:
        metadata = PredictionsMetadata(**{k: v for k, v in stored.items() if k in known})
    except (TypeError, UnknownNameError) as error:
        raise PredictionsError(f"calift metadata must be complete, got: {error}") from error
    expected = {
        "id": pa.string(),
        "label": pa.int32(),
        "logits": pa.list_(pa.float32(), len(metadata.class_names)),
    }
    if "cluster" in schema.names:
        expected["cluster"] = pa.string()
    for name, kind in expected.items():
        got = schema.field(name).type if name in schema.names else "no such column"
        # Names of list items differ between writers and mean nothing.
        same = got.equals(kind) if isinstance(got, pa.DataType) else False
        if not same:
            raise PredictionsError(f"column {name} must be {kind}, got {got}")
    return metadata


def read_metadata(path: str | os.PathLike[str]) -> PredictionsMetadata:
    """Read what a predictions file says about itself, without its samples.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign or of a newer format.
        StorageError: the file cannot be opened.
    """
    with _opened(path) as (_, metadata):
        return metadata


def iter_chunks(path: str | os.PathLike[str], rows: int) -> Iterator[Predictions]:
    """Read a predictions file in order, at most `rows` samples at a time.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign or of a newer format, or
            `rows` < 1. Chunks before the damage have been yielded by then.
        StorageError: the file cannot be opened.
    """
    if rows < 1:
        raise PredictionsError(f"rows must be ≥ 1, got {rows}")
    with _opened(path) as (parquet, metadata):
        names = ["id", "label", "logits", "cluster"]
        columns = [name for name in names if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=rows, columns=columns):
            yield _chunk(batch, metadata)


def _chunk(batch: pa.RecordBatch, metadata: PredictionsMetadata) -> Predictions:
    for name in batch.schema.names:
        column = batch.column(name)
        inner = column.flatten() if name == "logits" else column
        if column.null_count or inner.null_count:
            raise PredictionsError(f"column {name} must have a value in every row, got nulls")
    return Predictions(
        ids=np.array(batch.column("id").to_pylist(), dtype=np.str_),
        labels=batch.column("label").to_numpy().astype(np.int64),
        logits=batch.column("logits").flatten().to_numpy().reshape(batch.num_rows, -1),
        metadata=metadata,
        clusters=(
            np.array(batch.column("cluster").to_pylist(), dtype=np.str_)
            if "cluster" in batch.schema.names
            else None
        ),
    )


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read and check a whole predictions file.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty or of a newer format.
        StorageError: the file cannot be opened.
    """
    metadata = read_metadata(path)
    rows = max(1, _CELLS_PER_GROUP // len(metadata.class_names))
    chunks = list(iter_chunks(path, rows))
    if not chunks:
        raise PredictionsError(f"{os.fspath(path)} must hold at least one sample, got none")
    clusters = [chunk.clusters for chunk in chunks if chunk.clusters is not None]
    predictions = Predictions(
        ids=np.concatenate([chunk.ids for chunk in chunks]),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        logits=np.concatenate([chunk.logits for chunk in chunks]),
        metadata=metadata,
        clusters=np.concatenate(clusters) if clusters else None,
    )
    _check_unique(predictions.ids)
    return predictions


def shared_samples(
    a: Predictions, b: Predictions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the samples that two models were both evaluated on, for a paired comparison.

    Returns:
        Indices (M,) into `a` and (M,) into `b` of the same samples, in the order of `a`.

    Raises:
        PredictionsError: the class names differ, no sample is shared, or a shared sample carries
            two labels.
    """
    if a.metadata.class_names != b.metadata.class_names:
        raise PredictionsError(
            "paired predictions must have the same class names, got "
            f"{len(a.metadata.class_names)} and {len(b.metadata.class_names)} that differ"
        )
    shared, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(shared):
        raise PredictionsError(
            f"paired predictions must share samples, got {len(a)} and {len(b)} with no common id"
        )
    order = np.argsort(in_a)
    in_a, in_b = in_a[order].astype(np.int64), in_b[order].astype(np.int64)
    clash = np.flatnonzero(a.labels[in_a] != b.labels[in_b])
    if len(clash):
        raise PredictionsError(
            f"sample {str(a.ids[in_a[clash[0]]])!r} must have one label, got "
            f"{a.labels[in_a[clash[0]]]} and {b.labels[in_b[clash[0]]]}"
        )
    return in_a, in_b
