"""CIFAR-10 and CIFAR-100 as their author publishes them: Python or binary batches. Torch-free.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". A batch holds N images of
3 × 32 × 32 bytes, one plane a colour, and their labels. The Python batches are pickles; they are
read here as the list of values that they are, and nothing in them is executed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.errors import DataError, reason_of

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
