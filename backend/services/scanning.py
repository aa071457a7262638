"""A look at somebody's data before anything runs on it: classes, numbers, a few of its images.

Files are listed and none is opened here: images are drawn by the processes of
`backend.services.thumbnails`, which may take little and reach nothing else.
"""

import asyncio
import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError

from backend.children.model_process import look_through
from backend.http.concurrency import Slot
from backend.http.problems import HttpError
from backend.services.submission import Submission, path_of, scan_budget
from backend.services.thumbnails import Thumbnails
from backend.settings import Settings
from calift_core.child_process import ChildTimeoutError
from calift_core.data.browsing import browse
from calift_core.data.counting import count_suite
from calift_core.data.images import ImageSet
from calift_core.data.suites.base import LoadedSuite, SuiteFamily, SuiteRequest, SuiteSizes
from calift_core.errors import NotFoundError, SpecError, UnreadableImageError
from calift_core.schema.suite import SuiteSpec
from calift_core.schema.wire.service import (
    FolderInside,
    FolderList,
    ScannedClass,
    ScannedImage,
    SuiteCopies,
    SuiteScan,
)

#: Images that are opened, and how large they are shown.
_IMAGES, _SIDE = 12, 96
#: Classes that are named; all of them are counted.
_CLASSES = 1000
#: Images that are decoded for a visitor, one visitor at a time, and what that may take.
MOST_LOOKED_AT = 20_000
_LOOK_S = 300.0
#: Where data are mounted by custom.
_MOUNTED = ("/data", "/datasets", "/mnt", "/media", "/srv")


class Scanner:
    """Looks at suites that a RunSpec could name."""

    def __init__(self, settings: Settings, submission: Submission, thumbnails: Thumbnails) -> None:
        self._settings, self._submission, self._thumbnails = settings, submission, thumbnails

    def browse(self, path: str | None) -> FolderList:
        """The registered folders, or the folders in one that lies below them.

        Raises:
            SpecError: the path is not absolute, or lies outside the registered folders.
            NotFoundError: there is no such folder.
        """
        roots = self._roots()
        if path is None:
            found = [FolderInside(name=str(root), path=str(root), folders=0, images=0, whole=False)
                     for root in roots]  # fmt: skip
            return FolderList(folders=found)
        if not Path(path).is_absolute() or ".." in Path(path).parts:
            raise SpecError(f"a path must be absolute and without '..' here, got {path[:200]!r}")
        return browse(Path(path), roots)

    def _roots(self) -> list[Path]:
        """The registered folders; on a laptop without any, those that data usually are in."""
        if self._settings.data_roots or not self._settings.is_loopback:
            return [root for root in self._settings.data_roots if root.is_dir()]
        usual = [Path.home(), *map(Path, _MOUNTED)]
        return [place for place in usual if _has_folders(place)] or [Path.home()]

    async def scan(self, suite_id: str, group_by: str | None = None, *, slot: Slot) -> SuiteScan:
        """Look at a suite.

        Args:
            group_by: the pattern of what its splits must not tear apart.

        Raises:
            SpecError: no suite has this name, its path may not be read, or the pattern is none.
            HttpError: 503, an image was not drawn in time.
        """
        try:
            found, requests = await run_in_threadpool(self._listed, suite_id, group_by)
        except (OSError, ValueError) as error:  # a path that no file system takes
            raise SpecError(f"{suite_id[:200]!r} cannot be looked at: {error}") from error
        drawn = await asyncio.gather(*(self._drawn(request, slot) for request in requests))
        names = [c.name for c in found.classes]
        images = [
            ScannedImage(
                sample=request["image"]["sample"],
                class_name=names[request["image"]["label"]]
                if request["image"]["label"] < len(names)
                else "",
                picture=picture,
                fault=fault,
            )
            for request, (picture, fault) in zip(requests, drawn, strict=True)
        ]
        return found.model_copy(update={"images": images})

    def copies(self, suite_id: str, group_by: str | None = None) -> SuiteCopies:
        """Decode every image of a suite, in a process with limits, and look for copies.

        Args:
            group_by: as in `scan`.

        Raises:
            SpecError: as in `scan`, or the suite cannot be loaded.
            HttpError: 422, it has too many images for a visitor to wait for; 503, it took too long.
        """
        spec = self._spec(suite_id, group_by)
        counts = count_suite(spec, scan_budget())
        problems = [absent.message for absent in (*counts.problems, *counts.absent)]
        if problems:
            raise SpecError(problems[0])
        n = sum(counts.parts.values())
        if n > MOST_LOOKED_AT:
            raise HttpError(
                422,
                "TOO_MANY_IMAGES",
                f"{suite_id[:200]!r} has {n:,} images, at most {MOST_LOOKED_AT:,} are looked at.",
                hint="`calift data inspect` on the machine that has them takes any number.",
            )
        try:
            answer = look_through(
                {"copies": spec.model_dump(mode="json")}, settings=self._settings, timeout_s=_LOOK_S
            )
        except ChildTimeoutError:
            raise HttpError(
                503,
                "TOO_SLOW",
                f"looking at every image took more than {_LOOK_S:g} s.",
                hint="`calift data inspect` on the machine that has them takes its time.",
            ) from None
        return SuiteCopies.model_validate(answer)

    async def _drawn(self, request: Mapping[str, Any], slot: Slot) -> tuple[str | None, str]:
        try:
            made = await self._thumbnails.draw(request, slot)
        except (UnreadableImageError, NotFoundError) as error:
            return None, error.message
        except HttpError as error:
            if error.status != 404:
                raise
            return None, error.message
        return f"data:{made.media_type};base64,{base64.b64encode(made.body).decode()}", ""

    def _spec(self, suite_id: str, group_by: str | None) -> SuiteSpec:
        """The suite, if it may be looked at.

        Raises:
            SpecError: it may not be read, or the pattern is none.
        """
        path = path_of(suite_id)
        refused = [] if path is None else list(self._submission.path_refusals("#", path))
        if refused:
            raise SpecError(refused[0][1])
        try:
            return SuiteSpec(id=suite_id, group_by=group_by)
        except ValidationError as error:
            raise SpecError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None

    def _listed(
        self, suite_id: str, group_by: str | None
    ) -> tuple[SuiteScan, list[dict[str, Any]]]:
        """What can be said without opening an image, and which ones are to be opened."""
        spec = self._spec(suite_id, group_by)
        listed: list[LoadedSuite] = []

        def count_listed(family: SuiteFamily, wanted: SuiteRequest) -> SuiteSizes:
            # What is known by its name alone may have to be fetched before it can be listed.
            if wanted.path is None:
                return family.count(wanted)
            listed.append(family.load(wanted))
            return SuiteSizes.of(listed[0])

        counts = count_suite(spec, scan_budget(), count=count_listed)
        found = SuiteScan(
            suite=suite_id,
            n_classes=len(counts.classes) if counts.classes else None,
            classes=[ScannedClass(name=name, n=None) for name in (counts.classes or ())[:_CLASSES]],
            parts=dict(counts.parts),
            shifts=dict(counts.shifts),
            basis=counts.basis,
            problems=[absent.message for absent in (*counts.problems, *counts.absent)],
        )
        if not listed:
            unlisted = [] if path_of(suite_id) is None or found.problems else [counts.basis]
            return found.model_copy(update={"notes": unlisted}), []
        (loaded,) = listed
        n = sum(
            np.bincount(images.own_labels, minlength=len(loaded.classes))
            for part, images in loaded.parts.items()
        )
        classes = [
            ScannedClass(name=name, n=int(count))
            for name, count in zip(loaded.classes, np.atleast_1d(n), strict=True)
        ]
        found = found.model_copy(
            update={"classes": classes[:_CLASSES], "n_classes": len(classes),
                    "notes": list(counts.warnings)}
        )  # fmt: skip
        test = loaded.parts.get("test")
        chosen = [] if test is None else _spread(test)
        return found, [self._thumbnail_request(spec, loaded.name, test, at) for at in chosen]

    def _thumbnail_request(
        self, spec: SuiteSpec, name: str, test: ImageSet | None, at: int
    ) -> dict[str, Any]:
        assert test is not None
        return {
            "imported": False,
            "roots": [str(root) for root in self._settings.data_roots],
            "size": _SIDE,
            "image": {
                "suites": [spec.model_dump(mode="json", include={"id", "group_by"})],
                "dataset": f"{name}/test",
                "role": "id",
                "corruption": None,
                "severity": None,
                "sample": str(test.ids[at]),
                "label": int(test.own_labels[at]),
            },
        }


def _spread(images: ImageSet) -> list[int]:
    """Positions of a few images, of as many classes as there are places for."""
    labels = images.own_labels
    order = np.lexsort((np.arange(len(labels)), labels))
    first = order[np.r_[True, np.diff(labels[order]) != 0]] if len(order) else order
    if len(first) >= _IMAGES:
        return [int(i) for i in first[np.linspace(0, len(first) - 1, _IMAGES).astype(int)]]
    rest = np.setdiff1d(order, first)
    more = rest[np.linspace(0, len(rest) - 1, min(_IMAGES - len(first), len(rest))).astype(int)]
    return sorted({int(i) for i in (*first, *more)})


def _has_folders(place: Path) -> bool:
    try:
        with os.scandir(place) as entries:
            return any(e.is_dir() and not e.name.startswith(".") for e in entries)
    except OSError:
        return False
