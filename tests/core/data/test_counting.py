"""Counting a suite without loading it: the numbers are those that the loaders deliver."""

import gzip
import os
import re
import shutil
import struct
from typing import Any

import numpy as np
import pytest

from calift_core.data.corruptions import CORRUPTIONS
from calift_core.data.counting import SuiteCounts, count_suite
from calift_core.data.listing import ScanBudget
from calift_core.data.suites.cifar import CIFAR
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError, UnknownNameError
from calift_core.evaluation.items import n_images_of
from calift_core.schema.suite import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS, SuiteSpec
from tests.core.conftest import write_classes
from tests.core.data.test_suites import (  # noqa: F401 - fixtures
    PACS,
    _no_settings,
    cifar10_c,
    cifar_tree,
    fill,
    imagenet_c,
    linked,
    pacs,
    png,
    tree,
    write_domainnet,
)

#: Splits, limits and corruptions that no default would give by chance.
MORE: dict[str, Any] = {
    "fractions": {"pretrain": 0.05, "validation": 0.15, "calibration": 0.07, "test": 0.3},
    "limits": {"train": 9, "test": 7},
}


def as_loaded(suite: str, **more: Any) -> SuiteCounts:
    """The counts of a suite, which must be those of the loaded one."""
    spec = SuiteSpec.model_validate({"id": suite, **more})
    counts, loaded = count_suite(spec), load_suite(spec)
    assert counts.parts == {part: len(images) for part, images in loaded.parts.items()}
    assert counts.shifts == {name: len(images) for name, images in loaded.shifts.items()}
    assert counts.ood == {name: len(images) for name, images in loaded.ood.items()}
    assert counts.corruptions == len(loaded.corruption_plan)
    assert counts.evaluated is not None
    assert counts.selection is not None
    assert counts.far is not None
    assert counts.evaluated + counts.selection + counts.far == n_images_of(loaded)
    assert counts.basis == "counted on this machine"
    assert not counts.absent
    assert not counts.problems
    return counts


def of(suite: str, **more: Any) -> SuiteCounts:
    return count_suite(SuiteSpec.model_validate({"id": suite, **more}))


@pytest.mark.parametrize("more", [{}, MORE], ids=["plain", "split"])
def test_count__of_folders_is_what_is_loaded(tmp_path, more):
    write_classes(tmp_path / "all", PACS, n=9, seed=1)
    (tmp_path / "all" / "dog" / "._photo.jpg").write_bytes(b"none")
    (tmp_path / "all" / "dog" / "notes.txt").write_bytes(b"none")
    shutil.copytree(tmp_path / "all" / "dog", tmp_path / "all" / "dog" / "more")
    corruptions = {"names": ["fog", "fog", "snow"], "severities": [1, 4], "limit": 5}
    counts = as_loaded(f"folder:{tmp_path}/all", corruptions=corruptions, **more)
    assert counts.corrupted == 4 * 5
    for part in ("train", "val", "test"):
        write_classes(tmp_path / "parts" / part, PACS, n=5, seed=len(part))
    shifts = {"art": f"folder:{tmp_path}/all", "parts": f"folder:{tmp_path}/parts"}
    far = {"flat": f"folder:{tmp_path}/all/dog", "nested": f"folder:{tmp_path}/parts"}
    counts = as_loaded(f"folder:{tmp_path}/parts", shifts=shifts, ood=far, **more)
    assert counts.parts["validation"] == 35
    assert counts.shifts == {"art": 72, "parts": 35}
    assert counts.ood == {"flat": 18, "nested": 105}


@pytest.mark.parametrize("more", [{}, MORE], ids=["plain", "split"])
def test_count__of_imagenet_is_what_is_loaded(tree, more):  # noqa: F811
    counts = as_loaded(f"imagenet:{tree}", **more)
    assert counts.shifts["objectnet"] == 226
    fewer = as_loaded(f"imagenet:{tree}", shifts={"objectnet": "none"}, **more)
    assert fewer.evaluated == (counts.evaluated or 0) - 226


def test_count__of_imagenet_c_is_what_is_loaded(imagenet_c):  # noqa: F811
    assert as_loaded("imagenet-c").corrupted == 75_000
    some = {"names": ["fog", "snow"], "severities": [2], "limit": 30}
    assert as_loaded("imagenet-c", corruptions=some).corrupted == 60
    lacking = of("imagenet-c", corruptions={"names": ["saturate"], "severities": [1, 2]})
    assert "stored corruptions saturate" in lacking.absent[0].message
    assert lacking.corruptions == 2


@pytest.mark.parametrize(
    ("name", "kind", "more"), [("cifar10", "python", {}), ("cifar100", "binary", MORE)]
)
def test_count__of_cifar_batches_is_what_is_loaded(tmp_path, name, kind, more):
    cifar_tree(tmp_path, name, kind)
    as_loaded(f"{name}:{tmp_path}", **more)


def test_count__of_cifar_in_folders_and_c_is_what_is_loaded(cifar10_c, tmp_path):  # noqa: F811
    images = {c: png((1, 2, 3), side=32) for c in CIFAR["cifar10"].classes}
    fill(tmp_path / "all" / "train", images, [f"{i}.png" for i in range(6)])
    fill(tmp_path / "all" / "test", images, ["0.png"])
    as_loaded(f"cifar10:{tmp_path / 'all'}", **MORE)
    assert as_loaded(f"cifar10-c:{cifar10_c}").corrupted == 75 * 12
    extra = as_loaded(f"cifar10-c:{cifar10_c.parent}", corruptions={"names": ["saturate"]}, **MORE)
    assert extra.corrupted == 3 * 7
    np.save(cifar10_c / "fog.npy", np.zeros((59, 32, 32, 3), np.uint8))
    (problem,) = of(f"cifar10-c:{cifar10_c}").problems
    assert "must hold 60 images, it holds 59" in problem.message


@pytest.mark.parametrize("more", [{}, MORE], ids=["plain", "split"])
def test_count__of_domains_is_what_is_loaded(pacs, more):  # noqa: F811
    counts = as_loaded(f"pacs:{pacs}", **more)
    assert counts.shifts == dict.fromkeys(("art_painting", "cartoon", "sketch"), 42)
    as_loaded(f"pacs:{pacs}#Sketch", shifts={"photo": "none"}, **more)
    shutil.rmtree(pacs / "splits")
    as_loaded(f"domains:{pacs}#cartoon", **more)


def test_count__of_listed_domains_is_what_is_loaded(tmp_path):
    folders = write_domainnet(tmp_path)
    counts = as_loaded(f"domainnet:{tmp_path}#sketch")
    assert counts.parts["test"] == counts.shifts["real"] == len(folders)


def test_count__of_a_small_fashion_mnist_is_what_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIFT_FASHION_MNIST", str(tmp_path))
    for part, n in (("train", 50_020), ("t10k", 30)):
        images = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 2, 2) + bytes(4 * n)
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, n) + bytes(n)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    some = {"names": "benchmark", "severities": [1, 5], "limit": 10}
    counts = as_loaded("fashion-mnist", corruptions=some)
    assert counts.corrupted == 15 * 2 * 10
    assert counts.parts == {
        "pretrain": 40_000, "train": 10_000, "validation": 20, "calibration": 0, "test": 30,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "train", "evaluated"),
    [
        ("cifar10", 40_000, 10_000),
        ("cifar10-c", 40_000, 760_000),
        ("imagenet", 1_024_934, 166_963),
        ("imagenet-c", 1_024_934, 50_000 * 76),
        ("pacs", 1002, 334 + 2048 + 2344 + 3929),
        ("pacs:sketch", 2357, 786 + 2048 + 2344 + 1670),
        ("domainnet", 105_196, 35_065 + 48_837 + 53_201 + 75_759 + 172_500 + 70_386),
    ],
)
def test_count__published_sizes_where_the_data_is_not(suite, train, evaluated):
    counts = of(suite)
    assert counts.absent[0].pointer == "#/suite/id"
    assert counts.basis.startswith("published sizes")
    # CIFAR's own names are known, so its split is; the others' is what to expect of a hash.
    assert counts.parts["train"] == pytest.approx(train, abs=250 if "cifar" in suite else 1)
    assert counts.evaluated == evaluated
    assert counts.selection == pytest.approx(0.2 * sum(counts.parts.values()), rel=0.3)


def test_count__only_what_cannot_be_downloaded_stands_in_the_way(tmp_path):
    assert [item.fetched for item in of("cifar10").absent] == [True]
    assert [item.fetched for item in of(f"cifar10:{tmp_path}").absent] == [False]
    assert [item.fetched for item in of("imagenet").absent] == [False]
    assert [item.fetched for item in of(f"folder:{tmp_path}/none").absent] == [False]


def test_count__few_images_of_a_class_or_a_part_are_warned_of(tmp_path):
    root = tmp_path / "pictures"
    write_classes(root, ("cat", "dog"), n=12)
    write_classes(root, ("newt",), n=1)
    output = " ".join(of(f"folder:{root}", fractions={"calibration": 0}).warnings)
    assert "1 class has fewer than 10 images: newt (1)." in output
    assert "1 class has no image in the part" in output
    assert "The part validation has" in output
    write_classes(root, ("newt",), n=200)
    write_classes(root, ("cat", "dog"), n=200)
    assert of(f"folder:{root}").warnings == ()


def test_count__of_what_is_not_there_is_unknown(pacs, tmp_path):  # noqa: F811
    counts = of(f"folder:{tmp_path}/none", shifts={"art": f"folder:{tmp_path}/art"})
    assert [item.pointer for item in counts.absent] == ["#/suite/id"]
    assert (counts.parts, counts.evaluated, counts.selection) == ({}, None, None)
    counts = of(f"folder:{pacs}/photo", shifts={"oil": f"folder:{pacs}/oil"})
    (item,) = counts.absent
    assert (item.pointer, counts.evaluated) == ("#/suite/shifts/oil", None)
    assert "the shift 'oil': there is no folder" in item.message
    assert sum(counts.parts.values()) == 42


def test_count__a_far_set_that_cannot_be_is_named(pacs, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    for ood, words in {
        ("a", f"folder:{tmp_path}/none"): "the far set 'a': there is no folder",
        ("a", f"folder:{tmp_path}/empty"): r"the far set 'a'.*must hold images.*it has none",
        ("a", "shapes"): "the far set 'a': expected folder:PATH, .*got 'shapes'",
        ("sketch", f"folder:{tmp_path}"): "'sketch' is a shift of pacs.* cannot name a far set",
    }.items():
        suite = SuiteSpec(id=f"pacs:{pacs}#photo", ood=dict([ood]))
        counts = count_suite(suite)
        (item,) = (*counts.problems, *counts.absent)
        assert (item.pointer, counts.far) == (f"#/suite/ood/{ood[0]}", None)
        assert re.search(words, item.message)
        with pytest.raises(CaliftError, match=words.removeprefix("the far set 'a': ")):
            load_suite(suite)


def test_count__folders_that_do_not_fit_are_problems(pacs, tmp_path):  # noqa: F811
    (pacs / "art_painting" / "cat").mkdir()
    counts = of(f"folder:{pacs}/photo", shifts={"art": f"folder:{pacs}/art_painting"})
    (problem,) = counts.problems
    assert problem.pointer == "#/suite/shifts/art"
    assert "has cat, which the ID data does not" in problem.message
    (tmp_path / "flat").mkdir()
    (problem,) = of(f"folder:{tmp_path}/flat").problems
    assert "at least 2 class folders" in problem.message


def test_count__names_that_nothing_has_are_errors(pacs):  # noqa: F811
    with pytest.raises(UnknownNameError, match="unknown domain 'oil'"):
        of("pacs:oil")
    with pytest.raises(UnknownNameError, match="Did you mean 'objectnet'"):
        of("imagenet", shifts={"objectnett": "none"})
    with pytest.raises(UnknownNameError, match="Did you mean 'pacs'"):
        of("pcas")


def test_budget__a_larger_folder_is_left_alone(pacs):  # noqa: F811
    spec = SuiteSpec.model_validate({"id": f"folder:{pacs}/photo"})
    assert count_suite(spec, ScanBudget(entries=500)).evaluated is not None
    counts = count_suite(spec, ScanBudget(entries=20))
    assert counts.evaluated is None
    assert counts.basis == "unknown: there are more than 20 files"
    named = count_suite(SuiteSpec(id=f"pacs:{pacs}"), ScanBudget(entries=60))
    assert named.evaluated == 334 + 2048 + 2344 + 3929
    assert named.basis == "published sizes: there are more than 60 files"
    assert not named.absent
    slow = count_suite(spec, ScanBudget(seconds=0))
    assert "more files than can be counted in 0 s" in slow.basis


def test_budget__no_more_is_looked_at_than_was_allowed(tmp_path, monkeypatch):
    for k in range(40):
        (tmp_path / "deep" / "a" / f"{k}").mkdir(parents=True)
    (tmp_path / "deep" / "b").mkdir()
    seen = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda *path: seen.append(path) or real(*path))
    count_suite(SuiteSpec(id=f"folder:{tmp_path}/deep"), ScanBudget(entries=45))
    assert 0 < len(seen) < 12


def test_corruptions__are_those_of_the_spec_and_a_misspelt_one_gets_the_nearest_name():
    assert list(CORRUPTIONS) == [*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS]
    with pytest.raises(ValueError, match="unknown corruption 'gausian_noise'. Did you mean 'gauss"):
        SuiteSpec.model_validate({"corruptions": {"names": ["fog", "gausian_noise"]}})
    with pytest.raises(ValueError, match="'all' stands for several"):
        SuiteSpec.model_validate({"corruptions": {"names": ["fog", "all"]}})


def test_n_shot__is_counted_as_it_is_loaded_and_seeded(pacs):  # noqa: F811
    uri = f"folder:{pacs}/photo"
    whole = load_suite(SuiteSpec(id=uri)).part("train")
    sizes = np.bincount(whole.labels)
    fewer = set()
    for n in (1, 2, int(sizes.max()) + 1):
        counts = as_loaded(uri, n_shot=n)
        images = load_suite(SuiteSpec(id=uri, n_shot=n)).part("train")
        assert np.bincount(images.labels).tolist() == np.minimum(sizes, n).tolist()
        assert counts.parts["train"] == len(images)
        assert fewer <= set(images.ids)  # fewer shots are among more
        fewer = set(images.ids)
    assert fewer == set(whole.ids)
    assert as_loaded(uri, n_shot=2, limits={"train": 3}).parts["train"] == 3
    drawn = {
        tuple(load_suite(SuiteSpec(id=uri, n_shot=1, n_shot_seed=seed)).part("train").ids)
        for seed in range(4)
    }
    assert len(drawn) > 1
