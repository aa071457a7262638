"""WebDataset shards as `clip-benchmark` writes them, as a suite or as a shift. Torch-free.

`wds:FOLDER` holds `{split}/{index}.tar` and `classnames.txt`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.listing import (
    ScanBudget,
    class_folders,
    parts_among,
    require_folder,
    shares_of,
)
from calift_core.data.matching import relabelled, require_every_class
from calift_core.data.names import Names
from calift_core.data.shards import ShardIndex, ShardSource, shard_index
from calift_core.data.suites.base import AtPath, LoadedSuite, ShiftRequest, SuiteRequest
from calift_core.errors import DataError, DataUnavailableError

_CLASSES, _TYPE, _COUNT = "classnames.txt", "dataset_type.txt", "nshards.txt"
_LAYOUT = (
    "A folder of shards holds classnames.txt, one class a line in the order of the labels, and "
    "train/0.tar, train/1.tar, … test/0.tar, …, as clip-benchmark's webdataset_builder writes them."
)


class ShardSuite(AtPath):
    """A folder of WebDataset shards: `wds:FOLDER`."""

    name = "wds"

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """The folders of shards as parts; what they lack is split off the training images."""
        assert request.path is not None
        root, names = request.path, _class_names(request.path)
        folders = _splits(root)
        if "train" not in folders:
            raise DataError(
                f"{str(root)!r} has the splits {', '.join(folders) or 'none'} and no train",
                hint=_LAYOUT + " Shards that are for testing alone can be a shift.",
            )
        parts = {
            part: _image_set(part, folder, f"{folder.name}/", len(names), request.budget)
            for part, folder in folders.items()
        }
        for part, images in parts.items():
            require_every_class(images.labels, names, f"{str(root)!r}: {part}")
        train = parts.pop("train")
        parts |= split_by_hash(train, shares_of(request.fractions, parts), "train")
        words = tuple(name.replace("_", " ") for name in names)
        return LoadedSuite(root.absolute().name, _unique(names), words, parts)

    def shift(self, request: ShiftRequest) -> ImageSet:
        """The images of its test/, or of the only split that it has."""
        names, folders = _unique(_class_names(request.path)), _splits(request.path)
        if "test" not in folders and len(folders) != 1:
            raise DataError(
                f"{request.what} has no test/, its splits are {', '.join(folders) or 'none'}",
                hint=_LAYOUT,
            )
        folder = folders.get("test") or next(iter(folders.values()))
        name = request.name
        images = _image_set(name, folder, f"{name}/", len(names), request.budget)
        return relabelled(images, names, request.classes, request.what)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None


def _class_names(root: Path) -> tuple[str, ...]:
    require_folder(root)
    if not (root / _CLASSES).is_file():
        raise DataUnavailableError(f"there is no {_CLASSES} in {str(root)!r}.", hint=_LAYOUT)
    kind = " ".join(_lines(root / _TYPE)) if (root / _TYPE).is_file() else "classification"
    if kind not in ("", "classification"):
        raise DataError(f"{str(root)!r} is for {kind}, expected one class for each image")
    names = tuple(_lines(root / _CLASSES))
    if len(names) < 2:
        raise DataError(f"{_CLASSES} in {str(root)!r} must name at least 2 classes, got {names}")
    return names


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, where two classes that are called the same have their numbers behind them."""
    often = Counter(names)
    return tuple(f"{n} ({i})" if often[n] > 1 else n for i, n in enumerate(names))


def _splits(root: Path) -> dict[str, Path]:
    parts = parts_among(class_folders(root), repr(str(root)))
    return {part: root / folder for part, folder in parts.items()}


def _tars(folder: Path) -> list[Path]:
    def position(path: Path) -> tuple[list[int], str]:
        return [int(n) for n in re.findall(r"\d+", path.name)], path.name

    tars = sorted((p for p in folder.glob("*.tar") if not p.name.startswith(".")), key=position)
    declared = _lines(folder / _COUNT)[:1] if (folder / _COUNT).is_file() else []
    if declared and declared != [str(len(tars))]:
        raise DataUnavailableError(
            f"{str(folder / _COUNT)!r} says {declared[0]} shards, {len(tars)} are here."
        )
    if not tars:
        packed = next(folder.glob("*.tar.*"), None)
        also = f"; {packed.name} is packed, and tars are read where they lie" if packed else ""
        raise DataUnavailableError(f"there are no .tar files in {str(folder)!r}{also}.")
    return tars


def _image_set(
    name: str, folder: Path, prefix: str, n_classes: int, budget: ScanBudget | None
) -> ImageSet:
    tars = _tars(folder)
    found = [shard_index(path, budget) for path in tars]
    for path, index in zip(tars, found, strict=True):
        if index.labels.max() >= n_classes:
            at = int(index.labels.argmax())
            raise DataError(
                f"{str(path)!r}: the label of {index.names[at]!r} is {index.labels[at]}, "
                f"{_CLASSES} names the classes 0 to {n_classes - 1}"
            )
    names = _ids(tars, found)
    sizes = [len(index.starts) for index in found]
    source = ShardSource(
        files=tuple(tars),
        names=names,
        shards=np.repeat(np.arange(len(tars), dtype=np.int32), sizes),
        starts=np.concatenate([index.starts for index in found]),
        sizes=np.concatenate([index.sizes for index in found]),
    )
    return ImageSet(
        name=name,
        source=source,
        ids=names.below(prefix),
        labels=np.concatenate([index.labels for index in found]),
        indices=np.arange(len(names), dtype=np.int64),
    )


def _ids(tars: Sequence[Path], found: Sequence[ShardIndex]) -> Names:
    """Names of the members; behind their shard's, where several shards use one name."""
    names = Names.of(name for index in found for name in index.names)
    if len(set(names)) == len(names):
        return names
    names = Names.of(
        f"{path.stem}/{name}"
        for path, index in zip(tars, found, strict=True)
        for name in index.names
    )
    if len(set(names)) < len(names):
        twice = next(n for n, often in Counter(names).items() if often > 1)
        raise DataError(f"{str(tars[0].parent)!r}: {twice!r} is in its shard twice")
    return names
