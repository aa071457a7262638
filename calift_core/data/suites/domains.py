"""Suites of several domains: one is the ID data, the others are its shifts. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.listing import class_folders, demand_folder, listed_test, shares_of
from calift_core.data.suites.base import (
    Loaded,
    SuiteEntry,
    SuiteId,
    demand_known_shifts,
    demand_nothing_missing,
    suite_folder,
    variable_of,
)
from calift_core.data.suites.folders import load_folder, scan, shift_in
from calift_core.errors import DataError, UnknownNameError
from calift_core.schema.spec import FractionSpec


def domain_name(folder: str) -> str:
    """How a domain's folder is called in reports: `Real World` is `real_world`."""
    return folder.lower().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True)
class Domains:
    """A data set of several domains with the same classes.

    Attributes:
        images: domain → published numbers of images.
        n_classes: in each domain.
        id_domain: the ID data where the spec does not choose.
    """

    images: Mapping[str, tuple[int, ...]]
    n_classes: int
    id_domain: str


DOMAIN_SUITES: dict[str, Domains] = {
    "pacs": Domains(
        {"art_painting": (2048,), "cartoon": (2344,), "photo": (1670,), "sketch": (3929,)},
        7,
        "photo",
    ),
    "vlcs": Domains(
        {"caltech101": (1415,), "labelme": (2656,), "sun09": (3282,), "voc2007": (3376,)},
        5,
        "voc2007",
    ),
    "office-home": Domains(
        {"art": (2427,), "clipart": (4365,), "product": (4439,), "real_world": (4357,)},
        65,
        "real_world",
    ),
    # As first published, and after its authors removed duplicates.
    "domainnet": Domains(
        {
            "clipart": (48_837, 48_129),
            "infograph": (53_201, 51_605),
            "painting": (75_759, 72_266),
            "quickdraw": (172_500,),
            "real": (175_327, 172_947),
            "sketch": (70_386, 69_128),
        },
        345,
        "real",
    ),
}


def domain_folders(root: Path, known: Iterable[str] = ()) -> dict[str, str]:
    """Domain → folder name, of every folder that is there; `RealWorld` is a known `real_world`."""
    plain = {domain.replace("_", ""): domain for domain in known}
    found = {}
    for folder in class_folders(root):
        domain = domain_name(folder)
        found[plain.get(domain.replace("_", ""), domain)] = folder
    return found


def domains_missing(name: str, root: Path) -> list[str]:
    """Which domains are missing or have the wrong number of classes."""
    suite = DOMAIN_SUITES[name]
    found = domain_folders(root, suite.images) if root.is_dir() else {}
    problems = [f"{d}: no folder {d}/" for d in suite.images if d not in found]
    for domain in suite.images:
        if domain not in found:
            continue
        folders = class_folders(root / found[domain])
        if "train" in folders:
            folders = class_folders(root / found[domain] / "train")
        if len(folders) != suite.n_classes:
            problems.append(
                f"{domain}: {found[domain]}/ has {len(folders)} class folders, "
                f"expected {suite.n_classes}"
            )
    return problems


def _domain_entry(name: str, title: str, source: str) -> SuiteEntry:
    suite = DOMAIN_SUITES[name]
    counts = {domain: published[0] for domain, published in suite.images.items()}
    own = counts[suite.id_domain]
    return SuiteEntry(
        f"{title} ({sum(counts.values()):,} images, {suite.n_classes} classes, "
        f"{len(counts)} domains)",
        f"{source} Put the domains' folders ({', '.join(counts)}) side by side in one folder and "
        f"name it in {variable_of(name)} or as {name}:PATH; {name}:DOMAIN or {name}:PATH#DOMAIN "
        f"chooses the ID data, {suite.id_domain} by default.",
        train=round(0.6 * own),
        evaluated=round(0.2 * own) + sum(counts.values()) - own,
        missing=lambda path: domains_missing(name, suite_folder(name, path)),
        parts=counts,
    )


DOMAIN_ENTRIES: dict[str, SuiteEntry] = {
    "pacs": _domain_entry(
        "pacs", "PACS", "Li et al. 2017; the authors and DomainBed offer the archive."
    ),
    "vlcs": _domain_entry("vlcs", "VLCS", "Fang et al. 2013; DomainBed offers the archive."),
    "office-home": _domain_entry(
        "office-home", "Office-Home", "Venkateswara et al. 2017; the authors offer the archive."
    ),
    "domainnet": _domain_entry(
        "domainnet", "DomainNet", "Peng et al. 2019; the authors offer one archive for each domain."
    ),
}


def load_domains(suite: SuiteId, fractions: FractionSpec, turned_off: set[str]) -> Loaded:
    """One domain is the ID data, every other one a shift."""
    known = DOMAIN_SUITES.get(suite.name)
    if known is None:
        assert suite.path is not None
        root = demand_folder(suite.path)
        folders = domain_folders(root)
    else:
        root = suite_folder(suite.name, suite.path)
        entry = DOMAIN_ENTRIES[suite.name]
        demand_nothing_missing(suite.name, entry, root, entry.missing(suite.path))
        found_there = domain_folders(root, known.images)
        folders = {domain: found_there[domain] for domain in known.images}
    own = domain_name(suite.domain or (known.id_domain if known else ""))
    if own not in folders:
        raise UnknownNameError("domain", suite.domain or own, folders)
    others = [name for name in folders if name != own]
    demand_known_shifts(suite, turned_off, others)
    where = root / folders[own]
    found = load_folder(where, fractions)
    listed = listed_test(root, folders[own])
    if listed is not None and not (where / "train").is_dir():
        whole = scan(where, found.classes, "train", "")
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
        images = shift_in(name, root / folders[name], found.classes)
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
