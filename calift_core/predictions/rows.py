"""Some samples of a predictions file, and its image features: only their row groups are decoded."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from calift_core.calibration import SampleScores, score_samples, softmax
from calift_core.calibration.bins import check_temperature
from calift_core.predictions.read import (
    as_matrix,
    batches_of,
    check_complete,
    empty_file,
    kept_at_1,
    opened,
    top_k_of,
)
from calift_core.predictions.types import CELLS_AT_ONCE


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
    with opened(path) as (parquet, _):
        if "features" not in parquet.schema_arrow.names:
            return None
        if positions is not None:
            return _features_at(parquet, positions)
        parts = [
            as_matrix(batch.column("features"))
            for batch in batches_of(parquet, ["features"], CELLS_AT_ONCE // 256)
        ]
    if not parts:
        raise empty_file(path)
    return np.concatenate(parts)


def _features_at(
    parquet: pq.ParquetFile, positions: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float16]:
    wanted, place = np.unique(positions, return_inverse=True)
    parts = []
    for start, batch in _batches_with(parquet, ["features"], wanted, 256):
        here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
        if len(here):
            parts.append(as_matrix(batch.take(pa.array(here - start)).column("features")))
    found: npt.NDArray[np.float16] = np.concatenate(parts)[place]
    return found


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
    with opened(path) as (parquet, metadata):
        whole = metadata.storage == "full"
        if not whole and temperature != 1.0:
            raise kept_at_1(metadata, temperature)
        names = ["logits"] if whole else ["logits", "classes", "log_sum_exp"]
        for start, batch in _batches_with(parquet, names, wanted, len(metadata.class_names)):
            stop = start + batch.num_rows
            here = wanted[(wanted >= start) & (wanted < stop)]
            if not len(here):
                continue
            rows = batch.take(pa.array(here - start))
            logits = as_matrix(rows.column("logits")).astype(np.float64)
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
            classes = order if whole else as_matrix(rows.column("classes"))[:, : order.shape[1]]
            for at, row in enumerate(here.tolist()):
                found[row] = list(zip(classes[at].tolist(), values[at].tolist(), strict=True))
    return [found[row] for row in positions.tolist()]


def read_scores_at(
    path: str | os.PathLike[str], positions: npt.NDArray[np.integer[Any]], temperature: float = 1.0
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
    with opened(path) as (parquet, metadata):
        whole = metadata.storage == "full"
        if not whole and temperature != 1.0:
            raise kept_at_1(metadata, temperature)
        names = ["label", "logits"] if whole else parquet.schema_arrow.names
        for start, batch in _batches_with(parquet, names, positions, len(metadata.class_names)):
            inside = (positions >= start) & (positions < start + batch.num_rows)
            rows = batch.take(pa.array(positions[inside] - start))
            if not rows.num_rows:
                continue
            if whole:
                labels = rows.column("label").to_numpy().astype(np.int64)
                parts.append(score_samples(as_matrix(rows.column("logits")), labels, temperature))
            else:
                parts.append(top_k_of(rows, metadata).scores())
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
                    check_complete(name, batch.column(name))
                yield at, batch
                at += batch.num_rows
        start += n
