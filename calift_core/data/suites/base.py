"""What every family of suites shares: names, places, and what is asked of one. Torch-free."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from calift_core.checks import Check
from calift_core.data.images import ImageSet, PixelSource
from calift_core.data.listing import ScanBudget
from calift_core.errors import DataUnavailableError, SpecError, UnknownNameError
from calift_core.home import cache_dir
from calift_core.schema.places import expanded
from calift_core.schema.suite import FractionSpec


@dataclass(frozen=True)
class SuiteId:
    """A suite as a RunSpec names it: `NAME`, `NAME:PATH`, `NAME:PATH#DOMAIN` or `NAME:DOMAIN`.

    Attributes:
        name: a key of `SUITES` or `PATH_SUITES`.
        path: where it is; None for the usual place.
        domain: the ID domain of a suite of domains; None for its default.
    """

    name: str
    path: Path | None = None
    domain: str | None = None


def suite_folder(name: str, path: Path | None = None) -> Path:
    """Where a named suite is looked for: `path`, else what CALIFT_NAME says, else the cache."""
    named = os.environ.get(variable_of(name))
    if path is not None:
        return path
    return expanded(named) if named else cache_dir() / name


def variable_of(name: str) -> str:
    """The setting that says where a named suite is, as in CALIFT_OFFICE_HOME."""
    return f"CALIFT_{name.upper().replace('-', '_')}"


def require_known_shifts(suite: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Make sure that a suite has the shifts that are named.

    Raises:
        UnknownNameError: it has no such shift.
    """
    known = list(known)
    for name in sorted(names):
        if name not in known:
            raise UnknownNameError(f"shift of {suite}", name, known)


@dataclass(frozen=True)
class SuiteRequest:
    """What a spec asks of a family.

    Attributes:
        path: where the suite is; None for the usual place.
        domain: the ID domain of a suite of domains; None for its default.
        fractions: of parts that are not on disk.
        group_by: a pattern that finds in an image's path what must not be torn apart.
    """

    path: Path | None
    domain: str | None
    fractions: FractionSpec
    turned_off: Collection[str] = ()
    budget: ScanBudget | None = None
    group_by: str | None = None


@dataclass(frozen=True)
class ShiftRequest:
    """A shift that a spec names as `NAME:PATH`.

    Attributes:
        domain: which of its domains, where it has such.
        classes: of the ID data, which it must have; None where they are not known.
    """

    name: str
    path: Path
    domain: str | None
    classes: Sequence[str] | None
    budget: ScanBudget | None = None

    @property
    def what(self) -> str:
        """As errors name it."""
        return f"the shift {self.name!r} ({str(self.path)!r})"


#: (corruption, severity) → the test part's images under it, at the positions of its own source.
Stored = Mapping[tuple[str, int], PixelSource]


@dataclass(frozen=True)
class LoadedSuite:
    """What a family finds, before the spec's own names, limits and shifts.

    Attributes:
        classes: C class folders or labels, in label order.
        class_names: what they are called where the spec does not say, or the set of
            `CLASS_NAME_SETS` that calls them so.
    """

    name: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...] | str
    parts: dict[str, ImageSet]
    shifts: dict[str, ImageSet] = field(default_factory=dict)
    stored: Stored = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteSizes:
    """What a suite holds, in numbers of images.

    Attributes:
        classes: those that other folders must have; None where they are not known.
        by_class: part → images of each class, where that is known without reading pixels.
    """

    parts: dict[str, int]
    shifts: dict[str, int] = field(default_factory=dict)
    stored: Collection[tuple[str, int]] = ()
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    by_class: Mapping[str, Sequence[int]] | None = None

    @classmethod
    def of(cls, found: LoadedSuite) -> SuiteSizes:
        """The numbers of what was listed."""
        return cls(
            {part: len(images) for part, images in found.parts.items()},
            {shift: len(images) for shift, images in found.shifts.items()},
            found.stored.keys(),
            found.classes,
            found.notes,
            by_class(found.parts, len(found.classes)),
        )

    def training(self, n_shot: int | None, n_classes: int | None = None) -> int:
        """Training images where at most `n_shot` of each class are taken.

        Where the sizes of the classes are not known, each is taken to have as many.

        Args:
            n_shot: None takes all.
            n_classes: where `classes` are not known.
        """
        n = self.parts.get("train", 0)
        if n_shot is None:
            return n
        if self.by_class is not None:
            return sum(min(n_shot, own) for own in self.by_class.get("train", ()))
        known = len(self.classes) if self.classes is not None else n_classes
        return n if known is None else min(n, n_shot * known)


def by_class(parts: Mapping[str, ImageSet], n_classes: int) -> dict[str, list[int]]:
    """Part → images of each class."""
    return {
        part: np.bincount(images.labels, minlength=n_classes).tolist()
        for part, images in parts.items()
    }


#: Numbers of images that a part may have, by part.
Published = Mapping[str, Sequence[int]]


class SuiteFamily(ABC):
    """A suite, or one of several that lie on disk in the same way.

    Attributes:
        how_to_get: a sentence for those who do not have it.
        parts: published numbers of images by part and shift.
        shifts: names of its own shifts, any of which a spec may do without; None where only the
            folders say, and `load` has to look.
        has_domains: whether one of its domains is chosen as the ID data.
        learned: what pre-training on it learns captions from, a key of `LEARNED` in `data/styles`.
        vague_names: what a caption may call any of its images.
    """

    name: str
    title: str = ""
    how_to_get: str = ""
    parts: Mapping[str, int] = MappingProxyType({})
    shifts: tuple[str, ...] | None = ()
    has_domains: bool = False
    learned: str = "styles"
    vague_names: tuple[str, ...] = ("thing", "object")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where they are known before the data is here."""
        return ()

    @property
    def coarse_names(self) -> Mapping[str, str]:
        """Class → a name that it shares with others, where the suite has such."""
        return {}

    def find(self, path: Path | None) -> Path | None:
        """Where it is or is looked for, given the spec's path; None if that is nowhere."""
        return suite_folder(self.name, path)

    @abstractmethod
    def missing(self, path: Path | None) -> list[str]:
        """What that place lacks, one sentence each. A quick look."""

    @abstractmethod
    def load(self, request: SuiteRequest) -> LoadedSuite:
        """List the images; none is decoded.

        Raises:
            UnknownNameError: it has no such domain or shift.
            DataUnavailableError: something is missing; the hint says how to get it.
            DataError: what is here cannot be used.
            TooManyFilesError: the budget is spent.
        """

    def count(self, request: SuiteRequest) -> SuiteSizes:
        """The numbers of images that `load` finds; overridden where that would read pixels."""
        return SuiteSizes.of(self.load(request))

    def shift(self, request: ShiftRequest) -> ImageSet:
        """List the images of a shift that a spec names as `NAME:PATH`; none is decoded.

        Raises:
            SpecError: a shift is no such thing.
            DataUnavailableError: it is not here.
            DataError: it has other classes, or cannot be used.
            TooManyFilesError: the budget is spent.
        """
        raise SpecError(f"{self.name} is a suite and cannot be named as a shift")

    def published(self, request: SuiteRequest) -> SuiteSizes | None:
        """What it would hold as its authors publish it, where that is known."""
        return None

    def inspect(self, path: Path | None, published: Published) -> Iterator[Check]:
        """Check what is on disk, part by part; `published` takes the place of published sizes."""
        yield from ()

    def fetchable(self, path: Path | None) -> str | None:
        """The suite that has to be downloaded, and can be, for this one to be complete."""
        return None

    def require_present(self, path: Path | None, problems: Sequence[str]) -> None:
        """Make sure that the suite is complete.

        Raises:
            DataUnavailableError: `problems` says what is missing.
        """
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            place = f" in {str(path)!r}" if path is not None else ""
            raise DataUnavailableError(
                f"{self.name} is not complete on this machine{place} "
                f"({'; '.join(problems[:8])}{more}).",
                hint=self.how_to_get,
            )


class AtPath(SuiteFamily):
    """Data that is where its name says, and nowhere else."""

    def find(self, path: Path | None) -> Path | None:
        return path

    def missing(self, path: Path | None) -> list[str]:
        return []
