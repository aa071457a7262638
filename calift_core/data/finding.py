"""Which image a sample of an evaluation, a training part or a far set is, by its run's data.

Torch-free.

Nothing is downloaded and no image is opened. A sample's id is looked up among the ids that the
suite gives to its images; no path is ever made of it.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calift_core.data.corrupted import corrupted
from calift_core.data.images import ImageSet
from calift_core.data.listing import ScanBudget, corruption_plan
from calift_core.data.suites import OFF, far_images, named_suite, parse_suite_id, shift_images
from calift_core.data.suites.base import LoadedSuite, SuiteFamily, SuiteRequest
from calift_core.errors import CaliftError, DataError, NotFoundError
from calift_core.schema.suite import SuiteSpec

#: Files and seconds that a suite may take to be listed.
_ENTRIES, _SECONDS = 3_000_000, 30.0
#: What is remembered, and for how long: folders may change, and a missing one may come.
_KEPT, _KEPT_S, _FAULT_S = 8, 600.0, 30.0


@dataclass(frozen=True)
class ThumbnailRequest:
    """A sample whose image is wanted.

    Attributes:
        suites: what its data may belong to, looked through in this order.
        role: `id`, `shift`, `corruption` or `far`; `train` for the suite's training part.
        label: its class in the evaluation: data that says otherwise is not what was evaluated.
    """

    suites: Sequence[Mapping[str, Any]]
    dataset: str
    role: str
    corruption: str | None
    severity: int | None
    sample: str
    label: int

    @property
    def of_set(self) -> str:
        """What decides the set that it is in, as text."""
        return json.dumps(
            [self.suites, self.dataset, self.role, self.corruption, self.severity], sort_keys=True
        )


@dataclass(frozen=True)
class ImagePlace:
    """An image in its set, and where its file may lie.

    Attributes:
        folder: that the data's name stands for; None where only the machine's setting says.
    """

    images: ImageSet
    position: int
    folder: Path | None


@dataclass(frozen=True)
class _LocatedSet:
    images: ImageSet
    position: Mapping[str, int]
    folder: Path | None


class Finder:
    """Finds images, and remembers the sets that it has listed."""

    def __init__(self) -> None:
        self._sets: OrderedDict[str, tuple[float, _LocatedSet | CaliftError]] = OrderedDict()
        self._suites: OrderedDict[
            str, tuple[float, tuple[SuiteFamily, SuiteRequest, LoadedSuite]]
        ] = OrderedDict()

    def find(self, request: ThumbnailRequest) -> ImagePlace:
        """Find an image.

        Raises:
            NotFoundError: no data that the run named holds this sample.
            DataError: the data is here and is not what was evaluated.
        """
        kept = self._sets.get(request.of_set)
        found = kept[1] if kept is not None and time.monotonic() < kept[0] else None
        if found is None:
            try:
                found, lasts = self._set(request), _KEPT_S
            except CaliftError as error:
                found, lasts = error, _FAULT_S
            _keep(self._sets, request.of_set, (time.monotonic() + lasts, found))
        if isinstance(found, CaliftError):
            raise found
        position = found.position.get(request.sample)
        if position is None:
            raise NotFoundError(
                f"the data of {request.dataset} here has no image {request.sample!r}."
            )
        if int(found.images.own_labels[position]) != request.label:
            raise DataError(
                f"the data of {request.dataset} here is not what was evaluated: "
                f"{request.sample!r} is of "
                "another class now"
            )
        return ImagePlace(found.images, position, found.folder)

    def _set(self, request: ThumbnailRequest) -> _LocatedSet:
        faults = []
        for suite_body in request.suites:
            try:
                found = self._in_suite(SuiteSpec.model_validate(suite_body), request)
            except CaliftError as error:
                faults.append(error.message)
                continue
            if found is not None:
                images, place = found
                # A manifest's images lie beside it or below.
                folder = place.parent if place is not None and place.is_file() else place
                return _LocatedSet(images, {name: k for k, name in enumerate(images.ids)}, folder)
        why = f" ({'; '.join(faults)})" if faults else ""
        raise NotFoundError(f"no images of {request.dataset} are known on this machine{why}.")

    def _in_suite(
        self, spec: SuiteSpec, request: ThumbnailRequest
    ) -> tuple[ImageSet, Path | None] | None:
        """The set of a request and the folder that names it, if the suite has it."""
        if request.role == "far":
            uri = spec.ood.get(request.dataset)
            if uri is None:
                return None
            return far_images(request.dataset, uri, _budget()), parse_suite_id(uri).path
        uri = spec.shifts.get(request.dataset)
        if request.role == "shift" and uri is not None and uri != OFF:
            classes = self._loaded(spec)[2].classes
            return shift_images(request.dataset, uri, classes, _budget()), parse_suite_id(uri).path
        _, suite_request, found = self._loaded(spec)
        if request.role == "shift" and request.dataset in found.shifts:
            return found.shifts[request.dataset], suite_request.path
        if request.role == "train":
            return (found.parts["train"], suite_request.path) if "train" in found.parts else None
        if request.role != "corruption":
            named = (found.name, f"{found.name}/test")
            is_test = request.dataset in named and "test" in found.parts
            return (_test(found, spec), suite_request.path) if is_test else None
        if request.corruption is None or request.severity is None:
            return None
        at = (request.corruption, request.severity)
        if at not in corruption_plan(spec.corruptions, found.stored):
            return None
        base = _test(found, spec).limited(spec.corruptions.limit)
        if at in found.stored:
            return replace(base, name=request.dataset, source=found.stored[at]), suite_request.path
        return corrupted(base, *at, seed=spec.corruptions.seed), suite_request.path

    def _loaded(self, spec: SuiteSpec) -> tuple[SuiteFamily, SuiteRequest, LoadedSuite]:
        id_spec = spec.model_copy(
            update={
                "shifts": {name: uri for name, uri in spec.shifts.items() if uri == OFF},
                "ood": {},
                "corruptions": type(spec.corruptions)(),
            }
        )
        key = id_spec.model_dump_json()
        kept = self._suites.get(key)
        if kept is None or time.monotonic() >= kept[0]:
            family, suite_request = named_suite(id_spec, _budget())
            kept = (time.monotonic() + _KEPT_S, (family, suite_request, family.load(suite_request)))
            _keep(self._suites, key, kept)
        return kept[1]


def _test(found: LoadedSuite, spec: SuiteSpec) -> ImageSet:
    return found.parts["test"].limited(spec.limits.get("test"), "test")


def _budget() -> ScanBudget:
    return ScanBudget(_ENTRIES, _SECONDS)


def _keep(memory: OrderedDict[str, Any], key: str, value: Any) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > _KEPT:
        memory.popitem(last=False)
