"""Suites by family, one file each; here is which names they have. Torch-free."""

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calift_core.data.images import ImageSet
from calift_core.data.listing import EXTENSIONS, ScanBudget, images_below
from calift_core.data.names import Names
from calift_core.data.sources import FileSource
from calift_core.data.suites.base import (
    ShiftRequest,
    SuiteFamily,
    SuiteId,
    SuiteRequest,
    require_known_shifts,
)
from calift_core.data.suites.cifar import Cifar, CifarC
from calift_core.data.suites.domains import DOMAIN_SUITES, Domains
from calift_core.data.suites.fashion import FashionMnist
from calift_core.data.suites.folders import Folder
from calift_core.data.suites.huggingface import HuggingFace
from calift_core.data.suites.imagenet import ImageNet, ImageNetC
from calift_core.data.suites.manifests import ManifestFile
from calift_core.data.suites.shards import ShardSuite
from calift_core.data.suites.torchvision import Torchvision, known_kind
from calift_core.data.suites.typefaces import Typefaces
from calift_core.data.suites.wilds import WILDS_SUITES
from calift_core.data.suites.zips import Zip
from calift_core.errors import (
    CaliftError,
    DataError,
    DataUnavailableError,
    SpecError,
    UnknownNameError,
)
from calift_core.schema.places import expanded
from calift_core.schema.suite import CorruptionSpec, SuiteSpec

#: What a catalogue lists.
SUITES: dict[str, SuiteFamily] = {
    "typefaces": Typefaces(),
    "fashion-mnist": FashionMnist(),
    "imagenet": ImageNet(),
    "imagenet-c": ImageNetC(),
    "cifar10": Cifar("cifar10"),
    "cifar100": Cifar("cifar100"),
    "cifar10-c": CifarC("cifar10"),
    "cifar100-c": CifarC("cifar100"),
    **DOMAIN_SUITES,
    **WILDS_SUITES,
}
#: What anybody may have, by the words before a path.
PATH_SUITES: dict[str, SuiteFamily] = {
    "folder": Folder(),
    "domains": Domains(),
    "manifest": ManifestFile(),
    "wds": ShardSuite(),
    "zip": Zip(),
    "hf": HuggingFace(),
    "torchvision": Torchvision(),
}
#: What Linux opens (PATH_MAX without its final NUL, NAME_MAX).
_MAX_PATH_BYTES, _MAX_NAME_BYTES = 4095, 255
#: How those are written.
_FORMS = {
    "folder": "folder:PATH",
    "domains": "domains:PATH#DOMAIN",
    "manifest": "manifest:FILE",
    "wds": "wds:FOLDER",
    "zip": "zip:FILE",
    "hf": "hf:FOLDER",
    "torchvision": "torchvision:NAME:ROOT",
}

#: Those that a shift may be.
SHIFT_KINDS = ("folder", "manifest", "wds", "zip", "hf", "torchvision")

#: The value in `suite.shifts` that leaves out a shift which the suite has by itself.
OFF = "none"


def parse_suite_id(text: str) -> SuiteId:
    """Take a suite's name apart.

    Raises:
        UnknownNameError: no suite has this name.
        SpecError: a path or a domain is missing, is none, or is not for this suite.
    """
    name, _, rest = text.partition(":")
    if name in ("folder", "wds", "zip") and rest:
        return SuiteId(name, _path(rest))
    if name == "torchvision":
        kind, _, root = rest.partition(":")
        if not (kind and root):
            raise SpecError(f"expected {_FORMS[name]}, got {text!r}")
        return SuiteId(name, _path(root), known_kind(kind))
    if name not in SUITES and (name not in PATH_SUITES or name == "folder"):
        raise UnknownNameError("suite", text, [*SUITES, *_FORMS.values()])
    if name in ("manifest", "wds", "zip", "hf") and not rest.partition("#")[0]:
        raise SpecError(f"expected {_FORMS[name]}, got {text!r}")
    has_domains = family_of(name).has_domains
    place, _, domain = rest.partition("#")
    if name in SUITES and has_domains and place and not domain and _is_word(rest):
        place, domain = "", place
    if name == "domains" and not (place and domain):
        raise SpecError(
            f"expected domains:PATH#DOMAIN, where DOMAIN is the ID data's folder, got {text!r}"
        )
    if domain and not has_domains:
        raise SpecError(f"{name} has no domains to choose the ID data from, got {text!r}")
    return SuiteId(name, _path(place) if place else None, domain or None)


def _is_word(text: str) -> bool:
    return text[0] not in "./~" and "/" not in text


def _path(text: str) -> Path:
    path = expanded(text)
    whole, *names = (len(part.encode("utf-8", "replace")) for part in (str(path), *path.parts))
    if whole > _MAX_PATH_BYTES or max(names, default=0) > _MAX_NAME_BYTES:
        raise SpecError(
            f"{text[:200]!r} cannot be looked at: a path has at most {_MAX_PATH_BYTES} bytes, each "
            f"name {_MAX_NAME_BYTES}; it has {whole}, its longest name {max(names, default=0)}"
        )
    return path


def family_of(name: str) -> SuiteFamily:
    """The family of a parsed name."""
    return SUITES.get(name) or PATH_SUITES[name]


def shift_images(
    name: str, source: str, classes: Sequence[str] | None, budget: ScanBudget | None = None
) -> ImageSet:
    """The images that a shift's source stands for.

    Args:
        source: `folder:PATH` or another of `PATH_SUITES` that can be one.
        classes: of the ID data, which they must be of; None where they are not known.

    Raises:
        SpecError: the source is none.
        DataUnavailableError: it is not on this machine.
        DataError: it has other classes, or cannot be used.
        TooManyFilesError: the budget is spent.
    """
    kind = source.partition(":")[0]
    if kind not in SHIFT_KINDS or source == f"{kind}:":
        forms = ", ".join(_FORMS[k] for k in SHIFT_KINDS[:-1])
        raise SpecError(
            f"the shift {name!r}: expected {forms} or {_FORMS[SHIFT_KINDS[-1]]}, got {source!r}"
        )
    suite = parse_suite_id(source)
    assert suite.path is not None
    return family_of(kind).shift(ShiftRequest(name, suite.path, suite.domain, classes, budget))


def require_no_shift(name: str, shifts: Container[str], suite: str) -> None:
    """Make sure that a far set is not called as one of the suite's own shifts.

    Raises:
        SpecError: it is.
    """
    if name in shifts:
        raise SpecError(f"{name!r} is a shift of {suite} and cannot name a far set (suite.ood)")


def far_images(name: str, source: str, budget: ScanBudget | None = None) -> ImageSet:
    """The images that a far set's source stands for. They have no labels: all of them are 0.

    Args:
        source: as of `shift_images`, of any classes; a folder holds its images in any way.

    Raises:
        SpecError: the source is none.
        DataUnavailableError: it is not on this machine.
        DataError: it has no image, or cannot be used.
        TooManyFilesError: the budget is spent.
    """
    kind, _, path = source.partition(":")
    if kind != "folder" or not path:
        try:
            images = shift_images(name, source, None, budget)
        except CaliftError as error:
            error.message = error.message.replace(f"the shift {name!r}", f"the far set {name!r}")
            raise
        return replace(images, labels=np.zeros_like(images.labels), classes=None)
    root = _path(path)
    if not root.is_dir():
        raise DataUnavailableError(f"there is no folder {str(root)!r}.", hint="suite.ood names it.")
    paths = Names.of(images_below(root, budget))
    if not len(paths):
        raise DataError(
            f"the far set {name!r} ({str(root)!r}) must hold images ({', '.join(EXTENSIONS)}), "
            "it has none"
        )
    at = np.arange(len(paths), dtype=np.int64)
    return ImageSet(name, FileSource(paths, root), paths.below(f"{name}/"), np.zeros_like(at), at)


#: Families whose images' paths may say what belongs together.
GROUPED_BY_PATH = ("folder", "manifest")


def id_data(spec: SuiteSpec) -> SuiteSpec:
    """The ID data alone, split as a spec asks: without shifts, as far as those are known by name.

    Raises:
        SpecError: no suite has this name.
    """
    off = dict.fromkeys(family_of(parse_suite_id(spec.id).name).shifts or (), OFF)
    return spec.model_copy(update={"shifts": off, "corruptions": CorruptionSpec()})


def named_suite(
    spec: SuiteSpec, budget: ScanBudget | None = None
) -> tuple[SuiteFamily, SuiteRequest]:
    """The family of the suite that a spec names, and what the spec asks of it.

    Raises:
        UnknownNameError: no suite, or no shift of it, has this name.
        SpecError: a path or a domain is missing, or is not for this suite.
    """
    suite = parse_suite_id(spec.id)
    family = family_of(suite.name)
    turned_off = {name for name, uri in spec.shifts.items() if uri == OFF}
    if family.shifts is not None:
        require_known_shifts(suite.name, turned_off, family.shifts)
    if spec.group_by is not None and suite.name not in GROUPED_BY_PATH:
        raise SpecError(
            f"group_by must be for {' or '.join(GROUPED_BY_PATH)}, whose paths name groups, got "
            f"{suite.name}"
        )
    return family, SuiteRequest(
        suite.path, suite.domain, spec.fractions, turned_off, budget, spec.group_by
    )
