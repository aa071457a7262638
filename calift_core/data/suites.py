"""Suites: one ID data set in disjoint parts, its shifts and its corruptions.

Parts are called `pretrain, train, validation, calibration, test`. Only `train` is trained on by a
fine-tuning method, only `pretrain` by pre-training; settings are chosen on `validation`,
calibrators are fitted on `calibration`, and `test` is looked at once.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.catalogue import (
    DOMAIN_SUITES,
    FASHION_FILES,
    IMAGENET,
    IMAGENET_SHIFTS,
    SEVERITIES,
    SUITES,
    SuiteId,
    cifar_c_folder,
    cifar_folder,
    class_folders,
    domain_folders,
    domain_name,
    fashion_mnist_folder,
    imagenet_c_folder,
    imagenet_c_part,
    imagenet_folder,
    imagenet_missing,
    parse_suite_id,
    suite_folder,
)
from calift_core.data.cifar import CIFAR, Batch, find_batches, read_batch
from calift_core.data.class_names import resolve_class_names
from calift_core.data.corruptions import corruption_names
from calift_core.data.counting import OFF
from calift_core.data.imagenet import (
    OBJECTNET_BORDER,
    imagenet_labels,
    imagenet_wnids,
    objectnet_classes,
)
from calift_core.data.images import (
    ArraySource,
    FileSource,
    ImageSet,
    MergedClasses,
    NpySource,
    PixelSource,
    cached,
    check_headers,
    corrupted,
    split_by_hash,
)
from calift_core.data.listing import (
    FASHION_SPLIT,
    corruption_plan,
    demand_classes,
    demand_folder,
    folder_layout,
    images_by_class,
    listed_test,
    shares_of,
    shift_folder,
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

#: (corruption, severity) → the test part's images under it, at the positions of its own source.
Stored = Mapping[tuple[str, int], PixelSource]


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
        stored: the corruptions of the plan that were published as images and are not computed.
    """

    name: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    parts: dict[str, ImageSet]
    shifts: dict[str, ImageSet] = field(default_factory=dict)
    corruption_plan: tuple[tuple[str, int], ...] = ()
    corruption_limit: int | None = None
    corruption_seed: int = 0
    stored: Stored = field(default_factory=dict)

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
            source = self.stored.get((name, severity))
            if source is not None:
                images = replace(base, name=f"{name}/{severity}", source=source)
            else:
                images = cached(corrupted(base, name, severity, seed=self.corruption_seed))
            yield images, "corruption", name, severity


@dataclass(frozen=True)
class Loaded:
    """What a loader finds, before the spec's own names, limits and shifts.

    Attributes:
        name: the ID data's name.
        classes: C class folders or labels, in label order.
        class_names: what they are called where the spec does not say.
        parts: part → images.
        shifts: the suite's own shifts.
        stored: corruptions that are on disk.
    """

    name: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    parts: dict[str, ImageSet]
    shifts: dict[str, ImageSet] = field(default_factory=dict)
    stored: Stored = field(default_factory=dict)


def load_suite(spec: SuiteSpec) -> Suite:
    """Find a suite's data on this machine and split it.

    Raises:
        UnknownNameError: no suite, domain or set of class names has this name.
        SpecError: the spec names classes or shifts that the suite does not have.
        DataUnavailableError: the data is not here; the hint says how to get it.
        DataError: folders do not agree on classes, or a part is empty.
        UnreadableImageError: a file is not an image.
    """
    turned_off = {name for name, uri in spec.shifts.items() if uri == OFF}
    found = _load(parse_suite_id(spec.id), spec.fractions, turned_off)
    parts = {
        part: images.limited(spec.limits.get(part), part)  # type: ignore[call-overload]
        for part, images in found.parts.items()
    }
    shifts = found.shifts | {
        shift: _folder_shift(shift, uri, found.classes)
        for shift, uri in spec.shifts.items()
        if uri != OFF
    }
    for images in (*(parts[p] for p in parts if p != "pretrain"), *shifts.values()):
        check_headers(images)
    return Suite(
        name=found.name,
        classes=found.classes,
        class_names=resolve_class_names(spec.class_names, found.classes, found.class_names),
        parts=parts,
        shifts=shifts,
        corruption_plan=corruption_plan(spec.corruptions, found.stored),
        corruption_limit=spec.corruptions.limit,
        corruption_seed=spec.corruptions.seed,
        stored=found.stored,
    )


def _load(suite: SuiteId, fractions: FractionSpec, turned_off: set[str]) -> Loaded:
    if suite.name in (*DOMAIN_SUITES, "domains"):
        return _domains(suite, fractions, turned_off)
    _demand_known_shifts(suite, turned_off, IMAGENET_SHIFTS if suite.name == "imagenet" else ())
    match suite.name:
        case "fashion-mnist":
            return _fashion_mnist()
        case "imagenet":
            wanted = [name for name in IMAGENET_SHIFTS if name not in turned_off]
            return _imagenet(suite.path, fractions, wanted)
        case "imagenet-c":
            return _imagenet_c(suite.path, fractions)
        case "cifar10" | "cifar100":
            return _cifar(suite.name, suite.path, fractions)
        case "cifar10-c" | "cifar100-c":
            return _cifar_c(suite.name, suite.path, fractions)
    assert suite.name == "folder"
    assert suite.path is not None
    return _folder_suite(suite.path, fractions)


def _demand_known_shifts(suite: SuiteId, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in sorted(names):
        if name not in known:
            raise UnknownNameError(f"shift of {suite.name}", name, known)


def _demand_nothing_missing(suite: str, path: Path | None, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        place = f" in {str(path)!r}" if path is not None else ""
        raise DataUnavailableError(
            f"{suite} is not complete on this machine{place} ({'; '.join(problems[:8])}{more}).",
            hint=SUITES[suite].how_to_get,
        )


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


def _fashion_mnist() -> Loaded:
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
    return Loaded("fashion-mnist", FASHION_CLASSES, FASHION_CLASSES, parts)


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


def _scan(
    root: Path, classes: Sequence[str], name: str, prefix: str, *, border: int = 0
) -> ImageSet:
    """The images of a tree of class folders; ids are paths relative to `root` under `prefix`."""
    paths, labels = images_by_class(root, classes, name)
    return ImageSet(
        name=name,
        source=FileSource(tuple(paths), root, border),
        ids=tuple(prefix + path for path in paths),
        labels=np.array(labels, dtype=np.int64),
        indices=np.arange(len(paths), dtype=np.int64),
    )


def _folder_suite(root: Path, fractions: FractionSpec) -> Loaded:
    train, classes, others = folder_layout(root)
    prefix = "" if train == root else "train/"
    parts: dict[str, ImageSet] = {}
    for part, where in others.items():
        name = "validation" if part == "val" else part
        parts[name] = _scan(where, classes, name, f"{part}/")
    whole = _scan(train, classes, "train", prefix)
    parts |= split_by_hash(whole, shares_of(fractions, parts), "train")
    return Loaded(root.name, classes, tuple(c.replace("_", " ") for c in classes), parts)


def _folder_shift(name: str, uri: str, classes: Sequence[str]) -> ImageSet:
    if not uri.startswith("folder:"):
        raise SpecError(f"expected folder:PATH, got {uri!r}")
    root = demand_folder(Path(uri.removeprefix("folder:")).expanduser())
    return _shift_in(name, root, classes)


def _shift_in(name: str, root: Path, classes: Sequence[str]) -> ImageSet:
    root = shift_folder(root)
    demand_classes(root, classes, f"the shift {name!r}")
    return _scan(root, classes, name, f"{name}/")


# ------------------------------------------------------------------------------------ domains


def _domains(suite: SuiteId, fractions: FractionSpec, turned_off: set[str]) -> Loaded:
    """One domain is the ID data, every other one a shift."""
    known = DOMAIN_SUITES.get(suite.name)
    if known is None:
        assert suite.path is not None
        root = demand_folder(suite.path)
        folders = domain_folders(root)
    else:
        root = suite_folder(suite.name, suite.path)
        _demand_nothing_missing(suite.name, root, SUITES[suite.name].missing(suite.path))
        found_there = domain_folders(root, known.images)
        folders = {domain: found_there[domain] for domain in known.images}
    own = domain_name(suite.domain or (known.id_domain if known else ""))
    if own not in folders:
        raise UnknownNameError("domain", suite.domain or own, folders)
    others = [name for name in folders if name != own]
    _demand_known_shifts(suite, turned_off, others)
    where = root / folders[own]
    found = _folder_suite(where, fractions)
    listed = listed_test(root, folders[own])
    if listed is not None and not (where / "train").is_dir():
        whole = _scan(where, found.classes, "train", "")
        is_test = _among(whole, listed, "")
        parts = {"test": whole.take(np.flatnonzero(is_test), "test")}
        rest = whole.take(np.flatnonzero(~is_test), "train")
        found = replace(
            found, parts=parts | split_by_hash(rest, shares_of(fractions, parts), "train")
        )
    shifts = {}
    for name in others:
        if name in turned_off:
            continue
        images = _shift_in(name, root / folders[name], found.classes)
        listed = listed_test(root, folders[name])
        if listed is not None:
            images = images.take(np.flatnonzero(_among(images, listed, f"{name}/")), name)
        shifts[name] = images
    return replace(found, name=f"{suite.name}-{own}" if known else own, shifts=shifts)


def _among(images: ImageSet, listed: set[str], prefix: str) -> NDArray[np.bool_]:
    """Which images (N,) a list file names."""
    mask = np.array([image_id.removeprefix(prefix) in listed for image_id in images.ids])
    if not mask.any():
        raise DataError(
            f"{images.name}: the list of its test images names none of the {len(images)} images"
        )
    return mask


# -------------------------------------------------------------------------------------- CIFAR


def _cifar(name: str, path: Path | None, fractions: FractionSpec) -> Loaded:
    """Batches or class folders; validation and calibration images come off the 50,000."""
    cifar, root = CIFAR[name], cifar_folder(name, path)
    problems = SUITES[name].missing(path)
    if problems and root == cache_dir() / "torchvision":
        _download_cifar(name, root)
        problems = SUITES[name].missing(path)
    _demand_nothing_missing(name, root, problems)
    batches = find_batches(cifar, root)
    if batches is None:
        train, test = (
            _cifar_folders(root / part, cifar.classes, part) for part in ("train", "test")
        )
    else:
        folder, files = batches
        train = _cifar_set("train", [read_batch(folder / file, cifar) for file in files[:-1]])
        test = _cifar_set("test", [read_batch(folder / files[-1], cifar)])
    parts = {**split_by_hash(train, shares_of(fractions, ("test",)), "train"), "test": test}
    return Loaded(name, cifar.classes, cifar.classes, parts)


def _cifar_set(part: str, batches: Sequence[Batch]) -> ImageSet:
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return _array_set(part, images, labels, hashlib.sha256(images.tobytes()).hexdigest())


def _cifar_folders(root: Path, classes: Sequence[str], part: str) -> ImageSet:
    """Class folders in label order; `aquarium fish` may be called `aquarium_fish`."""
    folder_of = {folder.lower().replace("_", " "): folder for folder in class_folders(root)}
    absent = [c for c in classes if c not in folder_of]
    if absent:
        raise DataError(f"{str(root)!r} has no class folders {', '.join(absent[:5])}")
    return _scan(root, [folder_of[c] for c in classes], part, f"{part}/")


def _download_cifar(name: str, root: Path) -> None:
    """Torchvision's own download, for machines with a network."""
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    kind: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        download_and_extract_archive(kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5)
    except Exception as error:  # network and checksum errors come as many types
        raise DataUnavailableError(
            f"{name} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {reason_of(error)}).",
            hint=SUITES[name].how_to_get,
        ) from None


def _cifar_c(name: str, path: Path | None, fractions: FractionSpec) -> Loaded:
    """Each file holds the test images five times, severity after severity."""
    clean = _cifar(name.removesuffix("-c"), None, fractions)
    root = cifar_c_folder(name, path)
    _demand_nothing_missing(name, root, SUITES[name].missing(path))
    test = clean.parts["test"]
    labels = _npy_labels(root / "labels.npy")
    expected = np.tile(test.labels, len(SEVERITIES))
    if not np.array_equal(labels, expected):
        raise DataError(
            f"labels.npy of {name} must hold the {len(test)} test labels of {clean.name} "
            f"{len(SEVERITIES)} times, it holds {len(labels)} others"
        )
    stored: dict[tuple[str, int], PixelSource] = {}
    for file in sorted(root.glob("*.npy")):
        if file.stem == "labels":
            continue
        if len(NpySource(file)) != len(expected):
            raise DataError(
                f"{file.name} of {name} must hold {len(expected)} images, "
                f"it holds {len(NpySource(file))}"
            )
        for severity in SEVERITIES:
            stored[file.stem, severity] = NpySource(file, (severity - 1) * len(test))
    return replace(clean, name=name, stored=stored)


def _npy_labels(path: Path) -> NDArray[np.int64]:
    try:
        return np.load(path, allow_pickle=False).astype(np.int64)  # type: ignore[no-any-return]
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path.name} is not a readable NumPy file: {reason_of(error)}") from None


# ----------------------------------------------------------------------------------- ImageNet


def _imagenet(path: Path | None, fractions: FractionSpec, shifts: Sequence[str]) -> Loaded:
    """ILSVRC-2012 by WordNet id, V2 by class number, R, A and Sketch by WordNet id, ObjectNet.

    R and A have 200 of the classes and are judged on those logits; ObjectNet has 113 objects, each
    judged on the largest logit of the ImageNet classes that it covers.
    """
    root = imagenet_folder(path)
    _demand_nothing_missing("imagenet", path, imagenet_missing(root, ("train", "test", *shifts)))
    where = {name: tree.find(root) or root for name, tree in IMAGENET.items()}
    classes = imagenet_wnids()
    for part in ("train", "test"):
        _demand_wnids(where[part], part)
    train = _scan(where["train"], classes, "train", "train/")
    test = _scan(where["test"], classes, "test", "val/")
    parts = {**split_by_hash(train, shares_of(fractions, ("test",)), "train"), "test": test}
    found: dict[str, ImageSet] = {}
    for name in shifts:
        match name:
            case "imagenet-v2":
                numbers = [str(i) for i in range(len(classes))]
                found[name] = _scan(where[name], numbers, name, f"{name}/")
            case "objectnet":
                found[name] = _objectnet(where[name])
            case _:
                found[name] = _subset_shift(where[name], classes, name)
    return Loaded("imagenet", classes, _openai_names(), parts, found)


def _openai_names() -> tuple[str, ...]:
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


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
    images = _scan(root, have, name, f"{name}/")
    is_all = len(have) == len(classes)
    return replace(
        images,
        labels=present[images.labels],
        classes=None if is_all else tuple(int(i) for i in present),
    )


def _objectnet(root: Path) -> ImageSet:
    """The objects that ImageNet has too, without the frame around each image."""
    objects = objectnet_classes(root.parent / "mappings")
    images = _scan(
        root, [o.folder for o in objects], "objectnet", "objectnet/", border=OBJECTNET_BORDER
    )
    first = np.array([o.indices[0] for o in objects], dtype=np.int64)
    return replace(
        images,
        labels=first[images.labels],
        classes=MergedClasses(tuple(o.label for o in objects), tuple(o.indices for o in objects)),
    )


def _imagenet_c(path: Path | None, fractions: FractionSpec) -> Loaded:
    """The test images' names again, below CORRUPTION/SEVERITY/."""
    clean = _imagenet(None, fractions, ())
    root = imagenet_c_folder(path)
    _demand_nothing_missing("imagenet-c", root, SUITES["imagenet-c"].missing(path))
    source = clean.parts["test"].source
    assert isinstance(source, FileSource)
    stored: dict[tuple[str, int], PixelSource] = {}
    for name in corruption_names("all"):
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
