"""Data sets of torchvision, in the layouts that it downloads."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calift_core.data import torchvision_listing
from calift_core.data.counting import count_suite
from calift_core.data.suites import far_images, parse_suite_id
from calift_core.data.suites.base import SuiteId
from calift_core.data.suites.load import load_suite
from calift_core.data.suites.torchvision import KINDS
from calift_core.errors import DataUnavailableError, SpecError, UnknownNameError
from calift_core.schema.suite import SuiteSpec, absolute_uri

RNG = np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(np.uint8).tobytes())
    with gzip.open(f"{path}.gz", "wb") as packed:
        packed.write(path.read_bytes())


def write_mnist(root: Path) -> dict[str, np.ndarray]:
    pixels = {}
    for stem, n in (("train", 200), ("t10k", 40)):
        pixels[stem] = RNG.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        write_idx(root / "MNIST" / "raw" / f"{stem}-images-idx3-ubyte", pixels[stem])
        write_idx(root / "MNIST" / "raw" / f"{stem}-labels-idx1-ubyte", np.arange(n) % 10)
    return pixels


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(path)


def listed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process less that imports torch."""
    monkeypatch.setattr(
        "calift_core.data.suites.torchvision._list_images",
        lambda *a: (a[2].mkdir(parents=True), torchvision_listing.write_listing(*a)),
    )


def test_mnist__is_listed_in_a_process_of_its_own_and_kept(tmp_path, home, monkeypatch):
    pixels = write_mnist(tmp_path / "root")
    spec = SuiteSpec(id=f"torchvision:mnist:{tmp_path / 'root'}")
    counts, suite = count_suite(spec), load_suite(spec)
    assert counts.basis == "counted on this machine"
    assert counts.parts == {part: len(images) for part, images in suite.parts.items()}
    assert suite.classes[3] == "3 - three"
    images = suite.part("test")
    assert images.labels.tolist() == [i % 10 for i in range(40)]
    assert np.array_equal(images.image(7), np.repeat(pixels["t10k"][7][..., None], 3, axis=2))
    kept = home / "cache" / "torchvision-listings"
    assert len(list(kept.iterdir())) == 1
    listed_here(monkeypatch)
    write_idx(tmp_path / "root/MNIST/raw/t10k-labels-idx1-ubyte", (np.arange(40) + 1) % 10)
    again = load_suite(SuiteSpec(**spec.model_dump() | {"shifts": {"more": spec.id}}))
    assert again.part("test").labels[0] == 1  # the root is another
    assert len(again.shifts["more"]) == 40
    assert far_images("other", spec.id).name == "other"


@pytest.mark.parametrize("name", ["DTD", "Caltech101", "STL10"])
def test_others__have_torchvisions_own_images_and_classes(tmp_path, home, name, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    if name == "DTD":
        for label in ("banded", "dotted"):
            for i in range(9):
                write_picture(tmp_path / "dtd/dtd/images" / label / f"{label}_{i:04d}.jpg")
        for split, own in (("train", range(5)), ("val", (5, 6)), ("test", (7, 8))):
            lines = [f"{label}/{label}_{i:04d}.jpg" for label in ("banded", "dotted") for i in own]
            labels = tmp_path / "dtd/dtd/labels"
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{split}1.txt").write_text("\n".join(lines) + "\n")
    elif name == "Caltech101":
        (tmp_path / "caltech101" / "Annotations").mkdir(parents=True)
        for label in ("ant", "BACKGROUND_Google", "yin_yang"):
            for i in range(1, 13):
                where = tmp_path / "caltech101/101_ObjectCategories" / label
                write_picture(where / f"image_{i:04d}.jpg")
    else:
        folder = tmp_path / "stl10_binary"
        folder.mkdir()
        (folder / "class_names.txt").write_text("airplane\nbird\n")
        for split, n in (("train", 30), ("test", 10)):
            RNG.integers(0, 255, (n, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
            (np.arange(n, dtype=np.uint8) % 2 + 1).tofile(folder / f"{split}_y.bin")
        monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    listed_here(monkeypatch)  # as torchvision's checksums are of the real files
    suite = load_suite(SuiteSpec(id=f"torchvision:{name}:{tmp_path}"))
    for part, options in KINDS[name].parts.items():
        theirs = torchvision_listing.open_part(name, tmp_path, options)
        # Parts that torchvision has not are split off its training images.
        mine = [suite.parts[p] for p in suite.parts if p == part or p not in KINDS[name].parts]
        whole = [s for s in mine if part == "train" or s.name == part]
        assert sum(map(len, whole)) == len(theirs)
        images = suite.part(part)
        for at in (0, len(images) - 1):
            picture, label = theirs[int(images.indices[at])]
            assert np.array_equal(images.image(at), np.asarray(picture.convert("RGB")))
            assert images.labels[at] == label


def test_names__what_is_wrong_is_a_sentence(tmp_path, home, monkeypatch):
    assert parse_suite_id("torchvision:dtd:/d") == SuiteId("torchvision", Path("/d"), "DTD")
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("torchvision:DTD:x") == f"torchvision:DTD:{tmp_path}/x"
    for uri, error, sentence in (
        ("torchvision:DTD", SpecError, "expected torchvision:NAME:ROOT, got 'torchvision:DTD'"),
        ("torchvision:MNITS:/d", UnknownNameError, "Did you mean 'MNIST'"),
        ("torchvision:CIFAR10:/d", UnknownNameError, "read by the suites cifar10 and cifar100"),
        ("torchvision:DTD:/no/where", DataUnavailableError, "there is no folder '/no/where'"),
        (f"torchvision:DTD:{tmp_path}", DataUnavailableError, "torchvision finds no DTD in .*Data"),
    ):
        with pytest.raises(error, match=sentence):
            load_suite(SuiteSpec(id=uri))
