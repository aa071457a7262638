"""Predictions that people made elsewhere. Torch-free.

What is read is told by the content, not by the name:

* **NPZ**: `labels` (N,) integers and either `probs` or `logits` (N, C) floats; optional are `ids`
  (N,), `class_names` (C,) and `clusters` (N,). Nothing is unpickled.
* **Parquet**: columns `labels` and either a list column `probs` or `logits` or the columns
  `probs_0` … (`logits_0` …); optional are `ids` and `clusters`. The singular names (`label`, `id`,
  `cluster`) are understood too. A predictions file of calift is read as what it is.
* **CSV**: a header with the same columns, numbered or named by class (`probs_cat`). A first line
  `# calift {…}` holds the metadata that `export_predictions` writes there; other readers skip it
  (`skiprows=1` in pandas).
* **JSON lines**: an object a line with the same keys; `probs` is a list, a number, or an object by
  class.

Labels may be class names instead of numbers, where the file or the caller names the classes; one
column of probabilities is that of the second of two classes.

Sizes that a file declares are looked at before anything is unpacked. Probabilities become logits
log p, floored at the smallest normal float32, so that softmax(logits) is what was given.
"""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from calift_core import __version__
from calift_core.calibration.bins import (
    SMALLEST_PROBABILITY,
    check_labels,
    check_logits,
    check_probs,
    logits_of,
    two_columns,
)
from calift_core.errors import PredictionsError, UnknownNameError
from calift_core.files import storage_error
from calift_core.installed import install_extra
from calift_core.predictions.foreign.csv import read_csv
from calift_core.predictions.foreign.jsonl import read_jsonl
from calift_core.predictions.foreign.npz import read_npz
from calift_core.predictions.foreign.source import (
    MAX_BYTES,
    MAX_CLASSES,
    Array,
    ForeignSource,
    Kind,
)
from calift_core.predictions.types import (
    MAX_TEXT,
    Predictions,
    PredictionsMetadata,
    Role,
    TopKPredictions,
)


def load_predictions(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    role: Role | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Predictions | TopKPredictions:
    """Read predictions from NPZ, Parquet, CSV or JSON lines and check all of them.

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
    if kind == "parquet":
        source = _read_parquet(path, max_bytes)
        if not isinstance(source, ForeignSource):
            return _renamed(source, dataset=dataset, role=role, class_names=class_names)
    else:
        source = {"npz": read_npz, "csv": read_csv, "jsonl": read_jsonl}[kind](path, max_bytes)
    if class_names is not None:
        source.class_names = class_names
    return _assembled(source, dataset=dataset or path.stem, role=role, named=dataset is not None)


def _read_parquet(path: Path, max_bytes: int) -> ForeignSource | Predictions | TopKPredictions:
    try:
        from calift_core.predictions.foreign.parquet import is_ours, read_parquet
        from calift_core.predictions.read import read_metadata, read_predictions, read_top_k
    except ModuleNotFoundError as error:
        raise PredictionsError(
            f"{path} is a Parquet file, which needs {error.name}, not installed.",
            hint=install_extra("parquet"),
        ) from None
    if not is_ours(path, max_bytes):
        return read_parquet(path, max_bytes)
    stored = read_metadata(path).storage
    return read_predictions(path) if stored == "full" else read_top_k(path)


def _kind_of(path: Path) -> Literal["npz", "parquet", "csv", "jsonl"]:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if not start:
        raise PredictionsError(f"{path} must be NPZ, Parquet, CSV or JSON lines, got an empty file")
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
            f"{path} must be NPZ, Parquet, CSV or JSON lines, got another kind of file "
            f"(it begins with {start[:8]!r})"
        )
    return "jsonl" if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "csv"


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
    overrides: dict[str, Any] = {"dataset": dataset, "role": role, "class_names": class_names}
    changes = {name: value for name, value in overrides.items() if value is not None}
    metadata = replace(stored.metadata, **changes) if changes else stored.metadata
    _check_texts(metadata)
    return replace(stored, metadata=metadata)


def _assembled(
    source: ForeignSource, *, dataset: str, role: Role | None, named: bool
) -> Predictions:
    values = source.values
    if source.kind == "probs" and values.ndim == 1:
        values = two_columns(values)
    if values.ndim != 2:
        raise PredictionsError(f"{source.kind} must have the shape (N, C), got {values.shape}")
    n, n_classes = values.shape
    if n_classes > MAX_CLASSES:
        raise PredictionsError(f"there must be at most {MAX_CLASSES:,} classes, got {n_classes:,}")
    if source.kind == "probs":
        probs = check_probs(values)
        logits = logits_of(probs)
    else:
        logits = np.asarray(check_logits(values), dtype=np.float32)
    labels = check_labels(_indices(source.labels, source.class_names), n, n_classes)
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


def _indices(labels: Array, class_names: Sequence[str] | None) -> Array:
    """Labels as class indices; names are looked up."""
    if labels.dtype.kind != "U":
        return labels
    if class_names is None:
        if all(label.isdecimal() for label in labels.tolist()):
            return labels.astype(np.int64)
        raise PredictionsError(
            "labels that are names need the names of the classes, got "
            f"{str(labels[0])!r} and none.",
            hint="Name the columns probs_CLASS, store class_names, or give --class-names.",
        )
    index = {name: i for i, name in enumerate(class_names)}
    unknown = sorted(set(labels.tolist()) - index.keys())
    if unknown:
        raise PredictionsError(
            f"labels must be among the {len(index)} class names, got {unknown[0]!r}"
        )
    return np.array([index[label] for label in labels.tolist()], dtype=np.int64)


def _provenance(kind: Kind) -> str:
    if kind == "logits":
        return f"logits imported by calift {__version__}"
    return (
        f"probabilities imported by calift {__version__}; the logits are log p, "
        f"p floored at {SMALLEST_PROBABILITY:.3g}"
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
    """Refuse text that a database or a browser cannot hold."""
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
