"""Which image files a folder holds and which part each belongs to, without opening one. Torch-free.

What loads a suite and what counts it share these, so that both see the same images.
"""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.names import Names
from calift_core.errors import CaliftError, DataError, DataUnavailableError
from calift_core.schema.spec import BENCHMARK_CORRUPTIONS, CorruptionSpec, FractionSpec

PARTS = ("pretrain", "train", "validation", "calibration", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


class TooManyFilesError(CaliftError):
    """A folder holds more than may be looked at."""

    code = "TOO_MANY_FILES"


class Budget:
    """How much of a disk may be looked at; the default is all of it.

    Args:
        entries: files and folders.
        seconds: time from now on.
    """

    def __init__(self, entries: float = float("inf"), seconds: float = float("inf")) -> None:
        self.entries, self.left = entries, entries
        self.seconds, self.deadline = seconds, time.monotonic() + seconds

    def take(self, n: int) -> None:
        """Account for entries that were seen.

        Raises:
            TooManyFilesError: that was more than there was left.
        """
        self.left -= n
        if self.left < 0:
            raise TooManyFilesError(f"more than {self.entries:,.0f} files")
        if time.monotonic() > self.deadline:
            raise TooManyFilesError(f"more files than can be counted in {self.seconds:g} s")


def images_below(folder: Path, budget: Budget | None = None) -> list[str]:
    """Image files of a folder and those in it, relative to it, folder by folder.

    Raises:
        TooManyFilesError: the budget is spent.
    """
    top = os.fspath(folder)
    found: list[tuple[str, ...]] = []
    for where, folders, files in os.walk(top):
        if budget is not None:
            budget.take(1 + len(folders) + len(files))
        inner = tuple(where[len(top) :].split(os.sep)[1:])
        found += [
            (*inner, file)
            for file in files
            # Hidden files such as macOS's `._photo.jpg` are no images.
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return ["/".join(parts) for parts in sorted(found)]


def images_by_class(
    root: Path, classes: Sequence[str], name: str, budget: Budget | None = None
) -> tuple[Names, NDArray[np.int64]]:
    """Paths of a tree of class folders relative to it, and the label (N,) of each.

    Raises:
        DataError: a class folder has no images.
        TooManyFilesError: the budget is spent.
    """
    sizes: list[int] = []

    def each() -> Iterator[str]:
        for folder in classes:
            found = images_below(root / folder, budget)
            if not found:
                raise DataError(
                    f"{name}: the class folder {folder!r} in {str(root)!r} has no images"
                )
            sizes.append(len(found))
            for path in found:
                yield f"{folder}/{path}"

    paths = Names.of(each())
    return paths, np.repeat(np.arange(len(classes), dtype=np.int64), sizes)


def demand_folder(path: Path) -> Path:
    """The path, if it is a folder.

    Raises:
        DataUnavailableError: it is not.
    """
    if not path.is_dir():
        raise DataUnavailableError(
            f"there is no folder {str(path)!r}.",
            hint="Put one folder of images per class there, or name another folder in the suite.",
        )
    return path


def demand_classes(root: Path, classes: Sequence[str], what: str) -> None:
    """See that a part or shift has the class folders of the ID training data and no others.

    Raises:
        DataError: it has not.
    """
    have = set(class_folders(root))
    missing, extra = sorted(set(classes) - have), sorted(have - set(classes))
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks the class folders {', '.join(missing)}")
        if extra:
            parts.append(f"has {', '.join(extra)}, which the ID data does not")
        raise DataError(
            f"{what} ({str(root)!r}) {' and '.join(parts)}.",
            hint="Every part and shift must hold the same class folders as the ID training data.",
        )


def folder_layout(root: Path) -> tuple[Path, tuple[str, ...], dict[str, Path]]:
    """How a folder is a suite: where its training images are, its classes, its other parts.

    Raises:
        DataUnavailableError: there is no such folder.
        DataError: it is neither class folders nor part folders of them.
    """
    demand_folder(root)
    present = [part for part in PARTS if (root / part).is_dir()]
    if (root / "val").is_dir() and "validation" not in present:
        present.append("val")
    if present and "train" not in present:
        raise DataError(
            f"{str(root)!r} has the part folders {present} but no train folder",
            hint="A suite is either class folders, or train/ (and val/ …) folders of them.",
        )
    train = root / "train" if present else root
    classes = tuple(class_folders(train))
    if len(classes) < 2:
        raise DataError(
            f"{str(train)!r} must hold at least 2 class folders, it has {list(classes)}"
        )
    others = {part: root / part for part in present if part != "train"}
    for part, where in others.items():
        demand_classes(where, classes, f"the {part} part")
    return train, classes, others


def shift_folder(root: Path) -> Path:
    """Where the images of a shift are: in its test part, if it has parts."""
    test = root / "test"
    return test if test.is_dir() and (root / "train").is_dir() else root


def listed_test(root: Path, folder: str) -> set[str] | None:
    """The images, below a domain's folder, that its list file (DomainNet's) says are for testing.

    A line is `clipart/zebra/clipart_344_000001.jpg 344`.
    """
    path = root / f"{folder}_test.txt"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.rsplit(" ", 1)[0].split("/", 1)[-1] for line in lines if line.strip()}


def unit_hash(salt: str, text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(f"{salt}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def shares_of(fractions: FractionSpec, present: Iterable[str]) -> dict[str, float]:
    """Part → share of the training images, of the parts that are to be split off."""
    present = set(present)
    return {
        part: share
        for part, share in fractions.model_dump().items()
        if part not in present and share > 0
    }


def split_names(
    ids: Iterable[str], fractions: Mapping[str, float], rest: str
) -> dict[str, NDArray[np.int32]]:
    """Positions of each part, in order; an id's part depends on the id alone.

    Args:
        ids: names of the images.
        fractions: part → share in [0, 1), in the order in which they are cut.
        rest: the part that receives what is left.
    """
    edges = list(accumulate(fractions.values()))
    names = [*fractions, rest]
    parts = {name: array("i") for name in names}
    for position, image_id in enumerate(ids):
        parts[names[bisect_right(edges, unit_hash("split", image_id))]].append(position)
    return {name: np.array(positions, dtype=np.int32) for name, positions in parts.items()}


def split_sizes(
    ids: Iterable[str], fractions: FractionSpec, present: Iterable[str]
) -> dict[str, int]:
    """Images of each part that comes off the training images, and what is left of them."""
    parts = split_names(ids, shares_of(fractions, present), "train")
    return {part: len(positions) for part, positions in parts.items()}


def expected_sizes(
    n: int, fractions: FractionSpec, parts: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Sizes of all parts as they are on average: `n` images are split by hash, `parts` are here."""
    parts = parts or {}
    split = {part: round(n * share) for part, share in shares_of(fractions, parts).items()}
    return {**split, "train": n - sum(split.values()), **parts}


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in an epoch; a set smaller than a batch is one batch."""
    return max(1, n // batch_size)


def corruption_plan(
    spec: CorruptionSpec, stored: Collection[tuple[str, int]]
) -> tuple[tuple[str, int], ...]:
    """(name, severity) pairs; all that the benchmark averages where they are stored.

    Raises:
        DataUnavailableError: some corruptions are stored, and these are not among them.
    """
    if stored and not spec.names:
        return BENCHMARK
    plan = tuple((name, severity) for name in spec.chosen for severity in spec.severities)
    absent = sorted({name for name, severity in plan if stored and (name, severity) not in stored})
    if absent:
        raise DataUnavailableError(
            f"the stored corruptions {', '.join(absent)} are not on this machine.",
            hint="Name others in corruptions.names, or take the suite without -c: calift computes "
            "them.",
        )
    return plan


#: The corruptions that ImageNet-C and CIFAR-C hold.
STORED_CORRUPTIONS = BENCHMARK_CORRUPTIONS
SEVERITIES = (1, 2, 3, 4, 5)
BENCHMARK = tuple((name, severity) for name in STORED_CORRUPTIONS for severity in SEVERITIES)


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are none."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
