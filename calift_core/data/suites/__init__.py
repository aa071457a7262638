"""Suites by family, one file each; here is which names they have. Torch-free."""

from __future__ import annotations

from pathlib import Path

from calift_core.data.suites.base import SuiteEntry, SuiteId
from calift_core.data.suites.cifar import CIFAR_ENTRIES
from calift_core.data.suites.domains import DOMAIN_ENTRIES, DOMAIN_SUITES
from calift_core.data.suites.fashion import FASHION_MNIST
from calift_core.data.suites.imagenet import IMAGENET_ENTRIES
from calift_core.errors import SpecError, UnknownNameError


def parse_suite_id(text: str) -> SuiteId:
    """Take a suite's name apart.

    Raises:
        UnknownNameError: no suite has this name.
        SpecError: a path or a domain is missing, or is not for this suite.
    """
    name, _, rest = text.partition(":")
    if name == "folder" and rest:
        return SuiteId(name, _path(rest))
    if name not in SUITES and name != "domains":
        raise UnknownNameError("suite", text, [*SUITES, "folder:PATH", "domains:PATH#DOMAIN"])
    place, _, domain = rest.partition("#")
    if name in DOMAIN_SUITES and place and not domain and place[0] not in "./~" and "/" not in rest:
        place, domain = "", place
    if name == "domains" and not (place and domain):
        raise SpecError(
            f"expected domains:PATH#DOMAIN, where DOMAIN is the ID data's folder, got {text!r}"
        )
    if domain and name not in (*DOMAIN_SUITES, "domains"):
        raise SpecError(f"{name} has no domains to choose the ID data from, got {text!r}")
    return SuiteId(name, _path(place) if place else None, domain or None)


def _path(text: str) -> Path:
    return Path(text).expanduser()


SUITES: dict[str, SuiteEntry] = {
    **FASHION_MNIST,
    **IMAGENET_ENTRIES,
    **CIFAR_ENTRIES,
    **DOMAIN_ENTRIES,
}
