"""Predictions from Parquet: whole, in chunks, as scores, or which samples they are of."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calift_core.calibration import SampleScores, score_samples
from calift_core.calibration.bins import check_labels, check_temperature
from calift_core.calibration.scores import rescore
from calift_core.errors import PredictionsError, SpecError, UnknownNameError
from calift_core.files import storage_error
from calift_core.predictions.decoded import open_decoded, write_decoded
from calift_core.predictions.types import (
    CELLS_AT_ONCE,
    CELLS_PER_GROUP,
    FORMAT_VERSION,
    KEY,
    MAX_TEXT,
    Predictions,
    PredictionsMetadata,
    Strings,
    TopKPredictions,
    check_unique,
)
from calift_core.untrusted import parse_json

#: Cells of a file whose decoded logits are kept for the next temperature.
_WORTH_KEEPING = 4_000_000


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[pq.ParquetFile, PredictionsMetadata]]:
    """Open a predictions file and name whatever goes wrong while it is read."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - only failures to open are storage errors
    except OSError as error:
        raise storage_error(error, path, "read") from error
    with file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            yield parquet, _metadata(parquet)
        except MemoryError:  # pyarrow's own is one of its exceptions too
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise storage_error(error, path, "read") from error
            raise PredictionsError(
                f"{os.fspath(path)} must be a readable Parquet file, got: {error}",
                hint="It is damaged, cut short or of another kind; evaluate or export it again.",
            ) from error


def _metadata(parquet: pq.ParquetFile) -> PredictionsMetadata:
    schema = parquet.schema_arrow
    raw = (schema.metadata or {}).get(KEY)
    if raw is None:
        raise PredictionsError(
            "a predictions file must carry calift metadata in its schema, got a Parquet file "
            f"without it (columns {', '.join(schema.names[:8])})"
        )
    try:
        stored = parse_json(raw)
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
        "logits": pa.list_(pa.float32(), metadata.k or len(metadata.class_names)),
    }
    if metadata.storage == "top_k":
        expected |= {
            "classes": pa.list_(pa.int32(), metadata.k),
            "label_logit": pa.float32(),
            "label_rank": pa.int32(),
            "log_sum_exp": pa.float64(),
            "sum_squares": pa.float64(),
        }
    if "cluster" in schema.names:
        expected["cluster"] = pa.string()
    if "features" in schema.names:
        got = schema.field("features").type
        if not (pa.types.is_fixed_size_list(got) and got.value_type == pa.float16()):
            raise PredictionsError(f"column features must be lists of float16, got {got}")
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
    with opened(path) as (_, metadata):
        return metadata


def iter_chunks(path: str | os.PathLike[str], rows: int) -> Iterator[Predictions]:
    """Read a predictions file in order, at most `rows` samples at a time.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, of a newer format or keeps only
            the largest logits, or `rows` < 1. Chunks before the damage have been yielded by then.
        StorageError: the file cannot be opened.
    """
    if rows < 1:
        raise PredictionsError(f"rows must be ≥ 1, got {rows}")
    with opened(path) as (parquet, metadata):
        if metadata.storage == "top_k":
            raise PredictionsError(
                f"{os.fspath(path)} must hold all logits for this, got the {metadata.k} largest of "
                f"{len(metadata.class_names):,} of each sample.",
                hint="read_scores and read_top_k read such a file; for all logits, write it anew "
                'with keep="full".',
            )
        names = ["id", "label", "logits", "cluster"]
        for batch in batches_of(parquet, names, rows):
            yield Predictions(
                ids=_as_strings("id", batch.column("id")),
                labels=batch.column("label").to_numpy().astype(np.int64),
                logits=as_matrix(batch.column("logits")),
                metadata=metadata,
                clusters=_clusters(batch),
            )


def _iter_top_k(path: str | os.PathLike[str], rows: int) -> Iterator[TopKPredictions]:
    with opened(path) as (parquet, metadata):
        if metadata.storage != "top_k":
            raise PredictionsError(
                f"{os.fspath(path)} must keep the largest logits alone, got all of them.",
                hint="read_predictions reads such a file.",
            )
        for batch in batches_of(parquet, parquet.schema_arrow.names, rows):
            yield top_k_of(batch, metadata)


def top_k_of(batch: pa.RecordBatch, metadata: PredictionsMetadata) -> TopKPredictions:
    """The samples of a batch that keeps the largest logits alone."""
    return TopKPredictions(
        ids=_as_strings("id", batch.column("id")),
        labels=batch.column("label").to_numpy().astype(np.int64),
        classes=as_matrix(batch.column("classes")),
        logits=as_matrix(batch.column("logits")),
        label_logits=batch.column("label_logit").to_numpy(),
        label_ranks=batch.column("label_rank").to_numpy().astype(np.int64),
        log_sum_exps=batch.column("log_sum_exp").to_numpy(),
        sum_squares=batch.column("sum_squares").to_numpy(),
        metadata=metadata,
        clusters=_clusters(batch),
    )


def batches_of(
    parquet: pq.ParquetFile, names: Sequence[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of some columns, in order; columns that the file lacks are left out."""
    columns = [name for name in names if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(batch_size=rows, columns=columns):
        for name in columns:
            check_complete(name, batch.column(name))
        yield batch


def check_complete(name: str, column: pa.Array | pa.ChunkedArray) -> None:
    """Raises PredictionsError where a row has no value."""
    inner = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    if column.null_count or inner.null_count:
        raise PredictionsError(f"column {name} must have a value in every row, got nulls")


def as_matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """A column of lists as (N, C)."""
    # `flatten` and not `values`: it keeps to the rows of a slice.
    matrix: npt.NDArray[Any] = column.flatten().to_numpy().reshape(len(column), -1)
    return matrix


def _as_strings(name: str, column: pa.Array | pa.ChunkedArray) -> Strings:
    # NumPy gives every string the room of the longest: one long id could take all memory.
    longest = pc.max(pc.utf8_length(column)).as_py() or 0
    if longest > MAX_TEXT:
        raise PredictionsError(
            f"column {name} must hold at most {MAX_TEXT} characters a row, got {longest}"
        )
    return np.array(column.to_pylist(), dtype=np.str_)


def _clusters(batch: pa.RecordBatch) -> Strings | None:
    if "cluster" not in batch.schema.names:
        return None
    return _as_strings("cluster", batch.column("cluster"))


def empty_file(path: str | os.PathLike[str]) -> PredictionsError:
    """The error for a file without samples."""
    return PredictionsError(f"{os.fspath(path)} must hold at least one sample, got none")


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read and check a whole predictions file.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty, of a newer format or keeps
            only the largest logits.
        StorageError: the file cannot be opened.
    """
    metadata = read_metadata(path)
    rows = max(1, CELLS_PER_GROUP // len(metadata.class_names))
    chunks = list(iter_chunks(path, rows))
    if not chunks:
        raise empty_file(path)
    predictions = Predictions(
        ids=np.concatenate([chunk.ids for chunk in chunks]),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        logits=np.concatenate([chunk.logits for chunk in chunks]),
        metadata=metadata,
        clusters=_joined([chunk.clusters for chunk in chunks]),
    )
    check_unique(predictions.ids)
    return predictions


def _joined(parts: Sequence[Strings | None]) -> Strings | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def read_top_k(path: str | os.PathLike[str]) -> TopKPredictions:
    """Read and check a whole file that keeps the k largest logits of each sample.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty, of a newer format or holds
            all logits.
        StorageError: the file cannot be opened.
    """
    metadata = read_metadata(path)
    chunks = list(_iter_top_k(path, max(1, CELLS_PER_GROUP // (metadata.k or 1))))
    if not chunks:
        raise empty_file(path)
    arrays = {
        item.name: np.concatenate([getattr(chunk, item.name) for chunk in chunks])
        for item in fields(TopKPredictions)
        if item.name not in ("metadata", "clusters")
    }
    clusters = _joined([chunk.clusters for chunk in chunks])
    predictions = TopKPredictions(**arrays, metadata=metadata, clusters=clusters)
    check_unique(predictions.ids)
    return predictions


def read_index(
    path: str | os.PathLike[str],
) -> tuple[Strings, npt.NDArray[np.int64], Strings | None]:
    """Read whose predictions a file holds, without the predictions.

    Returns:
        ids (N,), labels (N,) int64 and clusters (N,), or None when samples are independent; in
        stored order.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty or of a newer format.
        StorageError: the file cannot be opened.
    """
    ids: list[Strings] = []
    labels: list[npt.NDArray[np.int64]] = []
    clusters: list[Strings | None] = []
    with opened(path) as (parquet, metadata):
        for batch in batches_of(parquet, ["id", "label", "cluster"], CELLS_AT_ONCE):
            ids.append(_as_strings("id", batch.column("id")))
            labels.append(batch.column("label").to_numpy().astype(np.int64))
            clusters.append(_clusters(batch))
    if not ids:
        raise empty_file(path)
    names = np.concatenate(ids)
    check_unique(names)
    classes = check_labels(np.concatenate(labels), len(names), len(metadata.class_names))
    return names, classes, _joined(clusters)


def read_scores(
    path: str | os.PathLike[str],
    temperature: float = 1.0,
    *,
    known: SampleScores | None = None,
    decoded: Path | None = None,
) -> SampleScores:
    """Score a predictions file in one pass, holding a few rows of logits at a time.

    Args:
        temperature: positive divisor of the stored logits.
        known: the file's scores at another temperature, of which much stays; see `rescore`.
        decoded: where its logits are kept for the next temperature; None: nowhere.

    Returns:
        Seven numbers a sample, in stored order; see `SampleScores`.

    Raises:
        SpecError: the temperature is not a positive finite number, or it is not 1 and the file
            keeps only the largest logits.
        PredictionsError: the file is damaged, cut short, foreign, empty or of a newer format.
        StorageError: the file cannot be opened.
    """
    check_temperature(temperature)
    metadata = read_metadata(path)
    if metadata.storage == "top_k":
        if temperature != 1.0:
            raise kept_at_1(metadata, temperature)
        return read_top_k(path).scores()
    rows = max(1, CELLS_AT_ONCE // len(metadata.class_names))
    if known is not None:
        shape = (len(known), len(metadata.class_names))
        return _rescored(path, temperature, known, rows, shape, decoded)
    parts = [
        score_samples(chunk.logits, chunk.labels, temperature) for chunk in iter_chunks(path, rows)
    ]
    if not parts:
        raise empty_file(path)
    return SampleScores.concatenate(parts)


def _rescored(
    path: str | os.PathLike[str],
    temperature: float,
    known: SampleScores,
    rows: int,
    shape: tuple[int, int],
    decoded: Path | None,
) -> SampleScores:
    """Only the logits are decoded, and those of a large file once."""

    def read() -> Iterator[npt.NDArray[Any]]:
        with opened(path) as (parquet, _):
            for batch in batches_of(parquet, ["logits"], rows):
                yield as_matrix(batch.column("logits"))

    chunks: Iterable[npt.NDArray[Any]] = read()
    if decoded is not None and shape[0] * shape[1] >= _WORTH_KEEPING:
        kept = open_decoded(decoded, shape)
        if kept is None:
            chunks = write_decoded(decoded, shape, chunks)
        else:
            chunks = (kept[at : at + rows] for at in range(0, len(kept), rows))
    parts, start = [], 0
    for chunk in chunks:
        own = slice(start, start + len(chunk))
        parts.append(rescore(chunk, known.part(own), temperature))
        start += len(chunk)
    if start != len(known):
        raise PredictionsError(f"{os.fspath(path)} must hold {len(known)} samples, got {start}")
    return SampleScores.concatenate(parts)


def kept_at_1(metadata: PredictionsMetadata, temperature: float) -> SpecError:
    """The error for a temperature that needs all logits."""
    return SpecError(
        f"temperature must be 1 for {metadata.dataset}, whose file keeps the {metadata.k} "
        f"largest of {len(metadata.class_names):,} logits of each sample, got {temperature:g}.",
        hint="Another temperature needs all logits: write or import the predictions with all of "
        "them.",
    )
