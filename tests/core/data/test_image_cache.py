"""Corrupted images that one run makes and the next ones read."""

import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from calift_core.data.corrupted import corrupted
from calift_core.data.image_cache import ImageCache, prune
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, eval_batches
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource
from calift_core.errors import SpecError

SMALL, LARGE = Preprocess(16), Preprocess(24)
PLAIN = Normalise((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))


def photos(n: int = 10) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 20, 28, 3), dtype=np.uint8)
    return ImageSet(
        name="photos",
        source=ArraySource(pixels, "0" * 64),
        ids=[f"{i}.png" for i in range(n)],
        labels=np.zeros(n, dtype=np.int64),
        indices=np.arange(n, dtype=np.int64),
    )


class Counted:
    """A source that counts how often it is asked."""

    def __init__(self, base: ImageSet) -> None:
        self.base, self.asked = base, 0

    def __len__(self) -> int:
        return len(self.base)

    def image(self, index: int) -> np.ndarray:
        self.asked += 1
        return self.base.image(index)

    def fingerprint(self, indices: np.ndarray) -> str:
        return self.base.source.fingerprint(indices)


@pytest.fixture
def counted():
    source = Counted(photos())
    return source, corrupted(replace(photos(), source=source), "contrast", 3, seed=0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIFT_HOME", str(tmp_path))
    monkeypatch.delenv("CALIFT_CACHE_BYTES", raising=False)
    return tmp_path / "cache" / "images"


def inputs(images: ImageSet, how: Preprocess = SMALL, size: int = 4, **part: int) -> torch.Tensor:
    batches = eval_batches(
        images, preprocess=how, batch_size=size, workers=0, normalise=PLAIN, **part
    )
    return torch.cat(list(batches))


def test_kept__the_second_time_nothing_is_computed_and_the_inputs_are_the_same(counted, folder):
    source, images = counted
    first = inputs(images)
    assert source.asked == len(images)
    assert torch.equal(inputs(images, size=3), first)
    assert source.asked == len(images)
    assert torch.equal(first, torch.cat([inputs(images, start=0, stop=4), inputs(images, start=4)]))
    kept = sorted(folder.iterdir())
    assert [path for path in kept if path.name.startswith(".")] == []
    inputs(photos())  # which are read, not computed
    assert sorted(folder.iterdir()) == kept


def test_kept__other_pixels_are_never_taken_for_these(folder):
    base = photos()
    every = [
        corrupted(base, "contrast", 3, seed=0),
        corrupted(base, "contrast", 4, seed=0),
        corrupted(base, "gaussian_noise", 3, seed=0),
        corrupted(base, "gaussian_noise", 3, seed=1),
        corrupted(base.take(range(5), "fewer"), "contrast", 3, seed=0),
    ]
    before = [inputs(images, how) for how in (SMALL, LARGE) for images in every]
    assert len(list(folder.iterdir())) == len(before)
    again = [inputs(images, how) for how in (SMALL, LARGE) for images in every]
    for one, other in zip(before, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("harm", ["cut", "changed", "longer", "empty"])
def test_damaged__is_made_again(counted, folder, harm, caplog):
    source, images = counted
    first = inputs(images)
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    if harm == "changed":
        data[100] ^= 1
    file.write_bytes(
        {"cut": data[:-40], "changed": data, "longer": data + b"x", "empty": b""}[harm]
    )
    with caplog.at_level(logging.WARNING):
        assert torch.equal(inputs(images), first)
    assert "damaged" in caplog.text
    assert source.asked == 2 * len(images)
    assert torch.equal(inputs(images), first)
    assert source.asked == 2 * len(images)


def test_left_in_the_middle__nothing_half_is_kept(counted, folder):
    _, images = counted
    batches = eval_batches(images, preprocess=SMALL, batch_size=4, workers=0, normalise=PLAIN)
    next(iter(batches))
    del batches
    assert list(folder.iterdir()) == []


def test_no_room__costs_time_only(counted, folder, caplog):
    source, images = counted
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        first = inputs(images)
    assert caplog.text.count("corrupted images are not kept") == 1
    folder.unlink()
    assert torch.equal(inputs(images), first)
    assert source.asked == 2 * len(images)


def test_limit__holds_for_the_plan_and_for_the_folder(folder, monkeypatch):
    base = photos()
    one_set = len(base) * 16 * 16 * 3
    plan = [corrupted(base, "contrast", s, seed=0, copies=3) for s in (1, 2, 3)]
    monkeypatch.setenv("CALIFT_CACHE_BYTES", str(3 * one_set - 1))
    assert ImageCache.of(plan[0], SMALL, 0, len(base)) is None
    monkeypatch.setenv("CALIFT_CACHE_BYTES", str(3 * one_set + 3 * 32))
    for images in plan:
        inputs(images)
    assert len(list(folder.iterdir())) == 3
    oldest = ImageCache.of(plan[0], SMALL, 0, len(base))
    for age, path in enumerate(p for p in folder.iterdir() if p != oldest.path):
        os.utime(path, (1000 + age, 1000 + age))
    inputs(plan[0])  # used just now
    inputs(corrupted(base, "contrast", 4, seed=0))
    assert oldest.path.exists()
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 3 * one_set + 3 * 32
    monkeypatch.setenv("CALIFT_CACHE_BYTES", "0")
    assert ImageCache.of(plan[1], SMALL, 0, len(base)) is None


def test_prune__takes_what_killed_processes_left(folder):
    folder.mkdir(parents=True)
    left, working = folder / ".a.tmp", folder / ".b.tmp"
    left.touch()
    working.touch()
    os.utime(left, (1, 1))
    prune(folder, 10**9)
    assert list(folder.iterdir()) == [working]


def test_limit__that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("CALIFT_CACHE_BYTES", "10G")
    with pytest.raises(SpecError, match="CALIFT_CACHE_BYTES must be a number of bytes.*'10G'"):
        inputs(corrupted(photos(), "contrast", 3, seed=0))
