"""How many images a suite gives to each part, shift and corruption: none is opened. Torch-free.

The counts are those of `load_suite`, image by image, wherever the data can be looked at; else they
follow from the published sizes, and say so.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from calift_core.data.listing import (
    SEVERITIES,
    STORED_CORRUPTIONS,
    Budget,
    TooManyFilesError,
    class_folders,
    corruption_plan,
    demand_classes,
    demand_folder,
    folder_layout,
    images_below,
    images_by_class,
    listed_test,
    shares_of,
    shift_folder,
    split_names,
)
from calift_core.data.suites import SUITES, parse_suite_id
from calift_core.data.suites.base import SuiteId, suite_folder
from calift_core.data.suites.cifar import (
    CIFAR,
    cifar_c_folder,
    cifar_folder,
    find_batches,
    read_batch,
)
from calift_core.data.suites.domains import DOMAIN_SUITES, domain_folders, domain_name
from calift_core.data.suites.fashion import FASHION_FILES, FASHION_SPLIT, fashion_mnist_folder
from calift_core.data.suites.imagenet import (
    IMAGENET,
    IMAGENET_SHIFTS,
    imagenet_c_folder,
    imagenet_c_part,
    imagenet_folder,
    imagenet_missing,
    imagenet_wnids,
    objectnet_classes,
)
from calift_core.errors import DataError, DataUnavailableError, UnknownNameError, reason_of
from calift_core.schema.spec import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS, SuiteSpec

#: Suites that are downloaded when they are not in the usual place.
_FETCHED = ("fashion-mnist", "cifar10", "cifar100")
#: The value in `suite.shifts` that leaves out a shift which the suite has by itself.
OFF = "none"


@dataclass(frozen=True)
class Absent:
    """Something that a suite needs and that this machine lacks.

    Attributes:
        pointer: to the field of the spec that names it.
        message: a sentence.
        fetched: whether a run tries to get it by itself, over a network.
    """

    pointer: str
    message: str
    fetched: bool = False


@dataclass(frozen=True)
class SuiteCounts:
    """Images by what they are for, after the spec's splits and limits.

    Attributes:
        parts: part → images; empty when nothing is known.
        shifts: shift → images, None where unknown.
        corruptions: (name, severity) pairs that the test images are judged under.
        per_corruption: test images under each of them.
        basis: where the numbers come from.
        absent: what is not here; the numbers then are the published ones.
        problems: what is here and cannot be used.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    shifts: Mapping[str, int | None] = field(default_factory=dict)
    corruptions: int = 0
    per_corruption: int = 0
    basis: str = ""
    absent: tuple[Absent, ...] = ()
    problems: tuple[Absent, ...] = ()

    @property
    def corrupted(self) -> int:
        """Images under corruptions, all of them together."""
        return self.corruptions * self.per_corruption

    @property
    def evaluated(self) -> int | None:
        """Images that a finished model is judged on: test, shifts and corruptions."""
        sizes = list(self.shifts.values())
        known = [n for n in sizes if n is not None]
        if "test" not in self.parts or len(known) < len(sizes):
            return None
        return self.parts["test"] + sum(known) + self.corrupted

    @property
    def selection(self) -> int | None:
        """ID images that settings are chosen and calibrators fitted on; they are predicted too."""
        if not self.parts:
            return None
        return self.parts.get("validation", 0) + self.parts.get("calibration", 0)


@dataclass(frozen=True)
class _Found:
    """What a suite holds, before the spec's limits.

    Attributes:
        parts: part → images.
        shifts: the suite's own shifts.
        stored: corruptions that are on disk.
        classes: the ID class folders, where other folders must have the same.
    """

    parts: dict[str, int]
    shifts: dict[str, int | None] = field(default_factory=dict)
    stored: Collection[tuple[str, int]] = ()
    classes: tuple[str, ...] | None = None


def count_suite(spec: SuiteSpec, budget: Budget | None = None) -> SuiteCounts:
    """Count a suite's images.

    Args:
        spec: the suite.
        budget: how much of the disk may be looked at; larger suites have their published sizes.

    Raises:
        SpecError: no suite, domain or shift has this name.
    """
    suite = parse_suite_id(spec.id)
    budget = budget or Budget()
    turned_off = {name for name, uri in spec.shifts.items() if uri == OFF}
    absent: list[Absent] = []
    problems: list[Absent] = []
    basis = "counted on this machine"
    found: _Found | None
    try:
        found = _count(suite, spec, turned_off, budget)
    except DataUnavailableError as error:
        fetched = suite.name in _FETCHED and suite.path is None
        absent.append(Absent("#/suite/id", str(error), fetched))
        found = _published(suite, spec, turned_off)
        basis = "published sizes, as the data is not here"
    except TooManyFilesError as error:
        found = _published(suite, spec, turned_off)
        basis = f"published sizes: there are {error.message}"
    except DataError as error:
        problems.append(Absent("#/suite/id", str(error)))
        found = None
    if found is None:
        basis = basis.replace("published sizes", "unknown") if not problems else "unknown"
        return SuiteCounts(basis=basis, absent=tuple(absent), problems=tuple(problems))
    limits = {str(part): n for part, n in spec.limits.items()}
    parts = {part: min(n, limits.get(part, n)) for part, n in found.parts.items()}
    shifts = dict(found.shifts)
    for name, uri in spec.shifts.items():
        if uri == OFF:
            continue
        pointer = f"#/suite/shifts/{name}"
        shifts[name] = None
        try:
            shifts[name] = _folder_shift(name, uri, found.classes, budget)
        except DataUnavailableError as error:
            absent.append(Absent(pointer, f"the shift {name!r}: {error}"))
        except TooManyFilesError as error:
            basis += f"; the shift {name!r} is unknown: there are {error.message}"
        except DataError as error:
            problems.append(Absent(pointer, str(error)))
    try:
        plan = corruption_plan(spec.corruptions, found.stored)
    except DataUnavailableError as error:
        absent.append(Absent("#/suite/corruptions", str(error)))
        plan = tuple((n, s) for n in spec.corruptions.chosen for s in spec.corruptions.severities)
    test = parts.get("test", 0)
    return SuiteCounts(
        parts,
        shifts,
        corruptions=len(plan),
        per_corruption=min(test, spec.corruptions.limit or test) if plan else 0,
        basis=basis,
        absent=tuple(absent),
        problems=tuple(problems),
    )


def _count(suite: SuiteId, spec: SuiteSpec, turned_off: set[str], budget: Budget) -> _Found:
    if suite.name in (*DOMAIN_SUITES, "domains"):
        return _domains(suite, spec, turned_off, budget)
    _demand_known(suite, turned_off, IMAGENET_SHIFTS if suite.name == "imagenet" else ())
    match suite.name:
        case "fashion-mnist":
            return _fashion_mnist()
        case "imagenet":
            wanted = [name for name in IMAGENET_SHIFTS if name not in turned_off]
            return _imagenet(suite.path, spec, wanted, budget)
        case "imagenet-c":
            return _imagenet_c(suite.path, spec, budget)
        case "cifar10" | "cifar100":
            return _cifar(suite.name, suite.path, spec, budget)
        case "cifar10-c" | "cifar100-c":
            return _cifar_c(suite.name, suite.path, spec, budget)
    assert suite.path is not None
    return _folder(suite.path, spec, budget)


def _demand_known(suite: SuiteId, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in sorted(names):
        if name not in known:
            raise UnknownNameError(f"shift of {suite.name}", name, known)


def _demand_here(suite: str, path: Path | None, lacking: list[str]) -> None:
    if lacking:
        more = f"; and {len(lacking) - 8} more" if len(lacking) > 8 else ""
        place = f" in {str(path)!r}" if path is not None else ""
        raise DataUnavailableError(
            f"{suite} is not complete on this machine{place} ({'; '.join(lacking[:8])}{more}).",
            hint=SUITES[suite].how_to_get,
        )


def _split(ids: Iterable[str], spec: SuiteSpec, present: Mapping[str, int]) -> dict[str, int]:
    """What comes off the training images, and what is left of them."""
    parts = split_names(ids, shares_of(spec.fractions, present), "train")
    return {part: len(positions) for part, positions in parts.items()}


# ------------------------------------------------------------------------------ the families


def _folder(root: Path, spec: SuiteSpec, budget: Budget) -> _Found:
    train, classes, others = folder_layout(root)
    parts: dict[str, int] = {}
    for part, where in others.items():
        name = "validation" if part == "val" else part
        parts[name] = len(images_by_class(where, classes, name, budget)[0])
    prefix = "" if train == root else "train/"
    paths, _ = images_by_class(train, classes, "train", budget)
    split = _split((prefix + path for path in paths), spec, parts)
    return _Found(parts | split, classes=classes)


def _folder_shift(
    name: str, uri: str, classes: tuple[str, ...] | None, budget: Budget
) -> int | None:
    if not uri.startswith("folder:"):
        raise DataError(f"the shift {name!r}: expected folder:PATH, got {uri!r}")
    root = demand_folder(Path(uri.removeprefix("folder:")).expanduser())
    return len(_shift_paths(name, root, classes, budget))


def _shift_paths(
    name: str, root: Path, classes: tuple[str, ...] | None, budget: Budget
) -> list[str]:
    root = shift_folder(root)
    if classes is None:  # the ID data is not here to be compared with
        return images_below(root, budget)
    demand_classes(root, classes, f"the shift {name!r}")
    return images_by_class(root, classes, name, budget)[0]


def _domains(suite: SuiteId, spec: SuiteSpec, turned_off: set[str], budget: Budget) -> _Found:
    known = DOMAIN_SUITES.get(suite.name)
    if known is None:
        assert suite.path is not None
        root = demand_folder(suite.path)
        folders = domain_folders(root)
    else:
        root = suite_folder(suite.name, suite.path)
        _demand_here(suite.name, root, SUITES[suite.name].missing(suite.path))
        there = domain_folders(root, known.images)
        folders = {domain: there[domain] for domain in known.images}
    own = _own_domain(suite, folders)
    others = [name for name in folders if name != own]
    _demand_known(suite, turned_off, others)
    where = root / folders[own]
    found = _folder(where, spec, budget)
    listed = listed_test(root, folders[own])
    if listed is not None and not (where / "train").is_dir():
        assert found.classes is not None
        paths, _ = images_by_class(where, found.classes, "train")
        rest = [path for path in paths if path not in listed]
        parts = {"test": len(paths) - len(rest)}
        found = _Found(parts | _split(rest, spec, parts), classes=found.classes)
    shifts: dict[str, int | None] = {}
    for name in others:
        if name in turned_off:
            continue
        paths = _shift_paths(name, root / folders[name], found.classes, budget)
        listed = listed_test(root, folders[name])
        shifts[name] = len(paths if listed is None else [p for p in paths if p in listed])
    return _Found(found.parts, shifts, classes=found.classes)


def _own_domain(suite: SuiteId, domains: Iterable[str]) -> str:
    known = DOMAIN_SUITES.get(suite.name)
    own = domain_name(suite.domain or (known.id_domain if known else ""))
    if own not in domains:
        raise UnknownNameError("domain", suite.domain or own, domains)
    return own


def _fashion_mnist() -> _Found:
    folder = fashion_mnist_folder()
    if folder is None:
        raise DataUnavailableError(
            "Fashion-MNIST is not on this machine.", hint=SUITES["fashion-mnist"].how_to_get
        )
    sizes = {
        part: _idx_length(folder, FASHION_FILES[f"{part}_images"]) for part in ("train", "test")
    }
    return _Found(_fashion_parts(sizes["train"], sizes["test"]))


def _fashion_parts(train: int, test: int) -> dict[str, int]:
    parts, left = {}, train
    for part, size in FASHION_SPLIT.items():
        parts[part] = min(size, left)
        left -= parts[part]
    return {**parts, "test": test}


def _idx_length(folder: Path, stem: str) -> int:
    """The first dimension in the header of an IDX file."""
    path = next(p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file())
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return int(struct.unpack(">I", file.read(8)[4:])[0])
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path.name} is not a readable IDX file: {error}") from None


def _cifar(name: str, path: Path | None, spec: SuiteSpec, budget: Budget) -> _Found:
    cifar, root = CIFAR[name], cifar_folder(name, path)
    _demand_here(name, root, SUITES[name].missing(path))
    batches = find_batches(cifar, root)
    if batches is None:
        train = _class_ids(root / "train", cifar.classes, "train", budget)
        test = len(_class_ids(root / "test", cifar.classes, "test", budget))
    else:
        folder, files = batches
        sizes = [_batch_length(folder / file, name) for file in files]
        train, test = _numbered(sum(sizes[:-1])), sizes[-1]
    parts = {"test": test}
    return _Found(_split(train, spec, parts) | parts)


def _numbered(n: int) -> list[str]:
    return [f"train/{i:05d}" for i in range(n)]


def _class_ids(root: Path, classes: Iterable[str], part: str, budget: Budget) -> list[str]:
    folder_of = {folder.lower().replace("_", " "): folder for folder in class_folders(root)}
    absent = [c for c in classes if c not in folder_of]
    if absent:
        raise DataError(f"{str(root)!r} has no class folders {', '.join(absent[:5])}")
    paths, _ = images_by_class(root, [folder_of[c] for c in classes], part, budget)
    return [f"{part}/{path}" for path in paths]


def _batch_length(path: Path, name: str) -> int:
    state = path.stat()
    return _length_of_batch(path, name, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _length_of_batch(path: Path, name: str, _size: int, _mtime_ns: int) -> int:
    return len(read_batch(path, CIFAR[name])[1])


def _cifar_c(name: str, path: Path | None, spec: SuiteSpec, budget: Budget) -> _Found:
    root = cifar_c_folder(name, path)
    _demand_here(name, root, SUITES[name].missing(path))
    clean = _cifar(name.removesuffix("-c"), None, spec, budget)
    wanted = clean.parts["test"] * len(SEVERITIES)
    files = sorted(root.glob("*.npy"))
    for file in files:
        n = _npy_length(file)
        if n != wanted:
            raise DataError(f"{file.name} of {name} must hold {wanted} images, it holds {n}")
    stored = {(f.stem, s) for f in files if f.stem != "labels" for s in SEVERITIES}
    return _Found(clean.parts, stored=stored)


def _npy_length(path: Path) -> int:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path.name} is not a readable NumPy file: {reason_of(error)}") from None


def _imagenet(path: Path | None, spec: SuiteSpec, shifts: list[str], budget: Budget) -> _Found:
    root = imagenet_folder(path)
    _demand_here("imagenet", path, imagenet_missing(root, ("train", "test", *shifts)))
    where = {name: tree.find(root) or root for name, tree in IMAGENET.items()}
    wnids = imagenet_wnids()
    train = images_by_class(where["train"], wnids, "train", budget)[0]
    parts = {"test": len(images_by_class(where["test"], wnids, "test", budget)[0])}
    split = _split((f"train/{path}" for path in train), spec, parts)
    found: dict[str, int | None] = {}
    for name in shifts:
        match name:
            case "imagenet-v2":
                folders = [str(i) for i in range(len(wnids))]
            case "objectnet":
                mappings = where[name].parent / "mappings"
                folders = [c.folder for c in objectnet_classes(mappings)]
            case _:
                folders = class_folders(where[name])
        found[name] = len(images_by_class(where[name], folders, name, budget)[0])
    return _Found(split | parts, found)


def _imagenet_c(path: Path | None, spec: SuiteSpec, budget: Budget) -> _Found:
    root = imagenet_c_folder(path)
    _demand_here("imagenet-c", root, SUITES["imagenet-c"].missing(path))
    clean = _imagenet(None, spec, [], budget)
    stored = {
        (name, severity)
        for name in (*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS)
        for severity in SEVERITIES
        if imagenet_c_part(root, name, severity) is not None
    }
    return _Found(clean.parts, stored=stored)


# -------------------------------------------------------------------------- published sizes


def _published(suite: SuiteId, spec: SuiteSpec, turned_off: set[str]) -> _Found | None:
    """What the suite would hold as its authors publish it; None of a folder."""
    if suite.name in DOMAIN_SUITES:
        sizes = {name: n[0] for name, n in DOMAIN_SUITES[suite.name].images.items()}
        own = _own_domain(suite, sizes)
        _demand_known(suite, turned_off, [name for name in sizes if name != own])
        shifts: dict[str, int | None] = {
            name: n for name, n in sizes.items() if name not in (own, *turned_off)
        }
        return _Found(_expected(sizes[own], spec, {}), shifts)
    stored = {(name, severity) for name in STORED_CORRUPTIONS for severity in SEVERITIES}
    match suite.name:
        case "fashion-mnist":
            return _Found(_fashion_parts(60_000, 10_000))
        case "cifar10" | "cifar100" | "cifar10-c" | "cifar100-c":
            parts = {"test": 10_000}
            split = _split(_numbered(50_000), spec, parts)
            return _Found(split | parts, stored=stored if suite.name.endswith("-c") else ())
        case "imagenet":
            parts = {"test": IMAGENET["test"].n_images}
            shifts = {n: IMAGENET[n].n_images for n in IMAGENET_SHIFTS if n not in turned_off}
            return _Found(_expected(IMAGENET["train"].n_images, spec, parts), shifts)
        case "imagenet-c":
            parts = {"test": IMAGENET["test"].n_images}
            return _Found(_expected(IMAGENET["train"].n_images, spec, parts), stored=stored)
    return None


def _expected(n: int, spec: SuiteSpec, parts: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the parts that are split off by hash, as they are on average."""
    split = {part: round(n * share) for part, share in shares_of(spec.fractions, parts).items()}
    return {**split, "train": n - sum(split.values()), **parts}
