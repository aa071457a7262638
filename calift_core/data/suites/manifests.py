"""A manifest as a suite or as a shift: `manifest:FILE` or `manifest:FILE#DOMAIN`. Torch-free."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calift_core.data.grouped import Groups, groups_by, require_whole_groups, split_whole
from calift_core.data.images import ImageSet
from calift_core.data.listing import PARTS, shares_of
from calift_core.data.manifest import CodedColumn, Manifest, read_manifest
from calift_core.data.matching import match_classes, require_every_class
from calift_core.data.sources import FileSource
from calift_core.data.suites.base import (
    AtPath,
    LoadedSuite,
    ShiftRequest,
    SuiteRequest,
    require_known_shifts,
)
from calift_core.errors import DataError, SpecError, UnknownNameError
from calift_core.schema.suite import FractionSpec

#: What a manifest may call the domain of its ID data, where the suite's name does not choose one.
ID_DOMAIN = "id"


class ManifestFile(AtPath):
    """Any table of images: `manifest:FILE`; with domains, `manifest:FILE#DOMAIN`."""

    name = "manifest"
    shifts = None
    has_domains = True

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """The rows of the ID domain in their parts; every other domain is a shift."""
        assert request.path is not None
        whole = read_manifest(request.path, request.budget)
        own, others = _domains(whole, request.domain)
        require_known_shifts(self.name, request.turned_off, others)
        classes = own.labels.names
        if len(classes) < 2:
            raise DataError(
                f"{whole.file.name}: the ID data must have at least 2 classes, it has "
                f"{list(classes)}"
            )
        shifts = {
            name: _as_shift(name, rows, classes)
            for name, rows in others.items()
            if name not in request.turned_off
        }
        return LoadedSuite(
            name=request.domain or whole.file.stem,
            classes=classes,
            class_names=tuple(c.replace("_", " ") for c in classes),
            parts=_parts(_grouped(own, request.group_by), request.fractions),
            shifts=shifts,
            notes=whole.notes,
        )

    def shift(self, request: ShiftRequest) -> ImageSet:
        """The rows of one domain, or all; those for testing, where others are for training."""
        rows, domain = read_manifest(request.path, request.budget), request.domain
        if domain is not None:
            if domain not in rows.domains.names:
                raise UnknownNameError(f"domain of {rows.file.name}", domain, rows.domains.names)
            rows = rows.take(rows.domains.of(domain))
        classes = rows.labels.names if request.classes is None else request.classes
        return _as_shift(request.name, rows, classes)


def _domains(whole: Manifest, chosen: str | None) -> tuple[Manifest, dict[str, Manifest]]:
    names = whole.domains.names
    unnamed = whole.domains.codes < 0
    if chosen is not None:
        if chosen not in names:
            raise UnknownNameError(f"domain of {whole.file.name}", chosen, names)
        if unnamed.any():
            raise DataError(
                f"{whole.file.name}: {int(unnamed.sum()):,} rows have no domain; name one in each, "
                "or take those without one as the ID data and leave out #DOMAIN"
            )
        own, mine = chosen, whole.domains.of(chosen)
    else:
        own, mine = ID_DOMAIN, unnamed | whole.domains.of(ID_DOMAIN)
        if not mine.any():
            raise SpecError(
                f"{whole.file.name} has the domains {', '.join(names[:12])}; which of them is the "
                f"ID data? Expected manifest:FILE#DOMAIN, or rows of the domain {ID_DOMAIN!r}"
            )
    others = {name: whole.take(whole.domains.of(name)) for name in names if name != own}
    return whole.take(mine), others


def _image_set(rows: Manifest, name: str, labels: NDArray[np.int64]) -> ImageSet:
    return ImageSet(
        name=name,
        source=FileSource(rows.paths, rows.file.parent),
        ids=rows.paths,
        labels=labels,
        indices=np.arange(len(rows), dtype=np.int64),
    )


def _as_shift(name: str, rows: Manifest, classes: Sequence[str]) -> ImageSet:
    if {"train", "test"} <= set(rows.splits.names):
        rows = rows.take(rows.splits.of("test"))
    at = match_classes(rows.labels.names, classes, f"the shift {name!r} ({rows.file.name})")
    return _image_set(rows, name, at[rows.labels.codes])


def _grouped(rows: Manifest, group_by: str | None) -> Manifest:
    if group_by is None:
        return rows
    if rows.groups.names:
        raise DataError(
            f"{rows.file.name} has a column of groups: leave out the pattern {group_by!r}, or the "
            "column"
        )
    found = groups_by(group_by, rows.paths, rows.file.name)
    return replace(rows, groups=CodedColumn(found.codes, tuple(found.names)))


def _parts(rows: Manifest, fractions: FractionSpec) -> dict[str, ImageSet]:
    whole = _image_set(rows, "train", rows.labels.codes.astype(np.int64))
    splits = rows.splits.names
    if splits:
        _require_splits(rows)
    parts = {
        part: whole.take(np.flatnonzero(rows.splits.of(part)), part)
        for part in PARTS
        if part in splits and part != "train"
    }
    training = np.flatnonzero(rows.splits.of("train")) if splits else np.arange(len(rows))
    train, shares = whole.take(training, "train"), shares_of(fractions, parts)
    groups = Groups(rows.groups.codes[training], rows.groups.names)
    return parts | split_whole(train, groups, shares, "train")


def _require_splits(rows: Manifest) -> None:
    """See that the parts which a manifest names can be used."""
    name, splits = rows.file.name, rows.splits
    if (splits.codes < 0).any():
        first = rows.paths[int(np.flatnonzero(splits.codes < 0)[0])]
        raise DataError(
            f"{name}: {int((splits.codes < 0).sum()):,} rows of the ID data have no split, the "
            f"first is {first!r}; name one in each row or in none"
        )
    if "train" not in splits.names:
        raise DataError(f"{name}: no row has the split train, there are {', '.join(splits.names)}")
    for part in splits.names:
        own = rows.labels.codes[splits.of(part)].astype(np.int64)
        require_every_class(own, rows.labels.names, f"{name}: the split {part!r}")
    require_whole_groups(
        {
            part: Groups(rows.groups.codes[rows.splits.of(part)], rows.groups.names)
            for part in splits.names
        },
        name,
    )
