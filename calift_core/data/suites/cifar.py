"""CIFAR-10 and -100 as their author publishes them, and CIFAR-10-C and -100-C. Torch-free.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". A batch holds N images of
3 × 32 × 32 bytes, one plane a colour, and their labels. The Python batches are pickles; they are
read here as the list of values that they are, and nothing in them is executed.
"""

import hashlib
import os
import pickletools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.checks import Check
from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.listing import (
    BENCHMARK,
    SEVERITIES,
    STORED_CORRUPTIONS,
    ScanBudget,
    class_folders,
    shares_of,
    split_sizes,
)
from calift_core.data.sources import NpySource, array_set
from calift_core.data.suites.base import (
    LoadedSuite,
    Published,
    SuiteFamily,
    SuiteRequest,
    SuiteSizes,
    suite_folder,
    variable_of,
)
from calift_core.data.suites.checking import check_tree
from calift_core.data.suites.folders import scan
from calift_core.errors import CaliftError, DataError, reason_of
from calift_core.home import cache_dir
from calift_core.schema.suite import FractionSpec

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Facts:
    """What is published of one of the two data sets.

    Attributes:
        classes: C labels in label order, as CLIP's authors write them.
        python: folder and files of the Python batches: training ones, then the test one, each
            with its published MD5.
        binary: folder and files of the binary batches, in that order.
        label_bytes: bytes before an image in a binary batch; the last of them is the label.
    """

    classes: tuple[str, ...]
    python: tuple[str, dict[str, str]]
    binary: tuple[str, tuple[str, ...]]
    label_key: str
    label_bytes: int


# fmt: off
CIFAR: dict[str, Facts] = {
    "cifar10": Facts(
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
    "cifar100": Facts(
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


def find_batches(cifar: Facts, root: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The folder that holds all batches of one kind, and their names; the test batch is last.

    Looks for the Python batches first, in `root` itself and in the folder of their archive.
    """
    python, binary = cifar.python, cifar.binary
    for folder, files in ((python[0], tuple(python[1])), binary):
        for place in (root, root / folder):
            if all((place / file).is_file() for file in files):
                return place, files
    return None


def read_batch(path: Path, cifar: Facts) -> Batch:
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


def _binary(raw: bytes, cifar: Facts) -> Batch:
    record = cifar.label_bytes + _PIXELS
    if not raw or len(raw) % record:
        raise DataError(f"expected a multiple of {record} bytes, got {len(raw)}")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
    return rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1].astype(np.int64)


def _python(raw: bytes, cifar: Facts) -> Batch:
    """The longest string of a batch is its pixels; the integers after the label key its labels."""
    pixels = b""
    labels: list[int] = []
    is_labels = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in a damaged file
        values = list(_values(raw))
    for value in values:
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


def _cifar_set(part: str, batches: Sequence[Batch]) -> ImageSet:
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return array_set(part, images, labels, hashlib.sha256(images.tobytes()).hexdigest())


def _cifar_folders(
    root: Path, classes: Sequence[str], part: str, budget: ScanBudget | None
) -> ImageSet:
    """Class folders in label order; `aquarium fish` may be called `aquarium_fish`."""
    folder_of = {folder.lower().replace("_", " "): folder for folder in class_folders(root)}
    absent = [c for c in classes if c not in folder_of]
    if absent:
        raise DataError(f"{str(root)!r} has no class folders {', '.join(absent[:5])}")
    return scan(root, [folder_of[c] for c in classes], part, f"{part}/", budget=budget)


def _npy_labels(path: Path) -> NDArray[np.int64]:
    try:
        return np.load(path, allow_pickle=False).astype(np.int64)  # type: ignore[no-any-return]
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path.name} is not a readable NumPy file: {reason_of(error)}") from None


@lru_cache(maxsize=64)
def _length_of_batch(path: Path, name: str, _size: int, _mtime_ns: int) -> int:
    return len(read_batch(path, CIFAR[name])[1])


class Cifar(SuiteFamily):
    """CIFAR-10 or -100, as batches or as class folders.

    Args:
        name: a key of `CIFAR`.
    """

    parts: Mapping[str, int] = {"train": 50_000, "test": 10_000}

    def __init__(self, name: str) -> None:
        self.name, self.facts = name, CIFAR[name]
        python, binary = self.facts.python[0], self.facts.binary[0]
        self.title = (
            f"{name.upper().replace('CIFAR', 'CIFAR-')} (60,000 images of 32 × 32 pixels, "
            f"{len(self.classes)} classes)"
        )
        self.how_to_get = (
            "torchvision downloads it by itself when there is a network. Or name a folder that "
            f"holds {python}/, {binary}/ or train/ and test/ folders of class folders in "
            f"{variable_of(name)} or as {name}:PATH."
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @property
    def coarse_names(self) -> Mapping[str, str]:
        vehicles = {"airplane", "automobile", "ship", "truck"}
        own = self.classes if self.name == "cifar10" else ()
        return {c: "vehicle" if c in vehicles else "animal" for c in own}

    def find(self, path: Path | None) -> Path:
        if path is not None or os.environ.get(variable_of(self.name)):
            return suite_folder(self.name, path)
        return cache_dir() / "torchvision"

    def fetchable(self, path: Path | None) -> str | None:
        return self.name if self.find(path) == cache_dir() / "torchvision" else None

    def missing(self, path: Path | None) -> list[str]:
        root = self.find(path)
        if find_batches(self.facts, root) is not None:
            return []
        parts = [part for part in ("train", "test") if (root / part).is_dir()]
        if not parts:
            python, binary = self.facts.python[0], self.facts.binary[0]
            return [f"neither the batches {python}/ or {binary}/ nor train/ and test/"]
        problems = [f"{part}: no folder {part}/" for part in ("train", "test") if part not in parts]
        for part in parts:
            found = len(class_folders(root / part))
            if found != len(self.classes):
                problems.append(
                    f"{part}: {part}/ has {found} class folders, expected {len(self.classes)}"
                )
        return problems

    def _batches(self, path: Path | None) -> list[Path] | None:
        """The batches that are here, the test batch last; None where there are class folders."""
        root = self.find(path)
        self.require_present(root, self.missing(path))
        found = find_batches(self.facts, root)
        return None if found is None else [found[0] / file for file in found[1]]

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """Batches or class folders; validation and calibration images come off the 50,000."""
        batches = self._batches(request.path)
        if batches is None:
            train, test = (
                _cifar_folders(self.find(request.path) / part, self.classes, part, request.budget)
                for part in ("train", "test")
            )
        else:
            train = _cifar_set("train", [read_batch(file, self.facts) for file in batches[:-1]])
            test = _cifar_set("test", [read_batch(batches[-1], self.facts)])
        parts = {
            **split_by_hash(train, shares_of(request.fractions, ("test",)), "train"),
            "test": test,
        }
        return LoadedSuite(self.name, self.classes, self.classes, parts)

    def count(self, request: SuiteRequest) -> SuiteSizes:
        batches = self._batches(request.path)
        if batches is None:
            return super().count(request)
        states = [(file, file.stat()) for file in batches]
        *train, test = (
            _length_of_batch(file, self.name, state.st_size, state.st_mtime_ns)
            for file, state in states
        )
        return self._counted(sum(train), test, request.fractions)

    def published(self, request: SuiteRequest) -> SuiteSizes:
        """The images' names are known, and so is their split."""
        return replace(self._counted(50_000, 10_000, request.fractions), classes=None)

    def _counted(self, train: int, test: int, fractions: FractionSpec) -> SuiteSizes:
        ids = (f"train/{i:05d}" for i in range(train))
        parts = split_sizes(ids, fractions, ("test",)) | {"test": test}
        return SuiteSizes(parts, classes=self.classes)

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        """Each batch by its published MD5, or both class folders."""
        root, missing = self.find(path), self.missing(path)
        found = find_batches(self.facts, root)
        if found is not None:
            for file in found[1]:
                yield _check_batch(found[0] / file, self.facts.python[1].get(file))
        elif not all((root / part).is_dir() for part in self.parts):
            yield Check(self.name, "fail", "; ".join(missing))
        else:
            for part, count in self.parts.items():
                counts = published.get(part, (count,))
                yield check_tree(part, root / part, part, len(self.classes), counts)


def _check_batch(path: Path, md5: str | None) -> Check:
    size = f"{path.stat().st_size:,} bytes"
    if md5 is None:
        return Check(path.name, "ok", size)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        return Check(path.name, "fail", f"{size}, MD5 {found}, published is {md5}")
    return Check(path.name, "ok", f"{size}, MD5 as published")


class CifarC(SuiteFamily):
    """CIFAR-10-C or -100-C: each file holds the test images five times, severity after severity.

    Args:
        name: of the clean images, a key of `CIFAR`.
    """

    parts: Mapping[str, int] = {
        "train": 50_000, "test": 10_000, "each corruption and severity": 10_000,
    }  # fmt: skip

    def __init__(self, name: str) -> None:
        self.clean = Cifar(name)
        self.name = f"{name}-c"
        self.archive = self.name.upper().replace("CIFAR", "CIFAR-")
        self.title = (
            f"{self.archive} (CIFAR's test images under 15 stored corruptions at 5 severities)"
        )
        self.how_to_get = (
            "Unpack the authors' archive (one .npy file for each corruption, and labels.npy) and "
            f"name its folder in {variable_of(self.name)} or as {self.name}:PATH; the clean images "
            f"come from {name}. Or let calift compute them: suite {name} with corruptions "
            "benchmark."
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.clean.classes

    def find(self, path: Path | None) -> Path:
        """The folder of the files: its own setting, else beside the clean batches."""
        if path is not None or os.environ.get(variable_of(self.name)):
            root = suite_folder(self.name, path)
        else:
            root = self.clean.find(None)
        archive = root / self.archive
        return archive if archive.is_dir() else root

    def fetchable(self, path: Path | None) -> str | None:
        return self.clean.fetchable(None)

    def missing(self, path: Path | None) -> list[str]:
        """What of the clean images, of the 15 files of the benchmark and of the labels."""
        root, files = self.find(path), [f"{name}.npy" for name in (*STORED_CORRUPTIONS, "labels")]
        absent = [f"no file {file}" for file in files if not (root / file).is_file()]
        return self.clean.missing(None) + absent

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """The clean images, and each file as a source of its own."""
        root = self.find(request.path)
        self.require_present(root, self.missing(request.path))
        clean = self.clean.load(replace(request, path=None))
        test = clean.parts["test"]
        labels = _npy_labels(root / "labels.npy")
        if not np.array_equal(labels, np.tile(test.labels, len(SEVERITIES))):
            raise DataError(
                f"labels.npy of {self.name} must hold the {len(test)} test labels of {clean.name} "
                f"{len(SEVERITIES)} times, it holds {len(labels)} others"
            )
        return replace(clean, name=self.name, stored=self._stored(root, len(test)))

    def count(self, request: SuiteRequest) -> SuiteSizes:
        root = self.find(request.path)
        self.require_present(root, self.missing(request.path))
        clean = self.clean.count(replace(request, path=None))
        return replace(clean, stored=self._stored(root, clean.parts["test"]).keys())

    def published(self, request: SuiteRequest) -> SuiteSizes:
        clean = self.clean.published(request)
        return replace(clean, stored=BENCHMARK)

    def _stored(self, root: Path, n_test: int) -> dict[tuple[str, int], NpySource]:
        """Each corruption at each severity; its file must hold the test images five times."""
        stored: dict[tuple[str, int], NpySource] = {}
        for file in sorted(root.glob("*.npy")):
            is_labels = file.stem == "labels"
            n = len(_npy_labels(file) if is_labels else NpySource(file))
            if n != n_test * len(SEVERITIES):
                raise DataError(
                    f"{file.name} of {self.name} must hold {n_test * len(SEVERITIES)} images, "
                    f"it holds {n}"
                )
            for severity in () if is_labels else SEVERITIES:
                stored[file.stem, severity] = NpySource(file, (severity - 1) * n_test)
        return stored

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        yield from self.clean.inspect(None, published)
        root = self.find(path)
        expected = [n * len(SEVERITIES) for n in published.get("test", (10_000,))]
        for name in (*STORED_CORRUPTIONS, "labels"):
            yield _check_npy(root / f"{name}.npy", expected)


def _check_npy(path: Path, expected: Sequence[int]) -> Check:
    if not path.is_file():
        return Check(path.name, "fail", f"no file {path.name}")
    try:
        n = len(_npy_labels(path) if path.stem == "labels" else NpySource(path))
    except (CaliftError, ValueError, OSError) as error:
        return Check(path.name, "fail", str(error))
    if n in expected:
        return Check(path.name, "ok", f"{n:,} entries")
    return Check(path.name, "fail", f"{n:,} entries, published are {expected[0]:,}")
