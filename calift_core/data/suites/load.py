"""A suite as a run sees it: one ID data set in disjoint parts, its shifts and its corruptions.

Parts are called `pretrain, train, validation, calibration, test`. Only `train` is trained on by a
fine-tuning method, only `pretrain` by pre-training; settings are chosen on `validation`,
calibrators are fitted on `calibration`, and `test` is looked at once.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from calift_core.data.class_names import resolve_class_names
from calift_core.data.corrupted import corrupted
from calift_core.data.images import ImageSet
from calift_core.data.listing import corruption_plan
from calift_core.data.sources import check_headers
from calift_core.data.suites import (
    OFF,
    SUITES,
    far_images,
    named_suite,
    parse_suite_id,
    require_no_shift,
    shift_images,
)
from calift_core.data.suites.base import Stored
from calift_core.data.suites.huggingface import fetch_dataset, hub_name_of
from calift_core.errors import DataError, DataUnavailableError, reason_of
from calift_core.home import cache_dir
from calift_core.schema.report import Role
from calift_core.schema.suite import SuiteSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """Everything a run may look at.

    Attributes:
        classes: C class folders or labels, in label order.
        parts: part → images; absent parts are absent keys.
        corruption_plan: (name, severity) pairs to apply to the test images.
        corruption_limit: use at most this many test images for them.
        stored: the corruptions of the plan that were published as images and are not computed.
        ood: far sets, whose images are of none of the classes.
        learned: what pre-training learns captions from, a key of `LEARNED`.
        coarse_names: class → a name that it shares with others.
    """

    name: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    parts: dict[str, ImageSet]
    shifts: dict[str, ImageSet] = field(default_factory=dict)
    ood: dict[str, ImageSet] = field(default_factory=dict)
    corruption_plan: tuple[tuple[str, int], ...] = ()
    corruption_limit: int | None = None
    corruption_seed: int = 0
    stored: Stored = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    learned: str = "styles"
    coarse_names: Mapping[str, str] = field(default_factory=dict)
    vague_names: tuple[str, ...] = ()

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
        """(images, role, corruption, severity) of all that a finished model is measured on."""
        yield replace(self.part("test"), name=f"{self.name}/test"), "id", None, None
        for images in self.shifts.values():
            yield images, "shift", None, None
        for images, name, severity in self.corrupted():
            yield images, "corruption", name, severity

    def corrupted(self) -> Iterable[tuple[ImageSet, str, int]]:
        """(images, corruption, severity) of the plan; computed ones are so image by image."""
        base = self.part("test").limited(self.corruption_limit) if self.corruption_plan else None
        copies = len(self.corruption_plan)
        for name, severity in self.corruption_plan:
            assert base is not None
            source = self.stored.get((name, severity))
            if source is not None:
                images = replace(base, name=f"{name}/{severity}", source=source)
            else:
                images = corrupted(base, name, severity, seed=self.corruption_seed, copies=copies)
            yield images, name, severity


def load_suite(spec: SuiteSpec, *, fetch: bool = True, check: bool = True) -> Suite:
    """Find a suite's data on this machine and split it.

    Args:
        fetch: get over a network what is not here and can be had; a look at data never does.

    Raises:
        UnknownNameError: no suite, domain or set of class names has this name.
        SpecError: the spec names classes or shifts that the suite does not have.
        DataUnavailableError: the data is not here; the hint says how to get it.
        DataError: folders do not agree on classes, or a part is empty.
        UnreadableImageError: a file is not an image.
    """
    family, request = named_suite(spec)
    if fetch:
        _fetch_of_hub(spec.id)
        absent = family.fetchable(request.path)
        if absent in SUITES and SUITES[absent].missing(None):
            _download(absent)
    found = family.load(request)
    own = found.parts
    if spec.n_shot is not None and "train" in own:
        own = own | {"train": own["train"].of_each_class(spec.n_shot, spec.n_shot_seed)}
    parts = {
        part: images.limited(spec.limits.get(part), part)  # type: ignore[call-overload]
        for part, images in own.items()
    }
    shifts = found.shifts | {
        shift: load_shift(shift, uri, found.classes, fetch=fetch)
        for shift, uri in spec.shifts.items()
        if uri != OFF
    }
    ood = {}
    for name, uri in spec.ood.items():
        require_no_shift(name, shifts, spec.id)
        if fetch:
            _fetch_of_hub(uri)
        ood[name] = far_images(name, uri)
    notes = (*found.notes, *(note for images in shifts.values() for note in images.notes))
    for note in notes:
        log.warning("%s", note)
    if check:
        for images in (
            *(parts[p] for p in parts if p != "pretrain"),
            *shifts.values(),
            *ood.values(),
        ):
            check_headers(images)
    return Suite(
        name=found.name,
        classes=found.classes,
        class_names=resolve_class_names(spec.class_names, found.classes, found.class_names),
        parts=parts,
        shifts=shifts,
        ood=ood,
        corruption_plan=corruption_plan(spec.corruptions, found.stored),
        corruption_limit=spec.corruptions.limit,
        corruption_seed=spec.corruptions.seed,
        stored=found.stored,
        notes=notes,
        learned=family.learned,
        coarse_names=family.coarse_names,
        vague_names=family.vague_names,
    )


def load_shift(name: str, source: str, classes: Sequence[str], *, fetch: bool = True) -> ImageSet:
    """The images that a shift's source stands for, which must be of these classes.

    Raises:
        SpecError: the source is none.
        DataUnavailableError: it is not on this machine.
        DataError: it has other classes.
    """
    if fetch:
        _fetch_of_hub(source)
    return shift_images(name, source, classes)


def _fetch_of_hub(uri: str) -> None:
    if hub_name_of(uri) is not None:
        suite = parse_suite_id(uri)
        assert suite.path is not None
        fetch_dataset(suite.path, suite.domain)


def _download(name: str) -> None:
    """Torchvision's own download into the cache, for machines with a network."""
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
    from torchvision.datasets.utils import download_and_extract_archive

    root = str(cache_dir() / "torchvision")
    try:
        if name == "fashion-mnist":
            FashionMNIST(root, train=True, download=True)
        else:
            kind: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
            download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
    except Exception as error:  # network and checksum errors come as many types
        title = SUITES[name].title.split(" (")[0]
        raise DataUnavailableError(
            f"{title} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {reason_of(error)}).",
            hint=SUITES[name].how_to_get,
        ) from None
