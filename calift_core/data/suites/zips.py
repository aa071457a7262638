"""A zip of class folders as a suite or as a shift: `zip:FILE`. Torch-free."""

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np

from calift_core.data.archives import ZipSource, open_zip, require_bounded_size
from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.listing import (
    ScanBudget,
    SkippedFiles,
    TooManyFilesError,
    part_named,
    parts_among,
    shares_of,
)
from calift_core.data.matching import relabelled, require_every_class
from calift_core.data.names import Names
from calift_core.data.suites.base import AtPath, LoadedSuite, ShiftRequest, SuiteRequest
from calift_core.errors import DataError
from calift_core.schema.suite import FractionSpec

_LAYOUT = (
    "A zip holds one folder of images for each class, or train/ (and val/, test/ …) folders of "
    "them; all of that may lie in one folder."
)


class Zip(AtPath):
    """A zip of class folders: `zip:FILE`."""

    name = "zip"

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """Its parts, as those of the folder that it would be unpacked to; the rest is split off."""
        assert request.path is not None
        found = _Contents(request.path, request.budget)
        folders = found.parts or {"train": ""}
        classes = found.classes(folders["train"])
        if len(classes) < 2:
            raise DataError(
                f"{request.path.name} must hold at least 2 class folders, it has {list(classes)}.",
                hint=_LAYOUT,
            )
        parts = {}
        for part, folder in folders.items():
            strange = sorted(set(found.classes(folder)) - set(classes))
            if strange:
                raise DataError(
                    f"{request.path.name}: {folder}/ has the class folders {', '.join(strange[:5])}"
                    ", which train/ does not.",
                    hint=_LAYOUT,
                )
            parts[part] = found.image_set(part, folder, classes, f"{folder}/" if folder else "")
            require_every_class(parts[part].labels, classes, f"{request.path.name}: {part}")
        train = parts.pop("train")
        parts |= split_by_hash(train, shares_of(request.fractions, parts), "train")
        words = tuple(c.replace("_", " ") for c in classes)
        return LoadedSuite(found.title, classes, words, parts, notes=found.notes)

    def shift(self, request: ShiftRequest) -> ImageSet:
        """The images of its class folders, or of those in its test/."""
        found = _Contents(request.path, request.budget)
        folder = found.parts.get("test", found.parts.get("train", ""))
        own = found.classes(folder)
        images = found.image_set(request.name, folder, own, f"{request.name}/")
        return relabelled(images, own, request.classes, request.what)


def examine(file: Path, *, max_files: int) -> tuple[int, int]:
    """See that a zip from elsewhere can be a suite: its classes and its images, by number.

    Raises:
        DataError: it is none, leads out of its folder, is made to explode, or has more files.
    """
    budget = ScanBudget(entries=max_files)
    try:
        found = _Contents(file, budget)
    except TooManyFilesError as error:
        raise DataError(
            f"{file.name} holds {error.message}.", hint="Leave it a folder, or pack it in parts."
        ) from None
    require_bounded_size(found.source)
    loaded = Zip().load(
        SuiteRequest(file, None, FractionSpec(), budget=ScanBudget(entries=max_files))
    )
    return len(loaded.classes), sum(len(images) for images in loaded.parts.values())


class _Contents:
    """A zip's images by folder and class, below the one folder that all may lie in."""

    def __init__(self, file: Path, budget: ScanBudget | None) -> None:
        skipped = SkippedFiles()
        self.source: ZipSource = open_zip(file, budget, skipped)
        steps = [name.split("/") for name in self.source.names]
        self.title = file.stem
        shared = os.path.commonprefix(steps)[: max(0, min(map(len, steps)) - 2)]
        above = list(takewhile(lambda folder: not part_named(folder), shared))
        if above:
            self.title = above[-1]
            steps = [s[len(above) :] for s in steps]
        self.parts: dict[str, str] = {}
        tops = sorted({s[0] for s in steps if len(s) > 1})
        parts = parts_among((t for t in tops if part_named(t)), file.name)
        of_classes = {s[0] for s in steps if len(s) > 2}
        if parts.get("train") in of_classes:
            self.parts = parts
        elif parts:
            raise DataError(
                f"{file.name}: {', '.join(parts.values())} is called like a part, and there is no "
                "folder of training images by class.",
                hint=_LAYOUT,
            )
        #: folder of a part → class → positions, in the order of their paths.
        self._at: dict[str, dict[str, list[int]]] = {}
        self._inner = steps
        depth = 1 if self.parts else 0
        for position in sorted(range(len(steps)), key=lambda i: steps[i]):
            path = steps[position]
            folder = path[0] if self.parts else ""
            if len(path) < depth + 2 or (self.parts and folder not in self.parts.values()):
                skipped.add(self.source.names[position], path[-1])
                continue
            self._at.setdefault(folder, {}).setdefault(path[depth], []).append(position)
        self.notes = tuple(f"{file.name}: {note}" for note in skipped.notes)
        if not self._at:
            raise DataError(f"{file.name} has no class folders.", hint=_LAYOUT)

    def classes(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(self._at.get(folder, {})))

    def image_set(self, name: str, folder: str, classes: Sequence[str], prefix: str) -> ImageSet:
        by_class = self._at.get(folder, {})
        at = np.array([p for c in classes for p in by_class.get(c, ())], dtype=np.int64)
        sizes = [len(by_class.get(c, ())) for c in classes]
        depth = 1 if folder else 0
        ids = Names.of("/".join(self._inner[p][depth:]) for p in at.tolist())
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), sizes)
        return ImageSet(name, self.source, ids.below(prefix), labels, at)
