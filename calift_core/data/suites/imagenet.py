"""ImageNet, the data sets that are evaluated by its classes, and ImageNet-C. Torch-free.

The 1,000 WordNet ids, their labels and the subsets of ImageNet-R and -A are published with the
data sets (Russakovsky et al. 2015; Hendrycks et al. 2021a, 2021b); the labels are synonyms of
WordNet 3.0 (© Princeton University, WordNet licence).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from calift_core.checks import Check
from calift_core.data.images import ImageSet, MergedClasses, PixelSource, split_by_hash
from calift_core.data.listing import (
    BENCHMARK,
    SEVERITIES,
    STORED_CORRUPTIONS,
    ScanBudget,
    class_folders,
    expected_sizes,
    shares_of,
)
from calift_core.data.sources import FileSource
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
from calift_core.data.suites.objectnet import (
    OBJECTNET_BORDER,
    OBJECTNET_MAPPINGS,
    objectnet_classes,
)
from calift_core.errors import CaliftError, DataError
from calift_core.schema.suite import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS


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
class Tree:
    """A folder of class folders that a data set consists of.

    Attributes:
        folders: where it may be below the suite's folder; the first that is there is taken.
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


def imagenet_c_part(root: Path, corruption: str, severity: int) -> Path | None:
    """The class folders of one corruption at one severity, if they are there."""
    for category in _CATEGORIES:
        path = root / category / corruption / str(severity)
        if path.is_dir():
            return path
    return None


def _require_wnids(root: Path, what: str) -> None:
    strange = sorted(set(class_folders(root)) - set(imagenet_wnids()))
    if strange:
        raise DataError(
            f"{what}: the class folders {strange[:5]} are not among the {len(imagenet_labels())} "
            "WordNet ids of ILSVRC-2012"
        )


def _subset_shift(
    root: Path, classes: Sequence[str], name: str, budget: ScanBudget | None
) -> ImageSet:
    """A shift that has some of the ID classes: labels are ID labels, the others are masked out."""
    have = class_folders(root)
    unknown = sorted(set(have) - set(classes))
    if unknown:
        raise DataError(f"{name}: the class folders {unknown[:5]} are not among the ID classes")
    position = {folder: i for i, folder in enumerate(classes)}
    present = np.array([position[folder] for folder in have], dtype=np.int64)
    images = scan(root, have, name, f"{name}/", budget=budget)
    is_all = len(have) == len(classes)
    return replace(
        images,
        labels=present[images.labels],
        classes=None if is_all else tuple(int(i) for i in present),
    )


def _objectnet(root: Path, budget: ScanBudget | None) -> ImageSet:
    """The objects that ImageNet has too, without the frame around each image."""
    objects = objectnet_classes(root.parent / "mappings")
    folders = [o.folder for o in objects]
    images = scan(root, folders, "objectnet", "objectnet/", border=OBJECTNET_BORDER, budget=budget)
    first = np.array([o.indices[0] for o in objects], dtype=np.int64)
    return replace(
        images,
        labels=first[images.labels],
        classes=MergedClasses(tuple(o.label for o in objects), tuple(o.indices for o in objects)),
    )


class ImageNet(SuiteFamily):
    """ILSVRC-2012 by WordNet id, V2 by class number, R, A and Sketch by WordNet id, ObjectNet.

    R and A have 200 of the classes and are evaluated on those logits; ObjectNet has 113 objects,
    each evaluated on the largest logit of the ImageNet classes that it covers.
    """

    name = "imagenet"
    title = "ImageNet with its shifts V2, R, A, Sketch and ObjectNet"
    how_to_get = (
        "Put the data sets side by side in one folder and name it in CALIFT_IMAGENET or as "
        "imagenet:PATH: train/ and val/ (ILSVRC-2012, 1,000 class folders; image-net.org, after "
        "registration), imagenetv2-matched-frequency-format-val/, imagenet-r/, imagenet-a/, "
        "sketch/ and objectnet-1.0/ (images/ and mappings/) as their authors publish them. A shift "
        "that you do without is turned off by `shifts: {objectnet: none}`. calift never downloads "
        "them."
    )
    parts: Mapping[str, int] = {name: tree.n_images for name, tree in IMAGENET.items()}
    shifts = IMAGENET_SHIFTS

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(label.split(",")[0] for label in imagenet_labels())

    def missing(self, path: Path | None, names: Iterable[str] = tuple(IMAGENET)) -> list[str]:
        """What of the parts and shifts is missing or has the wrong number of classes."""
        root = suite_folder(self.name, path)
        return [problem for name in names for problem in _missing(name, root)]

    def load(self, request: SuiteRequest) -> LoadedSuite:
        budget = request.budget
        shifts = [name for name in IMAGENET_SHIFTS if name not in request.turned_off]
        self.require_present(request.path, self.missing(request.path, ("train", "test", *shifts)))
        root = suite_folder(self.name, request.path)
        where = {name: tree.find(root) or root for name, tree in IMAGENET.items()}
        classes = imagenet_wnids()
        for part in ("train", "test"):
            _require_wnids(where[part], part)
        train = scan(where["train"], classes, "train", "train/", budget=budget)
        test = scan(where["test"], classes, "test", "val/", budget=budget)
        parts = {
            **split_by_hash(train, shares_of(request.fractions, ("test",)), "train"),
            "test": test,
        }
        found: dict[str, ImageSet] = {}
        for name in shifts:
            match name:
                case "imagenet-v2":
                    numbers = [str(i) for i in range(len(classes))]
                    found[name] = scan(where[name], numbers, name, f"{name}/", budget=budget)
                case "objectnet":
                    found[name] = _objectnet(where[name], budget)
                case _:
                    found[name] = _subset_shift(where[name], classes, name, budget)
        return LoadedSuite(self.name, classes, "openai_imagenet", parts, found)

    def published(self, request: SuiteRequest) -> SuiteSizes:
        """The training images are split as they are on average."""
        shifts = {n: self.parts[n] for n in IMAGENET_SHIFTS if n not in request.turned_off}
        parts = {"test": self.parts["test"]}
        return SuiteSizes(expected_sizes(self.parts["train"], request.fractions, parts), shifts)

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        root = suite_folder(self.name, path)
        yield from (_check_part(name, root, published) for name in IMAGENET)


def _missing(name: str, root: Path) -> Iterator[str]:
    """What a part or shift lacks, one sentence each."""
    tree = IMAGENET[name]
    path = tree.find(root)
    if path is None:
        yield f"{name}: no folder {tree.folders[0]}/"
        return
    found = len(class_folders(path))
    if name == "objectnet":
        mappings = path.parent / "mappings"
        lacking = [file for file in OBJECTNET_MAPPINGS if not (mappings / file).is_file()]
        if lacking:
            yield f"{name}: no mappings/{', no mappings/'.join(lacking)}"
        if found < tree.n_classes:
            yield (
                f"{name}: {path.name}/ has {found} class folders, expected at least "
                f"{tree.n_classes}"
            )
    elif found != tree.n_classes:
        yield (
            f"{name}: {path.relative_to(root)}/ has {found} class folders, "
            f"expected {tree.n_classes}"
        )


def _check_part(name: str, root: Path, published: Published) -> Check:
    tree = IMAGENET[name]
    where = tree.find(root)
    wnids = imagenet_wnids()
    classes: Sequence[str] = wnids
    detail = ""
    if name == "imagenet-v2":
        classes = [str(i) for i in range(len(wnids))]
    elif name in ("imagenet-r", "imagenet-a"):
        classes = [wnids[i] for i in imagenet_subset(name)]
    elif name == "objectnet" and where is not None:
        try:
            objects = objectnet_classes(where.parent / "mappings")
        except CaliftError as error:
            return Check(name, "fail", error.message, error.hint)
        classes = [o.folder for o in objects]
        detail = f", from {sum(len(o.indices) for o in objects)} of ImageNet's"
    counts = published.get(name, (tree.n_images,))
    check = check_tree(name, where, tree.folders[0], classes, counts)
    hint = tree.source if check.state == "fail" else ""
    return Check(name, check.state, check.detail + detail, hint)


class ImageNetC(SuiteFamily):
    """ImageNet-C: the test images' names again, below CORRUPTION/SEVERITY/."""

    name = "imagenet-c"
    title = "ImageNet-C (ImageNet's test images under 15 stored corruptions at 5 severities)"
    how_to_get = (
        "Unpack the authors' archives so that one folder holds gaussian_noise/1/n01440764/… (with "
        "or without noise/, blur/, weather/ and digital/ above) and name it in CALIFT_IMAGENET_C "
        "or as imagenet-c:PATH, or put it into ImageNet's folder as imagenet-c/; train/ and val/ "
        "come from CALIFT_IMAGENET. Or let calift compute them: suite imagenet with corruptions "
        "benchmark."
    )
    parts: Mapping[str, int] = {
        "train": 1_281_167, "test": 50_000, "each corruption and severity": 50_000,
    }  # fmt: skip
    clean = ImageNet()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.clean.classes

    def find(self, path: Path | None) -> Path:
        if path is not None or os.environ.get(variable_of(self.name)):
            return suite_folder(self.name, path)
        return suite_folder("imagenet") / self.name

    def missing(self, path: Path | None) -> list[str]:
        """What of ImageNet's two parts, and of the corruptions: a sentence for each of them."""
        root = self.find(path)
        problems = self.clean.missing(None, ("train", "test"))
        for corruption in STORED_CORRUPTIONS:
            lacking = [s for s in SEVERITIES if imagenet_c_part(root, corruption, s) is None]
            if lacking:
                which = ", ".join(f"{corruption}/{s}/" for s in lacking)
                problems.append(f"{corruption}: no folder {which}")
        return problems

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """ImageNet's two parts, and the test part's files under each corruption's folder."""
        root = self.find(request.path)
        self.require_present(root, self.missing(request.path))
        clean = self.clean.load(replace(request, path=None, turned_off=IMAGENET_SHIFTS))
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
        return replace(clean, name=self.name, stored=stored)

    def published(self, request: SuiteRequest) -> SuiteSizes:
        clean = self.clean.published(replace(request, turned_off=IMAGENET_SHIFTS))
        return replace(clean, stored=BENCHMARK)

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        clean, root = suite_folder("imagenet"), self.find(path)
        yield from (_check_part(name, clean, published) for name in ("train", "test"))
        counts = published.get("test", (IMAGENET["test"].n_images,))
        for corruption in STORED_CORRUPTIONS:
            yield _all_of(
                [
                    check_tree(
                        corruption,
                        imagenet_c_part(root, corruption, severity),
                        f"{corruption}/{severity}",
                        imagenet_wnids(),
                        counts,
                    )
                    for severity in SEVERITIES
                ]
            )


def _all_of(checks: Sequence[Check]) -> Check:
    """The severities of one corruption in one line: what is wrong with them, or all."""
    wrong = [check for check in checks if check.state != "ok"]
    if not wrong:
        return Check(checks[0].name, "ok", f"{len(checks)} severities, {checks[0].detail} each")
    details = "; ".join(dict.fromkeys(check.detail for check in wrong))
    state = "fail" if any(check.state == "fail" for check in wrong) else "warn"
    return Check(checks[0].name, state, details)  # type: ignore[arg-type]
