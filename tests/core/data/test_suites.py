"""The suites of the field: their layouts on disk, class maps, masks and what `doctor` says."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image

from calift_core.calibration import softmax
from calift_core.catalogue import available_suites
from calift_core.data.cache import cached_in_memory
from calift_core.data.corruptions import CORRUPTIONS
from calift_core.data.decode import decode
from calift_core.data.images import ImageSet, MergedClasses
from calift_core.data.inspection import examine_suite
from calift_core.data.listing import SEVERITIES, STORED_CORRUPTIONS
from calift_core.data.sources import ArraySource, FileSource, content_key
from calift_core.data.suites import SUITES, parse_suite_id
from calift_core.data.suites.base import SuiteId
from calift_core.data.suites.cifar import CIFAR, read_batch
from calift_core.data.suites.domains import DOMAIN_SUITES
from calift_core.data.suites.imagenet import (
    IMAGENET,
    imagenet_labels,
    imagenet_subset,
    imagenet_wnids,
)
from calift_core.data.suites.load import Suite, load_suite
from calift_core.data.suites.objectnet import OBJECTNET_MAPPINGS, objectnet_classes
from calift_core.errors import (
    DataError,
    DataUnavailableError,
    SpecError,
    UnknownNameError,
    UnreadableImageError,
)
from calift_core.evaluation.forward import own_logits
from calift_core.schema.suite import SuiteSpec
from tests.core.conftest import write_classes

few = settings(max_examples=25, deadline=None)

#: ObjectNet label → ImageNet labels, as published with ObjectNet.
OBJECTNET: dict[str, str] = json.loads(
    (Path(__file__).parent / "objectnet_to_imagenet_1k.json").read_text()
)
WNIDS = imagenet_wnids()
RED = (255, 0, 0)


@pytest.fixture(autouse=True)
def _no_settings(home):
    """No suite is named from outside, and keys are kept in a folder of the test."""


def load(suite: str, **more: Any) -> Suite:
    return load_suite(SuiteSpec(id=suite, **more))


def png(colour: Sequence[int], side: int = 6, frame: int = 0) -> bytes:
    """A square of one colour, in a red frame perhaps."""
    pixels = np.full((side + 2 * frame, side + 2 * frame, 3), RED, dtype=np.uint8)
    pixels[frame : frame + side, frame : frame + side] = colour
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def some_set(n: int, **more: Any) -> ImageSet:
    pixels = np.zeros((n, 4, 4, 3), dtype=np.uint8)
    ids = tuple(map(str, range(n)))
    return ImageSet("some", ArraySource(pixels, "k"), ids, np.arange(n), np.arange(n), **more)


@st.composite
def groupings(draw: st.DrawFn) -> tuple[int, tuple[tuple[int, ...], ...]]:
    n_classes = draw(st.integers(2, 12))
    order = draw(st.permutations(range(n_classes)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    groups, at = [], 0
    for size in sizes:
        if at < n_classes:
            groups.append(tuple(order[at : at + size]))
        at += size
    return n_classes, tuple(groups)


@few
@given(groupings(), st.integers(0, 2**32 - 1))
def test_classes__merged_logits_are_the_maxima_whatever_the_order_of_members(grouping, seed):
    n_classes, groups = grouping
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, n_classes)).astype(np.float32)
    members = [c for group in groups for c in group]
    images = replace(
        some_set(5, classes=MergedClasses(tuple(map(str, groups)), groups)),
        labels=rng.choice(members, 5),
    )
    own = own_logits(torch.from_numpy(logits), images).numpy()
    assert np.array_equal(own, np.stack([logits[:, list(g)].max(axis=1) for g in groups], axis=1))
    assert images.own_names("abcdefghijkl") == tuple(map(str, groups))
    assert all(
        label in groups[k] for label, k in zip(images.labels, images.own_labels, strict=True)
    )
    turned = replace(
        images, classes=MergedClasses(("",) * len(groups), tuple(g[::-1] for g in groups))
    )
    assert np.array_equal(own_logits(torch.from_numpy(logits), turned).numpy(), own)


def test_classes__all_classes_leave_the_logits_alone_and_a_strange_label_is_an_error():
    logits = torch.randn(3, 3)
    assert own_logits(logits, some_set(3)) is logits
    with pytest.raises(DataError, match=r"labels must be among the classes of the set, got \[2\]"):
        _ = some_set(3, classes=(0, 1)).own_labels


def test_imagenet__the_facts_agree_with_each_other():
    assert len(WNIDS) == len(set(WNIDS)) == len(imagenet_labels()) == len(IMAGENET_CLASSNAMES)
    assert list(WNIDS) == sorted(WNIDS)
    labels = imagenet_labels()
    assert (WNIDS[0], labels[0]) == ("n01440764", "tench, Tinca tinca")
    assert labels[134] == labels[517] == "crane"
    for name in ("imagenet-r", "imagenet-a"):
        subset = imagenet_subset(name)
        assert len(set(subset)) == 200
        assert list(subset) == sorted(subset)
        assert 0 <= min(subset) <= max(subset) < 1000
    assert list(STORED_CORRUPTIONS) == [c.name for c in CORRUPTIONS.values() if not c.extra]


def mapping_files(folder, order=None, *, first=0, **changes):
    """ObjectNet's four mapping files; line i of ILSVRC's order is class `order[i]`."""
    folder.mkdir(parents=True, exist_ok=True)
    order = list(range(1000)) if order is None else order
    content = {
        "folders": {label.lower().replace(" ", "_").replace("/", "_"): label for label in OBJECTNET}
        | {"air_freshener": "Air freshener"},
        "objects": OBJECTNET,
        "lines": {str(c): line + first for line, c in enumerate(order)},
        "labels": "".join(f"{imagenet_labels()[c]}\n" for c in order),
    } | changes
    for name, value in zip(OBJECTNET_MAPPINGS, content.values(), strict=True):
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0, 1]))
def test_objectnet__the_published_classes_are_found_whatever_the_order_of_the_lines(
    tmp_path_factory, random, first
):
    order = list(range(1000))
    random.shuffle(order)
    classes = objectnet_classes(
        mapping_files(tmp_path_factory.mktemp("objectnet"), order, first=first)
    )
    assert len(classes) == 113
    assert [c.folder for c in classes] == sorted(c.folder for c in classes)
    indices = [i for c in classes for i in c.indices]
    assert len(indices) == len(set(indices)) == 125
    for c in classes:
        assert {imagenet_labels()[i] for i in c.indices} == set(OBJECTNET[c.label].split("; "))
    wnids = {c.label: {WNIDS[i] for i in c.indices} for c in classes}
    assert wnids["Banana"] == {"n07753592"}
    assert wnids["Chair"] == {"n02791124", "n03376595", "n04099969"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objects": {"Mug": "coffee cup"}}, "'coffee cup' of 'Mug' is no label of ImageNet"),
        ({"objects": {"Mug": "crane"}}, "'crane' of 'Mug' names several classes"),
        ({"objects": {"Cup": "cup"}}, "no folder is known for 'Cup'"),
        ({"objects": {"Mug": "cup", "Banana": "cup"}}, "'cup' is both 'Mug' and 'Banana'"),
        ({"lines": {"0": 0}}, "must name each of the 1000 lines"),
        ({"lines": {str(c): c + 2 for c in range(1000)}}, "it names 1000 from 2 on"),
        ({"lines": {"a": "b"}}, "holds something else than numbers"),
        ({"lines": "{"}, "is not JSON"),
        ({"lines": "[]"}, "must hold an object, got list"),
    ],
)
def test_objectnet__mapping_files_that_contradict_each_other(tmp_path, changes, sentence):
    with pytest.raises(DataError) as caught:
        objectnet_classes(mapping_files(tmp_path, **changes))
    assert sentence in caught.value.message


def colour_of(index: int) -> tuple[int, int, int]:
    return index % 251, index // 4 % 250, 100


def fill(root: Path, folders: Mapping[str, bytes], names: Sequence[str]) -> None:
    for folder, content in folders.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """ImageNet and its five shifts as published, one image for each class. Not to be changed."""
    root = tmp_path_factory.mktemp("imagenet")
    images = [png(colour_of(i)) for i in range(1000)]
    by_wnid = dict(zip(WNIDS, images, strict=True))
    fill(root / "train", by_wnid, ["x_1.JPEG"])
    fill(root / "val", by_wnid, ["ILSVRC2012_val_1.JPEG"])
    v2 = root / "imagenetv2-matched-frequency-format-val"
    fill(v2, {str(i): image for i, image in enumerate(images)}, ["a.jpeg"])
    fill(root / "sketch", by_wnid, ["sketch_0.JPEG"])
    for name in ("imagenet-r", "imagenet-a"):
        fill(root / name, {WNIDS[i]: images[i] for i in imagenet_subset(name)}, ["art_0.jpg"])
    objectnet = root / "objectnet-1.0"
    mapping_files(objectnet / "mappings", list(np.random.default_rng(0).permutation(1000)))
    framed = {
        c.folder: png(colour_of(c.indices[0]), frame=2)
        for c in objectnet_classes(objectnet / "mappings")
    }
    fill(objectnet / "images", framed | {"air_freshener": png(RED)}, ["0a.png", "1b.png"])
    return root


@pytest.fixture
def linked(tree, tmp_path):
    """A folder of links to the tree's parts: a link may be removed or replaced."""
    root = tmp_path / "linked"
    root.mkdir()
    for part in tree.iterdir():
        (root / part.name).symlink_to(part)
    return root


@pytest.fixture(scope="module")
def imagenet(tree):
    return load(f"imagenet:{tree}")


def test_imagenet__parts_and_shifts_have_their_images_and_labels(imagenet):
    assert imagenet.classes == WNIDS
    assert imagenet.class_names == tuple(IMAGENET_CLASSNAMES)
    parts = {part: len(images) for part, images in imagenet.parts.items()}
    assert parts["test"] == 1000
    assert sum(parts.values()) == 2000
    assert parts["validation"] + parts["calibration"] == pytest.approx(200, abs=60)
    shifts = {name: len(images) for name, images in imagenet.shifts.items()}
    assert shifts == {"imagenet-v2": 1000, "imagenet-r": 200, "imagenet-a": 200,
                      "imagenet-sketch": 1000, "objectnet": 226}  # fmt: skip
    for images in (*imagenet.parts.values(), *imagenet.shifts.values()):
        for at in range(0, len(images), 97):
            pixels = images.image(at)
            assert pixels.shape == (6, 6, 3)
            assert (pixels == colour_of(int(images.labels[at]))).all()  # red frames are cut off


def test_imagenet__masks_and_maps_by_hand(imagenet):
    # A model that is certain of every image's own class, and of class 999 more.
    def odds(images):
        logits = torch.zeros(len(images), 1000)
        logits[torch.arange(len(images)), torch.from_numpy(images.labels)] = 1.0
        logits[:, 999] += 2.0
        return own_logits(logits, images).numpy()

    for name in ("imagenet-r", "imagenet-a"):
        images = imagenet.shifts[name]
        assert images.classes == imagenet_subset(name)
        assert 999 not in imagenet_subset(name)
        probabilities = softmax(odds(images))
        assert probabilities.shape == (200, 200)
        assert np.array_equal(probabilities.argmax(axis=1), images.own_labels)
        assert np.allclose(probabilities.max(axis=1), np.e / (np.e + 199))
    images = imagenet.shifts["objectnet"]
    assert isinstance(images.classes, MergedClasses)
    own = odds(images)
    assert own.shape == (226, 113)
    toilet_paper = images.classes.names.index("Toilet paper roll")  # ImageNet's class 999
    assert images.classes.groups[toilet_paper] == (999,)
    right = own.argmax(axis=1) == images.own_labels
    assert right.sum() == 2
    assert (own[:, toilet_paper] == np.where(right, 3.0, 2.0)).all()
    chair = images.classes.names.index("Chair")
    assert (own[images.own_labels == chair, chair] == 1.0).all()
    assert odds(imagenet.shifts["imagenet-v2"]).shape == (1000, 1000)


def test_imagenet__what_is_missing_is_named(linked, tmp_path):
    for gone in ("objectnet-1.0", "val"):
        (linked / gone).unlink()
        with pytest.raises(DataUnavailableError, match=f"no folder {gone}/") as caught:
            load(f"imagenet:{linked}")
        assert "CALIFT_IMAGENET" in caught.value.hint
    (linked / "val").mkdir()  # not sorted into class folders
    (linked / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(png(RED))
    with pytest.raises(DataUnavailableError, match="val/ has 0 class folders, expected 1000"):
        load(f"imagenet:{linked}")
    mapping_files(tmp_path / "mappings")
    (tmp_path / "mappings" / OBJECTNET_MAPPINGS[2]).unlink()
    with pytest.raises(DataUnavailableError, match="lacks pytorch_to_imagenet_2012_id.json"):
        objectnet_classes(tmp_path / "mappings")


def test_imagenet__a_shift_can_be_done_without(linked, monkeypatch):
    (linked / "objectnet-1.0").unlink()
    (linked / "sketch").unlink()
    monkeypatch.setenv("CALIFT_IMAGENET", str(linked))
    suite = load("imagenet", shifts={"objectnet": "none", "imagenet-sketch": "none"})
    assert list(suite.shifts) == ["imagenet-v2", "imagenet-r", "imagenet-a"]
    with pytest.raises(UnknownNameError, match="unknown shift of imagenet 'sketch'.*objectnet"):
        load("imagenet", shifts={"objectnet": "none", "imagenet-sketch": "none", "sketch": "none"})


def test_imagenet__a_folder_that_is_no_class_is_an_error(linked):
    (linked / "val").unlink()
    fill(linked / "val", dict.fromkeys((*WNIDS[:-1], "n99999999"), png(RED)), ["1.JPEG"])
    with pytest.raises(DataError, match="test: the class folders .*n99999999.* are not among"):
        load(f"imagenet:{linked}")


@pytest.fixture
def imagenet_c(linked, tree, monkeypatch):
    """The 75 parts, some below their archive's name; links to the clean images."""
    monkeypatch.setenv("CALIFT_IMAGENET", str(linked))
    root = linked / "imagenet-c"
    for name in STORED_CORRUPTIONS:
        place = root / "noise" if name.endswith("noise") else root
        (place / name).mkdir(parents=True)
        for severity in SEVERITIES:
            (place / name / str(severity)).symlink_to(tree / "val")
    return root


def test_imagenet_c__every_severity_shows_the_test_images(imagenet_c):
    suite = load("imagenet-c")
    assert suite.name == "imagenet-c"
    assert not suite.shifts
    test = suite.part("test")
    found = {(name, severity): images for images, _, name, severity in suite.evaluations() if name}
    assert list(found) == [(n, s) for n in STORED_CORRUPTIONS for s in SEVERITIES]
    for (name, severity), images in found.items():
        assert images.ids == test.ids
        assert isinstance(images.source, FileSource)
        where = imagenet_c / ("noise" if name.endswith("noise") else "") / name / str(severity)
        assert images.source.path(7) == where / WNIDS[7] / "ILSVRC2012_val_1.JPEG"
    assert np.array_equal(found["fog", 3].image(5), test.image(5))


def test_imagenet_c__names_severities_and_a_limit_choose(imagenet_c):
    corruptions = {"names": ["fog", "snow"], "severities": [2], "limit": 30}
    suite = load("imagenet-c", corruptions=corruptions)
    seen = [(i.name, len(i)) for i, role, *_ in suite.evaluations() if role == "corruption"]
    assert seen == [("fog/2", 30), ("snow/2", 30)]
    with pytest.raises(DataUnavailableError, match="stored corruptions saturate are not on this"):
        load("imagenet-c", corruptions={"names": ["saturate"]})


def test_imagenet_c__what_is_missing_is_named(imagenet_c, tmp_path):
    (imagenet_c / "fog" / "4").unlink()
    with pytest.raises(DataUnavailableError, match="fog: no folder fog/4/"):
        load("imagenet-c")
    (tmp_path / "other").mkdir()
    (imagenet_c / "fog" / "4").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match="fog/4 must hold the test images under their own names"):
        load("imagenet-c")
    with pytest.raises(DataUnavailableError, match="gaussian_noise: no folder.*and 7 more"):
        load(f"imagenet-c:{tmp_path}")


def python_batch(planes: Any, labels: Sequence[int], key: str) -> bytes:
    """A batch as Python 2 pickled it: short and long byte strings, and an array by its parts."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    raw = planes.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            *(short(b"batch_label"), b"q\x02", short(b"training batch 1 of 5"), b"q\x03"),
            *(short(b"coarse_labels"), b"]q\x09(K\x07K\x08e"),
            *(short(key.encode()), b"q\x04]q\x05(", numbers, b"e"),
            *(short(b"data"), b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07"),
            *(b"cnumpy\nndarray\nq\x08K\x00\x85", short(b"b"), b"\x87R(K\x01"),
            *(b"M", struct.pack("<H", len(labels)), b"M\x00\x0c\x86cnumpy\ndtype\n"),
            *(short(b"u1"), b"K\x00K\x01\x87R(K\x03", short(b"|"), b"NNNJ\xff\xff\xff\xff"),
            *(b"J\xff\xff\xff\xffK\x00tb\x89T", struct.pack("<I", len(raw)), raw, b"tb"),
            *(short(b"filenames"), b"]q\x0a(", short(b"a_000001.png"), b"eu."),
        ]
    )


def cifar_tree(root: Path, name: str, kind: str, *, n: int = 12) -> Any:
    """The batches of one kind; returns images (N, 32, 32, 3) and labels of all, test last."""
    cifar = CIFAR[name]
    folder, files = cifar.python[0], tuple(cifar.python[1])
    if kind == "binary":
        folder, files = cifar.binary
    (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(len(files))
    images = rng.integers(0, 256, (len(files), n, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, len(cifar.classes), (len(files), n))
    for file, batch, own in zip(files, images, labels, strict=True):
        planes = batch.transpose(0, 3, 1, 2).reshape(n, -1)
        if kind == "python":
            content = python_batch(planes, own.tolist(), cifar.label_key)
        else:
            coarse = np.full((n, cifar.label_bytes - 1), 3, dtype=np.uint8)
            content = np.hstack([coarse, own[:, None].astype(np.uint8), planes]).tobytes()
        (root / folder / file).write_bytes(content)
    return images, labels


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "binary"), ("cifar100", "python")])
def test_cifar__batches_of_both_kinds_give_their_images(tmp_path, name, kind):
    images, labels = cifar_tree(tmp_path, name, kind)
    suite = load(f"{name}:{tmp_path}")
    assert suite.class_names == CIFAR[name].classes
    test = suite.part("test")
    assert test.labels.tolist() == labels[-1].tolist()
    assert all(np.array_equal(test.image(i), images[-1, i]) for i in range(len(test)))
    flat, flat_labels = images[:-1].reshape(-1, 32, 32, 3), labels[:-1].reshape(-1)
    parts = [suite.parts[part] for part in ("train", "validation", "calibration")]
    assert sum(map(len, parts)) == len(flat)
    for part in parts:
        for at, image_id in enumerate(part.ids):
            original = int(image_id.removeprefix("train/"))
            assert np.array_equal(part.image(at), flat[original])
            assert part.labels[at] == flat_labels[original]


def test_cifar__class_folders_do_as_well(tmp_path):
    folders = [c.replace(" ", "_") for c in CIFAR["cifar100"].classes]
    for part in ("train", "test"):
        fill(tmp_path / part, dict.fromkeys(folders, png((1, 2, 3), 32)), ["1.png"])
    suite = load(f"cifar100:{tmp_path}")
    assert suite.part("test").labels.tolist() == list(range(100))
    shutil.rmtree(tmp_path / "test" / "worm")
    with pytest.raises(DataUnavailableError, match="test/ has 99 class folders, expected 100"):
        load(f"cifar100:{tmp_path}")
    (tmp_path / "test" / "zebra").mkdir()
    with pytest.raises(DataError, match="has no class folders worm"):
        load(f"cifar100:{tmp_path}")


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_cifar__nothing_in_a_python_batch_is_executed(tmp_path):
    pixels = bytes(3072)
    batch = {b"labels": [3], b"data": pixels, b"more": _Trap(tmp_path / "sprung")}
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(batch))
    images, labels = read_batch(path, CIFAR["cifar10"])
    assert images.shape == (1, 32, 32, 3)
    assert labels.tolist() == [3]
    assert not (tmp_path / "sprung").exists()


@few
@given(st.binary(max_size=300), st.integers(0, 4000), st.sampled_from(["batch", "batch.bin"]))
def test_cifar__damage_of_any_kind_is_a_sentence(tmp_path_factory, garbage, at, name):
    path = tmp_path_factory.mktemp("cifar") / name
    content = bytearray(python_batch(np.zeros((1, 3072), np.uint8), [3], "labels"))
    content[at : at + len(garbage)] = garbage
    path.write_bytes(bytes(content[: 3073 + at]))
    with contextlib.suppress(DataError):  # any other error is a failure
        images, labels = read_batch(path, CIFAR["cifar10"])
        assert len(images) == len(labels)


def test_cifar__a_batch_of_the_other_data_set_is_an_error(tmp_path):
    path = tmp_path / "test_batch"
    path.write_bytes(python_batch(np.zeros((2, 3072), np.uint8), [11, 60], "labels"))
    with pytest.raises(DataError, match=r"labels in .* must be 0 to 9, got 11 to 60"):
        read_batch(path, CIFAR["cifar10"])
    with pytest.raises(DataError, match="6144 bytes and 0 labels"):
        read_batch(path, CIFAR["cifar100"])


@pytest.fixture
def cifar10_c(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIFT_CIFAR10", str(tmp_path / "clean"))
    _, labels = cifar_tree(tmp_path / "clean", "cifar10", "binary")
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    np.save(root / "labels.npy", np.tile(labels[-1], 5))
    for k, name in enumerate((*STORED_CORRUPTIONS, "saturate")):
        pixels = np.empty((60, 32, 32, 3), dtype=np.uint8)
        pixels[:] = (np.arange(60) + k)[:, None, None, None]
        np.save(root / f"{name}.npy", pixels)
    return root


def test_cifar_c__each_severity_is_a_fifth_of_its_file(cifar10_c):
    suite = load(f"cifar10-c:{cifar10_c}")
    test = suite.part("test")
    found = [item for item in suite.evaluations() if item[1] == "corruption"]
    assert len(found) == 75
    for images, _, name, severity in found:
        assert name is not None
        assert severity is not None
        assert images.ids == test.ids
        assert np.array_equal(images.labels, test.labels)
        first = STORED_CORRUPTIONS.index(name) + (severity - 1) * 12
        assert [int(images.image(i)[0, 0, 0]) for i in range(12)] == list(range(first, first + 12))
    assert len({images.sha256 for images, *_ in found}) == 75
    images = pickle.loads(pickle.dumps(found[7][0]))
    assert np.array_equal(images.image(3), found[7][0].image(3))
    assert len(pickle.dumps(found[7][0])) < 5000
    extra = load(f"cifar10-c:{cifar10_c.parent}", corruptions={"names": ["saturate"]})
    assert [i.name for i, role, *_ in extra.evaluations() if role == "corruption"] == [
        f"saturate/{severity}" for severity in (1, 3, 5)
    ]


def test_cifar_c__files_that_do_not_fit_are_an_error(cifar10_c):
    labels = np.load(cifar10_c / "labels.npy")
    np.save(cifar10_c / "labels.npy", labels[::-1])
    with pytest.raises(DataError, match="must hold the 12 test labels of cifar10 5 times"):
        load(f"cifar10-c:{cifar10_c}")
    np.save(cifar10_c / "labels.npy", labels)
    np.save(cifar10_c / "fog.npy", np.zeros((59, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="fog.npy of cifar10-c must hold 60 images, it holds 59"):
        load(f"cifar10-c:{cifar10_c}")
    np.save(cifar10_c / "fog.npy", np.zeros((60, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"must hold \(N, H, W, 3\) uint8, it holds \(60, 32, 32\)"):
        load(f"cifar10-c:{cifar10_c}")
    (cifar10_c / "fog.npy").unlink()
    with pytest.raises(DataUnavailableError, match="no file fog.npy"):
        load(f"cifar10-c:{cifar10_c}")


PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


@pytest.fixture
def pacs(tmp_path):
    root = tmp_path / "PACS"
    for seed, domain in enumerate(("art_painting", "cartoon", "photo", "sketch")):
        write_classes(root / domain, PACS, n=6, seed=seed)
    (root / "splits").mkdir()
    return root


def test_domains__one_is_the_id_data_and_the_others_are_shifts(pacs, monkeypatch):
    for text in (f"pacs:{pacs}", f"pacs:{pacs}#photo", f"pacs:{pacs}#Photo"):
        suite = load(text)
        assert suite.name == "pacs-photo"
        assert suite.classes == PACS
        assert list(suite.shifts) == ["art_painting", "cartoon", "sketch"]
        assert sum(map(len, suite.parts.values())) == 42
        assert {len(images) for images in suite.shifts.values()} == {42}
    monkeypatch.setenv("CALIFT_PACS", str(pacs))
    suite = load("pacs:sketch", shifts={"photo": "none"})
    assert suite.name == "pacs-sketch"
    assert list(suite.shifts) == ["art_painting", "cartoon"]
    assert all(image_id.startswith("cartoon/") for image_id in suite.shifts["cartoon"].ids)
    with pytest.raises(UnknownNameError, match="unknown domain 'oil'.*art_painting"):
        load("pacs:oil")
    with pytest.raises(UnknownNameError, match="unknown shift of pacs 'sketch'"):
        load("pacs:sketch", shifts={"sketch": "none"})


def test_domains__missing_ones_and_classes_are_named(pacs):
    shutil.rmtree(pacs / "cartoon")
    shutil.rmtree(pacs / "sketch" / "dog")
    with pytest.raises(DataUnavailableError) as caught:
        load(f"pacs:{pacs}")
    assert "cartoon: no folder cartoon/" in caught.value.message
    assert "sketch/ has 6 class folders, expected 7" in caught.value.message
    assert "CALIFT_PACS" in caught.value.hint


@pytest.mark.parametrize("name", sorted({*DOMAIN_SUITES} - {"domainnet"}))
def test_domains__every_suite_in_its_published_layout(tmp_path, name):
    published = {"real_world": "Real World", "voc2007": "VOC2007", "caltech101": "Caltech101"}
    known = DOMAIN_SUITES[name]
    image = {f"class_{k}": png((k % 250, 0, 0)) for k in range(known.n_classes)}
    for domain in known.images:
        fill(tmp_path / published.get(domain, domain), image, [f"{i}.jpg" for i in range(4)])
    suite = load(f"{name}:{tmp_path}")
    assert set(suite.shifts) == set(known.images) - {known.id_domain}
    assert len(suite.classes) == known.n_classes
    assert suite.name == f"{name}-{known.id_domain}"
    if name == "office-home":
        (tmp_path / "Real World").rename(tmp_path / "RealWorld")
        assert load(f"{name}:{tmp_path}").parts.keys() == suite.parts.keys()


def test_domains__of_any_folder(pacs):
    shutil.rmtree(pacs / "splits")
    suite = load(f"domains:{pacs}#cartoon", corruptions={"names": ["fog"], "severities": [1]})
    assert suite.name == "cartoon"
    assert list(suite.shifts) == ["art_painting", "photo", "sketch"]
    assert [role for _, role, *_ in suite.evaluations()] == ["id", *["shift"] * 3, "corruption"]
    with pytest.raises(UnknownNameError, match="unknown domain 'cartoons'.*Did you mean 'cartoon'"):
        load(f"domains:{pacs}#cartoons")
    with pytest.raises(SpecError, match="expected domains:PATH#DOMAIN"):
        load(f"domains:{pacs}")


def write_domainnet(root: Path) -> list[str]:
    """Each class with an image for training and one for testing; the class folders."""
    known = DOMAIN_SUITES["domainnet"]
    folders = [f"class_{k:03d}" for k in range(known.n_classes)]
    for domain in known.images:
        fill(root / domain, dict.fromkeys(folders, png((5, 5, 5))), ["0.jpg", "1.jpg"])
        lines = [f"{domain}/{folder}/1.jpg {k}" for k, folder in enumerate(folders)]
        (root / f"{domain}_test.txt").write_text("\n".join(lines) + "\n")
    return folders


def test_domainnet__its_lists_say_which_images_are_for_testing(tmp_path):
    folders = write_domainnet(tmp_path)
    suite = load(f"domainnet:{tmp_path}#sketch")
    assert suite.part("test").ids == tuple(f"{folder}/1.jpg" for folder in folders)
    rest = [i for part in ("train", "validation", "calibration") for i in suite.parts[part].ids]
    assert sorted(rest) == [f"{folder}/0.jpg" for folder in folders]
    assert suite.shifts["real"].ids == tuple(f"real/{folder}/1.jpg" for folder in folders)
    (tmp_path / "real_test.txt").write_text("real/class_000/9.jpg 0\n")
    with pytest.raises(DataError, match="real: the list of its test images names none of the 690"):
        load(f"domainnet:{tmp_path}#sketch")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imagenet", SuiteId("imagenet")),
        ("imagenet:/data/a", SuiteId("imagenet", Path("/data/a"))),
        ("folder:/data/a#b", SuiteId("folder", Path("/data/a#b"))),
        ("pacs:sketch", SuiteId("pacs", None, "sketch")),
        ("pacs:data/pacs", SuiteId("pacs", Path("data/pacs"))),
        ("pacs:./pacs#photo", SuiteId("pacs", Path("pacs"), "photo")),
        ("pacs:#photo", SuiteId("pacs", None, "photo")),
        ("domains:/d#a b", SuiteId("domains", Path("/d"), "a b")),
    ],
)
def test_suite_id__is_taken_apart(text, expected):
    assert parse_suite_id(text) == expected


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("pcas", UnknownNameError, "Did you mean 'pacs'"),
        ("folder", UnknownNameError, "folder:PATH"),
        ("folder:", UnknownNameError, "folder:PATH"),
        ("domains:/d", SpecError, "expected domains:PATH#DOMAIN"),
        ("domains:#a", SpecError, "expected domains:PATH#DOMAIN"),
        ("cifar10:/d#photo", SpecError, "cifar10 has no domains"),
    ],
)
def test_suite_id__what_is_wrong_is_an_error(text, error, sentence):
    with pytest.raises(error, match=sentence):
        parse_suite_id(text)


def test_class_names__sets_and_single_names(tmp_path):
    some = [WNIDS[0], WNIDS[134], WNIDS[517]]
    root = write_classes(tmp_path / "classes", some, n=4)

    def names(chosen):
        return load(f"folder:{root}", class_names=chosen).class_names

    assert names({}) == names("suite") == names("folder") == tuple(some)
    assert names("openai_imagenet") == ("tench", "crane bird", "construction crane")
    assert names("wordnet") == ("tench", "crane", "crane")
    assert names({"*": "wordnet", some[0]: "big fish"}) == ("big fish", "crane", "crane")
    with pytest.raises(UnknownNameError, match="unknown set of class names 'word_net'.*'wordnet'"):
        names("word_net")
    with pytest.raises(SpecError, match="names.*n00000000"):
        names({"n00000000": "nothing"})


def test_class_names__a_set_of_imagenet_is_not_for_other_classes(photos):
    with pytest.raises(SpecError, match="WordNet ids of ImageNet, got .*blue_thing"):
        load(f"folder:{photos}", class_names="openai_imagenet")


def states(suite: str, **more: Any) -> dict[str, str]:
    return {check.name: check.state for check in examine_suite(suite, **more)}


def test_doctor__imagenet_part_by_part(tree, linked):
    scaled = {name: (1000,) for name in IMAGENET}
    scaled |= {"imagenet-r": (200,), "imagenet-a": (200,), "objectnet": (226,)}
    checks = {check.name: check for check in examine_suite(f"imagenet:{tree}", published=scaled)}
    assert {check.state for check in checks.values()} == {"ok"}
    assert list(checks) == ["place", *IMAGENET, "loads"]
    assert checks["imagenet-r"].detail == "200 images in 200 classes"
    assert checks["objectnet"].detail == "226 images in 113 classes, from 125 of ImageNet's"
    (linked / "sketch").unlink()
    (linked / "imagenet-a").unlink()
    shutil.copytree(tree / "imagenet-a", linked / "imagenet-a")
    strange = next((linked / "imagenet-a").iterdir())
    strange.rename(strange.with_name("n99999999"))
    found = {c.name: c for c in examine_suite(f"imagenet:{linked}")}
    assert found["imagenet-sketch"].state == "fail"
    assert "github.com" in found["imagenet-sketch"].hint
    assert f"lacks 1 class folders ({strange.name})" in found["imagenet-a"].detail
    assert found["train"].detail == "1,000 images in 1,000 classes, published are 1,281,167"
    assert found["train"].state == "fail"
    assert "CALIFT_IMAGENET" in found["place"].hint


def test_doctor__cifar_batches_by_their_published_checksums(tmp_path):
    cifar_tree(tmp_path, "cifar10", "python")
    checks = {check.name: check for check in examine_suite(f"cifar10:{tmp_path}")}
    assert checks["data_batch_3"].state == "fail"
    assert "published is 54ebc095f3ab1f0389bbae665268c751" in checks["data_batch_3"].detail
    assert checks["loads"].state == "ok"


def test_doctor__cifar_c_and_domains_and_folders(cifar10_c, pacs, photos):
    found = states(f"cifar10-c:{cifar10_c}", published={"test": (12,)})
    assert found["fog.npy"] == found["labels.npy"] == found["loads"] == "ok"
    assert states(f"cifar10-c:{cifar10_c}")["fog.npy"] == "fail"
    counts = dict.fromkeys(DOMAIN_SUITES["pacs"].images, (42,))
    assert set(states(f"pacs:{pacs}", published=counts).values()) == {"ok"}
    assert states(f"pacs:{pacs}")["photo"] == "fail"
    (pacs / "photo" / "dog" / "000.png").write_bytes(b"no image")
    broken = {c.name: c for c in examine_suite(f"pacs:{pacs}", published=counts)}
    assert broken["photo"].state == broken["loads"].state == "fail"
    assert "000.png" in broken["photo"].detail
    whole = examine_suite(f"folder:{photos}")
    assert [(c.name, c.state) for c in whole] == [
        ("place", "ok"), ("loads", "ok"), ("images", "warn")
    ]  # fmt: skip
    assert "The part calibration has 8 images, fewer than 10" in whole[-1].detail
    assert states("folder:/nowhere/at/all") == {"place": "fail", "loads": "fail"}


def test_doctor__imagenet_c(imagenet_c):
    scaled = {"train": (1000,), "test": (1000,)}
    shutil.rmtree(imagenet_c / "snow")
    (imagenet_c / "fog" / "2").unlink()
    checks = {check.name: check for check in examine_suite("imagenet-c", published=scaled)}
    assert checks["frost"].detail == "5 severities, 1,000 images in 1,000 classes each"
    assert checks["fog"].detail == "no folder fog/2/"
    assert checks["snow"].state == "fail"
    assert "loads" not in checks


def test_available_suites__say_what_is_left_of_one_that_was_begun(linked, monkeypatch):
    (linked / "sketch").unlink()
    monkeypatch.setenv("CALIFT_IMAGENET", str(linked))
    found = {suite.id: suite for suite in available_suites()}
    assert found.keys() == SUITES.keys()
    assert not found["imagenet"].available
    assert found["imagenet"].detail.startswith("Incomplete (imagenet-sketch: no folder sketch/)")
    assert found["imagenet"].parts["objectnet"] == 18_574
    assert len(found["cifar100"].classes) == 100


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(rng.bytes(30_000 * i + 10))
    return paths


def test_content_key__is_that_of_copies_and_of_no_other_content(files, tmp_path):
    key = content_key(files)
    copies = [Path(shutil.copy(path, tmp_path / f"copy {path.name}")) for path in files]
    assert content_key(copies) == key
    os.utime(files[0], (1, 1))
    assert content_key(files) == key
    assert content_key(files[::-1]) != key
    assert content_key(files, whole=True) != key
    for path in (files[0], files[5]):
        content = path.read_bytes()
        for changed in (content[:-1], content + b"a", bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(changed)
            assert content_key(files) != key
        path.write_bytes(content)
    assert content_key(files) == key


def test_content_key__a_whole_file_differs_from_any_other(files):
    content = bytearray(files[5].read_bytes())
    keys = {content_key(files[5:], whole=True)}
    for at in (0, 20_000, 60_000, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        files[5].write_bytes(changed)
        keys.add(content_key(files[5:], whole=True))
    assert len(keys) == 5
    files[3].unlink()
    with pytest.raises(UnreadableImageError, match="3.jpg' cannot be read"):
        content_key(files)


def test_content_key__of_large_sets_is_kept_until_a_file_changes(files, tmp_path, monkeypatch):
    plain = content_key(files, folder=tmp_path)
    assert not (tmp_path / "fingerprints").exists()
    monkeypatch.setattr("calift_core.data.sources._UNCACHED_BYTES", 0)
    assert content_key(files, folder=tmp_path) == plain
    (kept,) = (tmp_path / "fingerprints").iterdir()
    kept.write_text("f" * 64)
    assert content_key(files, folder=tmp_path) == "f" * 64
    kept.write_text("damaged")
    assert content_key(files, folder=tmp_path) == plain
    files[2].write_bytes(b"other")
    assert content_key(files, folder=tmp_path) not in (plain, "f" * 64)
    assert len(list((tmp_path / "fingerprints").iterdir())) == 2
    (tmp_path / "file").write_text("not a folder")
    assert content_key(files, folder=tmp_path / "file") == content_key(files, folder=tmp_path)


def test_image_set__the_hash_of_a_part_is_about_its_own_images(pacs):
    before = {p: s.sha256 for p, s in load(f"pacs:{pacs}").parts.items()}
    image_id = load(f"pacs:{pacs}").part("train").ids[0]
    (pacs / "photo" / image_id).write_bytes(png((9, 9, 9)))
    after = {p: s.sha256 for p, s in load(f"pacs:{pacs}").parts.items()}
    assert before["train"] != after.pop("train")
    assert after.items() <= before.items()


def framed_set(folder: Path, sides: Sequence[int], border: int = 2) -> ImageSet:
    for i, side in enumerate(sides):
        (folder / f"{i}.png").write_bytes(png((i, 1, 2), side, frame=border))
    names = tuple(f"{i}.png" for i in range(len(sides)))
    at = np.arange(len(sides))
    return ImageSet("framed", FileSource(names, folder, border), names, at, at)


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3))
def test_border__is_cut_off_and_nothing_else(tmp_path_factory, sides, border):
    images = framed_set(tmp_path_factory.mktemp("framed"), sides, border)
    kept = cached_in_memory(images)
    for i, side in enumerate(sides):
        assert images.image(i).shape == (side, side, 3)
        assert (images.image(i) == (i, 1, 2)).all()
        assert np.array_equal(kept.image(i), images.image(i))
    assert kept.sha256 == images.sha256


def test_border__an_image_that_is_all_border_is_an_error(tmp_path):
    images = framed_set(tmp_path, [3])
    thin = replace(images, source=replace(images.source, border=4))
    with pytest.raises(UnreadableImageError, match="larger than its border of 4 pixels.* 7 × 7"):
        thin.image(0)
    whole = replace(images, source=replace(images.source, border=0))
    assert len({images.sha256, thin.sha256, whole.sha256}) == 3
    assert np.array_equal(decode(tmp_path / "0.png"), whole.image(0))
