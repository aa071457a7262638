"""Data sets of torchvision that are on disk: `torchvision:NAME:ROOT`. Torch-free.

torchvision is asked once, in a process of its own (`calift_core.data.torchvision_listing`), which
images there are; what it said is kept in the cache, and images are read from their files.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.data.images import ImageSet, PixelSource, split_by_hash
from calift_core.data.listing import PARTS, ScanBudget, shares_of
from calift_core.data.matching import relabelled, require_every_class
from calift_core.data.names import Names
from calift_core.data.sources import FileSource, NpySource
from calift_core.data.suites.base import AtPath, LoadedSuite, ShiftRequest, SuiteRequest
from calift_core.errors import DataError, DataUnavailableError, UnknownNameError, reason_of
from calift_core.home import cache_dir

_LISTED_S = 600.0
_DIGITS = tuple("0123456789")


def _split(**names: str) -> dict[str, dict[str, Any]]:
    return {part: {"split": name} for part, name in names.items()}


@dataclass(frozen=True)
class TorchvisionSplits:
    """How a class of torchvision is asked for its images."""

    parts: Mapping[str, Mapping[str, Any]]
    classes: tuple[str, ...] = field(default=())


_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = _split(train="train", test="test")
#: What may stand behind `torchvision:`. CIFAR is not among them: torchvision unpickles its batches,
#: which the suites `cifar10` and `cifar100` read without that.
KINDS: dict[str, TorchvisionSplits] = {
    "Caltech101": TorchvisionSplits({"train": {}}),
    "Country211": TorchvisionSplits(_split(train="train", validation="valid", test="test")),
    "DTD": TorchvisionSplits(_split(train="train", validation="val", test="test")),
    "EuroSAT": TorchvisionSplits({"train": {}}),
    "FGVCAircraft": TorchvisionSplits(_split(train="train", validation="val", test="test")),
    "FashionMNIST": TorchvisionSplits(_FLAG),
    "Flowers102": TorchvisionSplits(_split(train="train", validation="val", test="test")),
    "Food101": TorchvisionSplits(_TRAIN_TEST),
    "Imagenette": TorchvisionSplits(_split(train="train", test="val")),
    "KMNIST": TorchvisionSplits(_FLAG),
    "MNIST": TorchvisionSplits(_FLAG),
    "OxfordIIITPet": TorchvisionSplits(_split(train="trainval", test="test")),
    "RenderedSST2": TorchvisionSplits(_split(train="train", validation="val", test="test")),
    "STL10": TorchvisionSplits(_TRAIN_TEST),
    "SUN397": TorchvisionSplits({"train": {}}),
    "SVHN": TorchvisionSplits(_TRAIN_TEST, _DIGITS),
    "StanfordCars": TorchvisionSplits(_TRAIN_TEST),
    "USPS": TorchvisionSplits(_FLAG, _DIGITS),
}


class Torchvision(AtPath):
    """A data set of torchvision: `torchvision:NAME:ROOT`."""

    name = "torchvision"
    has_domains = True  # the name of the data set

    def load(self, request: SuiteRequest) -> LoadedSuite:
        """The parts that torchvision has; what they lack is split off the training images."""
        assert request.path is not None
        name, listing = known_kind(request.domain or ""), _listing(request)
        classes = listing.classes
        parts = {part: listing.image_set(part, f"{part}/") for part in KINDS[name].parts}
        for part, images in parts.items():
            require_every_class(images.labels, classes, f"torchvision's {name}: {part}")
        train = parts.pop("train")
        parts |= split_by_hash(train, shares_of(request.fractions, parts), "train")
        words = tuple(c.replace("_", " ") for c in classes)
        parts = {part: parts[part] for part in PARTS if part in parts}
        return LoadedSuite(name.lower(), classes, words, parts)

    def shift(self, request: ShiftRequest) -> ImageSet:
        """The images of its test part, or all where it has none."""
        kind, name = known_kind(request.domain or ""), request.name
        listing = _read_listing(kind, request.path, request.budget)
        part = "test" if "test" in KINDS[kind].parts else "train"
        images = replace(listing.image_set(part, f"{name}/"), name=name)
        what = f"the shift {name!r} (torchvision's {kind})"
        return relabelled(images, listing.classes, request.classes, what)


def known_kind(name: str) -> str:
    """The data set's name as torchvision writes it.

    Raises:
        UnknownNameError: it is none of `KINDS`.
    """
    known = {kind.lower(): kind for kind in KINDS}
    if name.lower() not in known:
        hint = (
            "CIFAR is read by the suites cifar10 and cifar100." if "cifar" in name.lower() else ""
        )
        raise UnknownNameError("data set of torchvision", name, KINDS, hint=hint)
    return known[name.lower()]


def listings() -> Path:
    """Where is kept what torchvision said, and images that it has in arrays."""
    return cache_dir() / "torchvision-listings"


@dataclass(frozen=True)
class _Listing:
    root: Path
    folder: Path
    classes: tuple[str, ...]
    labels: Mapping[str, NDArray[np.int64]]
    files: Mapping[str, Names]

    def image_set(self, part: str, prefix: str) -> ImageSet:
        labels = self.labels[part]
        at = np.arange(len(labels), dtype=np.int64)
        source: PixelSource
        if part in self.files:
            ids = self.files[part]
            source = FileSource(ids, self.root)
        else:
            ids = Names.of(f"{i:05d}" for i in range(len(labels)))
            source = NpySource(self.folder / f"{part}.npy")
        return ImageSet(part, source, ids.below(prefix), labels, at)


def _listing(request: SuiteRequest) -> _Listing:
    assert request.path is not None
    return _read_listing(known_kind(request.domain or ""), request.path, request.budget)


def _read_listing(name: str, root: Path, budget: ScanBudget | None) -> _Listing:
    """What torchvision says of a data set, from the cache if it was asked before."""
    root = root.absolute()
    if not root.is_dir():
        raise DataUnavailableError(
            f"there is no folder {str(root)!r}.",
            hint=f"torchvision.datasets.{name}(ROOT, download=True) makes it.",
        )
    kept = listings() / _state(name, root)
    if not (kept / "listing.npz").is_file():
        _list_images(name, root, kept)
    with np.load(kept / "listing.npz", allow_pickle=False) as stored:
        parts = KINDS[name].parts
        found = _Listing(
            root=root,
            folder=kept,
            classes=tuple(stored["classes"].tolist()),
            labels={part: stored[f"{part}_labels"] for part in parts},
            files={
                part: Names.of(stored[f"{part}_files"].tolist())
                for part in parts
                if f"{part}_files" in stored
            },
        )
    if budget is not None:
        budget.take(sum(map(len, found.labels.values())))
    return found


def _state(name: str, root: Path) -> str:
    """Changes when something is put into the root, into its folders or into theirs."""
    state = hashlib.sha256(f"1:{name}:{root}".encode())
    folders = [root]
    for _ in range(3):
        inner = []
        for folder in folders:
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                about = entry.stat()
                state.update(f"{entry.path}:{about.st_mtime_ns};".encode())
                if entry.is_dir():
                    inner.append(Path(entry.path))
        folders = inner
    return state.hexdigest()[:40]


def _list_images(name: str, root: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        argv = [sys.executable, "-m", "calift_core.data.torchvision_listing"]
        try:
            done = subprocess.run(
                [*argv, name, str(root), str(made)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LISTED_S,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise DataError(
                f"torchvision could not be asked for {name}: {reason_of(error)}"
            ) from None
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise DataUnavailableError(
                f"torchvision finds no {name} in {str(root)!r} ({last_line[:300]}).",
                hint=f"torchvision.datasets.{name}(ROOT, download=True) puts it there.",
            )
        try:
            made.replace(kept)
        except OSError:  # somebody else was asking, too
            shutil.rmtree(made, ignore_errors=True)
