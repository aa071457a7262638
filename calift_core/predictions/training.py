"""Features of the images that a run could train on, kept beside its model and read without torch.

They answer which training images a model finds a new picture alike to.
"""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core.errors import NotFoundError, PredictionsError
from calift_core.files import atomic_write_bytes, storage_error
from calift_core.predictions.types import Strings
from calift_core.untrusted import parse_json

#: Name of the file in a finished model's folder.
TRAINING_IMAGES = "training_images.npz"


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """M images of a training part.

    Attributes:
        dataset: name of the part, as in `photos/train`.
        ids: (M,) their ids.
        labels: (M,) int64, positions among the suite's classes.
        features: (M, D) float16, L2-normalised, of the finished model.
    """

    dataset: str
    of: int
    ids: Strings
    labels: npt.NDArray[np.int64]
    features: npt.NDArray[np.float16]


def save_training_images(
    folder: Path,
    *,
    dataset: str,
    of: int,
    ids: Sequence[str],
    labels: npt.NDArray[np.int64],
    features: npt.NDArray[np.float16],
) -> None:
    """Write `TRAINING_IMAGES` in a finished model's folder; see `TrainingImages`.

    Raises:
        DiskFullError, StorageError: the file cannot be written.
    """
    about = json.dumps({"dataset": dataset, "of": of, "ids": list(ids)}, ensure_ascii=False)
    buffer = io.BytesIO()
    # Uncompressed: features hardly shrink, and ids and labels are read alone.
    np.savez(
        buffer,
        about=np.frombuffer(about.encode(), np.uint8),
        labels=labels.astype(np.int32),
        features=features,
    )
    atomic_write_bytes(folder / TRAINING_IMAGES, buffer.getvalue())


def read_training_images(path: str | os.PathLike[str]) -> TrainingImages:
    """Read what `save_training_images` wrote.

    Raises:
        PredictionsError: the file is damaged.
        StorageError: it cannot be opened.
    """
    about, labels, features = _read(path, with_features=True)
    if features.dtype != np.float16 or features.ndim != 2 or len(features) != len(labels):
        raise _damaged(path, f"features of {features.dtype} and shape {features.shape}")
    return TrainingImages(
        about["dataset"], about["of"], np.array(about["ids"], dtype=np.str_), labels, features
    )


def training_label(path: str | os.PathLike[str], sample: str) -> int:
    """The class of one of the images, by its id.

    Raises:
        NotFoundError: it is none of them.
        PredictionsError: the file is damaged.
        StorageError: it cannot be opened.
    """
    about, labels, _ = _read(path, with_features=False)
    try:
        return int(labels[about["ids"].index(sample)])
    except ValueError:
        raise NotFoundError(
            f"{about['dataset']} has no image {sample[:200]!r} among those that were kept."
        ) from None


def _read(
    path: str | os.PathLike[str], *, with_features: bool
) -> tuple[dict[str, Any], npt.NDArray[np.int64], npt.NDArray[Any]]:
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = parse_json(file["about"].tobytes())
            labels = file["labels"].astype(np.int64)
            features = file["features"] if with_features else np.empty((0, 0), np.float16)
        ids, known = about["ids"], isinstance(about["dataset"], str)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    known = known and isinstance(about.get("of"), int) and isinstance(ids, list)
    if not known or labels.shape != (len(ids),) or not all(isinstance(one, str) for one in ids):
        raise _damaged(path, "each image must have an id and a label")
    return about, labels, features


def _damaged(path: str | os.PathLike[str], why: str) -> PredictionsError:
    return PredictionsError(f"{os.fspath(path)} is damaged: {why}")
