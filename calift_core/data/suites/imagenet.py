"""ImageNet, the data sets that are judged by its classes, and ImageNet-C. Torch-free.

The 1,000 WordNet ids, their labels and the subsets of ImageNet-R and -A are published with the
data sets (Russakovsky et al. 2015; Hendrycks et al. 2021a, 2021b); the labels are synonyms of
WordNet 3.0 (© Princeton University, WordNet licence). ObjectNet's mapping to ImageNet (Barbu et al.
2019) is read from the files that come with its images.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from calift_core.data.images import ImageSet, MergedClasses, PixelSource, split_by_hash
from calift_core.data.listing import SEVERITIES, STORED_CORRUPTIONS, class_folders, shares_of
from calift_core.data.sources import FileSource
from calift_core.data.suites.base import (
    Loaded,
    SuiteEntry,
    demand_nothing_missing,
    suite_folder,
    variable_of,
)
from calift_core.data.suites.folders import scan
from calift_core.errors import DataError, DataUnavailableError, reason_of
from calift_core.schema.spec import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS, FractionSpec

#: Files of ObjectNet's `mappings/` folder that say which of ImageNet's classes it has.
OBJECTNET_MAPPINGS = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)
#: Width in pixels of the red frame that marks every ObjectNet image as a test image.
OBJECTNET_BORDER = 2


@cache
def _facts() -> dict[str, Any]:
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids in label order, which is their alphabetical order."""
    return tuple(_facts()["classes"])


def imagenet_labels() -> tuple[str, ...]:
    """What ILSVRC calls each class: its WordNet synonyms, as in `tench, Tinca tinca`."""
    return tuple(_facts()["classes"].values())


def imagenet_subset(name: str) -> tuple[int, ...]:
    """Positions of the 200 classes of `imagenet-r` or `imagenet-a`, in label order."""
    return tuple(_facts()[name])


@dataclass(frozen=True)
class ObjectNetClass:
    """One of the classes that ObjectNet shares with ImageNet.

    Attributes:
        folder: of its images.
        label: ObjectNet's name for it.
        indices: positions of the ImageNet classes that are this object, one or more.
    """

    folder: str
    label: str
    indices: tuple[int, ...]


def objectnet_classes(mappings: Path) -> tuple[ObjectNetClass, ...]:
    """The classes of ObjectNet that ImageNet has (113 as published), by folder name.

    Args:
        mappings: the `mappings/` folder that ObjectNet comes with. Its files chain folder →
            ObjectNet label → ImageNet labels → line in ILSVRC's own order → position in the
            order of WordNet ids, which is the label order of classifiers.

    Raises:
        DataUnavailableError: files are missing, says which.
        DataError: the files contradict each other.
    """
    missing = [name for name in OBJECTNET_MAPPINGS if not (mappings / name).is_file()]
    if missing:
        raise DataUnavailableError(
            f"ObjectNet's class mapping is not complete: {str(mappings)!r} lacks "
            f"{', '.join(missing)}.",
            hint="They come with ObjectNet, in its mappings/ folder.",
        )
    label_of, imagenet_of, line_of = (
        _read_object(mappings / name) for name in OBJECTNET_MAPPINGS[:3]
    )
    lines = _read(mappings / OBJECTNET_MAPPINGS[3]).splitlines()
    labels = [line.strip() for line in lines if line.strip()]
    position_of_line = _positions(line_of, len(labels))
    twice = {label for label, count in Counter(labels).items() if count > 1}
    line_of_label = {label: line for line, label in enumerate(labels)}
    folder_of = {label: folder for folder, label in label_of.items()}
    classes = []
    owner: dict[int, str] = {}
    for label, joined in imagenet_of.items():
        if label not in folder_of:
            raise _contradiction(f"no folder is known for {label!r}")
        indices = []
        for part in str(joined).split(";"):
            name = part.strip()
            if name not in line_of_label or name in twice:
                what = "names several classes" if name in twice else "is no label of ImageNet"
                raise _contradiction(f"{name!r} of {label!r} {what}")
            index = position_of_line[line_of_label[name]]
            if index in owner:
                raise _contradiction(f"{name!r} is both {owner[index]!r} and {label!r}")
            owner[index] = label
            indices.append(index)
        classes.append(ObjectNetClass(folder_of[label], label, tuple(sorted(indices))))
    return tuple(sorted(classes, key=lambda c: c.folder))


def _positions(line_of: dict[str, Any], n_lines: int) -> dict[int, int]:
    """Line number from 0 → position; the file may count lines from 0 or from 1."""
    try:
        found = {int(line): int(position) for position, line in line_of.items()}
    except (TypeError, ValueError):
        raise _contradiction(f"{OBJECTNET_MAPPINGS[2]} holds something else than numbers") from None
    first = min(found, default=0)
    if sorted(found) != list(range(first, first + n_lines)) or first not in (0, 1):
        raise _contradiction(
            f"{OBJECTNET_MAPPINGS[2]} must name each of the {n_lines} lines of "
            f"{OBJECTNET_MAPPINGS[3]} once, it names {len(found)} from {first} on"
        )
    if sorted(found.values()) != list(range(n_lines)):
        raise _contradiction(f"{OBJECTNET_MAPPINGS[2]} must number the classes 0 to {n_lines - 1}")
    return {line - first: position for line, position in found.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {reason_of(error)}") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON: {reason_of(error)}") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} must hold an object, got {type(found).__name__}")
    return found


def _contradiction(what: str) -> DataError:
    return DataError(
        f"ObjectNet's mapping files contradict each other: {what}.",
        hint="Take the mappings/ folder as it comes with ObjectNet.",
    )


@dataclass(frozen=True)
class Tree:
    """A folder of class folders that a data set consists of.

    Attributes:
        folders: where it may be below the suite's folder; the first that is there is taken.
        n_classes: class folders that it must have.
        n_images: published number of images.
        source: who publishes it, and under what name.
    """

    folders: tuple[str, ...]
    n_classes: int
    n_images: int
    source: str

    def find(self, root: Path) -> Path | None:
        """The folder, if it is there."""
        return next((root / f for f in self.folders if (root / f).is_dir()), None)


#: ImageNet's parts and shifts.
IMAGENET: dict[str, Tree] = {
    "train": Tree(
        ("train", "ILSVRC2012/train"),
        1000,
        1_281_167,
        "image-net.org, after registration: ILSVRC2012_img_train.tar, one folder for each class",
    ),
    "test": Tree(
        ("val", "ILSVRC2012/val"),
        1000,
        50_000,
        "image-net.org, after registration: ILSVRC2012_img_val.tar, sorted into class folders",
    ),
    "imagenet-v2": Tree(
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
        1000,
        10_000,
        "github.com/modestyachts/ImageNetV2: imagenetv2-matched-frequency.tar.gz",
    ),
    "imagenet-r": Tree(
        ("imagenet-r",), 200, 30_000, "github.com/hendrycks/imagenet-r: imagenet-r.tar"
    ),
    "imagenet-a": Tree(
        ("imagenet-a",), 200, 7_500, "github.com/hendrycks/natural-adv-examples: imagenet-a.tar"
    ),
    "imagenet-sketch": Tree(
        ("sketch", "imagenet-sketch"),
        1000,
        50_889,
        "github.com/HaohanWang/ImageNet-Sketch: ImageNet-Sketch.zip",
    ),
    # The images of the 113 classes that ImageNet has too; the others are not needed.
    "objectnet": Tree(
        ("objectnet-1.0/images", "objectnet/images"),
        113,
        18_574,
        "objectnet.dev: objectnet-1.0.zip, with its mappings/ folder beside images/",
    ),
}
IMAGENET_SHIFTS = tuple(name for name in IMAGENET if name not in ("train", "test"))

#: Folders that the archives of ImageNet-C are unpacked to, or not.
_CATEGORIES = ("", "noise", "blur", "weather", "digital", "extra")


def imagenet_folder(path: Path | None = None) -> Path:
    """The folder that holds ImageNet and its shifts side by side; it may not exist."""
    return suite_folder("imagenet", path)


def imagenet_missing(root: Path, names: Iterable[str] = tuple(IMAGENET)) -> list[str]:
    """What is missing or has the wrong number of classes, one sentence each."""
    problems = []
    for name in names:
        tree = IMAGENET[name]
        path = tree.find(root)
        if path is None:
            problems.append(f"{name}: no folder {tree.folders[0]}/")
            continue
        found = len(class_folders(path))
        if name == "objectnet":
            mappings = path.parent / "mappings"
            lacking = [file for file in OBJECTNET_MAPPINGS if not (mappings / file).is_file()]
            if lacking:
                problems.append(f"{name}: no mappings/{', no mappings/'.join(lacking)}")
            if found < tree.n_classes:
                problems.append(
                    f"{name}: {path.name}/ has {found} class folders, expected at least "
                    f"{tree.n_classes}"
                )
        elif found != tree.n_classes:
            problems.append(
                f"{name}: {path.relative_to(root)}/ has {found} class folders, "
                f"expected {tree.n_classes}"
            )
    return problems


def imagenet_c_folder(path: Path | None = None) -> Path:
    """The folder of ImageNet-C: its own setting, else imagenet-c/ beside ImageNet's train/."""
    if path is not None or os.environ.get(variable_of("imagenet-c")):
        return suite_folder("imagenet-c", path)
    return imagenet_folder() / "imagenet-c"


def imagenet_c_part(root: Path, corruption: str, severity: int) -> Path | None:
    """The class folders of one corruption at one severity, if they are there."""
    for category in _CATEGORIES:
        path = root / category / corruption / str(severity)
        if path.is_dir():
            return path
    return None


def imagenet_c_missing(root: Path) -> list[str]:
    """Which corruptions and severities are missing, one sentence for each corruption."""
    problems = []
    for corruption in STORED_CORRUPTIONS:
        lacking = [s for s in SEVERITIES if imagenet_c_part(root, corruption, s) is None]
        if lacking:
            which = ", ".join(f"{corruption}/{s}/" for s in lacking)
            problems.append(f"{corruption}: no folder {which}")
    return problems


def _imagenet_names() -> tuple[str, ...]:
    return tuple(label.split(",")[0] for label in imagenet_labels())


IMAGENET_ENTRIES: dict[str, SuiteEntry] = {
    "imagenet": SuiteEntry(
        "ImageNet with its shifts V2, R, A, Sketch and ObjectNet",
        "Put the data sets side by side in one folder and name it in CALIFT_IMAGENET or as "
        "imagenet:PATH: train/ and val/ (ILSVRC-2012, 1,000 class folders; image-net.org, after "
        "registration), imagenetv2-matched-frequency-format-val/, imagenet-r/, imagenet-a/, "
        "sketch/ and objectnet-1.0/ (images/ and mappings/) as their authors publish them. A shift "
        "that you do without is turned off by `shifts: {objectnet: none}`. calift never downloads "
        "them.",
        train=1_281_167,
        evaluated=sum(tree.n_images for name, tree in IMAGENET.items() if name != "train"),
        missing=lambda path: imagenet_missing(imagenet_folder(path)),
        classes=_imagenet_names,
        parts={name: tree.n_images for name, tree in IMAGENET.items()},
    ),
    "imagenet-c": SuiteEntry(
        "ImageNet-C (ImageNet's test images under 15 stored corruptions at 5 severities)",
        "Unpack the authors' archives so that one folder holds gaussian_noise/1/n01440764/… (with "
        "or without noise/, blur/, weather/ and digital/ above) and name it in CALIFT_IMAGENET_C "
        "or as imagenet-c:PATH, or put it into ImageNet's folder as imagenet-c/; train/ and val/ "
        "come from CALIFT_IMAGENET. Or let calift compute them: suite imagenet with corruptions "
        "benchmark.",
        train=1_281_167,
        evaluated=50_000 * (1 + len(STORED_CORRUPTIONS) * len(SEVERITIES)),
        missing=lambda path: (
            imagenet_missing(imagenet_folder(), ("train", "test"))
            + imagenet_c_missing(imagenet_c_folder(path))
        ),
        classes=_imagenet_names,
        parts={"train": 1_281_167, "test": 50_000, "each corruption and severity": 50_000},
    ),
}


def load_imagenet(
    path: Path | None,
    fractions: FractionSpec,
    shifts: Sequence[str],
    names: Callable[[], tuple[str, ...]],
) -> Loaded:
    """ILSVRC-2012 by WordNet id, V2 by class number, R, A and Sketch by WordNet id, ObjectNet.

    R and A have 200 of the classes and are judged on those logits; ObjectNet has 113 objects, each
    judged on the largest logit of the ImageNet classes that it covers.
    """
    root = imagenet_folder(path)
    problems = imagenet_missing(root, ("train", "test", *shifts))
    demand_nothing_missing("imagenet", IMAGENET_ENTRIES["imagenet"], path, problems)
    where = {name: tree.find(root) or root for name, tree in IMAGENET.items()}
    classes = imagenet_wnids()
    for part in ("train", "test"):
        _demand_wnids(where[part], part)
    train = scan(where["train"], classes, "train", "train/")
    test = scan(where["test"], classes, "test", "val/")
    parts = {**split_by_hash(train, shares_of(fractions, ("test",)), "train"), "test": test}
    found: dict[str, ImageSet] = {}
    for name in shifts:
        match name:
            case "imagenet-v2":
                numbers = [str(i) for i in range(len(classes))]
                found[name] = scan(where[name], numbers, name, f"{name}/")
            case "objectnet":
                found[name] = _objectnet(where[name])
            case _:
                found[name] = _subset_shift(where[name], classes, name)
    return Loaded("imagenet", classes, names(), parts, found)


def _demand_wnids(root: Path, what: str) -> None:
    strange = sorted(set(class_folders(root)) - set(imagenet_wnids()))
    if strange:
        raise DataError(
            f"{what}: the class folders {strange[:5]} are not among the {len(imagenet_labels())} "
            "WordNet ids of ILSVRC-2012"
        )


def _subset_shift(root: Path, classes: Sequence[str], name: str) -> ImageSet:
    """A shift that has some of the ID classes: labels are ID labels, the others are masked out."""
    have = class_folders(root)
    unknown = sorted(set(have) - set(classes))
    if unknown:
        raise DataError(f"{name}: the class folders {unknown[:5]} are not among the ID classes")
    position = {folder: i for i, folder in enumerate(classes)}
    present = np.array([position[folder] for folder in have], dtype=np.int64)
    images = scan(root, have, name, f"{name}/")
    is_all = len(have) == len(classes)
    return replace(
        images,
        labels=present[images.labels],
        classes=None if is_all else tuple(int(i) for i in present),
    )


def _objectnet(root: Path) -> ImageSet:
    """The objects that ImageNet has too, without the frame around each image."""
    objects = objectnet_classes(root.parent / "mappings")
    images = scan(
        root, [o.folder for o in objects], "objectnet", "objectnet/", border=OBJECTNET_BORDER
    )
    first = np.array([o.indices[0] for o in objects], dtype=np.int64)
    return replace(
        images,
        labels=first[images.labels],
        classes=MergedClasses(tuple(o.label for o in objects), tuple(o.indices for o in objects)),
    )


def load_imagenet_c(
    path: Path | None, fractions: FractionSpec, names: Callable[[], tuple[str, ...]]
) -> Loaded:
    """The test images' names again, below CORRUPTION/SEVERITY/."""
    clean = load_imagenet(None, fractions, (), names)
    root, entry = imagenet_c_folder(path), IMAGENET_ENTRIES["imagenet-c"]
    demand_nothing_missing("imagenet-c", entry, root, entry.missing(path))
    source = clean.parts["test"].source
    assert isinstance(source, FileSource)
    stored: dict[tuple[str, int], PixelSource] = {}
    for name in (*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS):
        for severity in SEVERITIES:
            folder = imagenet_c_part(root, name, severity)
            if folder is None:
                continue
            for example in (source.paths[0], source.paths[-1]):
                if not (folder / example).is_file():
                    raise DataError(
                        f"{name}/{severity} must hold the test images under their own names, "
                        f"there is no {example} in {str(folder)!r}"
                    )
            stored[name, severity] = replace(source, root=folder)
    return replace(clean, name="imagenet-c", stored=stored)
