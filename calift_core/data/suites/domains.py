"""Suites of several domains: one is the ID data, the others are its shifts. Torch-free."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calift_core.checks import Check
from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.listing import (
    class_folders,
    expected_sizes,
    folder_layout,
    has_parts,
    listed_test,
    require_folder,
    shares_of,
)
from calift_core.data.suites.base import (
    LoadedSuite,
    Published,
    SuiteFamily,
    SuiteRequest,
    SuiteSizes,
    require_known_shifts,
    suite_folder,
    variable_of,
)
from calift_core.data.suites.checking import check_tree
from calift_core.data.suites.folders import load_folder, scan, shift_in
from calift_core.errors import DataError, UnknownNameError


def domain_name(folder: str) -> str:
    """How a domain's folder is called in reports: `Real World` is `real_world`."""
    return folder.lower().replace(" ", "_").replace("-", "_")


def domain_folders(root: Path, known: Iterable[str] = ()) -> dict[str, str]:
    """Domain → folder name, of every folder that is there; `RealWorld` is a known `real_world`."""
    plain = {domain.replace("_", ""): domain for domain in known}
    found = {}
    for folder in class_folders(root):
        domain = domain_name(folder)
        found[plain.get(domain.replace("_", ""), domain)] = folder
    return found


def _among(images: ImageSet, listed: set[str], prefix: str) -> NDArray[np.bool_]:
    """Which images (N,) a list file names."""
    mask = np.array([image_id.removeprefix(prefix) in listed for image_id in images.ids])
    if not mask.any():
        raise DataError(
            f"{images.name}: the list of its test images names none of the {len(images)} images"
        )
    return mask


class Domains(SuiteFamily):
    """Any folder of domains that have the same classes: `domains:PATH#DOMAIN`.

    Attributes:
        id_domain: the ID data where the spec does not choose.
    """

    name = "domains"
    shifts = None
    has_domains = True
    id_domain = ""
    n_classes: int | None = None

    def missing(self, path: Path | None) -> list[str]:
        return []

    def folders(self, path: Path | None) -> tuple[Path, dict[str, str]]:
        """Where the domains are, and domain → folder.

        Raises:
            DataUnavailableError: they are not there.
        """
        assert path is not None
        root = require_folder(path)
        return root, domain_folders(root)

    def choose(self, request: SuiteRequest, domains: Iterable[str]) -> tuple[str, list[str]]:
        """The ID domain and those that are shifts, without those that are turned off.

        Raises:
            UnknownNameError: there is no such domain or shift.
        """
        domains = list(domains)
        own = domain_name(request.domain or self.id_domain)
        if own not in domains:
            raise UnknownNameError("domain", request.domain or own, domains)
        others = [name for name in domains if name != own]
        require_known_shifts(self.name, request.turned_off, others)
        return own, [name for name in others if name not in request.turned_off]

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """One domain is the ID data, every other one a shift."""
        fractions, budget = request.fractions, request.budget
        root, folders = self.folders(request.path)
        own, others = self.choose(request, folders)
        where = root / folders[own]
        found = load_folder(where, fractions, budget, n_classes=self.n_classes)
        listed = listed_test(root, folders[own])
        if listed is not None and (len(found.classes) == self.n_classes or not has_parts(where)):
            whole = scan(where, found.classes, "train", "")
            is_test = _among(whole, listed, "")
            parts = {"test": whole.take(np.flatnonzero(is_test), "test")}
            rest = whole.take(np.flatnonzero(~is_test), "train")
            found = replace(
                found, parts=parts | split_by_hash(rest, shares_of(fractions, parts), "train")
            )
        shifts = {}
        for name in others:
            images = shift_in(name, root / folders[name], found.classes, budget)
            listed = listed_test(root, folders[name])
            if listed is not None:
                images = images.take(np.flatnonzero(_among(images, listed, f"{name}/")), name)
            shifts[name] = images
        title = f"{self.name}-{own}" if self.id_domain else own
        return replace(found, name=title, shifts=shifts)


class KnownDomains(Domains):
    """A published data set of several domains with the same classes.

    Args:
        id_domain: the ID data where the spec does not choose.
    """

    n_classes: int

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        *,
        images: Mapping[str, tuple[int, ...]],
        n_classes: int,
        id_domain: str,
    ) -> None:
        self.name, self.images = name, images
        self.n_classes, self.id_domain = n_classes, id_domain
        self.parts = {domain: published[0] for domain, published in images.items()}
        self.title = (
            f"{title} ({sum(self.parts.values()):,} images, {n_classes} classes, "
            f"{len(images)} domains)"
        )
        self.how_to_get = (
            f"{source} Put the domains' folders ({', '.join(images)}) side by side in one folder "
            f"and name it in {variable_of(name)} or as {name}:PATH; {name}:DOMAIN or "
            f"{name}:PATH#DOMAIN chooses the ID data, {id_domain} by default."
        )

    def missing(self, path: Path | None) -> list[str]:
        """Which domains are missing or have the wrong number of classes."""
        root = suite_folder(self.name, path)
        found = domain_folders(root, self.images) if root.is_dir() else {}
        problems = [f"{d}: no folder {d}/" for d in self.images if d not in found]
        for domain in self.images:
            if domain not in found:
                continue
            folders = class_folders(root / found[domain])
            if len(folders) != self.n_classes and has_parts(root / found[domain]):
                folders = list(folder_layout(root / found[domain])[1])
            if len(folders) != self.n_classes:
                problems.append(
                    f"{domain}: {found[domain]}/ has {len(folders)} class folders, "
                    f"expected {self.n_classes}"
                )
        return problems

    def folders(self, path: Path | None) -> tuple[Path, dict[str, str]]:
        root = suite_folder(self.name, path)
        self.require_present(root, self.missing(path))
        there = domain_folders(root, self.images)
        return root, {domain: there[domain] for domain in self.images}

    def published(self, request: SuiteRequest) -> SuiteSizes:
        own, others = self.choose(request, self.parts)
        shifts = {name: self.parts[name] for name in others}
        return SuiteSizes(expected_sizes(self.parts[own], request.fractions), shifts)

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        root = suite_folder(self.name, path)
        folders = domain_folders(root, self.images) if root.is_dir() else {}
        for domain, counts in self.images.items():
            where = root / folders[domain] if domain in folders else None
            is_split = (
                where is not None
                and len(class_folders(where)) != self.n_classes
                and has_parts(where)
            )
            yield (
                Check(domain, "ok", f"in parts: {', '.join(class_folders(where))}")
                if where is not None and is_split
                else check_tree(
                    domain, where, domain, self.n_classes, published.get(domain, counts)
                )
            )


DOMAIN_SUITES: dict[str, KnownDomains] = {
    "pacs": KnownDomains(
        "pacs",
        "PACS",
        "Li et al. 2017; the authors and DomainBed offer the archive.",
        images={"art_painting": (2048,), "cartoon": (2344,), "photo": (1670,), "sketch": (3929,)},
        n_classes=7,
        id_domain="photo",
    ),
    "vlcs": KnownDomains(
        "vlcs",
        "VLCS",
        "Fang et al. 2013; DomainBed offers the archive.",
        images={"caltech101": (1415,), "labelme": (2656,), "sun09": (3282,), "voc2007": (3376,)},
        n_classes=5,
        id_domain="voc2007",
    ),
    "office-home": KnownDomains(
        "office-home",
        "Office-Home",
        "Venkateswara et al. 2017; the authors offer the archive.",
        images={"art": (2427,), "clipart": (4365,), "product": (4439,), "real_world": (4357,)},
        n_classes=65,
        id_domain="real_world",
    ),
    # As first published, and after its authors removed duplicates.
    "domainnet": KnownDomains(
        "domainnet",
        "DomainNet",
        "Peng et al. 2019; the authors offer one archive for each domain.",
        images={
            "clipart": (48_837, 48_129),
            "infograph": (53_201, 51_605),
            "painting": (75_759, 72_266),
            "quickdraw": (172_500,),
            "real": (175_327, 172_947),
            "sketch": (70_386, 69_128),
        },
        n_classes=345,
        id_domain="real",
    ),
}
