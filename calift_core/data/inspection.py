"""`calift doctor --suite`: whether a suite's data is here, whole and readable, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from calift_core.checks import Check
from calift_core.data.decode import decode
from calift_core.data.listing import SEVERITIES, STORED_CORRUPTIONS, class_folders, images_below
from calift_core.data.sources import NpySource
from calift_core.data.suites import SUITES, parse_suite_id
from calift_core.data.suites.base import SuiteId, suite_folder
from calift_core.data.suites.cifar import CIFAR, cifar_c_folder, cifar_folder, find_batches
from calift_core.data.suites.domains import DOMAIN_SUITES, domain_folders
from calift_core.data.suites.fashion import fashion_mnist_folder
from calift_core.data.suites.imagenet import (
    IMAGENET,
    imagenet_c_folder,
    imagenet_c_part,
    imagenet_folder,
    imagenet_subset,
    imagenet_wnids,
    objectnet_classes,
)
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError
from calift_core.schema.spec import SuiteSpec

#: Images of each part that are decoded, evenly spread.
_DECODED = 8

Published = Mapping[str, Sequence[int]]


def examine_suite(text: str, *, published: Published | None = None) -> list[Check]:
    """Check everything that a suite needs on disk.

    Args:
        text: the suite as a RunSpec names it.
        published: numbers of images that a part may have, by part; the published ones if left out.

    Returns:
        Where the data is looked for, a check for each part, and whether a run can load them. `fail`
        is what is missing, damaged or fewer than published, with what to do.

    Raises:
        SpecError: there is no such suite.
    """
    suite = parse_suite_id(text)
    parts = list(_PARTS.get(suite.name, _no_parts)(suite, published or {}))
    entry = SUITES.get(suite.name)
    loads = None if entry and entry.missing(suite.path) else _loads(text)
    checks = [*parts, *([loads] if loads else [])]
    wrong = any(check.state == "fail" for check in checks) or not checks
    hint = entry.how_to_get if entry and wrong else ""
    where = _place(suite)
    is_there = where is not None and where.is_dir()
    place = str(where) if is_there else f"there is no folder {str(where)!r}" if where else "nowhere"
    return [Check("place", "ok" if is_there else "fail", place, hint), *checks]


def _place(suite: SuiteId) -> Path | None:
    match suite.name:
        case "folder" | "domains":
            return suite.path
        case "fashion-mnist":
            return fashion_mnist_folder()
        case "imagenet-c":
            return imagenet_c_folder(suite.path)
        case "cifar10" | "cifar100":
            return cifar_folder(suite.name, suite.path)
        case "cifar10-c" | "cifar100-c":
            return cifar_c_folder(suite.name, suite.path)
    return suite_folder(suite.name, suite.path)


def _loads(text: str) -> Check:
    try:
        suite = load_suite(SuiteSpec(id=text))
        sizes = {part: len(images) for part, images in suite.parts.items()}
    except CaliftError as error:
        return Check("loads", "fail", error.message, error.hint)
    shifts = f"; shifts: {', '.join(suite.shifts)}" if suite.shifts else ""
    numbers = ", ".join(f"{part} {n:,}" for part, n in sizes.items())
    return Check("loads", "ok", f"{len(suite.classes):,} classes; {numbers}{shifts}")


def _no_parts(_suite: SuiteId, _published: Published) -> Iterator[Check]:
    yield from ()


def _tree(
    name: str,
    root: Path | None,
    wanted: str,
    classes: Sequence[str] | int,
    published: Sequence[int],
) -> Check:
    """One folder of class folders.

    Args:
        name: of the part.
        root: the folder, None if it is not there.
        wanted: what it should be called.
        classes: the folders that it must have, or how many.
        published: numbers of images that it may have; any, if there are none.
    """
    if root is None or not root.is_dir():
        return Check(name, "fail", f"no folder {wanted}/")
    have = class_folders(root)
    if isinstance(classes, int):
        lacking, needed = [], have
        if len(have) != classes:
            return Check(
                name, "fail", f"{root.name}/ has {len(have)} class folders, expected {classes}"
            )
    else:
        lacking, needed = sorted(set(classes) - set(have)), list(classes)
        if lacking:
            return Check(
                name, "fail", f"{root.name}/ lacks {len(lacking)} class folders{_some(lacking)}"
            )
    files = [f"{folder}/{path}" for folder in needed for path in images_below(root / folder)]
    full = {path.split("/", 1)[0] for path in files}
    empty = [folder for folder in needed if folder not in full]
    counted = f"{len(files):,} images in {len(needed):,} classes"
    if empty:
        return Check(name, "fail", f"{counted}, none in {len(empty)} of them{_some(empty)}")
    broken = _unreadable([root / path for path in files])
    if broken:
        return Check(name, "fail", f"{counted}; {broken}")
    if published and len(files) not in published:
        expected = " or ".join(f"{n:,}" for n in published)
        state = "fail" if len(files) < min(published) else "warn"
        return Check(name, state, f"{counted}, published are {expected}")  # type: ignore[arg-type]
    return Check(name, "ok", counted)


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _unreadable(paths: Sequence[Path]) -> str:
    """What is wrong with the first of a few images that cannot be decoded, or nothing."""
    for at in np.linspace(0, len(paths) - 1, min(_DECODED, len(paths)), dtype=int):
        try:
            decode(paths[at])
        except CaliftError as error:
            return error.message
    return ""


def _imagenet(suite: SuiteId, published: Published) -> Iterator[Check]:
    root = imagenet_folder(suite.path)
    yield from (_imagenet_part(name, root, published) for name in IMAGENET)


def _imagenet_part(name: str, root: Path, published: Published) -> Check:
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
    check = _tree(name, where, tree.folders[0], classes, counts)
    hint = tree.source if check.state == "fail" else ""
    return Check(name, check.state, check.detail + detail, hint)


def _imagenet_c(suite: SuiteId, published: Published) -> Iterator[Check]:
    clean = imagenet_folder()
    yield from (_imagenet_part(name, clean, published) for name in ("train", "test"))
    root = imagenet_c_folder(suite.path)
    counts = published.get("test", (IMAGENET["test"].n_images,))
    for corruption in STORED_CORRUPTIONS:
        checks = [
            _tree(
                corruption,
                imagenet_c_part(root, corruption, severity),
                f"{corruption}/{severity}",
                imagenet_wnids(),
                counts,
            )
            for severity in SEVERITIES
        ]
        yield _all_of(checks)


def _all_of(checks: Sequence[Check]) -> Check:
    """The severities of one corruption in one line: what is wrong with them, or all."""
    wrong = [check for check in checks if check.state != "ok"]
    if not wrong:
        return Check(checks[0].name, "ok", f"{len(checks)} severities, {checks[0].detail} each")
    details = "; ".join(dict.fromkeys(check.detail for check in wrong))
    state = "fail" if any(check.state == "fail" for check in wrong) else "warn"
    return Check(checks[0].name, state, details)  # type: ignore[arg-type]


def _cifar(suite: SuiteId, published: Published) -> Iterator[Check]:
    cifar, root = CIFAR[suite.name], cifar_folder(suite.name, suite.path)
    found = find_batches(cifar, root)
    if found is not None:
        folder, files = found
        for file in files:
            yield _batch(folder / file, cifar.python[1].get(file))
        return
    missing = SUITES[suite.name].missing(suite.path)
    if not all((root / part).is_dir() for part in ("train", "test")):
        yield Check(suite.name, "fail", "; ".join(missing))
        return
    for part, count in (("train", 50_000), ("test", 10_000)):
        yield _tree(part, root / part, part, len(cifar.classes), published.get(part, (count,)))


def _batch(path: Path, md5: str | None) -> Check:
    size = f"{path.stat().st_size:,} bytes"
    if md5 is None:
        return Check(path.name, "ok", size)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        return Check(path.name, "fail", f"{size}, MD5 {found}, published is {md5}")
    return Check(path.name, "ok", f"{size}, MD5 as published")


def _cifar_c(suite: SuiteId, published: Published) -> Iterator[Check]:
    yield from _cifar(SuiteId(suite.name.removesuffix("-c")), published)
    root = cifar_c_folder(suite.name, suite.path)
    expected = [n * len(SEVERITIES) for n in published.get("test", (10_000,))]
    for name in (*STORED_CORRUPTIONS, "labels"):
        path = root / f"{name}.npy"
        if not path.is_file():
            yield Check(path.name, "fail", f"no file {path.name}")
            continue
        try:
            n = len(np.load(path, allow_pickle=False)) if name == "labels" else len(NpySource(path))
        except (CaliftError, ValueError, OSError) as error:
            yield Check(path.name, "fail", str(error))
            continue
        yield (
            Check(path.name, "ok", f"{n:,} entries")
            if n in expected
            else Check(path.name, "fail", f"{n:,} entries, published are {expected[0]:,}")
        )


def _domains(suite: SuiteId, published: Published) -> Iterator[Check]:
    known = DOMAIN_SUITES[suite.name]
    root = suite_folder(suite.name, suite.path)
    folders = domain_folders(root, known.images) if root.is_dir() else {}
    for domain, counts in known.images.items():
        where = root / folders[domain] if domain in folders else None
        is_split = where is not None and (where / "train").is_dir()
        yield (
            Check(domain, "ok", f"in parts: {', '.join(class_folders(where))}")
            if where is not None and is_split
            else _tree(domain, where, domain, known.n_classes, published.get(domain, counts))
        )


_PARTS: dict[str, Callable[[SuiteId, Published], Iterator[Check]]] = {
    "imagenet": _imagenet,
    "imagenet-c": _imagenet_c,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "cifar10-c": _cifar_c,
    "cifar100-c": _cifar_c,
    **dict.fromkeys(DOMAIN_SUITES, _domains),
}
