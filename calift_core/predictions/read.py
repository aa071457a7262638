"""Predictions from Parquet: whole, in chunks, as scores, or which samples they are of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calift_core.calibration import SampleScores, score_samples, softmax
from calift_core.calibration.bins import check_labels, check_temperature
from calift_core.calibration.scores import rescore
from calift_core.errors import PredictionsError, SpecError, UnknownNameError, UnpairedError
from calift_core.files import storage_error
from calift_core.predictions.decoded import keeping, mapped
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
    if version not in (1, FORMAT_VERSION):
        raise PredictionsError(
            f"format_version must be 1 or {FORMAT_VERSION}, got {version!r}.",
            hint="A newer calift wrote this file; update to read it.",
        )
    if version == 1:  # knew one storage
        stored |= {"storage": "full", "k": None}
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
    with _opened(path) as (_, metadata):
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
    with _opened(path) as (parquet, metadata):
        if metadata.storage == "top_k":
            raise PredictionsError(
                f"{os.fspath(path)} must hold all logits for this, got the {metadata.k} largest of "
                f"{len(metadata.class_names):,} of each sample.",
                hint="read_scores and read_top_k read such a file; for all logits, write it anew "
                'with keep="full".',
            )
        names = ["id", "label", "logits", "cluster"]
        for batch in _batches(parquet, names, rows):
            yield Predictions(
                ids=_as_strings("id", batch.column("id")),
                labels=batch.column("label").to_numpy().astype(np.int64),
                logits=_as_matrix(batch.column("logits")),
                metadata=metadata,
                clusters=_clusters(batch),
            )


def _iter_top_k(path: str | os.PathLike[str], rows: int) -> Iterator[TopKPredictions]:
    with _opened(path) as (parquet, metadata):
        if metadata.storage != "top_k":
            raise PredictionsError(
                f"{os.fspath(path)} must keep the largest logits alone, got all of them.",
                hint="read_predictions reads such a file.",
            )
        for batch in _batches(parquet, parquet.schema_arrow.names, rows):
            yield _top_k(batch, metadata)


def _top_k(batch: pa.RecordBatch, metadata: PredictionsMetadata) -> TopKPredictions:
    return TopKPredictions(
        ids=_as_strings("id", batch.column("id")),
        labels=batch.column("label").to_numpy().astype(np.int64),
        classes=_as_matrix(batch.column("classes")),
        logits=_as_matrix(batch.column("logits")),
        label_logits=batch.column("label_logit").to_numpy(),
        label_ranks=batch.column("label_rank").to_numpy().astype(np.int64),
        log_sum_exps=batch.column("log_sum_exp").to_numpy(),
        sum_squares=batch.column("sum_squares").to_numpy(),
        metadata=metadata,
        clusters=_clusters(batch),
    )


def _batches(parquet: pq.ParquetFile, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    columns = [name for name in names if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(batch_size=rows, columns=columns):
        for name in columns:
            _check_complete(name, batch.column(name))
        yield batch


def _check_complete(name: str, column: pa.Array | pa.ChunkedArray) -> None:
    inner = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    if column.null_count or inner.null_count:
        raise PredictionsError(f"column {name} must have a value in every row, got nulls")


def _as_matrix(column: pa.FixedSizeListArray) -> npt.NDArray[Any]:
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


def _empty(path: str | os.PathLike[str]) -> PredictionsError:
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
        raise _empty(path)
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
    given = [part for part in parts if part is not None]
    return np.concatenate(given) if given else None


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
        raise _empty(path)
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
    with _opened(path) as (parquet, metadata):
        for batch in _batches(parquet, ["id", "label", "cluster"], CELLS_AT_ONCE):
            ids.append(_as_strings("id", batch.column("id")))
            labels.append(batch.column("label").to_numpy().astype(np.int64))
            clusters.append(_clusters(batch))
    if not ids:
        raise _empty(path)
    names = np.concatenate(ids)
    check_unique(names)
    classes = check_labels(np.concatenate(labels), len(names), len(metadata.class_names))
    return names, classes, _joined(clusters)


def read_features(
    path: str | os.PathLike[str], positions: npt.NDArray[np.integer[Any]] | None = None
) -> npt.NDArray[np.float16] | None:
    """Read the image features (N, D) of a predictions file, L2-normalised; None: not stored.

    Args:
        positions: (M,) in [0, N), in any order: only their row groups are decoded, and (M, D) come.

    Raises:
        PredictionsError: the file is damaged, cut short, foreign, empty or of a newer format.
        StorageError: the file cannot be opened.
    """
    with _opened(path) as (parquet, _):
        if "features" not in parquet.schema_arrow.names:
            return None
        if positions is not None:
            return _features_at(parquet, positions)
        parts = [
            _as_matrix(batch.column("features"))
            for batch in _batches(parquet, ["features"], CELLS_AT_ONCE // 256)
        ]
    if not parts:
        raise _empty(path)
    return np.concatenate(parts)


def _features_at(
    parquet: pq.ParquetFile, positions: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float16]:
    wanted, place = np.unique(positions, return_inverse=True)
    parts = []
    for start, batch in _batches_with(parquet, ["features"], wanted, 256):
        here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
        if len(here):
            parts.append(_as_matrix(batch.take(pa.array(here - start)).column("features")))
    found: npt.NDArray[np.float16] = np.concatenate(parts)[place]
    return found


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
            raise _kept_at_1(metadata, temperature)
        return read_top_k(path).scores()
    rows = max(1, CELLS_AT_ONCE // len(metadata.class_names))
    if known is not None:
        shape = (len(known), len(metadata.class_names))
        return _rescored(path, temperature, known, rows, shape, decoded)
    parts = [
        score_samples(chunk.logits, chunk.labels, temperature) for chunk in iter_chunks(path, rows)
    ]
    if not parts:
        raise _empty(path)
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
        with _opened(path) as (parquet, _):
            for batch in _batches(parquet, ["logits"], rows):
                yield _as_matrix(batch.column("logits"))

    chunks: Iterable[npt.NDArray[Any]] = read()
    if decoded is not None and shape[0] * shape[1] >= _WORTH_KEEPING:
        kept = mapped(decoded, shape)
        if kept is None:
            chunks = keeping(decoded, shape, chunks)
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


def read_top(
    path: str | os.PathLike[str],
    positions: npt.NDArray[np.integer[Any]],
    k: int,
    temperature: float = 1.0,
) -> list[list[tuple[int, float]]]:
    """Read the most probable classes of some samples; only their row groups are decoded.

    Args:
        positions: (M,) in [0, N).
        k: how many classes of each; fewer come where there are fewer or the file keeps fewer.
        temperature: positive divisor of the logits.

    Returns:
        For each of the M samples, class and probability, the most probable first and of tied ones
        the lower class first.

    Raises:
        SpecError: the temperature is not a positive finite number, or it is not 1 and the file
            keeps only the largest logits.
        PredictionsError: the file is damaged.
        StorageError: the file cannot be opened.
    """
    check_temperature(temperature)
    found: dict[int, list[tuple[int, float]]] = {}
    wanted = np.unique(positions)
    with _opened(path) as (parquet, metadata):
        whole = metadata.storage == "full"
        if not whole and temperature != 1.0:
            raise _kept_at_1(metadata, temperature)
        names = ["logits"] if whole else ["logits", "classes", "log_sum_exp"]
        for start, batch in _batches_with(parquet, names, wanted, len(metadata.class_names)):
            stop = start + batch.num_rows
            here = wanted[(wanted >= start) & (wanted < stop)]
            if not len(here):
                continue
            rows = batch.take(pa.array(here - start))
            logits = _as_matrix(rows.column("logits")).astype(np.float64)
            if whole:
                probs = softmax(logits, temperature)
                order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
            else:
                total = rows.column("log_sum_exp").to_numpy()
                probs = np.exp(np.minimum(logits - total[:, None], 0.0))
                order = np.broadcast_to(
                    np.arange(logits.shape[1])[:k], (len(here), min(k, logits.shape[1]))
                )
            values = np.take_along_axis(probs, order, axis=1)
            classes = order if whole else _as_matrix(rows.column("classes"))[:, : order.shape[1]]
            for at, row in enumerate(here.tolist()):
                found[row] = list(zip(classes[at].tolist(), values[at].tolist(), strict=True))
    return [found[row] for row in positions.tolist()]


def read_scores_at(
    path: str | os.PathLike[str],
    positions: npt.NDArray[np.integer[Any]],
    temperature: float = 1.0,
) -> SampleScores:
    """Score some samples; only their row groups are decoded.

    Args:
        positions: (M,) ascending, M ≥ 1, each in [0, N).
        temperature: positive divisor of the logits.

    Raises:
        SpecError: the temperature is not a positive finite number, or it is not 1 and the file
            keeps only the largest logits.
        PredictionsError: the file is damaged.
        StorageError: the file cannot be opened.
    """
    check_temperature(temperature)
    parts = []
    with _opened(path) as (parquet, metadata):
        whole = metadata.storage == "full"
        if not whole and temperature != 1.0:
            raise _kept_at_1(metadata, temperature)
        names = ["label", "logits"] if whole else parquet.schema_arrow.names
        for start, batch in _batches_with(parquet, names, positions, len(metadata.class_names)):
            inside = (positions >= start) & (positions < start + batch.num_rows)
            rows = batch.take(pa.array(positions[inside] - start))
            if not rows.num_rows:
                continue
            if whole:
                labels = rows.column("label").to_numpy().astype(np.int64)
                parts.append(score_samples(_as_matrix(rows.column("logits")), labels, temperature))
            else:
                parts.append(_top_k(rows, metadata).scores())
    return SampleScores.concatenate(parts)


def _batches_with(
    parquet: pq.ParquetFile,
    names: Sequence[str],
    wanted: npt.NDArray[np.integer[Any]],
    n_classes: int,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of the row groups that hold any of `wanted`, each with its first row's position."""
    start = 0
    for group in range(parquet.num_row_groups):
        n = parquet.metadata.row_group(group).num_rows
        if np.any((wanted >= start) & (wanted < start + n)):
            at = start
            rows = max(1, CELLS_AT_ONCE // n_classes)
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=list(names)):
                for name in names:
                    _check_complete(name, batch.column(name))
                yield at, batch
                at += batch.num_rows
        start += n


def _kept_at_1(metadata: PredictionsMetadata, temperature: float) -> SpecError:
    return SpecError(
        f"temperature must be 1 for {metadata.dataset}, whose file keeps the {metadata.k} "
        f"largest of {len(metadata.class_names):,} logits of each sample, got {temperature:g}.",
        hint="Another temperature needs all logits: write or import the predictions with all of "
        "them.",
    )


class Indexed(Protocol):
    """What tells whose predictions these are: those themselves, or a file's index."""

    @property
    def metadata(self) -> PredictionsMetadata:
        """What the file says about itself."""

    @property
    def ids(self) -> Strings:
        """(N,) unique names of the samples."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) true classes."""

    def __len__(self) -> int:
        """Return N."""


def shared_samples(a: Indexed, b: Indexed) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the samples that two models were both evaluated on, for a paired comparison.

    Returns:
        Indices (M,) into `a` and (M,) into `b` of the same samples, in the order of `a`.

    Raises:
        UnpairedError: the class names differ, no sample is shared, or a shared sample carries
            two labels.
    """
    if a.metadata.class_names != b.metadata.class_names:
        raise UnpairedError(
            "paired predictions must have the same class names, got "
            f"{len(a.metadata.class_names)} and {len(b.metadata.class_names)} that differ"
        )
    shared, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(shared):
        raise UnpairedError(
            f"paired predictions must share samples, got {len(a)} and {len(b)} with no common id",
            hint="Compare evaluations of the same data set, made from the same files.",
        )
    order = np.argsort(in_a)
    in_a, in_b = in_a[order].astype(np.int64), in_b[order].astype(np.int64)
    clash = np.flatnonzero(a.labels[in_a] != b.labels[in_b])
    if len(clash):
        raise UnpairedError(
            f"sample {str(a.ids[in_a[clash[0]]])!r} must have one label, got "
            f"{a.labels[in_a[clash[0]]]} and {b.labels[in_b[clash[0]]]}"
        )
    return in_a, in_b
