"""iWildCam and FMoW as WILDS publishes them, in their official parts. Torch-free.

Training images are ID, and so are `id_val` (here validation) and `id_test` (here test); the shifts
are `ood_val` and `ood_test`: other camera traps, later years. Calibration images come off the
training images, bursts and places whole. Only the tables say what is where; no image is opened.
"""

import csv
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from calift_core.checks import Check
from calift_core.data.grouped import Groups, split_whole
from calift_core.data.images import ImageSet
from calift_core.data.listing import shares_of
from calift_core.data.names import Names
from calift_core.data.sources import FileSource
from calift_core.data.suites.base import (
    LoadedSuite,
    Published,
    SuiteFamily,
    SuiteRequest,
    SuiteSizes,
    require_known_shifts,
    suite_folder,
)
from calift_core.errors import DataError, DataUnavailableError

#: What WILDS calls a split → what it is here.
OFFICIAL = {
    "train": "train",
    "id_val": "validation",
    "id_test": "test",
    "val": "ood_val",
    "test": "ood_test",
}
SHIFTS = ("ood_val", "ood_test")


@dataclass
class WildsRow:
    """An image of a table.

    Attributes:
        group: what it belongs to; "" if to nothing.
    """

    path: str
    label: int
    split: str
    group: str


class Wilds(SuiteFamily):
    """A data set of WILDS that lies in one folder with a table of its images."""

    shifts = SHIFTS
    table = ""
    folder = ""

    def find(self, path: Path | None) -> Path:
        """The folder of the table: the place itself, or WILDS' own folder in it."""
        root = suite_folder(self.name, path)
        return root if (root / self.table).is_file() else root / self.folder

    @abstractmethod
    def rows(self, root: Path) -> Iterator[WildsRow]:
        """The images of the official parts, in the order of the table.

        Raises:
            DataError: the table is another.
        """

    @abstractmethod
    def class_list(self, root: Path) -> tuple[str, ...]:
        """The classes, in label order."""

    def missing(self, path: Path | None) -> list[str]:
        root = self.find(path)
        return [f"no {name}" for name in self.files if not (root / name).exists()]

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """What must be there, below the folder."""

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """The official parts; calibration images come off the training images."""
        root = self.find(request.path)
        self.require_present(root, self.missing(request.path))
        require_known_shifts(self.name, request.turned_off, SHIFTS)
        classes = self.class_list(root)
        parts = self._parts(root, len(classes), request)
        shifts = {name: parts.pop(name) for name in SHIFTS}
        words = tuple(name.replace("_", " ").strip() for name in classes)
        kept = {name: images for name, images in shifts.items() if name not in request.turned_off}
        return LoadedSuite(self.name, classes, words, parts, kept)

    def _parts(self, root: Path, n_classes: int, request: SuiteRequest) -> dict[str, ImageSet]:
        found: dict[str, list[WildsRow]] = {name: [] for name in OFFICIAL.values()}
        for row in self.rows(root):
            if request.budget is not None:
                request.budget.take(1)
            if not 0 <= row.label < n_classes:
                raise DataError(
                    f"{self.table}: {row.path!r} has the class {row.label}, there are 0 to "
                    f"{n_classes - 1}"
                )
            found[OFFICIAL[row.split]].append(row)
        empty = [name for name, rows in found.items() if not rows]
        if empty:
            raise DataError(f"{self.table} has no images for {', '.join(empty)}")
        sets = {name: _image_set(name, root, rows) for name, rows in found.items()}
        groups = Groups.of(row.group for row in found["train"])
        shares = shares_of(request.fractions, ("validation", "test"))
        return sets | split_whole(sets["train"], groups, shares, "train")

    def published(self, request: SuiteRequest) -> SuiteSizes:
        """The official sizes; calibration images by their share."""
        shares = shares_of(request.fractions, ("validation", "test"))
        cut = {part: round(self.parts["train"] * share) for part, share in shares.items()}
        parts = {**cut, "train": self.parts["train"] - sum(cut.values())}
        parts |= {part: self.parts[part] for part in ("validation", "test")}
        shifts = {name: self.parts[name] for name in SHIFTS if name not in request.turned_off}
        return SuiteSizes(parts, shifts)

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        """The official parts by their sizes, and whether their images are there."""
        root, missing = self.find(path), self.missing(path)
        if missing:
            yield Check(self.name, "fail", "; ".join(missing))
            return
        rows = list(self.rows(root))
        counts = Counter(OFFICIAL[row.split] for row in rows)
        for part, expected in self.parts.items():
            sizes = published.get(part, (expected,))
            right = counts[part] in sizes
            yield Check(
                part, "ok" if right else "fail",
                f"{counts[part]:,} images" + ("" if right else f", published are {sizes[0]:,}"),
            )  # fmt: skip
        absent = [row.path for row in rows if not (root / row.path).is_file()]
        state = f"{len(absent):,} of {len(rows):,} are missing" if absent else "all are there"
        first = f", the first is {absent[0]!r}" if absent else ""
        yield Check("images", "fail" if absent else "ok", state + first)


def _image_set(name: str, root: Path, rows: Sequence[WildsRow]) -> ImageSet:
    paths = Names.of(row.path for row in rows)
    # All images are in one folder, and a split is no folder: an image has one id wherever it is.
    labels = np.fromiter((row.label for row in rows), np.int64, len(rows))
    at = np.arange(len(rows), dtype=np.int64)
    return ImageSet(name, FileSource(paths, root), paths, labels, at)


def _table(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as text:
            reader = csv.DictReader(text)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise DataError(
                    f"{str(path)!r} has no column {', '.join(map(repr, lacking))}, its columns "
                    f"are {', '.join(reader.fieldnames or ()) or 'none'}"
                )
            yield from reader
    except FileNotFoundError:
        raise DataUnavailableError(f"there is no {str(path)!r}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None


def _number(text: str, what: str) -> int:
    try:
        return int(float(text))
    except ValueError:
        raise DataError(f"{what} must be a number, got {text!r}") from None


class IWildCam(Wilds):
    """Animals before camera traps; the shifts are other traps."""

    name = "iwildcam"
    title = "iWildCam of WILDS (182 species; the shifts are camera traps that training has not)"
    how_to_get = (
        "wilds.stanford.edu: iwildcam_v2.0, which `wilds` downloads. Name the folder that holds "
        "metadata.csv, categories.csv and train/ in CALIFT_IWILDCAM or as iwildcam:PATH."
    )
    table, folder = "metadata.csv", "iwildcam_v2.0"
    parts: Mapping[str, int] = {
        "train": 129_809, "validation": 7_314, "test": 8_154, "ood_val": 14_961, "ood_test": 42_791,
    }  # fmt: skip

    @property
    def files(self) -> tuple[str, ...]:
        return self.table, "categories.csv", "train"

    def class_list(self, root: Path) -> tuple[str, ...]:
        """The species that have a number; those of the other continents have 99999."""
        names: dict[int, str] = {}
        for row in _table(root / "categories.csv", ("y", "name")):
            y = _number(row["y"], "categories.csv: y")
            if 0 <= y < 99_999:
                names[y] = row["name"]
        if sorted(names) != list(range(len(names))) or len(names) < 2:
            raise DataError(
                f"categories.csv must number its classes 0, 1, …, it has {sorted(names)[:20]}"
            )
        return tuple(names[y] for y in range(len(names)))

    def rows(self, root: Path) -> Iterator[WildsRow]:
        """A row for each image; the images of a burst are a group."""
        for row in _table(root / self.table, ("split", "y", "filename", "sequence_remapped")):
            if row["split"] not in OFFICIAL:
                raise DataError(
                    f"{self.table}: split is one of {', '.join(OFFICIAL)}, got {row['split']!r}"
                )
            y = _number(row["y"], f"{self.table}: y")
            yield WildsRow(
                _inside("train", row["filename"]), y, row["split"], row["sequence_remapped"]
            )


#: The first moment of the OOD validation data and of the OOD test data.
_FMOW_VAL = datetime(2013, 1, 1, tzinfo=UTC)
_FMOW_TEST = datetime(2016, 1, 1, tzinfo=UTC)
_PLACE = re.compile(r".*_\d+")


class FMoW(Wilds):
    """What stands on satellite images; the shifts are later years."""

    name = "fmow"
    title = "FMoW of WILDS (62 kinds of land use; the shifts are later years)"
    how_to_get = (
        "wilds.stanford.edu: fmow_v1.1, which `wilds` downloads. Name the folder that holds "
        "rgb_metadata.csv and images/ in CALIFT_FMOW or as fmow:PATH."
    )
    table, folder = "rgb_metadata.csv", "fmow_v1.1"
    parts: Mapping[str, int] = {
        "train": 76_863, "validation": 11_483, "test": 11_327, "ood_val": 19_915,
        "ood_test": 22_108,
    }  # fmt: skip

    @property
    def files(self) -> tuple[str, ...]:
        return self.table, "images"

    def class_list(self, root: Path) -> tuple[str, ...]:
        """The categories of all rows, in alphabetical order, which is WILDS' own."""
        names = {row["category"] for row in _table(root / self.table, ("category",))}
        return tuple(sorted(names))

    def rows(self, root: Path) -> Iterator[WildsRow]:
        """A row for each image of an official part: by its own split, and by its year.

        An image's number counts all rows, the sequestered ones too. Those of the OOD years that are
        no test or validation image, and ID ones that are sequestered, belong to no part.
        """
        position = {name: i for i, name in enumerate(self.class_list(root))}
        columns = ("split", "category", "timestamp")
        for number, row in enumerate(_table(root / self.table, columns)):
            split = _fmow_split(row["split"], row["timestamp"])
            if split is None:
                continue
            place = Path(row.get("img_path") or "").parent
            group = str(place) if _PLACE.fullmatch(place.name) else ""
            yield WildsRow(f"images/rgb_img_{number}.png", position[row["category"]], split, group)


def _fmow_split(own: str, timestamp: str) -> str | None:
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:
        raise DataError(f"rgb_metadata.csv: timestamp must be a time, got {timestamp!r}") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if own not in ("train", "val", "test", "seq"):
        raise DataError(f"rgb_metadata.csv: split is one of train, val, test, seq, got {own!r}")
    if time < _FMOW_VAL:
        return {"train": "train", "val": "id_val", "test": "id_test"}.get(own)
    if time < _FMOW_TEST:
        return "val" if own == "val" else None
    return "test" if own == "test" else None


def _inside(folder: str, name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise DataError(f"metadata.csv: a filename is one of {folder}/, got {name!r}")
    return f"{folder}/{name}"


WILDS_SUITES: dict[str, SuiteFamily] = {"iwildcam": IWildCam(), "fmow": FMoW()}
