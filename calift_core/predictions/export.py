"""Predictions that people take elsewhere, as Parquet, CSV or NPZ."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from calift_core.errors import SpecError
from calift_core.files import atomic_path
from calift_core.predictions.read import read_metadata, read_predictions, read_top_k
from calift_core.predictions.types import Predictions, Strings
from calift_core.predictions.write import write_predictions
from calift_core.untrusted import mark_formula

#: A string in JSON.
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_FORMATS = (".parquet", ".csv", ".npz")


def export_predictions(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a predictions file as Parquet, CSV or NPZ; `load_predictions` reads each back the same.

    Args:
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
    columns: dict[str, Any] = {"id": _marked(predictions.ids), "label": predictions.labels}
    if predictions.clusters is not None:
        columns["cluster"] = _marked(predictions.clusters)
    for index in range(predictions.logits.shape[1]):
        columns[f"logits_{index}"] = predictions.logits[:, index]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # One cell: a name in it must not become a cell of its own.
        described = _TEXT.sub(lambda m: m[0].replace(",", "\\u002c"), _described(predictions))
        file.write(f"# calift {described}\n".encode())
        pa_csv.write_csv(pa.table(columns), file, pa_csv.WriteOptions(quoting_style="needed"))


def _marked(texts: Strings) -> list[str]:
    return [mark_formula(one) for one in texts.tolist()]
