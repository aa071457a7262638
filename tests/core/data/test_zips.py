"""Zips of class folders: the images of the folder, and a sentence for each zip that is none."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calift_core.data import archives
from calift_core.data.counting import count_suite
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError, UnreadableImageError
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.suite import SuiteSpec, as_uri
from tests.core.conftest import CLASSES, write_classes
from tests.core.data.test_manifests import sets_of


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree") / "things"
    for seed, (part, n) in enumerate({"train": 12, "val": 4, "test": 5}.items()):
        write_classes(root / part, n=n, seed=seed)
    return root


def packed(root: Path, file: Path, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for path in sorted(root.rglob("*.png"), reverse=True):
            archive.write(path, top + str(path.relative_to(root)))
        archive.writestr("__MACOSX/._a.png", b"x")
        archive.writestr(f"{top}about.txt", "x")
    return file


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip__holds_the_images_of_its_folder_to_the_last_byte(tree, tmp_path, method):
    file = packed(tree, tmp_path / "a.zip", "things/", method)
    spec = SuiteSpec(id=as_uri(str(file)), shifts={"more": f"zip:{file}"})
    folder = SuiteSpec(id=f"folder:{tree}", shifts={"more": f"folder:{tree}"})
    suite, counts = load_suite(spec), count_suite(spec)
    assert sets_of(suite) == sets_of(load_suite(folder))
    assert counts.parts == {part: len(images) for part, images in suite.parts.items()}
    images = pickle.loads(pickle.dumps(suite.part("test").take([6, 1], "some")))  # noqa: S301
    plain = load_suite(folder).part("test")
    assert np.array_equal(images.image(0), plain.image(6))
    alone = packed(tree / "train", tmp_path / "b.zip", "some/folders/above/")
    assert load_suite(SuiteSpec(id=f"zip:{alone}")).name == "above"
    assert sets_of(load_suite(SuiteSpec(id=f"zip:{alone}"))) == sets_of(
        load_suite(SuiteSpec(id=f"folder:{tree / 'train'}"))
    )
    run = "00000000-0000-4000-8000-000000000000"
    assert list(EvaluationJobSpec(runs=(run,), folders=("/d/a.zip",)).all_shifts) == ["a"]


def adds(name: str, data: bytes = b"x") -> Callable[[Path], None]:
    def change(file):
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(name, data)

    return change


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"train/{CLASSES[0]}/bomb.png", bytes(20_000))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (adds("../../evil.png"), r"'../../evil.png' leads out of the zip; nothing of it is read"),
        (adds("/etc/evil.png"), "leads out of the zip"),
        (adds(r"C:\evil.png"), "leads out of the zip"),
        (adds("d/" * 30_000 + "a.png"), "at most 1,024 characters and 32 folders, got 60,005 and"),
        (adds("d/" * 33 + "a.png"), "folders, got 71 and 33 in 'd/d/"),
        (adds("d" * 1021 + ".png"), "got 1,025 and 0 in 'dd"),
        (adds(f"test/{'dragon'}/a.png"), "test/ has the class folders dragon, which train/ does n"),
        (adds(f"train/{CLASSES[0]}/a.png"), "'.*a.png' is not an image that can be read"),
        (bomb, "would unpack to 20,000 bytes, at most 10,000 are read"),
        (cut, "a.zip is no whole zip"),
    ],
)
def test_zip__what_is_wrong_is_a_sentence(tree, tmp_path, change, sentence, monkeypatch):
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 10_000)
    file = packed(tree, tmp_path / "a.zip")
    change(file)
    with pytest.raises(CaliftError, match=sentence):
        load_suite(SuiteSpec(id=f"zip:{file}"))


def test_zip__a_byte_that_was_changed_is_found_and_strays_are_counted(tree, tmp_path):
    file = packed(tree, tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    adds("train/stray.png")(file)
    suite = load_suite(SuiteSpec(id=f"zip:{file}"))
    assert [note.partition(":")[2] for note in suite.notes] == [
        " 1 image is in no class folder and left out: train/stray.png",
        " 1 file is no image that can be read and left out (1 .txt): about.txt",
    ]
    images = suite.part("test")
    source = images.source
    assert isinstance(source, archives.ZipSource)
    data = bytearray(file.read_bytes())
    at = int(source.starts[images.indices[0]]) + 150
    data[at] ^= 255
    file.write_bytes(data)
    with pytest.raises(UnreadableImageError, match="its bytes are others than the zip says"):
        images.image(0)
    with pytest.raises(CaliftError, match="there is no zip '/no/where.zip'"):
        load_suite(SuiteSpec(id="/no/where.zip"))
