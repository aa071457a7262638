"""Data sets of `datasets`: the same images as class folders, read without it."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from calift_core.data.counting import count_suite
from calift_core.data.inspection import examine_suite
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError, DataError, DataUnavailableError, SpecError
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.suite import SuiteSpec, absolute_uri
from tests.core.conftest import CLASSES, write_classes
from tests.core.data.test_manifests import load, sets_of

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

PARTS = {"train": 12, "validation": 5, "calibration": 5, "test": 6}
Columns = dict[str, list[Any]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "things"
    for seed, (part, n) in enumerate(PARTS.items()):
        write_classes(root / part, n=n, seed=seed)
    return root


def columns_of(tree: Path, part: str) -> Columns:
    paths = sorted((tree / part).rglob("*.png"))
    return {
        "image": [{"bytes": p.read_bytes(), "path": p.name} for p in paths],
        "label": [CLASSES.index(p.parent.name) for p in paths],
        "file": [str(p.relative_to(tree)) for p in paths],
        "animal": [f"{part}-{p.parent.name}-{int(p.stem) // 3}" for p in paths],
    }


def features(**more: Any) -> Any:
    text = datasets.Value("string")
    own = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    return datasets.Features({**own, "file": text, "animal": text, **more})


def saved(folder: Path, splits: dict[str, Columns], kinds: Any = None, **shards: Any) -> Path:
    made = {
        split: datasets.Dataset.from_dict(columns, features=kinds or features())
        for split, columns in splits.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(folder), **shards)
    return folder


@pytest.fixture(scope="module")
def on_disk(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "things"
    several = dict.fromkeys(PARTS, 1) | {"train": 3}
    return saved(folder, {p: columns_of(tree, p) for p in PARTS}, num_shards=several)


def test_on_disk__holds_the_images_of_class_folders_to_the_last_byte(tree, on_disk):
    assert sets_of(load(f"hf:{on_disk}#id=file")) == sets_of(load(f"folder:{tree}"))
    counts = count_suite(SuiteSpec(id=f"hf:{on_disk}", shifts={"more": f"hf:{on_disk}"}))
    assert counts.parts == {part: 3 * n for part, n in PARTS.items()}
    assert counts.shifts == {"more": 3 * PARTS["test"]}


def test_on_disk__rows_are_what_datasets_decodes(on_disk):
    images = load(f"hf:{on_disk}").part("train")
    theirs = datasets.load_from_disk(str(on_disk))["train"]
    assert images.labels.tolist() == theirs["label"][:]
    copy = pickle.loads(pickle.dumps(images.take([4, 20], "some")))  # noqa: S301
    for mine, row in ((0, 4), (1, 20)):
        assert np.array_equal(copy.image(mine), np.asarray(theirs[row]["image"].convert("RGB")))
    assert images.ids[20] == "train/0000020"  # file names are there, but not one for each image


def test_on_disk__one_split_is_split_and_its_groups_stay_together(tree, tmp_path):
    columns = columns_of(tree, "train")
    folder = tmp_path / "alone"
    datasets.Dataset.from_dict(columns, features=features()).save_to_disk(str(folder))
    parts = load(f"hf:{folder}#group=animal,id=file").parts
    group_of = dict(zip(columns["file"], columns["animal"], strict=True))
    where = {}
    for part, images in parts.items():
        for image_id in images.ids:
            where.setdefault(group_of[image_id], set()).add(part)
    assert all(len(found) == 1 for found in where.values())
    assert sum(map(len, parts.values())) == 36
    assert set(parts) == set(PARTS)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    with (tree / "things.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        writer.writerows([r["file"], CLASSES[r["label"]], r["animal"]] for r in rows)
    manifest = load(f"manifest:{tree}/things.csv").parts
    assert {p: (s.sha256, list(s.ids)) for p, s in manifest.items()} == {
        p: (s.sha256, list(s.ids)) for p, s in parts.items()
    }


def test_labels__of_texts_and_numbers_and_columns_by_name(tree, tmp_path):
    columns = columns_of(tree, "train")
    text, number = datasets.Value("string"), datasets.Value("int32")
    columns["kind"] = [CLASSES[i] for i in columns["label"]]
    columns["photo"] = columns["image"]
    columns["number"] = [10 - i for i in columns["label"]]
    kinds = features(kind=text, photo=datasets.Image(), number=number)
    folder = saved(tmp_path / "named", {"train": columns}, kinds)
    with pytest.raises(SpecError, match="which column holds the images"):
        load(f"hf:{folder}")
    suite = load(f"hf:{folder}#image=photo,label=kind")
    assert suite.classes == tuple(sorted(CLASSES))
    assert load(f"hf:{folder}#image=photo,label=number").classes == ("8", "9", "10")


def test_of_the_hub__is_read_from_the_cache_and_refused_where_it_is_not(
    on_disk, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "things").mkdir()
    for part in ("train", "test"):
        split = datasets.load_from_disk(str(on_disk))[part]
        split.to_parquet(str(tmp_path / "things" / f"{part}-00000-of-00001.parquet"))
    datasets.load_dataset(str(tmp_path / "things"), cache_dir=str(tmp_path / "cache"))
    mine, theirs = load("hf:things#id=file"), load(f"hf:{on_disk}#id=file")
    assert mine.part("test").sha256 == theirs.part("test").sha256
    with pytest.raises(DataUnavailableError, match="'acme/none' of the hub is not on this machine"):
        load("hf:acme/none")
    (absent,) = count_suite(SuiteSpec(id="hf:acme/none")).absent
    assert absent.fetched
    assert "is not in the cache" in absent.message
    monkeypatch.setenv("HF_DATASETS_CACHE", os.devnull)
    assert count_suite(SuiteSpec(id="hf:things")).absent


def test_of_the_hub__what_is_fetched_lies_below_the_home(on_disk, tmp_path, monkeypatch):
    home, others = tmp_path / "home", tmp_path / "others"
    for name in ("HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(others))
    monkeypatch.setenv("CALIFT_HOME", str(home))
    (tmp_path / "things").mkdir()
    for part in ("train", "test"):
        split = datasets.load_from_disk(str(on_disk))[part]
        split.to_parquet(str(tmp_path / "things" / f"{part}-00000-of-00001.parquet"))
    load_dataset, hub = datasets.load_dataset, constants.HF_HUB_CACHE

    def of_the_hub(name, config, **options):
        assert Path(constants.HF_HUB_CACHE).is_relative_to(home)
        return load_dataset(str(tmp_path / name), config, **options)

    monkeypatch.setattr(datasets, "load_dataset", of_the_hub)
    assert count_suite(SuiteSpec(id="hf:things")).absent
    mine, theirs = load("hf:things#id=file"), load(f"hf:{on_disk}#id=file")
    assert mine.part("test").sha256 == theirs.part("test").sha256
    assert not count_suite(SuiteSpec(id="hf:things")).absent
    assert hub == constants.HF_HUB_CACHE
    assert list(home.rglob("*.arrow"))
    assert not others.exists()


def test_names__a_folder_comes_first_and_a_look_fetches_nothing(on_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(shutil.copytree(on_disk, tmp_path / "d" / "hf").parent.parent)
    assert load("hf:d/hf").part("test").sha256 == load(f"hf:{on_disk}").part("test").sha256
    assert absolute_uri("hf:d/hf#id=file") == f"hf:{tmp_path}/d/hf#id=file"

    def fetched(*_):
        raise AssertionError("a look at data must not fetch it")

    monkeypatch.setattr("calift_core.data.suites.load.fetch_dataset", fetched)
    (loads,) = [check for check in examine_suite("hf:d/none") if check.name == "loads"]
    assert loads.state == "fail"
    assert "hf:./d/none" in loads.hint
    with pytest.raises(DataUnavailableError, match="not in the cache"):
        load_suite(SuiteSpec(id="hf:d/none"), fetch=False)


def test_names__of_folders_are_made_absolute_and_of_the_hub_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("hf:./a#id=file") == f"hf:{tmp_path}/a#id=file"
    assert absolute_uri("hf:acme/birds") == "hf:acme/birds"
    uris = ("hf:/d/a", "hf:/d/b#label=kind", "hf:acme/birds#split=night")
    job = EvaluationJobSpec(runs=("00000000-0000-4000-8000-000000000000",), folders=uris)
    assert list(job.all_shifts) == ["a", "b", "night"]


def without_test_label(columns: dict[str, Columns]) -> None:
    columns["test"]["label"][1] = -1


def without_image(columns: dict[str, Columns]) -> None:
    columns["test"]["image"][2] = None


def without_class(columns: dict[str, Columns]) -> None:
    for name, values in columns["test"].items():
        columns["test"][name] = values[:7]


def without_train(columns: dict[str, Columns]) -> None:
    del columns["train"]


@pytest.mark.parametrize(
    ("uri", "spoil", "sentence"),
    [
        ("", without_test_label, "no label in 1 of 18 rows, the first is row 1"),
        ("", without_image, "1 of 18 rows hold no image, the first is row 2"),
        ("", without_class, r"'test' has no image of the class"),
        ("", without_train, "has the splits test and no train"),
        ("#label=x", None, "Expected #label=COLUMN, got 'x'; the columns are image, label, file"),
        ("#image=file", None, "the column 'file' must hold encoded images, it holds string"),
        ("#id=animal", None, "animal must name each image once, 'train-.*-0' comes twice"),
        ("#nonsense=1", None, "behind # a data set's name has image=…, label=…, .*, got 'nonsense"),
        ("#split=test", None, "split= is for shifts"),
    ],
)  # fmt: skip
def test_wrong_input__is_a_sentence(tree, tmp_path, uri, spoil, sentence):
    columns = {part: columns_of(tree, part) for part in ("train", "test")}
    if spoil is not None:
        spoil(columns)
    with pytest.raises(CaliftError, match=sentence):
        load(f"hf:{saved(tmp_path / 'spoilt', columns)}{uri}")


def test_splits__that_are_no_part_or_have_no_labels_are_reported(tree, tmp_path):
    columns = {part: columns_of(tree, part) for part in ("train", "test")}
    columns["extra"] = columns_of(tree, "test")
    columns["test"]["label"] = [-1] * len(columns["test"]["label"])
    suite = load(f"hf:{saved(tmp_path / 'notes', columns)}")
    assert len(suite.notes) == 2
    assert "the splits extra are no part" in suite.notes[0]
    assert "'test' has no labels and is left out" in suite.notes[1]
    assert len(suite.part("test")) < 12  # split off the training images


def test_folders__that_are_cut_or_lack_a_file_are_sentences(on_disk, tmp_path):
    def broken(name):
        return shutil.copytree(on_disk, tmp_path / name)

    root = broken("a")
    file = root / "train" / "data-00001-of-00003.arrow"
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(DataError, match=r"data-00001-of-00003.arrow' is not a readable Arrow file"):
        load(f"hf:{root}")
    file.unlink()
    with pytest.raises(DataUnavailableError, match="names 'data-00001-of-00003.arrow', which is"):
        load(f"hf:{root}")
    state = json.loads((root / "train" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../../a"}]
    (root / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataUnavailableError, match="which is not beside it"):
        load(f"hf:{root}")
    (root / "dataset_dict.json").unlink()
    with pytest.raises(DataError, match="has neither dataset_dict.json nor state.json"):
        load(f"hf:{root}")
    with pytest.raises(DataUnavailableError, match="there is no folder '/no/where'"):
        load("hf:/no/where")
    with pytest.raises(SpecError, match="expected hf:FOLDER, got 'hf:'"):
        load("hf:")
