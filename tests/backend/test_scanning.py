"""A look at somebody's data: right numbers, a few images, and nothing that it must not read."""

import base64
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from backend.http.middleware import UPLOAD_TYPE, ZIP_TYPE
from backend.main import create_app
from calift_core.data import looking
from calift_core.errors import CaliftError, ServiceError, SpecError, StorageError
from tests.backend.test_api import add_token
from tests.conftest import as_admin, serving
from tests.support.drawing import shared_drawers


def write(root: Path, names: tuple[str, ...], n: int) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture(scope="module", autouse=True)
def drawers():
    with shared_drawers():
        yield


@pytest.fixture
def api(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("backend.services.datasets.MAX_ZIP_FILES", 50)
    limits = {"max_upload_bytes": 300_000, "quota_data_bytes": 200_000}
    made = settings.model_copy(update={"data_roots": (tmp_path / "data",), **limits})
    with as_admin(made) as client:
        yield client


@pytest.fixture
def in_process(monkeypatch):
    """Zips are examined in this process, which another test says that the service does not."""

    def look(asked, **_):
        try:
            return json.loads(looking.answer(json.dumps(asked).encode()))
        except CaliftError as error:
            raise SpecError(error.message, hint=error.hint) from error

    monkeypatch.setattr("backend.services.datasets.look_through", look)


def scan(api: TestClient, suite: str) -> Any:
    return api.get("/api/v1/datasets/scan", params={"suite": suite})


def test_scan__counts_classes_and_shows_images(api, tmp_path):
    root = tmp_path / "data" / "birds"
    write(root, ("heron", "<b>owl"), 40)
    found = scan(api, f"folder:{root}").json()
    assert {c["name"]: c["n"] for c in found["classes"]} == {"heron": 40, "<b>owl": 40}
    assert sum(found["parts"].values()) == 80
    assert found["problems"] == []
    assert {i["class_name"] for i in found["images"]} == {"heron", "<b>owl"}
    assert 0 < len(found["images"]) <= 12
    for image in found["images"]:
        kind, _, body = image["picture"].partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(body).startswith(b"\x89PNG")


def test_scan__lists_each_folder_once(api, tmp_path, monkeypatch):
    root = tmp_path / "data" / "birds"
    write(root, ("heron", "owl"), 20)
    listed, scandir = [], os.scandir

    def counted(path):
        listed.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert scan(api, f"folder:{root}").json()["n_classes"] == 2
    assert [listed.count(str(root / name)) for name in ("heron", "owl")] == [1, 1]


def test_scan__of_more_than_may_be_looked_at_says_so(api, tmp_path, monkeypatch):
    root = tmp_path / "data" / "birds"
    write(root, ("heron", "owl"), 20)
    monkeypatch.setattr("backend.services.submission.SCAN_ENTRIES", 30)
    found = scan(api, f"folder:{root}").json()
    assert found["parts"] == {}
    assert found["problems"] == []
    assert "more than 30 files" in found["notes"][0]


def test_scan__an_image_that_cannot_be_read_is_named(api, tmp_path):
    root = tmp_path / "data" / "birds"
    write(root, ("heron", "owl"), 20)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    found = scan(api, f"folder:{root}").json()
    assert found["images"]
    for image in found["images"]:
        assert image["picture"] is None
        assert image["fault"]


def test_scan__reads_nothing_outside_the_registered_folders(api, tmp_path):
    write(tmp_path / "secret", ("a", "b"), 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "secret", tmp_path / "data" / "link", tmp_path / "data/../secret"):
        answer = scan(api, f"folder:{path}")
        assert answer.status_code == 422, answer.text
        assert "CALIFT_DATA_ROOTS" in answer.json()["detail"]
    for name in ("zip:~nobody-here/x", "torchvision:CIFAR10:~nobody-here/x"):
        assert "must be absolute" in scan(api, name).json()["detail"]
    assert scan(api, "nothing-of-the-kind").status_code == 422
    too_long = scan(api, f"folder:{tmp_path / 'data' / ('x' * 300)}")
    assert too_long.status_code == 422
    assert "cannot be looked at" in too_long.json()["detail"]
    gone = scan(api, f"folder:{tmp_path / 'data' / 'gone'}").json()
    assert "no folder" in gone["problems"][0]


def test_scan__of_a_built_in_suite_downloads_nothing(api):
    found = scan(api, "typefaces").json()
    assert found["n_classes"] > 10
    assert found["images"] == []
    assert scan(api, "cifar10").json()["problems"]


def folders(api: TestClient, path: Path | None = None) -> Any:
    return api.get("/api/v1/datasets/folders", params={"path": str(path)} if path else {})


def test_folders__are_listed_a_level_at_a_time_and_say_what_they_hold(api, tmp_path):
    root = tmp_path / "data"
    write(root / "birds", ("heron", "<b>owl"), 5)
    (root / ".hidden").mkdir()
    (root / "notes.txt").touch()
    top = folders(api).json()
    assert [f["path"] for f in top["folders"]] == [str(root)]
    found = folders(api, root).json()
    assert found["parent"] is None
    assert [(f["name"], f["folders"], f["images"]) for f in found["folders"]] == [("birds", 2, 10)]
    inside = folders(api, root / "birds").json()
    assert inside["parent"] == str(root)
    assert {f["name"]: f["images"] for f in inside["folders"]} == {"heron": 5, "<b>owl": 5}
    assert inside["whole"]
    leaf = folders(api, root / "birds" / "heron").json()
    assert (leaf["folders"], leaf["images"]) == ([], 5)


def test_folders__nothing_leads_out_of_the_registered_ones(api, tmp_path):
    root = tmp_path / "data"
    write(tmp_path / "secret", ("a", "b"), 1)
    write(root / "birds", ("heron", "owl"), 1)
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root)
    (root / "near").symlink_to(root / "birds")
    assert [f["name"] for f in folders(api, root).json()["folders"]] == ["birds", "loop", "near"]
    for path in (tmp_path, tmp_path / "secret", root / "out", root / "up", root / "nothing",
                 root / "birds" / "heron" / "0.png"):  # fmt: skip
        answer = folders(api, path)
        assert answer.status_code == 404, answer.text
    for path in (root / ".." / "secret", Path("birds"), Path("~")):
        assert folders(api, path).status_code == 422, path


def test_folders__many_are_named_in_part_and_that_is_said(api, tmp_path):
    for index in range(230):
        (tmp_path / "data" / f"{index:03d}" / "a").mkdir(parents=True)
    for index in range(300):
        (tmp_path / "data" / "000" / "a" / f"{index}.png").touch()
    found = folders(api, tmp_path / "data").json()
    assert len(found["folders"]) == 200
    assert not found["whole"]
    assert not found["folders"][0]["whole"]
    assert found["folders"][1] == {
        "name": "001", "path": str(tmp_path / "data" / "001"), "folders": 1, "images": 0,
        "whole": True,
    }  # fmt: skip


PNG = io.BytesIO()
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(PNG, "PNG")


def packed(names: Iterable[str], data: bytes = PNG.getvalue(), **options: Any) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **options) as archive:
        for name in names:
            archive.writestr(name, data)
    return made.getvalue()


BIRDS = [f"birds/{c}/{i}.png" for c in ("heron", "owl") for i in range(20)]


def bring(api: TestClient, body: bytes, name: str = "birds.zip", **headers: str) -> Any:
    headers = {"Content-Type": ZIP_TYPE} | headers
    return api.post("/api/v1/datasets", params={"name": name}, content=body, headers=headers)


@pytest.mark.usefixtures("in_process")
def test_zip__is_kept_scanned_and_offered_and_the_same_one_is_kept_once(api, settings, tmp_path):
    body = packed(BIRDS)
    answer = bring(api, body, name="../../my birds.ZIP")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["name"], made["images"], made["n_classes"]) == ("my-birds.zip", 40, 2)
    file = Path(made["suite"].removeprefix("zip:"))
    assert file.is_relative_to(settings.datasets_dir)
    assert file.read_bytes() == body
    found = scan(api, made["suite"]).json()
    assert {c["name"]: c["n"] for c in found["classes"]} == {"heron": 20, "owl": 20}
    assert any(image["picture"] for image in found["images"])
    assert bring(api, body, name="again.zip").json()["suite"] == made["suite"]
    offered = [d for d in api.get("/api/v1/datasets").json() if d["id"].startswith("zip:")]
    assert [(d["id"], d["title"]) for d in offered] == [(made["suite"], "my-birds")]
    assert "40 images of 2 classes" in offered[0]["detail"]
    spec = {"name": "r", "method": {"kind": "zero_shot"}, "suite": {"id": made["suite"]}}
    assert api.post("/api/v1/runs/validate", json=spec).json()["valid"]
    assert list(settings.uploads_dir.iterdir()) == []


def exploding() -> bytes:
    """Zeros that shrink a thousandfold, in each of a few classes."""
    return packed(["a/0.bmp", "b/0.bmp"], bytes(60 << 20), compression=zipfile.ZIP_DEFLATED)


def overlapping() -> bytes:
    """Every entry of the table names the first one's bytes."""
    body = packed([f"{c}/{i}.png" for c in "ab" for i in range(9)], bytes(3000))
    at = body.index(b"PK\x01\x02")
    table = bytearray(body[at:])
    for place in (m.start() for m in re.finditer(b"PK\x01\x02", bytes(table))):
        table[place + 42 : place + 46] = bytes(4)
    # Only the first one's bytes stay; the table moves up to them.
    kept = body[: body.index(b"PK\x03\x04", 4)]
    table[-6:-2] = len(kept).to_bytes(4, "little")
    return kept + bytes(table)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"PK\x03\x04 and no more", "birds.zip is no whole zip"),
        (b"\x89PNG", "birds.zip is no whole zip"),
        (packed(BIRDS)[:-30], "birds.zip is no whole zip"),
        (packed([*BIRDS, "../../evil.png"]), "'../../evil.png' leads out of the zip"),
        (packed([*BIRDS, "/etc/evil.png"]), "'/etc/evil.png' leads out of the zip"),
        (packed([*BIRDS, "..\\evil.png"]), "leads out of the zip"),
        (packed([f"{'d/' * 30_000}{c}/0.png" for c in "ab"]), "at most 1,024 characters"),
        (packed(["a.txt"]), "birds.zip holds no images"),
        (packed(["a/0.png", "a/1.png"]), "must hold at least 2 class folders, it has ['a']"),
        (packed([f"a/{i}.png" for i in range(60)]), "holds more than 50 files"),
        (exploding(), "times its size; at most 50 times are taken"),
        (overlapping(), "they share bytes"),
    ],
    ids=["cut", "png", "half", "climbs", "absolute", "backslash", "deep", "texts", "one", "many",
         "bomb", "overlap"],
)  # fmt: skip
def test_zip__that_cannot_be_used_is_refused_with_a_sentence_and_not_kept(
    api, settings, body, sentence
):
    answer = bring(api, body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "ZIP_REFUSED"
    assert sentence in answer.json()["detail"]
    assert not list(settings.home.rglob("*.zip"))
    assert list(settings.uploads_dir.iterdir()) == []


@pytest.mark.usefixtures("in_process")
def test_zip__limits_of_size_and_of_an_owner_and_other_types_are_refused(api, tmp_path):
    filler = packed(BIRDS, PNG.getvalue() + bytes(3000))
    assert bring(api, filler).status_code == 201
    second = bring(api, filler + b"", name="second.zip")
    assert second.status_code == 201, "the same one takes no more room"
    other = bring(api, packed(BIRDS[:-1], PNG.getvalue() + bytes(3001)))
    assert (other.status_code, other.json()["code"]) == (413, "DATA_QUOTA")
    assert "at most 200,000 are kept for an owner" in other.json()["detail"]
    large = bring(api, bytes(400_000))
    assert (large.status_code, large.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert bring(api, b"").status_code in (415, 422)
    assert bring(api, packed(BIRDS), **{"Content-Type": "application/json"}).status_code == 415
    assert bring(api, packed(BIRDS), **{"Content-Type": UPLOAD_TYPE}).status_code == 415
    elsewhere = api.post(
        "/api/v1/predictions", content=packed(BIRDS), headers={"Content-Type": ZIP_TYPE}
    )
    assert elsewhere.status_code == 415


@pytest.mark.usefixtures("in_process")
def test_zip__comes_by_the_client_from_a_path_or_an_open_file(settings, tmp_path):
    from calift_core.client import Client

    body = packed(BIRDS)  # another would have another time in it
    (tmp_path / "birds.zip").write_bytes(body)
    app = create_app(settings, housekeeping=False)
    with serving(app) as url, Client(url, settings.admin_token()) as client:
        made = client.upload_zip(tmp_path / "birds.zip", "birds.zip")
        assert client.upload_zip(io.BytesIO(body), "birds.zip") == made
        assert client.scan(suite=made.suite).n_classes == 2
        with pytest.raises(ServiceError, match="no whole zip"):
            client.upload_zip(io.BytesIO(b"nothing"), "birds.zip")
        with pytest.raises(StorageError):
            client.upload_zip(tmp_path / "gone.zip", "gone.zip")


def test_zip__is_looked_through_by_another_process(api, monkeypatch):
    body = packed(BIRDS)

    def opened(*_, **__):
        raise AssertionError("the API reads a zip that was just brought")

    monkeypatch.setattr(zipfile, "ZipFile", opened)
    assert bring(api, body).status_code == 201
    refused = bring(api, body[:-30])
    assert (refused.status_code, refused.json()["code"]) == (422, "ZIP_REFUSED")
    assert "birds.zip is no whole zip" in refused.json()["detail"]


def delete(api: TestClient, suite: str, **headers: str) -> Any:
    return api.delete("/api/v1/datasets", params={"suite": suite}, headers=headers)


@pytest.mark.usefixtures("in_process")
def test_zip__is_deleted_by_who_brought_it_or_an_admin_and_not_while_a_run_needs_it(api, settings):
    services = api.app.state.services
    who = {name: add_token(services, f"clft_{name}", name, "submit") for name in ("ann", "bob")}
    ann = bring(api, packed(BIRDS), **who["ann"]).json()["suite"]
    bob = bring(api, packed(BIRDS), **who["bob"]).json()["suite"]
    assert ann != bob

    refused = delete(api, ann, **who["bob"])
    assert (refused.status_code, refused.json()["code"]) == (403, "NOT_YOURS")
    # What was not brought is not found, whatever file it names.
    (settings.home / "a.zip").write_bytes(packed(BIRDS))
    for other in (f"zip:{settings.home / 'a.zip'}", ann + "/", "typefaces", ann.upper()):
        assert delete(api, other, **who["ann"]).status_code == 404

    spec = {"name": "r", "method": {"kind": "zero_shot"}}
    named = [
        {"id": ann}, {"id": bob, "shifts": {"same": ann}},
    ]  # fmt: skip
    for suite in named:
        made = api.post("/api/v1/runs", json=spec | {"suite": suite}).json()
        refused = delete(api, ann, **who["ann"])
        assert (refused.status_code, refused.json()["code"]) == (409, "DATA_IN_USE")
        assert made["id"] in refused.json()["detail"]
        api.post(f"/api/v1/runs/{made['id']}/cancel")
    assert Path(ann.removeprefix("zip:")).is_file()

    assert delete(api, ann, **who["ann"]).status_code == 204
    assert delete(api, ann, **who["ann"]).status_code == 404
    assert Path(bob.removeprefix("zip:")).is_file()
    assert delete(api, bob).status_code == 204  # by the admin
    assert list(settings.datasets_dir.glob("*/*")) == []


@pytest.mark.usefixtures("in_process")
def test_zip__stays_while_a_sweep_that_is_not_over_needs_it(api):
    suite = bring(api, packed(BIRDS)).json()["suite"]
    base = {"model": {"name": "calift-tiny", "pretrained": "typefaces"}, "suite": {"id": suite}}
    requested = {"name": "s", "base": base, "methods": ["finetune"], "seeds": [0], "rate": None}
    made = api.post("/api/v1/sweeps", json=requested)
    assert made.status_code == 202, made.text
    refused = delete(api, suite)
    assert refused.status_code == 409
    assert made.json()["id"] in refused.json()["detail"]


def grouped(root: Path) -> None:
    """Two classes of 60 patients' pictures, five of each patient and class, all of them unlike."""
    rng = np.random.default_rng(0)
    for name in ("ill", "well"):
        (root / name).mkdir(parents=True)
        for i in range(300):
            small = Image.fromarray(rng.integers(0, 255, size=(9, 9, 3), dtype=np.uint8))
            picture = small.resize((48, 48), Image.Resampling.BICUBIC)
            picture.save(root / name / f"patient{i // 5}_{i}.png")


def test_scan__counts_parts_by_group_as_a_run_splits_them(api, tmp_path):
    from calift_core.data.suites.load import load_suite
    from calift_core.schema.suite import SuiteSpec

    root = tmp_path / "data" / "patients"
    grouped(root)
    requested = {"suite": f"folder:{root}"}
    alone = api.get("/api/v1/datasets/scan", params=requested).json()
    requested["group_by"] = "patient{}_*"
    found = api.get("/api/v1/datasets/scan", params=requested).json()
    parts = load_suite(SuiteSpec(id=requested["suite"], group_by=requested["group_by"])).parts
    assert found["parts"] == {part: len(images) for part, images in parts.items()}
    assert found["parts"] != alone["parts"]
    assert all(n % 5 == 0 for n in found["parts"].values())
    assert all(image["picture"] for image in found["images"])
    for pattern, sentence in (("patient_*", "must have {} once"), ("eye{}_*", "fits")):
        answer = api.get("/api/v1/datasets/scan", params=requested | {"group_by": pattern})
        assert sentence in answer.text, answer.text


def test_copies__are_those_of_the_command_with_its_sentence(api, tmp_path):
    from typer.testing import CliRunner

    from calift.commands import data

    root = tmp_path / "data" / "patients"
    for part in ("train", "test"):
        grouped(root / part)
    for path in (root / "test").rglob("*.png"):  # other pictures than those of training
        Image.open(path).rotate(90).save(path)
    for i in range(4):
        known = Image.open(root / "train" / "ill" / f"patient{i}_{5 * i}.png")
        known.resize((40, 40)).save(root / "test" / "ill" / f"near{i}.png")
        known.save(root / "test" / "ill" / f"same{i}.png")
    found = api.get("/api/v1/datasets/copies", params={"suite": f"folder:{root}"})
    assert found.status_code == 200, found.text
    answer = json.loads(CliRunner().invoke(data.app, ["inspect", str(root), "--json"]).stdout)
    theirs = {o["set"]: o for o in answer["overlaps"]}["test"]
    (own,) = [c for c in found.json()["copies"] if (c["name"], c["other"]) == ("test", "train")]
    assert (own["exact"], own["near"]) == (len(theirs["exact"]), len(theirs["near"])) == (4, 4)
    assert own["sentence"] == f"{theirs['sentence']}."
    assert "8 of 608 test images are copies of train images (4 equal, 4 nearly)" in own["sentence"]
    assert found.json()["looked_at"] == {n: one["images"] for n, one in answer["sets"].items()}

    torn = root / "train" / "well" / "patient0_0.png"
    torn.write_bytes(torn.read_bytes()[:90])
    found = api.get("/api/v1/datasets/copies", params={"suite": f"folder:{root}"}).json()
    assert found["n_unreadable"] == 1
    assert "patient0_0.png" in found["unreadable"][0]


def test_copies__nothing_outside_the_folders_and_no_more_than_somebody_can_wait_for(
    api, tmp_path, monkeypatch
):
    write(tmp_path / "secret", ("a", "b"), 3)
    write(tmp_path / "data" / "birds", ("a", "b"), 30)

    def asked(path):
        answer = api.get("/api/v1/datasets/copies", params={"suite": f"folder:{path}"})
        return answer.status_code, answer.text

    status, words = asked(tmp_path / "secret")
    assert (status, "CALIFT_DATA_ROOTS" in words) == (422, True)
    status, words = asked(tmp_path / "data" / "gone")
    assert (status, "no folder" in words) == (422, True)
    monkeypatch.setattr("backend.services.scanning.MOST_LOOKED_AT", 50)
    status, words = asked(tmp_path / "data" / "birds")
    assert (status, "at most 50 are looked at" in words) == (422, True)
