"""Manifests and shards: the same images as class folders, and a sentence for each wrong input."""

import csv
import io
import json
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from calift.commands import data
from calift_core.data.cache import cached_in_memory
from calift_core.data.counting import count_suite
from calift_core.data.grouped import PathPattern, split_groups
from calift_core.data.matching import match_classes
from calift_core.data.sources import with_draft_decoding
from calift_core.data.suites.load import Suite, load_suite
from calift_core.errors import CaliftError, DataError, SpecError, UnreadableImageError
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.suite import SuiteSpec, absolute_uri, as_uri
from tests.core.conftest import CLASSES, write_classes

PARTS = {"train": 16, "validation": 6, "calibration": 6, "test": 8}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Class folders in parts, and a shift beside them. Not to be changed."""
    root = tmp_path_factory.mktemp("tree") / "things"
    for seed, (part, n) in enumerate(PARTS.items()):
        write_classes(root / part, n=n, seed=seed)
    write_classes(root / "night", n=5, seed=9, gain=0.4)
    return root


def rows_of(root: Path) -> list[Row]:
    """A row for each image: parts are the ID data, the folder `night` is a domain."""
    found = []
    for path in sorted(root.rglob("*.png")):
        part, label, name = path.relative_to(root).parts
        is_id = part in PARTS
        found.append(
            {
                "path": str(path.relative_to(root)),
                "label": label,
                "split": part if is_id else "",
                "domain": "" if is_id else part,
                "group": f"{part}-{label}-{int(name[:3]) // 3}",
            }
        )
    return found


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Iterable[Row]) -> Path:
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_shards(root: Path, folder: Path, *, per_shard: int = 10, kept_keys: bool = True) -> Path:
    """Shards as clip-benchmark's webdataset_builder lays them out."""
    classes = sorted(p.name for p in (root / "train").iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    for part in [p for p in PARTS if (root / p).is_dir()]:
        (folder / part).mkdir()
        paths = sorted((root / part).rglob("*.png"))
        n_shards = -(-len(paths) // per_shard)
        (folder / part / "nshards.txt").write_text(str(n_shards))
        for shard in range(n_shards):
            with tarfile.open(folder / part / f"{shard}.tar", "w") as tar:
                for i in range(shard * per_shard, min(len(paths), (shard + 1) * per_shard)):
                    inner = paths[i].relative_to(root / part)
                    key = str(inner.with_suffix("")) if kept_keys else f"s{i:07d}"
                    label = str(classes.index(inner.parts[0])).encode()
                    for name, data in (
                        (f"{key}.cls", label),
                        (f"{key}.png", paths[i].read_bytes()),
                    ):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def manifest(tree):
    return write_csv(tree / "things.csv", rows_of(tree)[::-1])


@pytest.fixture(scope="module")
def shards(tree, tmp_path_factory):
    return write_shards(tree, tmp_path_factory.mktemp("shards") / "things")


def load(uri: str, **more: Any) -> Suite:
    return load_suite(SuiteSpec(id=uri, **more))


def sets_of(suite: Suite) -> dict[str, tuple[str, list[str], list[int]]]:
    everything = suite.parts | suite.shifts
    return {name: (s.sha256, list(s.ids), s.labels.tolist()) for name, s in everything.items()}


def test_three_forms__hold_the_same_images_to_the_last_byte(tree, manifest, shards, home):
    night = {"night": f"folder:{tree}/night"}
    folders = sets_of(load(f"folder:{tree}", shifts=night))
    assert sets_of(load(f"manifest:{manifest}")) == folders
    assert sets_of(load(f"wds:{shards}", shifts=night)) == folders
    again = sets_of(load(f"wds:{shards}", shifts=night))  # by the index that was kept
    assert again == folders
    assert any((home / "cache" / "shards").iterdir())


def test_manifest__the_three_kinds_of_files_say_the_same(tree, manifest, tmp_path):
    expected = sets_of(load(f"manifest:{manifest}"))
    for name, write in (("t.jsonl", write_json), ("t.parquet", write_parquet)):
        file = write(tree / name, rows_of(tree))
        assert sets_of(load(str(file))) == expected  # a bare path, told by its ending
        file.unlink()


def test_shards__exporters_keys_become_ids_and_pictures_stay(tree, tmp_path, home):
    plain = load(f"folder:{tree}").part("test")
    images = load(f"wds:{write_shards(tree, tmp_path / 'w', kept_keys=False)}").part("test")
    assert images.ids[0] == "test/s0000000.png"
    assert all(np.array_equal(images.image(i), plain.image(i)) for i in range(len(plain)))
    assert images.source.fingerprint(images.indices) == plain.source.fingerprint(plain.indices)
    copy = pickle.loads(pickle.dumps(images))  # noqa: S301
    assert np.array_equal(copy.image(3), plain.image(3))
    kept = cached_in_memory(with_draft_decoding(images.take([5, 2], "some"), 8))
    assert np.array_equal(kept.image(1), plain.image(2))


def test_counting__is_that_of_loading(tree, manifest, shards):
    night = f"manifest:{manifest}#night"
    for uri in (f"manifest:{manifest}", f"wds:{shards}"):
        spec = SuiteSpec(id=uri, shifts={"dark": night, "tars": f"wds:{shards}"})
        counts, loaded = count_suite(spec), load_suite(spec)
        assert counts.parts == {part: len(images) for part, images in loaded.parts.items()}
        assert counts.shifts == {name: len(images) for name, images in loaded.shifts.items()}
        assert counts.basis == "counted on this machine"
        assert not counts.problems
        assert counts.shifts["dark"] == 15
    alone = count_suite(SuiteSpec(id="folder:/no/where", shifts={"dark": night}))
    assert alone.shifts in ({}, {"dark": 15})


def test_names__bare_and_relative_paths_and_what_a_shift_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_uri("/d/a.CSV#art") == "manifest:/d/a.CSV#art"
    assert as_uri("/d/a.csv/b") == "folder:/d/a.csv/b"
    assert absolute_uri("manifest:a.csv#b") == f"manifest:{tmp_path}/a.csv#b"
    assert absolute_uri("wds:w") == f"wds:{tmp_path}/w"
    assert absolute_uri("pacs:sketch") == "pacs:sketch"
    job = EvaluationJobSpec(
        runs=("00000000-0000-4000-8000-000000000000",),
        folders=("/d/a.csv#art", "/d/b.parquet", "wds:/d/w", "/d/f"),
    )
    assert list(job.all_shifts) == ["art", "b", "w", "f"]


def test_groups__stay_together_and_classes_in_proportion(tree):
    rows = [{k: v for k, v in r.items() if k != "split"} for r in rows_of(tree)]
    group_of = {r["path"]: r["group"] for r in rows}
    file = write_csv(tree / "grouped.csv", rows)
    parts = load(f"manifest:{file}").parts
    shuffled = np.random.default_rng(0).permutation(len(rows))
    write_csv(file, [rows[i] for i in shuffled])
    assert sets_of(load(f"manifest:{file}")) | {} == sets_of(load(f"manifest:{file}"))
    assert {p: list(s.ids) for p, s in load(f"manifest:{file}").parts.items()} == {
        p: list(s.ids) for p, s in parts.items()
    }
    file.unlink()
    where = {}
    for part, images in parts.items():
        for image_id in images.ids:
            where.setdefault(group_of[image_id], set()).add(part)
    assert all(len(found) == 1 for found in where.values())
    assert sum(len(images) for images in parts.values()) == 3 * sum(PARTS.values())
    for images in parts.values():
        counts = np.bincount(images.labels, minlength=3)
        assert counts.max() - counts.min() <= 3  # a group


def test_group_by__a_pattern_over_paths_is_a_column_of_groups(tmp_path):
    root, rows = tmp_path / "scenes", []
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for at in range(24):
            path = f"{name}/scene{at // 3}_{at}.png"
            Image.new("RGB", (2, 2), (at, 0, 0)).save(root / path)
            rows.append({"path": path, "label": name, "group": f"{at // 3}"})
    grouped = load(f"manifest:{write_csv(root / 'grouped.csv', rows)}")
    by_path = load(f"folder:{root}", group_by="scene{}_*")
    assert sets_of(by_path) == sets_of(grouped)
    where = {}
    for part, images in by_path.parts.items():
        for image_id in images.ids:
            where.setdefault(image_id.split("scene")[1].split("_")[0], set()).add(part)
    assert len(where) == 8
    assert all(len(found) == 1 for found in where.values())
    assert count_suite(SuiteSpec(id=f"folder:{root}", group_by="scene{}_*")).parts == {
        part: len(images) for part, images in by_path.parts.items()
    }
    bare = write_csv(root / "bare.csv", [r | {"group": ""} for r in rows])
    assert sets_of(load(f"manifest:{bare}", group_by="*/scene{}_*.png")) == sets_of(grouped)
    for pattern, source, sentence in (
        ("room{}_*", f"folder:{root}", "it fits none of 72, the first of which is 'blue_thing/"),
        ("{}*", f"folder:{root}", "text between it and any"),
        ("s{}e*", f"folder:{root}", "all 72 images are in the group 'c'"),
        ("scene{}_*", f"manifest:{root / 'grouped.csv'}", "has a column of groups"),
        ("scene{}_*", "fashion-mnist", "group_by must be for folder or manifest"),
    ):
        with pytest.raises((DataError, SpecError), match=re.escape(sentence)):
            load(source, group_by=pattern)
    for wrong in ("no group", "{}{}", "{a}{}", "{", "{{}}"):
        with pytest.raises(ValueError, match="group_by must have {} once"):
            SuiteSpec(group_by=wrong)


@given(st.text("ab/_", max_size=12), st.text("ab/_*", max_size=4), st.text("ab/_*", max_size=4))
def test_path_pattern__says_what_a_regular_expression_says(path, before, after):
    pattern = f"{before}{{}}{after}"
    if "**" in pattern or "*{}" in pattern or "{}*" in pattern:
        with pytest.raises(SpecError, match="one {} for the group"):
            PathPattern(pattern)
        return
    text = path if "/" in pattern else path.rpartition("/")[2]
    lazy = [re.escape(piece).replace(r"\*", "(?:.*?)") for piece in (before, after)]
    found = re.fullmatch(f"{lazy[0]}(.+?){lazy[1]}", text)
    assert PathPattern(pattern).group(path) == (found[1] if found else "")


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), min_size=1, max_size=150),
    st.sampled_from([{"test": 0.2}, {"validation": 0.1, "test": 0.3}, {"test": 0.0}]),
)
def test_split_groups__parts_are_disjoint_whole_and_tear_nothing(pairs, fractions):
    used, members = np.unique([g for g, _ in pairs], return_inverse=True)
    labels = np.array([label for _, label in pairs])
    parts = split_groups([f"g{g}" for g in used], members, labels, fractions, "train")
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(len(pairs)))
    for group in range(len(used)):
        mine = set(np.flatnonzero(members == group).tolist())
        assert sum(bool(mine & set(at.tolist())) for at in parts.values()) == 1
    if not fractions["test"]:
        assert len(parts["test"]) == 0


def test_domains__one_is_chosen_the_others_are_shifts(tree):
    rows = [r | {"domain": r["domain"] or "day", "split": ""} for r in rows_of(tree)]
    file = write_csv(tree / "domains.csv", rows)
    suite = load(f"manifest:{file}#day")
    assert suite.name == "day"
    assert list(suite.shifts) == ["night"]
    assert list(load(f"manifest:{file}#day", shifts={"night": "none"}).shifts) == []
    with pytest.raises(SpecError, match=r"has the domains day, night; which of them is the ID"):
        load(f"manifest:{file}")
    with pytest.raises(CaliftError, match="unknown domain of domains.csv 'dusk'"):
        load(f"manifest:{file}#dusk")
    file.unlink()


def test_classes__are_matched_by_spelling_and_each_that_is_not_is_named(tree, manifest):
    rows = [r | {"label": r["label"].replace("_", " ").title()} for r in rows_of(tree)]
    file = write_csv(tree / "spelt.csv", [r for r in rows if r["domain"]])
    images = load(f"folder:{tree}", shifts={"n": f"manifest:{file}"}).shifts["n"]
    assert images.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    write_csv(file, [r | {"label": r["label"].replace("Green", "Grass")} for r in rows])
    with pytest.raises(DataError, match="the shift 'n' .*'Grass Thing' is no class of the ID data"):
        load(f"folder:{tree}", shifts={"n": f"manifest:{file}"})
    (problem,) = count_suite(
        SuiteSpec(id=f"folder:{tree}", shifts={"n": f"manifest:{file}"})
    ).problems
    assert problem.pointer == "#/suite/shifts/n"
    file.unlink()
    with pytest.raises(DataError, match="'a-b' and 'a b' are both 'a_b'"):
        match_classes(["a b", "a-b"], ["a_b", "c"], "x")


def without(*columns: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{k: v for k, v in r.items() if k not in columns} for r in rows]


def first(**changes: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [rows[0] | changes, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("label"), "has no column 'label', its columns are: path, split, domain, group"),
        (first(label=""), "row 2: 'calibration/blue_thing/000.png' has no label"),
        (first(label="7"), "row 2: the label is the number 7, in row 3 it is the word 'blue_"),
        (lambda rows: [*rows, rows[0]], "is there already, in row 2: name it once"),
        (first(path="../x/a.png"), "row 2: '../x/a.png' leads out of the manifest's folder"),
        (first(path="/etc/a.png"), "row 2: '/etc/a.png' leads out of the manifest's folder"),
        (first(path="https://x.org/a.png"), "row 2: images are files, nothing is fetched"),
        (first(path="a.txt"), "row 2: images end in .jpg"),
        (first(split="holdout"), "row 2: split is one of pretrain, train, .*, got 'holdout'"),
        (first(split=""), "1 rows of the ID data have no split, the first is 'calibration/blue"),
        (
            lambda rows: [r for r in rows if r["split"] != "test" or r["label"] != "red_thing"],
            "the split 'test' has no image of the class 'red_thing'",
        ),
        (
            lambda rows: [r for r in rows if r["split"] != "train"],
            "no row has the split train, there are calibration, test, validation",
        ),
        (
            lambda rows: [r | {"group": r["label"]} for r in rows],
            "the group 'blue_thing' is in calibration and test and train and validation",
        ),
        (first(path="train/blue_thing/gone.png"), None),
        (
            lambda rows: [r | {"path": r["path"].replace("test/", "t/")} for r in rows],
            r"24 of the 123 images of wrong.csv are missing or empty: 't/blue_thing/000.png'",
        ),
    ],
)  # fmt: skip
def test_manifest__what_is_wrong_is_a_sentence_before_anything_runs(tree, change, sentence):
    file = write_csv(tree / "wrong.csv", change(rows_of(tree)))
    try:
        if sentence is None:  # 1 of 123 is below the share: left out, and said
            output = "1 of the 123 images of wrong.csv are missing or empty: 'train/blue_thing/gone"
            assert output in count_suite(SuiteSpec(id=f"manifest:{file}")).warnings[0]
            assert output in load(f"manifest:{file}").notes[0]
            return
        with pytest.raises(CaliftError, match=sentence) as caught:
            load(f"manifest:{file}")
        counts = count_suite(SuiteSpec(id=f"manifest:{file}"))
        (answer,) = (*counts.problems, *counts.absent)
        assert caught.value.message in answer.message
    finally:
        file.unlink()


def test_manifest__a_file_that_is_no_image_is_named(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "copy")
    (root / "test" / "red_thing" / "003.png").write_bytes(b"no image")
    file = write_csv(root / "m.csv", rows_of(root))
    with pytest.raises(UnreadableImageError, match="red_thing/003.png' is not an image"):
        load(f"manifest:{file}")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "path,label\n", "a manifest ends in .csv, .jsonl, .ndjson, .parquet, got 'a."),
        ("a.csv", "path,label\n", "a.csv has no rows"),
        ("a.csv", "", "has no column 'path', its columns are: none"),
        ("a.csv", "path,label\na.png,b,c\n", "line 2: 2 cells are expected, there are more"),
        ("a.csv", b"path,label\n\xff.png,b\n", "a.csv is not readable as csv"),
        ("a.jsonl", '{"path": "a.png"}\n', "has no column 'label'"),
        ("a.jsonl", '{"path": "a.png", "label": ["x"]}\n', "row 1: label must be a text or a num"),
        ("a.jsonl", "[]\n", "line 1: expected an object"),
        ("a.jsonl", "{\n", "line 1 is no JSON"),
        ("a.parquet", "PAR1", "a.parquet is not a readable Parquet file"),
    ],
)  # fmt: skip
def test_manifest__what_is_no_table_is_a_sentence(tmp_path, name, text, sentence):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CaliftError, match=sentence):
        load(f"manifest:{path}")


def cut(path: Path, at: Callable[[int], int]) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: at(len(data))])


def test_shards__one_that_is_cut_is_named_wherever_it_was_cut(shards, tmp_path, home):
    member = 512 * 2  # of a label
    for n, at in enumerate((lambda n: n // 2, lambda n: member, lambda n: 700, lambda n: 0)):
        root = shutil.copytree(shards, tmp_path / f"cut{n}")
        cut(root / "test" / "1.tar", at)
        with pytest.raises(DataError, match=r"test/1.tar' is (cut short|no whole tar)"):
            load(f"wds:{root}")
        assert "test/1.tar" in count_suite(SuiteSpec(id=f"wds:{root}")).problems[0].message


def test_shards__what_is_wrong_with_a_folder_is_a_sentence(shards, tmp_path, home):
    def broken(name):
        return shutil.copytree(shards, tmp_path / name)

    root = broken("a")
    (root / "classnames.txt").unlink()
    with pytest.raises(CaliftError, match="there is no classnames.txt in"):
        load(f"wds:{root}")
    (root / "classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="is 2, classnames.txt names the classes 0 to 1"):
        load(f"wds:{root}")
    (root / "classnames.txt").write_text("\n".join([*CLASSES, "dragon"]))
    with pytest.raises(DataError, match="has no image of the class 'dragon'"):
        load(f"wds:{root}")
    root = broken("b")
    (root / "train" / "2.tar").unlink()
    with pytest.raises(CaliftError, match=r"nshards.txt' says 5 shards, 4 are here"):
        load(f"wds:{root}")
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match="splits validation, calibration, test and no train"):
        load(f"wds:{root}")
    root = broken("c")
    (root / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(DataError, match="is for retrieval, expected one class for each image"):
        load(f"wds:{root}")


def test_shards__samples_need_an_image_and_a_number(tmp_path, home):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")

    def folder(name, members):
        root = tmp_path / name
        (root / "train").mkdir(parents=True)
        (root / "classnames.txt").write_text("a\nb\n")
        with tarfile.open(root / "train" / "0.tar", "w") as tar:
            for inner, data in members.items():
                member = tarfile.TarInfo(inner)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return root

    png = picture.getvalue()
    for name, members, sentence in (
        ("a", {"s0.png": png}, r"the sample 's0' has no label \(.cls\), it holds \['png'\]"),
        ("b", {"s0.cls": b"1"}, "the sample 's0' must hold one image, it holds"),
        ("c", {"s0.cls": b"cat", "s0.png": png}, "of 's0' must be the number of a class, got"),
        ("d", {}, "holds no samples"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=sentence):
            load(f"wds:{folder(name, members)}")


def picture(rng: np.random.Generator) -> Image.Image:
    small = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


def test_inspect__copies_between_parts_are_found_and_valued(tree, tmp_path, home):
    root = tmp_path / "copies"
    for part in ("train", "test"):
        shutil.copytree(tree / part, root / part)
    rng = np.random.default_rng(0)
    for i in range(20):
        original = picture(rng)
        original.save(root / "train" / "red_thing" / f"p{i}.png")
        original.resize((64, 64)).save(root / "test" / "red_thing" / f"near{i}.jpg", quality=60)
        picture(rng).save(root / "test" / "red_thing" / f"other{i}.png")
    shutil.copy(root / "train/red_thing/p3.png", root / "test/blue_thing/same.png")
    answer = CliRunner().invoke(data.app, ["inspect", str(root), "--json"])
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    (of_test,) = [o for o in found["overlaps"] if (o["set"], o["in"]) == ("test", "train")]
    assert ["test/blue_thing/same.png", "train/red_thing/p3.png"] in of_test["exact"]
    assert len(of_test["near"]) >= 16  # of the 20 that were made smaller and compressed
    for mine, theirs in of_test["near"]:
        assert mine.replace("test/red_thing/near", "").removesuffix(".jpg") == (
            theirs.replace("train/red_thing/p", "").removesuffix(".png")
        )
    n = len(of_test["near"]) + len(of_test["exact"])
    assert of_test["moves_accuracy_at_most"] == pytest.approx(n / 65)
    assert f"{n} of 65 test images are copies of train images" in of_test["sentence"]
    assert found["sets"]["test"]["by_class"]["red_thing"] == 48
    assert found["sets"]["test"]["examples"]["blue_thing"] == "test/blue_thing/000.png"


def test_inspect__what_cannot_be_decoded_is_named_and_the_exit_status_says_so(tree, tmp_path, home):
    root = shutil.copytree(tree / "train", tmp_path / "torn")
    torn = root / "red_thing" / "003.png"
    torn.write_bytes(torn.read_bytes()[:300])
    answer = CliRunner().invoke(data.app, ["inspect", str(root), "--json"])
    assert answer.exit_code == 1
    reply = [u for s in json.loads(answer.stdout)["sets"].values() for u in s["unreadable"]]
    assert len(reply) == 1
    assert "red_thing/003.png' is damaged" in reply[0]
