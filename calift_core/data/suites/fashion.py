"""Fashion-MNIST. Torch-free."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet
from calift_core.data.sources import array_set
from calift_core.data.suites.base import Loaded, SuiteEntry
from calift_core.errors import DataError, DataUnavailableError
from calift_core.home import cache_dir

FASHION_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist_folder() -> Path | None:
    """The folder that holds the four IDX files, gzipped or not, or None."""
    named = os.environ.get("CALIFT_FASHION_MNIST")
    candidates = [Path(named)] if named else []
    candidates += [_DEBIAN, cache_dir() / "torchvision" / "FashionMNIST" / "raw"]
    for folder in candidates:
        if all(
            (folder / f"{stem}.gz").is_file() or (folder / stem).is_file()
            for stem in FASHION_FILES.values()
        ):
            return folder
    return None


def _fashion_mnist_missing(_path: Path | None) -> list[str]:
    return [] if fashion_mnist_folder() else ["no folder with the four IDX files"]


FASHION_MNIST: dict[str, SuiteEntry] = {
    "fashion-mnist": SuiteEntry(
        "Fashion-MNIST (70,000 grey images of clothing, 10 classes)",
        "On Debian or Ubuntu: `apt-get install dataset-fashion-mnist`. Elsewhere torchvision "
        "downloads it by itself when there is a network. Or name a folder that holds the four IDX "
        "files in CALIFT_FASHION_MNIST.",
        train=10_000,
        evaluated=20_000,
        missing=_fashion_mnist_missing,
        parts={
            "pretrain": 40_000,
            "train": 10_000,
            "validation": 5_000,
            "calibration": 5_000,
            "test": 10_000,
        },
    ),
}

#: Sizes of the parts that Fashion-MNIST's 60,000 training images are split into, once and for all,
#: by a fixed permutation: no image is in two of them. `test` is the data set's own 10,000.
FASHION_SPLIT = {"pretrain": 40_000, "train": 10_000, "validation": 5_000, "calibration": 5_000}


FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_FASHION_SEED = 20_241_115


def _read_idx(path: Path) -> NDArray[np.uint8]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dimensions = raw[3]
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, IndexError) as error:
        raise DataError(f"{path.name} is not a readable IDX file: {error}") from None


def load_fashion_mnist(fetch: Callable[[], Path]) -> Loaded:
    """The parts; `fetch` downloads the four files where they are not here."""
    folder = fashion_mnist_folder() or fetch()
    arrays = {}
    for key, stem in FASHION_FILES.items():
        candidates = [folder / f"{stem}.gz", folder / stem]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise DataUnavailableError(
                f"{stem} is missing from the Fashion-MNIST folder",
                hint=FASHION_MNIST["fashion-mnist"].how_to_get,
            )
        arrays[key] = _read_idx(path)
    keys = {
        part: hashlib.sha256(arrays[f"{part}_images"].tobytes()).hexdigest()
        for part in ("train", "test")
    }
    order = np.random.default_rng(_FASHION_SEED).permutation(len(arrays["train_labels"]))
    parts: dict[str, ImageSet] = {}
    start = 0
    whole = array_set("train", arrays["train_images"], arrays["train_labels"], keys["train"])
    for part, size in FASHION_SPLIT.items():
        parts[part] = whole.take(np.sort(order[start : start + size]), part)
        start += size
    parts["test"] = array_set("test", arrays["test_images"], arrays["test_labels"], keys["test"])
    return Loaded("fashion-mnist", FASHION_CLASSES, FASHION_CLASSES, parts)
