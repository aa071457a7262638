"""Which image files a folder holds and which part each belongs to, without opening one. Torch-free.

What loads a suite and what counts it share these, so that both see the same images.
"""

import hashlib
import os
import re
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.names import Names
from calift_core.errors import CaliftError, DataError, DataUnavailableError
from calift_core.schema.suite import BENCHMARK_CORRUPTIONS, CorruptionSpec, FractionSpec

PARTS = ("pretrain", "train", "validation", "calibration", "test")
EXTENSIONS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".gif",
)  # fmt: skip
#: Pictures that nothing here decodes: they are named wherever images are counted.
UNREAD_PICTURES = (
    ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw",
)  # fmt: skip
#: What the parts are called elsewhere.
_PART_NAMES = {
    "pretrain": ("pretrain", "pretraining"),
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "calibration": ("calibration", "calib", "cal", "calibrate"),
    "test": ("test", "testing"),
}
_PART_OF = {name: part for part, names in _PART_NAMES.items() for name in names}
#: Files that systems leave in folders of pictures.
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
_LAYOUT = (
    "A suite is either class folders, or part folders of them: train/, and val/, calib/, test/ or "
    "other common names of the parts."
)


def part_named(text: str) -> str | None:
    """The part that a folder's name or a data set's word for a split means; None if it is none.

    Case and punctuation do not count, nor a word for "images" behind it: `Val`, `test_set`.
    """
    plain = re.sub(r"[\W_]+", "", text.casefold())
    return _PART_OF.get(plain) or _PART_OF.get(re.sub(r"(set|split|data|images|imgs)$", "", plain))


def parts_among(folders: Iterable[str], where: str) -> dict[str, str]:
    """Part → folder, of the folders that are called like parts.

    Raises:
        DataError: two of them mean the same part.
    """
    found: dict[str, str] = {}
    for folder in folders:
        part = part_named(folder)
        if part is None:
            continue
        if part in found:
            raise DataError(
                f"{where}: {found[part]!r} and {folder!r} both are the {part} part.",
                hint="Rename or merge one of them.",
            )
        found[part] = folder
    return {part: found[part] for part in PARTS if part in found}


class SkippedFiles:
    """What a folder holds beside the images that are taken from it."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.files: list[str] = []
        self.n_stray = 0
        self.stray: list[str] = []

    def add(self, name: str, file: str) -> None:
        """A file that was met.

        Args:
            file: its last part; hidden ones, and those that systems leave, do not count.
        """
        if file.startswith(".") or file.casefold() in _OF_SYSTEMS:
            return
        if file.lower().endswith(EXTENSIONS):
            self.n_stray += 1
            self.stray += [name] if len(self.stray) < _EXAMPLES else []
            return
        self.kinds[os.path.splitext(file)[1].lower() or "without an ending"] += 1
        if len(self.files) < _EXAMPLES:
            self.files.append(name)

    def add_files_of(self, folder: Path, prefix: str = "") -> None:
        """The files that lie in a folder, not those below it."""
        with os.scandir(folder) as entries:
            for name in sorted(entry.name for entry in entries if not entry.is_dir()):
                self.add(f"{prefix}{name}", name)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on each kind of what was left out."""
        notes = []
        if n := self.n_stray:
            noun = "image is" if n == 1 else "images are"
            notes.append(f"{n:,} {noun} in no class folder and left out: {_some(self.stray, n)}")
        if n := self.kinds.total():
            kinds = ", ".join(f"{many:,} {kind}" for kind, many in sorted(self.kinds.items()))
            pictures = sorted(kind for kind in self.kinds if kind in UNREAD_PICTURES)
            hint = f"; {', '.join(pictures)} cannot be read, JPEG or PNG can" if pictures else ""
            noun = "file is no image" if n == 1 else "files are no images"
            notes.append(
                f"{n:,} {noun} that can be read and left out ({kinds}): "
                f"{_some(self.files, n)}{hint}"
            )
        return tuple(notes)


#: Files and classes that a sentence names.
_EXAMPLES = 5


def _some(names: Sequence[str], n: int) -> str:
    more = f" and {n - _EXAMPLES:,} more" if n > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more


class TooManyFilesError(CaliftError):
    """A folder holds more than may be looked at."""

    code = "TOO_MANY_FILES"


class ScanBudget:
    """How much of a disk may be looked at; the default is all of it."""

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


def images_below(
    folder: Path,
    budget: ScanBudget | None = None,
    skipped: SkippedFiles | None = None,
    endings: tuple[str, ...] = EXTENSIONS,
    prefix: str = "",
) -> list[str]:
    """Image files of a folder and those in it, relative to it, folder by folder.

    Args:
        prefix: stands before the folder's name where other files are named.

    Raises:
        TooManyFilesError: the budget is spent.
    """
    top = os.fspath(folder)
    found: list[tuple[str, ...]] = []
    for where, folders, files in os.walk(top):
        if budget is not None:
            budget.take(1 + len(folders) + len(files))
        inner = tuple(where[len(top) :].split(os.sep)[1:])
        for file in files:
            # Hidden files such as macOS's `._photo.jpg` are no images.
            if file.lower().endswith(endings) and not file.startswith("."):
                found.append((*inner, file))
            elif skipped is not None:
                skipped.add(prefix + "/".join((folder.name, *inner, file)), file)
    return ["/".join(parts) for parts in sorted(found)]


def images_by_class(
    root: Path,
    classes: Sequence[str],
    name: str,
    budget: ScanBudget | None = None,
    skipped: SkippedFiles | None = None,
    prefix: str = "",
) -> tuple[Names, NDArray[np.int64]]:
    """Paths of a tree of class folders relative to it, and the label (N,) of each.

    Raises:
        DataError: a class folder has no images.
        TooManyFilesError: the budget is spent.
    """
    sizes: list[int] = []

    def each() -> Iterator[str]:
        for folder in classes:
            found = images_below(root / folder, budget, skipped, prefix=prefix)
            if not found:
                there = SkippedFiles()
                images_below(root / folder, skipped=there)
                also = "".join(f"; {note}" for note in there.notes)
                raise DataError(
                    f"{name}: the class folder {folder!r} in {str(root)!r} has no images{also}"
                )
            sizes.append(len(found))
            for path in found:
                yield f"{folder}/{path}"

    paths = Names.of(each())
    return paths, np.repeat(np.arange(len(classes), dtype=np.int64), sizes)


def require_folder(path: Path) -> Path:
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


def require_classes(root: Path, classes: Sequence[str], what: str) -> None:
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


def folder_layout(
    root: Path, n_classes: int | None = None
) -> tuple[Path, tuple[str, ...], dict[str, Path]]:
    """How a folder is a suite: where its training images are, its classes, its other parts.

    Args:
        n_classes: where it is known: so many folders are classes, whatever they are called.

    Raises:
        DataUnavailableError: there is no such folder.
        DataError: it is neither class folders nor part folders of them, or could be both.
    """
    folders = class_folders(require_folder(root))
    parts = {} if len(folders) == n_classes else parts_among(folders, repr(str(root)))
    others = [folder for folder in folders if folder not in parts.values()]
    if parts and ("train" not in parts or not class_folders(root / parts["train"])):
        of_classes = [f for f in parts.values() if class_folders(root / f)]
        if others and not of_classes:
            raise DataError(
                f"{str(root)!r}: the folders {', '.join(parts.values())} are called like parts, "
                f"and hold no class folders; {_some(others, len(others))} beside them are classes.",
                hint="Put all class folders into a folder train/, or rename those of classes.",
            )
        if "train" not in parts:
            named = list(parts.values())
            raise DataError(
                f"{str(root)!r} has the part folders {named} but no train folder", hint=_LAYOUT
            )
        raise DataError(
            f"{str(root / parts['train'])!r} must hold class folders, it has none.", hint=_LAYOUT
        )
    train = root / parts["train"] if parts else root
    classes = tuple(class_folders(train))
    if len(classes) < 2:
        raise DataError(
            f"{str(train)!r} must hold at least 2 class folders, it has {list(classes)}"
        )
    nested = [c for c in classes if parts and part_named(c) and class_folders(train / c)]
    if nested:
        raise DataError(
            f"{str(train)!r} must hold class folders, {', '.join(nested)} in it is called like a "
            "part and holds folders.",
            hint="Name the folder whose parts are meant, or move them up.",
        )
    found = {part: root / folder for part, folder in parts.items() if part != "train"}
    for part, where in found.items():
        require_classes(where, classes, f"the {part} part")
    return train, classes, found


def has_parts(root: Path) -> bool:
    """Whether a folder is in parts: it has a folder of training images by class."""
    parts = parts_among(class_folders(root), repr(str(root)))
    return "train" in parts and bool(class_folders(root / parts["train"]))


def shift_folder(root: Path) -> Path:
    """Where the images of a shift are: in its test part, if it has parts."""
    if not has_parts(root):
        return root
    parts = parts_among(class_folders(root), repr(str(root)))
    return root / parts["test"] if "test" in parts else root


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
        fractions: part → share in [0, 1), in the order in which they are cut.
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
