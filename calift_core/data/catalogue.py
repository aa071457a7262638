"""Which suites exist, which are on this machine, and how to get the others. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from calift_core.home import cache_dir
from calift_core.schema.wire import DatasetInfo

FASHION_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class SuiteEntry:
    """What is known of a named suite."""

    title: str
    how_to_get: str


SUITES: dict[str, SuiteEntry] = {
    "fashion-mnist": SuiteEntry(
        "Fashion-MNIST (70,000 grey images of clothing, 10 classes)",
        "On Debian or Ubuntu: `apt-get install dataset-fashion-mnist`. Elsewhere torchvision "
        "downloads it by itself when there is a network. Or name a folder that holds the four IDX "
        "files in CALIFT_FASHION_MNIST.",
    ),
}


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


def available_suites() -> list[DatasetInfo]:
    """Every named suite, with what is here and what to do about what is not."""
    folder = fashion_mnist_folder()
    entry = SUITES["fashion-mnist"]
    return [
        DatasetInfo(
            id="fashion-mnist",
            title=entry.title,
            available=folder is not None,
            detail="on this machine" if folder else entry.how_to_get,
            parts={
                "pretrain": 40_000,
                "train": 10_000,
                "validation": 5_000,
                "calibration": 5_000,
                "test": 10_000,
            },
        )
    ]
