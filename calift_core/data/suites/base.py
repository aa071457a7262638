"""What every family of suites shares: names, places, and what a loader finds. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calift_core.data.images import ImageSet, PixelSource
from calift_core.errors import DataUnavailableError, UnknownNameError
from calift_core.home import cache_dir


@dataclass(frozen=True)
class SuiteId:
    """A suite as a RunSpec names it: `NAME`, `NAME:PATH`, `NAME:PATH#DOMAIN` or `NAME:DOMAIN`.

    Attributes:
        name: a key of `SUITES`, `folder` or `domains`.
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
    return Path(named).expanduser() if named else cache_dir() / name


def variable_of(name: str) -> str:
    """The setting that says where a named suite is, as in CALIFT_OFFICE_HOME."""
    return f"CALIFT_{name.upper().replace('-', '_')}"


@dataclass(frozen=True)
class SuiteEntry:
    """What is known of a named suite.

    Attributes:
        title: for people.
        how_to_get: a sentence for those who do not have it.
        train: published number of training images (of the default ID domain).
        evaluated: published number of images in its test part, shifts and stored corruptions.
        missing: what a place (None: the usual one) lacks, one sentence each. A quick look.
        classes: names of the classes, where they are known before the data is here.
        parts: published numbers of images by part and shift.
    """

    title: str
    how_to_get: str
    train: int
    evaluated: int
    missing: Callable[[Path | None], list[str]]
    classes: Callable[[], tuple[str, ...]] = tuple
    parts: Mapping[str, int] = field(default_factory=dict)


#: (corruption, severity) → the test part's images under it, at the positions of its own source.
Stored = Mapping[tuple[str, int], PixelSource]


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


def demand_known_shifts(suite: SuiteId, names: Iterable[str], known: Iterable[str]) -> None:
    """Make sure that a suite has the shifts that are named.

    Raises:
        UnknownNameError: it has no such shift.
    """
    known = list(known)
    for name in sorted(names):
        if name not in known:
            raise UnknownNameError(f"shift of {suite.name}", name, known)


def demand_nothing_missing(
    suite: str, entry: SuiteEntry, path: Path | None, problems: Sequence[str]
) -> None:
    """Make sure that a suite is complete.

    Raises:
        DataUnavailableError: `problems` says what is missing.
    """
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        place = f" in {str(path)!r}" if path is not None else ""
        raise DataUnavailableError(
            f"{suite} is not complete on this machine{place} ({'; '.join(problems[:8])}{more}).",
            hint=entry.how_to_get,
        )
