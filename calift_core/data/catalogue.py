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
    """What is known of a named suite.

    Attributes:
        title: for people.
        how_to_get: a sentence for those who do not have it.
        train: published number of training images.
        evaluated: published number of images in its test part and shifts.
    """

    title: str
    how_to_get: str
    train: int
    evaluated: int


SUITES: dict[str, SuiteEntry] = {
    "fashion-mnist": SuiteEntry(
        "Fashion-MNIST (70,000 grey images of clothing, 10 classes)",
        "On Debian or Ubuntu: `apt-get install dataset-fashion-mnist`. Elsewhere torchvision "
        "downloads it by itself when there is a network. Or name a folder that holds the four IDX "
        "files in CALIFT_FASHION_MNIST.",
        train=10_000,
        evaluated=20_000,
    ),
    "imagenet": SuiteEntry(
        "ImageNet with its shifts V2, R, A and Sketch",
        "Put the data sets side by side in one folder and name it in CALIFT_IMAGENET: train/ and "
        "val/ (ILSVRC-2012, 1,000 class folders; image-net.org, after registration), "
        "imagenetv2-matched-frequency-format-val/, imagenet-r/, imagenet-a/ and sketch/ as their "
        "authors publish them. calift never downloads them.",
        train=1_281_167,
        evaluated=50_000 + 10_000 + 30_000 + 7_500 + 50_889,
    ),
}

#: ImageNet's parts and shifts: name → folder, and the number of class folders that it must have.
IMAGENET_FOLDERS = {
    "train": ("train", 1000),
    "test": ("val", 1000),
    "imagenet-v2": ("imagenetv2-matched-frequency-format-val", 1000),
    "imagenet-r": ("imagenet-r", 200),
    "imagenet-a": ("imagenet-a", 200),
    "imagenet-sketch": ("sketch", 1000),
}


def imagenet_folder() -> Path:
    """The folder named by CALIFT_IMAGENET, else one in the cache that nobody has made yet."""
    named = os.environ.get("CALIFT_IMAGENET")
    return Path(named).expanduser() if named else cache_dir() / "imagenet"


def imagenet_missing() -> list[str]:
    """What is missing or has the wrong number of classes, one sentence each."""
    root = imagenet_folder()
    problems = []
    for name, (folder, expected) in IMAGENET_FOLDERS.items():
        path = root / folder
        if not path.is_dir():
            problems.append(f"{name}: no folder {folder}/")
            continue
        found = sum(1 for p in path.iterdir() if p.is_dir())
        if found != expected:
            problems.append(f"{name}: {folder}/ has {found} class folders, expected {expected}")
    return problems


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
        ),
        DatasetInfo(
            id="imagenet",
            title=SUITES["imagenet"].title,
            available=not imagenet_missing(),
            detail=("on this machine" if not imagenet_missing() else SUITES["imagenet"].how_to_get),
        ),
    ]
