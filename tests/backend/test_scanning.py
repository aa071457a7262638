"""A look at somebody's data: right numbers, a few images, and nothing that it must not read."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from backend.main import create_app
from backend.settings import Settings


def write(root: Path, names: tuple[str, ...], n: int) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture
def api(tmp_path: Path, settings: Settings) -> Iterator[TestClient]:
    made = settings.model_copy(update={"data_roots": (tmp_path / "data",)})
    app = create_app(made, housekeeping=False)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.headers["Authorization"] = f"Bearer {made.admin_token()}"
        yield client


def scan(api: TestClient, suite: str) -> Any:
    return api.get("/api/v1/datasets/scan", params={"suite": suite})


def test_scan__counts_classes_and_shows_images(api: TestClient, tmp_path: Path) -> None:
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


def test_scan__an_image_that_cannot_be_read_is_named(api: TestClient, tmp_path: Path) -> None:
    root = tmp_path / "data" / "birds"
    write(root, ("heron", "owl"), 20)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    found = scan(api, f"folder:{root}").json()
    assert found["images"]
    for image in found["images"]:
        assert image["picture"] is None
        assert image["fault"]


def test_scan__reads_nothing_outside_the_registered_folders(
    api: TestClient, tmp_path: Path
) -> None:
    write(tmp_path / "secret", ("a", "b"), 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "secret", tmp_path / "data" / "link", tmp_path / "data/../secret"):
        answer = scan(api, f"folder:{path}")
        assert answer.status_code == 422, answer.text
        assert "CALIFT_DATA_ROOTS" in answer.json()["detail"]
    assert scan(api, "nothing-of-the-kind").status_code == 422
    too_long = scan(api, f"folder:{tmp_path / 'data' / ('x' * 300)}")
    assert too_long.status_code == 422
    assert "cannot be looked at" in too_long.json()["detail"]
    gone = scan(api, f"folder:{tmp_path / 'data' / 'gone'}").json()
    assert "no folder" in gone["problems"][0]


def test_scan__of_a_built_in_suite_downloads_nothing(api: TestClient) -> None:
    found = scan(api, "typefaces").json()
    assert found["n_classes"] > 10
    assert found["images"] == []
    assert scan(api, "cifar10").json()["problems"]
