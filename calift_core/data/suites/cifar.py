"""CIFAR-10 and -100 as their author publishes them, and CIFAR-10-C and -100-C. Torch-free.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". A batch holds N images of
3 × 32 × 32 bytes, one plane a colour, and their labels. The Python batches are pickles; they are
read here as the list of values that they are, and nothing in them is executed.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet, PixelSource, split_by_hash
from calift_core.data.listing import SEVERITIES, STORED_CORRUPTIONS, class_folders, shares_of
from calift_core.data.sources import NpySource, array_set
from calift_core.data.suites.base import (
    Loaded,
    SuiteEntry,
    demand_nothing_missing,
    suite_folder,
    variable_of,
)
from calift_core.data.suites.folders import scan
from calift_core.errors import DataError, reason_of
from calift_core.home import cache_dir
from calift_core.schema.spec import FractionSpec

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets.

    Attributes:
        classes: C labels in label order, as CLIP's authors write them.
        python: folder and files of the Python batches: training ones, then the test one, each
            with its published MD5.
        binary: folder and files of the binary batches, in that order.
        label_key: of the labels in a Python batch.
        label_bytes: bytes before an image in a binary batch; the last of them is the label.
    """

    classes: tuple[str, ...]
    python: tuple[str, dict[str, str]]
    binary: tuple[str, tuple[str, ...]]
    label_key: str
    label_bytes: int


# fmt: off
CIFAR: dict[str, Cifar] = {
    "cifar10": Cifar(
        classes=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
            "truck",
        ),
        python=("cifar-10-batches-py", {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        }),
        binary=("cifar-10-batches-bin", (
            "data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
            "data_batch_5.bin", "test_batch.bin",
        )),
        label_key="labels",
        label_bytes=1,
    ),
    "cifar100": Cifar(
        classes=(
            "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
            "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
            "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
            "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
            "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn mower",
            "leopard", "lion", "lizard", "lobster", "man", "maple tree", "motorcycle", "mountain",
            "mouse", "mushroom", "oak tree", "orange", "orchid", "otter", "palm tree", "pear",
            "pickup truck", "pine tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit",
            "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
            "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
            "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train",
            "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman", "worm",
        ),
        python=("cifar-100-python", {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        }),
        binary=("cifar-100-binary", ("train.bin", "test.bin")),
        label_key="fine_labels",
        label_bytes=2,
    ),
}
# fmt: on

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def find_batches(cifar: Cifar, root: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The folder that holds all batches of one kind, and their names; the test batch is last.

    Looks for the Python batches first, in `root` itself and in the folder of their archive.
    """
    python, binary = cifar.python, cifar.binary
    for folder, files in ((python[0], tuple(python[1])), binary):
        for place in (root, root / folder):
            if all((place / file).is_file() for file in files):
                return place, files
    return None


def read_batch(path: Path, cifar: Cifar) -> Batch:
    """Images (N, 32, 32, 3) uint8 and labels (N,) of one batch.

    Raises:
        DataError: the file is no batch of this data set.
    """
    reader = _binary if path.suffix == ".bin" else _python
    try:
        planes, labels = reader(path.read_bytes(), cifar)
    except DataError as error:
        raise DataError(f"{str(path)!r} is no batch of CIFAR: {error.message}") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    if labels.size and not 0 <= labels.min() <= labels.max() < len(cifar.classes):
        raise DataError(
            f"labels in {str(path)!r} must be 0 to {len(cifar.classes) - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _binary(raw: bytes, cifar: Cifar) -> Batch:
    record = cifar.label_bytes + _PIXELS
    if not raw or len(raw) % record:
        raise DataError(f"expected a multiple of {record} bytes, got {len(raw)}")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
    return rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1].astype(np.int64)


def _python(raw: bytes, cifar: Cifar) -> Batch:
    """The longest string of a batch is its pixels; the integers after the label key its labels."""
    pixels = b""
    labels: list[int] = []
    is_labels = False
    for value in _values(raw):
        if isinstance(value, int):
            if is_labels:
                labels.append(value)
        else:
            is_labels = value == cifar.label_key.encode()
            if len(value) > len(pixels):
                pixels = value
    if not labels or len(pixels) != len(labels) * _PIXELS:
        raise DataError(
            f"expected {_PIXELS} bytes for each of its labels ({cifar.label_key}), "
            f"got {len(pixels)} bytes and {len(labels)} labels"
        )
    planes = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, _PIXELS)
    return planes, np.array(labels, dtype=np.int64)


_INTEGERS = frozenset({"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"})


def _values(raw: bytes) -> Iterator[int | bytes]:
    """Strings and integers of a pickle in their order, by its opcodes alone.

    Python 2 wrote the published files: its strings are bytes, which come as Latin-1 here.
    """
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            value: Any = argument
            if opcode.name in _INTEGERS:
                yield int(value)
            elif "STRING" in opcode.name or "UNICODE" in opcode.name or "BYTES" in opcode.name:
                yield value if isinstance(value, bytes) else str(value).encode("latin-1")
    except (ValueError, UnicodeError, IndexError) as error:
        raise DataError(f"it is damaged: {reason_of(error)}") from None


def cifar_folder(name: str, path: Path | None = None) -> Path:
    """The folder of CIFAR-10 or -100: the named one, else where torchvision downloads it to."""
    if path is not None or os.environ.get(variable_of(name)):
        return suite_folder(name, path)
    return cache_dir() / "torchvision"


def cifar_missing(name: str, root: Path) -> list[str]:
    """What is missing; nothing if the batches or class folders are there."""
    cifar = CIFAR[name]
    if find_batches(cifar, root) is not None:
        return []
    parts = [part for part in ("train", "test") if (root / part).is_dir()]
    if not parts:
        return [
            f"neither the batches {cifar.python[0]}/ or {cifar.binary[0]}/ nor train/ and test/"
        ]
    problems = [f"{part}: no folder {part}/" for part in ("train", "test") if part not in parts]
    for part in parts:
        found = len(class_folders(root / part))
        if found != len(cifar.classes):
            problems.append(
                f"{part}: {part}/ has {found} class folders, expected {len(cifar.classes)}"
            )
    return problems


def cifar_c_folder(name: str, path: Path | None = None) -> Path:
    """The folder of CIFAR-10-C or -100-C: its own setting, else beside the clean batches."""
    if path is not None or os.environ.get(variable_of(name)):
        root = suite_folder(name, path)
    else:
        root = cifar_folder(name.removesuffix("-c"))
    archive = root / name.upper().replace("CIFAR", "CIFAR-")
    return archive if archive.is_dir() else root


def cifar_c_missing(root: Path) -> list[str]:
    """Which of the 15 files of the benchmark and the labels are missing."""
    files = [f"{name}.npy" for name in (*STORED_CORRUPTIONS, "labels")]
    return [f"no file {file}" for file in files if not (root / file).is_file()]


def _cifar_entry(name: str, title: str) -> SuiteEntry:
    cifar = CIFAR[name]
    return SuiteEntry(
        f"{title} (60,000 images of 32 × 32 pixels, {len(cifar.classes)} classes)",
        "torchvision downloads it by itself when there is a network. Or name a folder that holds "
        f"{cifar.python[0]}/, {cifar.binary[0]}/ or train/ and test/ folders of class folders in "
        f"{variable_of(name)} or as {name}:PATH.",
        train=40_000,
        evaluated=10_000,
        missing=lambda path: cifar_missing(name, cifar_folder(name, path)),
        classes=lambda: cifar.classes,
        parts={"train": 50_000, "test": 10_000},
    )


def _cifar_c_entry(name: str, title: str) -> SuiteEntry:
    clean = name.removesuffix("-c")
    return SuiteEntry(
        f"{title} (CIFAR's test images under 15 stored corruptions at 5 severities)",
        f"Unpack the authors' archive (one .npy file for each corruption, and labels.npy) and name "
        f"its folder in {variable_of(name)} or as {name}:PATH; the clean images come from "
        f"{clean}. Or let calift compute them: suite {clean} with corruptions benchmark.",
        train=40_000,
        evaluated=10_000 * (1 + len(STORED_CORRUPTIONS) * len(SEVERITIES)),
        missing=lambda path: (
            cifar_missing(clean, cifar_folder(clean)) + cifar_c_missing(cifar_c_folder(name, path))
        ),
        classes=lambda: CIFAR[clean].classes,
        parts={"train": 50_000, "test": 10_000, "each corruption and severity": 10_000},
    )


CIFAR_ENTRIES: dict[str, SuiteEntry] = {
    "cifar10": _cifar_entry("cifar10", "CIFAR-10"),
    "cifar100": _cifar_entry("cifar100", "CIFAR-100"),
    "cifar10-c": _cifar_c_entry("cifar10-c", "CIFAR-10-C"),
    "cifar100-c": _cifar_c_entry("cifar100-c", "CIFAR-100-C"),
}


#: Downloads the named data set into a folder.
Fetch = Callable[[str, Path], None]


def load_cifar(name: str, path: Path | None, fractions: FractionSpec, fetch: Fetch) -> Loaded:
    """Batches or class folders; validation and calibration images come off the 50,000."""
    cifar, root, entry = CIFAR[name], cifar_folder(name, path), CIFAR_ENTRIES[name]
    problems = entry.missing(path)
    if problems and root == cache_dir() / "torchvision":
        fetch(name, root)
        problems = entry.missing(path)
    demand_nothing_missing(name, entry, root, problems)
    batches = find_batches(cifar, root)
    if batches is None:
        train, test = (
            _cifar_folders(root / part, cifar.classes, part) for part in ("train", "test")
        )
    else:
        folder, files = batches
        train = _cifar_set("train", [read_batch(folder / file, cifar) for file in files[:-1]])
        test = _cifar_set("test", [read_batch(folder / files[-1], cifar)])
    parts = {**split_by_hash(train, shares_of(fractions, ("test",)), "train"), "test": test}
    return Loaded(name, cifar.classes, cifar.classes, parts)


def _cifar_set(part: str, batches: Sequence[Batch]) -> ImageSet:
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return array_set(part, images, labels, hashlib.sha256(images.tobytes()).hexdigest())


def _cifar_folders(root: Path, classes: Sequence[str], part: str) -> ImageSet:
    """Class folders in label order; `aquarium fish` may be called `aquarium_fish`."""
    folder_of = {folder.lower().replace("_", " "): folder for folder in class_folders(root)}
    absent = [c for c in classes if c not in folder_of]
    if absent:
        raise DataError(f"{str(root)!r} has no class folders {', '.join(absent[:5])}")
    return scan(root, [folder_of[c] for c in classes], part, f"{part}/")


def load_cifar_c(name: str, path: Path | None, fractions: FractionSpec, fetch: Fetch) -> Loaded:
    """Each file holds the test images five times, severity after severity."""
    clean = load_cifar(name.removesuffix("-c"), None, fractions, fetch)
    root, entry = cifar_c_folder(name, path), CIFAR_ENTRIES[name]
    demand_nothing_missing(name, entry, root, entry.missing(path))
    test = clean.parts["test"]
    labels = _npy_labels(root / "labels.npy")
    expected = np.tile(test.labels, len(SEVERITIES))
    if not np.array_equal(labels, expected):
        raise DataError(
            f"labels.npy of {name} must hold the {len(test)} test labels of {clean.name} "
            f"{len(SEVERITIES)} times, it holds {len(labels)} others"
        )
    stored: dict[tuple[str, int], PixelSource] = {}
    for file in sorted(root.glob("*.npy")):
        if file.stem == "labels":
            continue
        if len(NpySource(file)) != len(expected):
            raise DataError(
                f"{file.name} of {name} must hold {len(expected)} images, "
                f"it holds {len(NpySource(file))}"
            )
        for severity in SEVERITIES:
            stored[file.stem, severity] = NpySource(file, (severity - 1) * len(test))
    return replace(clean, name=name, stored=stored)


def _npy_labels(path: Path) -> NDArray[np.int64]:
    try:
        return np.load(path, allow_pickle=False).astype(np.int64)  # type: ignore[no-any-return]
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path.name} is not a readable NumPy file: {reason_of(error)}") from None
