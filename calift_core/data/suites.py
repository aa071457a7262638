"""Suites: one ID data set in disjoint parts, its shifts and its corruptions.

Parts are called `pretrain, train, validation, calibration, test`. Only `train` is trained on by a
fine-tuning method, only `pretrain` by pre-training; settings are chosen on `validation`,
calibrators are fitted on `calibration`, and `test` is looked at once.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.catalogue import (
    FASHION_FILES,
    IMAGENET_FOLDERS,
    SUITES,
    fashion_mnist_folder,
    imagenet_folder,
    imagenet_missing,
)
from calift_core.data.corruptions import corruption_names
from calift_core.data.images import (
    EXTENSIONS,
    ArraySource,
    FileSource,
    ImageSet,
    cached,
    check_headers,
    corrupted,
    split_by_hash,
)
from calift_core.errors import (
    DataError,
    DataUnavailableError,
    SpecError,
    UnknownNameError,
    reason_of,
)
from calift_core.home import cache_dir
from calift_core.schema.report import Role
from calift_core.schema.spec import FractionSpec, SuiteSpec

PARTS = ("pretrain", "train", "validation", "calibration", "test")


@dataclass(frozen=True)
class Suite:
    """Everything a run may look at.

    Attributes:
        name: the ID data's name.
        classes: C class folders or labels, in label order.
        class_names: what the text tower reads for each.
        parts: part → images; absent parts are absent keys.
        shifts: name → images.
        corruption_plan: (name, severity) pairs to apply to the test images.
        corruption_limit: use at most this many test images for them.
        corruption_seed: seed of the corruptions.
    """

    name: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    parts: dict[str, ImageSet]
    shifts: dict[str, ImageSet] = field(default_factory=dict)
    corruption_plan: tuple[tuple[str, int], ...] = ()
    corruption_limit: int | None = None
    corruption_seed: int = 0

    def part(self, name: str) -> ImageSet:
        """A part that must be there and hold images.

        Raises:
            DataError: it does not.
        """
        images = self.parts.get(name)
        if images is None or len(images) == 0:
            have = {part: len(s) for part, s in self.parts.items()}
            raise DataError(
                f"the suite {self.name!r} has no images in its {name} part, it has {have}"
            )
        return images

    def evaluations(self) -> Iterable[tuple[ImageSet, Role, str | None, int | None]]:
        """(images, role, corruption, severity) of everything a finished model is judged on."""
        yield replace(self.part("test"), name=f"{self.name}/test"), "id", None, None
        for images in self.shifts.values():
            yield images, "shift", None, None
        base = self.part("test").limited(self.corruption_limit) if self.corruption_plan else None
        for name, severity in self.corruption_plan:
            assert base is not None
            images = corrupted(base, name, severity, seed=self.corruption_seed)
            yield cached(images), "corruption", name, severity


def load_suite(spec: SuiteSpec) -> Suite:
    """Find a suite's data on this machine and split it.

    Raises:
        UnknownNameError: no suite has this name.
        DataUnavailableError: the data is not here; the hint says how to get it.
        DataError: folders do not agree on classes, or a part is empty.
        UnreadableImageError: a file is not an image.
    """
    shifts: dict[str, ImageSet] = {}
    if spec.id == "imagenet":
        (name, classes, default_names, parts), shifts = _imagenet(spec)
    elif spec.id.startswith("folder:"):
        name, classes, default_names, parts = _folder_suite(spec.id, spec.fractions)
    elif spec.id in LOADERS:
        name, classes, default_names, parts = LOADERS[spec.id](spec)
    else:
        raise UnknownNameError("suite", spec.id, [*SUITES, "folder:PATH"])
    unknown = sorted(set(spec.class_names) - set(classes))
    if unknown:
        raise SpecError(
            f"class_names names {unknown}, which the suite does not have; "
            f"it has {list(classes)[:20]}"
        )
    names = tuple(
        spec.class_names.get(folder, default)
        for folder, default in zip(classes, default_names, strict=True)
    )
    parts = {
        part: images.limited(spec.limits.get(part), part)  # type: ignore[call-overload]
        for part, images in parts.items()
    }
    shifts |= {shift: _folder_shift(shift, uri, classes) for shift, uri in spec.shifts.items()}
    plan = tuple(
        (corruption, severity)
        for corruption in corruption_names(
            spec.corruptions.names
            if isinstance(spec.corruptions.names, str)
            else list(spec.corruptions.names)
        )
        for severity in spec.corruptions.severities
    )
    for images in (*(parts[p] for p in parts if p != "pretrain"), *shifts.values()):
        check_headers(images)
    return Suite(
        name=name,
        classes=classes,
        class_names=names,
        parts=parts,
        shifts=shifts,
        corruption_plan=plan,
        corruption_limit=spec.corruptions.limit,
        corruption_seed=spec.corruptions.seed,
    )


Loaded = tuple[str, tuple[str, ...], tuple[str, ...], dict[str, ImageSet]]

# ------------------------------------------------------------------------------ Fashion-MNIST

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

#: Sizes of the parts that the 60,000 training images are split into, once and for all, by a fixed
#: permutation: no image is in two of them. `test` is the data set's own 10,000.
FASHION_SPLIT = {"pretrain": 40_000, "train": 10_000, "validation": 5_000, "calibration": 5_000}
_FASHION_SEED = 20_241_115


def _read_idx(path: Path) -> NDArray[np.uint8]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dimensions = raw[3]
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, IndexError) as error:
        raise DataError(f"{path.name} is not a readable IDX file: {error}") from None


def _download_fashion_mnist() -> Path:
    """Torchvision's own download, for machines with a network."""
    from torchvision.datasets import FashionMNIST

    root = cache_dir() / "torchvision"
    try:
        FashionMNIST(str(root), train=True, download=True)
    except Exception as error:  # network and checksum errors come as many types
        raise DataUnavailableError(
            "Fashion-MNIST is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {reason_of(error)}).",
            hint=SUITES["fashion-mnist"].how_to_get,
        ) from None
    return root / "FashionMNIST" / "raw"


def _fashion_mnist(spec: SuiteSpec) -> Loaded:
    folder = fashion_mnist_folder() or _download_fashion_mnist()
    arrays = {}
    for key, stem in FASHION_FILES.items():
        candidates = [folder / f"{stem}.gz", folder / stem]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise DataUnavailableError(
                f"{stem} is missing from the Fashion-MNIST folder",
                hint=SUITES["fashion-mnist"].how_to_get,
            )
        arrays[key] = _read_idx(path)
    keys = {
        part: hashlib.sha256(arrays[f"{part}_images"].tobytes()).hexdigest()
        for part in ("train", "test")
    }
    order = np.random.default_rng(_FASHION_SEED).permutation(len(arrays["train_labels"]))
    parts: dict[str, ImageSet] = {}
    start = 0
    whole = _array_set("train", arrays["train_images"], arrays["train_labels"], keys["train"])
    for part, size in FASHION_SPLIT.items():
        parts[part] = whole.take(np.sort(order[start : start + size]), part)
        start += size
    parts["test"] = _array_set("test", arrays["test_images"], arrays["test_labels"], keys["test"])
    return "fashion-mnist", FASHION_CLASSES, FASHION_CLASSES, parts


def _array_set(
    prefix: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], key: str
) -> ImageSet:
    return ImageSet(
        name=prefix,
        source=ArraySource(images, key),
        ids=tuple(f"{prefix}/{i:05d}" for i in range(len(labels))),
        labels=labels.astype(np.int64),
        indices=np.arange(len(labels), dtype=np.int64),
    )


# ------------------------------------------------------------------------------------ folders


def _folder(uri: str) -> Path:
    if not uri.startswith("folder:"):
        raise SpecError(f"expected folder:PATH, got {uri!r}")
    path = Path(uri.removeprefix("folder:")).expanduser()
    if not path.is_dir():
        raise DataUnavailableError(
            f"there is no folder {str(path)!r}.",
            hint="Put one folder of images per class there, or name another folder in the suite.",
        )
    return path


def _class_folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scan(root: Path, classes: Sequence[str], name: str, prefix: str) -> ImageSet:
    """The images of a tree of class folders; ids are paths relative to `root` under `prefix`."""
    paths: list[Path] = []
    ids: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        found = sorted(
            p
            for p in (root / folder).rglob("*")
            # Hidden files such as macOS's `._photo.jpg` are no images.
            if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")
        )
        if not found:
            raise DataError(f"{name}: the class folder {folder!r} in {str(root)!r} has no images")
        paths += found
        ids += [f"{prefix}{p.relative_to(root).as_posix()}" for p in found]
        labels += [label] * len(found)
    return ImageSet(
        name=name,
        source=FileSource(tuple(paths)),
        ids=tuple(ids),
        labels=np.array(labels, dtype=np.int64),
        indices=np.arange(len(ids), dtype=np.int64),
    )


def _demand_classes(root: Path, classes: Sequence[str], what: str) -> None:
    have = set(_class_folders(root))
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


def _folder_suite(uri: str, fractions: FractionSpec) -> Loaded:
    root = _folder(uri)
    present = [part for part in PARTS if (root / part).is_dir()]
    if (root / "val").is_dir() and "validation" not in present:
        present.append("val")
    if present and "train" not in present:
        raise DataError(
            f"{str(root)!r} has the part folders {present} but no train folder",
            hint="A suite is either class folders, or train/ (and val/ …) folders of them.",
        )
    train_root = root / "train" if "train" in present else root
    classes = tuple(_class_folders(train_root))
    if len(classes) < 2:
        raise DataError(
            f"{str(train_root)!r} must hold at least 2 class folders, it has {list(classes)}"
        )
    prefix = "train/" if "train" in present else ""
    parts: dict[str, ImageSet] = {}
    for part in present:
        if part == "train":
            continue
        _demand_classes(root / part, classes, f"the {part} part")
        name = "validation" if part == "val" else part
        parts[name] = _scan(root / part, classes, name, f"{part}/")
    shares = {
        part: share
        for part, share in fractions.model_dump().items()
        if part not in parts and share > 0
    }
    whole = _scan(train_root, classes, "train", prefix)
    parts |= split_by_hash(whole, shares, "train")
    return root.name, classes, tuple(c.replace("_", " ") for c in classes), parts


def _folder_shift(name: str, uri: str, classes: Sequence[str]) -> ImageSet:
    root = _folder(uri)
    test = root / "test"
    if test.is_dir() and (root / "train").is_dir():
        root = test
    _demand_classes(root, classes, f"the shift {name!r}")
    return _scan(root, classes, name, f"{name}/")


# ----------------------------------------------------------------------------------- ImageNet


def _imagenet(spec: SuiteSpec) -> tuple[Loaded, dict[str, ImageSet]]:
    """ILSVRC-2012 by WordNet id, V2 by class number, R, A and Sketch by WordNet id.

    R and A have 200 of the classes; they are judged on those logits only.
    """
    from open_clip import IMAGENET_CLASSNAMES

    problems = imagenet_missing()
    if problems:
        raise DataUnavailableError(
            f"ImageNet is not complete on this machine ({'; '.join(problems)}).",
            hint=SUITES["imagenet"].how_to_get,
        )
    root = imagenet_folder()
    classes = tuple(_class_folders(root / "train"))  # sorted WordNet ids: the standard label order
    train = _scan(root / "train", classes, "train", "train/")
    test = _scan(root / "val", classes, "test", "val/")
    shares = {
        part: share
        for part, share in spec.fractions.model_dump().items()
        if part in ("validation", "calibration") and share > 0
    }
    parts = {**split_by_hash(train, shares, "train"), "test": test}
    numbers = [str(i) for i in range(len(classes))]
    v2_root = root / IMAGENET_FOLDERS["imagenet-v2"][0]
    shifts = {"imagenet-v2": _scan(v2_root, numbers, "imagenet-v2", "imagenet-v2/")}
    for name in ("imagenet-r", "imagenet-a", "imagenet-sketch"):
        folder = root / IMAGENET_FOLDERS[name][0]
        shifts[name] = _subset_shift(folder, classes, name)
    return ("imagenet", classes, tuple(IMAGENET_CLASSNAMES), parts), shifts


def _subset_shift(root: Path, classes: Sequence[str], name: str) -> ImageSet:
    """A shift that has some of the ID classes: labels are ID labels, the others are masked out."""
    have = _class_folders(root)
    unknown = sorted(set(have) - set(classes))
    if unknown:
        raise DataError(f"{name}: the class folders {unknown[:5]} are not among the ID classes")
    position = {folder: i for i, folder in enumerate(classes)}
    present = np.array([position[folder] for folder in have], dtype=np.int64)
    images = _scan(root, have, name, f"{name}/")
    is_all = len(have) == len(classes)
    return replace(
        images,
        labels=present[images.labels],
        classes=None if is_all else tuple(int(i) for i in present),
    )


LOADERS: dict[str, Callable[[SuiteSpec], Loaded]] = {"fashion-mnist": _fashion_mnist}
