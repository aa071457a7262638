"""Predictions to Parquet, a chunk at a time."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from calift_core.errors import PredictionsError
from calift_core.files import atomic_path, sha256_file
from calift_core.predictions.types import (
    CELLS_PER_GROUP,
    FORMAT_VERSION,
    KEY,
    Predictions,
    PredictionsMetadata,
    Strings,
    TopKPredictions,
    check_unique,
    top_k,
)

#: With `keep="auto"` all logits of a set are stored up to this many (400 MB before compression):
#: ImageNet's 50,000 × 1,000 stay whole. Beyond, the `AUTO_K` largest of each sample.
FULL_CELLS = 100_000_000
AUTO_K = 20

Keep = Literal["auto", "full"] | int


def write_predictions(
    path: str | os.PathLike[str],
    predictions: Predictions | TopKPredictions,
    *,
    keep: Keep = "auto",
    copies: int = 1,
) -> str:
    """Write a predictions file durably: the old file or the new one, never a part.

    Args:
        path: final name, by custom ending in `.parquet`.
        keep: `full` stores all logits, a number k the k largest of each sample; `auto` is `full` up
            to `FULL_CELLS` logits and `AUTO_K` beyond. What holds k logits already keeps them.
        copies: how many sets of this size are stored for one model, as those of a corruption plan:
            `auto` counts the logits of all of them.

    Returns:
        SHA-256 of the file, 64 hex digits.

    Raises:
        PredictionsError: ids are not unique, or k < 1.
        DiskFullError: no space is left; a former file at `path` is intact.
        StorageError: the file system refuses otherwise.
    """
    check_unique(predictions.ids)
    if keep == "auto":
        keep = "full" if predictions.logits.size * copies <= FULL_CELLS else AUTO_K
    return write_chunks(path, [predictions], keep=keep)


def write_chunks(
    path: str | os.PathLike[str],
    chunks: Iterable[Predictions | TopKPredictions],
    *,
    keep: Literal["full"] | int = "full",
) -> str:
    """Write a predictions file from pieces that need not be in memory together.

    Args:
        path: final name, by custom ending in `.parquet`.
        chunks: pieces of one set, in order, that agree in their metadata.
        keep: `full` stores all logits, a number k the k largest of each sample.

    Returns:
        SHA-256 of the file, 64 hex digits.

    Raises:
        PredictionsError: there is no chunk, their metadata differ, ids are not unique, or k < 1.
        DiskFullError: no space is left; a former file at `path` is intact.
        StorageError: the file system refuses otherwise.
    """
    if keep != "full" and keep < 1:
        raise PredictionsError(f"keep must be ≥ 1, got {keep}")
    ids: list[Strings] = []
    writer: pq.ParquetWriter | None = None
    described: PredictionsMetadata | None = None
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            for chunk in chunks:
                metadata = chunk.metadata
                if (
                    isinstance(chunk, Predictions)
                    and keep != "full"
                    and keep < len(metadata.class_names)
                ):
                    chunk = top_k(chunk, keep)
                if described is not None and metadata != described:
                    raise PredictionsError(
                        "chunks must agree in their metadata, got two that differ"
                    )
                described = metadata
                ids.append(chunk.ids)
                table = _table(chunk)
                if writer is None:
                    writer = _writer(file, table.schema)
                elif table.schema != writer.schema:
                    raise PredictionsError(
                        "either all chunks have clusters or none has, and features likewise, got "
                        "both kinds"
                    )
                writer.write_table(
                    table, row_group_size=max(1, CELLS_PER_GROUP // chunk.logits.shape[1])
                )
        finally:
            if writer is not None:
                writer.close()
        if not ids:
            raise PredictionsError("predictions must hold at least one sample, got none")
        if len(ids) > 1:
            check_unique(np.concatenate(ids))
        file.flush()
        return sha256_file(temporary)


def _table(predictions: Predictions | TopKPredictions) -> pa.Table:
    def lists(values: npt.NDArray[Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    columns: dict[str, pa.Array] = {
        "id": pa.array(predictions.ids.tolist(), pa.string()),
        "label": pa.array(predictions.labels.astype(np.int32)),
        "logits": lists(predictions.logits),
    }
    if isinstance(predictions, TopKPredictions):
        columns |= {
            "classes": lists(predictions.classes),
            "label_logit": pa.array(predictions.label_logits),
            "label_rank": pa.array(predictions.label_ranks.astype(np.int32)),
            "log_sum_exp": pa.array(predictions.log_sum_exps),
            "sum_squares": pa.array(predictions.sum_squares),
        }
    elif predictions.features is not None:
        columns["features"] = lists(predictions.features)
    if predictions.clusters is not None:
        columns["cluster"] = pa.array(predictions.clusters.tolist(), pa.string())
    metadata = asdict(replace(predictions.metadata, format_version=FORMAT_VERSION))
    described = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    return pa.table(columns).replace_schema_metadata({KEY: described.encode()})


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=["cluster"],
        # Grouping the bytes of floats by significance is what lets them compress.
        use_byte_stream_split=["logits.list.element"],
        write_page_checksum=True,
    )
