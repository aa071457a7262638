"""Wrong data gets the same error from the command, the API's scan and dry run, and New run's form.

Which error each fault gets is tested in tests/core/data.
"""

import csv
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from calift.commands import main as command
from calift_core.client import Client
from calift_core.errors import CaliftError, ServiceError
from calift_core.schema.spec import parse_spec
from tests.core.conftest import CLASSES, write_classes
from tests.frontend.conftest import Service, bare, pointed_at  # noqa: F401
from tests.frontend.driving import words

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Class folders in three parts; not to be changed."""
    root = tmp_path_factory.mktemp("tree") / "things"
    for seed, (part, n) in enumerate({"train": 6, "val": 3, "test": 3}.items()):
        write_classes(root / part, n=n, seed=seed)
    return root


def rows_of(tree: Path) -> Rows:
    """A manifest of all images, the rows in the order of their paths."""
    names = sorted(path.relative_to(tree) for path in tree.rglob("*.png"))
    return [
        {"path": str(p), "label": p.parts[1], "split": p.parts[0].replace("val", "validation")}
        for p in names
    ]


def manifest(tree: Path, folder: Path, change: Callable[[Rows], Rows] = list) -> str:
    """A manifest whose rows were changed, in a folder of its own beside the images."""
    shutil.copytree(tree, folder, dirs_exist_ok=True)
    rows = change(rows_of(tree))
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return f"manifest:{folder / 'all.csv'}"


def without_labels(tree: Path, folder: Path) -> str:
    return manifest(tree, folder, lambda rows: [r | {"label": ""} for r in rows])


def no_such_class(tree: Path, folder: Path) -> str:
    """The test part has no image of the last class."""
    lacking = ("test", LAST)
    return manifest(
        tree, folder, lambda rows: [r for r in rows if (r["split"], r["label"]) != lacking]
    )


def half_a_shard(tree: Path, folder: Path) -> str:
    """Shards as clip-benchmark's exporter lays them out, the test part's cut in half."""
    names = sorted(CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(names))
    for part in ("train", "test"):
        (folder / part).mkdir()
        (folder / part / "nshards.txt").write_text("1")
        with tarfile.open(folder / part / "0.tar", "w") as tar:
            for at, path in enumerate(sorted((tree / part).rglob("*.png"))):
                label = folder / "label"
                label.write_text(str(names.index(path.parent.name)))
                tar.add(label, f"s{at:07d}.cls")
                tar.add(path, f"s{at:07d}.png")
    (folder / "label").unlink()
    shard = folder / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return f"wds:{folder}"


def climbing_zip(tree: Path, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path in sorted(tree.rglob("*.png")):
            archive.write(path, str(path.relative_to(tree)))
        archive.writestr("../../evil.png", b"x")
    return f"zip:{folder / 'a.zip'}"


LAST = sorted(CLASSES)[-1]
WRONG: dict[str, tuple[Callable[[Path, Path], str], str]] = {
    "a manifest without labels": (without_labels, "all.csv, row 2: 'test/blue_thing/000.png' has"),
    "a split that leaves a class out": (
        no_such_class,
        f"all.csv: the split 'test' has no image of the class '{LAST}'; every part needs every",
    ),
    "a shard cut in half": (half_a_shard, "test/0.tar' is cut short"),
    "a zip that climbs out of its folder": (
        climbing_zip,
        "a.zip: '../../evil.png' leads out of the zip; nothing of it is read.",
    ),
}


def inspected(source: str) -> str:
    """What `calift data inspect` ends with, on standard error."""
    result = CliRunner().invoke(command.app, ["data", "inspect", source])
    assert isinstance(result.exception, CaliftError), (result.output, result.exception)
    return result.exception.message


def scanned(source: str) -> str:
    with Client() as client:
        found = client.scan(suite=source)
    assert found.images == []
    (problem,) = found.problems
    return problem


def dry_run(source: str) -> str:
    spec = parse_spec({"name": "r", "method": {"kind": "zero_shot"}, "suite": {"id": source}})
    with Client() as client:
        found = client.validate(spec)
    assert not found.valid
    return " ".join(error["message"] for error in found.errors)


def on_the_form(source: str) -> str:
    """What the look at data on New run says."""

    def look_at(source):
        from frontend import api
        from frontend.panels.new import data

        api.visitor()
        data.look(source)

    app = AppTest.from_function(look_at, args=(source,), default_timeout=60).run()
    assert not app.exception, [e.value for e in app.exception]
    assert app.error
    return re.sub(r"\\(.)", r"\1", words(app))


PLACES = {"inspect": inspected, "scan": scanned, "dry run": dry_run, "form": on_the_form}


@pytest.fixture
def service(bare, monkeypatch):  # noqa: F811
    with pointed_at(monkeypatch, bare.url, bare.home):
        yield bare


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_data__gets_the_same_error_everywhere(wrong, place, tree, tmp_path, service):
    make, sentence = WRONG[wrong]
    message = PLACES[place](make(tree, tmp_path / "data"))
    assert sentence in message
    assert "Traceback" not in message


def test_right_data__gets_none(tree, tmp_path, service):
    source = manifest(tree, tmp_path / "data")
    inspect = CliRunner().invoke(command.app, ["data", "inspect", source])
    assert inspect.exit_code == 0, inspect.output
    spec = parse_spec({"name": "r", "method": {"kind": "zero_shot"}, "suite": {"id": source}})
    with Client() as client:
        found = client.scan(suite=source)
        assert client.validate(spec).errors == []
    assert found.problems == []
    assert {one.name for one in found.classes} == set(CLASSES)


def test_dropped_zip__that_climbs_out_is_refused_and_nothing_is_kept(tree, tmp_path, service):
    file = Path(climbing_zip(tree, tmp_path / "data").removeprefix("zip:"))
    with Client() as client, pytest.raises(ServiceError, match="leads out of the zip") as refused:
        client.upload_zip(str(file), "a.zip")
    assert refused.value.problem["code"] == "ZIP_REFUSED"
    assert not list(service.home.rglob("*.zip"))
