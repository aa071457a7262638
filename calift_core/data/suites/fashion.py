"""Fashion-MNIST. Torch-free."""

import gzip
import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet
from calift_core.data.sources import array_set
from calift_core.data.suites.base import LoadedSuite, SuiteFamily, SuiteRequest, SuiteSizes
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


def _idx_file(folder: Path, stem: str) -> Path:
    return next(p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file())


def _idx_length(path: Path) -> int:
    """The first dimension in the header of an IDX file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return int(struct.unpack(">I", file.read(8)[4:])[0])
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path.name} is not a readable IDX file: {error}") from None


def _sizes(train: int, test: int) -> dict[str, int]:
    sizes, left = {}, train
    for part, size in FASHION_SPLIT.items():
        sizes[part] = min(size, left)
        left -= sizes[part]
    return {**sizes, "test": test}


#: What captions that say little call the classes; a bag has no such name.
_COARSE = {
    **dict.fromkeys(("t-shirt", "trouser", "pullover", "dress", "coat", "shirt"), "garment"),
    **dict.fromkeys(("sandal", "sneaker", "ankle boot"), "shoe"),
}


class FashionMnist(SuiteFamily):
    """Fashion-MNIST."""

    name = "fashion-mnist"
    title = "Fashion-MNIST (70,000 grey images of clothing, 10 classes)"
    how_to_get = (
        "On Debian or Ubuntu: `apt-get install dataset-fashion-mnist`. Elsewhere torchvision "
        "downloads it by itself when there is a network. Or name a folder that holds the four IDX "
        "files in CALIFT_FASHION_MNIST."
    )
    parts: Mapping[str, int] = {**FASHION_SPLIT, "test": 10_000}

    @property
    def coarse_names(self) -> Mapping[str, str]:
        return _COARSE

    def find(self, path: Path | None) -> Path | None:
        """The folder with the files; a path in the suite's name plays no part."""
        return fashion_mnist_folder()

    def missing(self, path: Path | None) -> list[str]:
        return [] if fashion_mnist_folder() else ["no folder with the four IDX files"]

    def fetchable(self, path: Path | None) -> str | None:
        return self.name

    def _files(self) -> dict[str, Path]:
        folder = fashion_mnist_folder()
        if folder is None:
            raise DataUnavailableError(
                "Fashion-MNIST is not on this machine.", hint=self.how_to_get
            )
        return {key: _idx_file(folder, stem) for key, stem in FASHION_FILES.items()}

    def load(self, request: SuiteRequest) -> LoadedSuite:
        arrays = {key: _read_idx(path) for key, path in self._files().items()}
        keys = {
            part: hashlib.sha256(arrays[f"{part}_images"].tobytes()).hexdigest()
            for part in ("train", "test")
        }
        train, test = (
            array_set(part, arrays[f"{part}_images"], arrays[f"{part}_labels"], keys[part])
            for part in ("train", "test")
        )
        order = np.random.default_rng(_FASHION_SEED).permutation(len(train))
        parts: dict[str, ImageSet] = {}
        start = 0
        for part, size in FASHION_SPLIT.items():
            parts[part] = train.take(np.sort(order[start : start + size]), part)
            start += size
        parts["test"] = test
        return LoadedSuite(self.name, FASHION_CLASSES, FASHION_CLASSES, parts)

    def count(self, request: SuiteRequest) -> SuiteSizes:
        files = self._files()
        train, test = (_idx_length(files[f"{part}_images"]) for part in ("train", "test"))
        return SuiteSizes(_sizes(train, test), classes=FASHION_CLASSES)

    def published(self, request: SuiteRequest) -> SuiteSizes:
        """Of 60,000 training images and 10,000 test images."""
        return SuiteSizes(_sizes(60_000, 10_000))
