"""The script that takes the documentation's pictures refuses a page that is not fit to be shown."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Dashboard

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    path = ROOT / "docs" / "pictures.py"
    spec = importlib.util.spec_from_file_location("docs_pictures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cookies(pictures: ModuleType, chromium: Any, dashboard: Dashboard) -> Any:
    return pictures.log_in(chromium, dashboard.link())


@pytest.fixture
def shoot(
    pictures: ModuleType,
    chromium: Any,
    dashboard: Dashboard,
    cookies: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    monkeypatch.setattr(pictures, "PATIENCE_MS", 30_000)

    def shoot_it(
        *args: Any, width: int = 1440, prepare: str = "", says: Any = (), **more: Any
    ) -> bytes:
        shot = pictures.Shot(*args, **more)
        if prepare:
            monkeypatch.setattr(pictures, "_settle", _and_then(pictures._settle, prepare))
        return bytes(
            pictures.take(
                chromium,
                dashboard.url,
                shot,
                dashboard.service.ids,
                width,
                cookies=cookies,
                says=says,
            )
        )

    return shoot_it


def _and_then(settle: Any, script: str) -> Any:
    def both(tab: Any, shot: Any) -> None:
        settle(tab, shot)
        tab.evaluate(script)

    return both


def test_pictures__of_good_pages_are_taken(shoot: Any) -> None:
    for width in (1440, 390):
        shoot("overview", "overview", "Overview", {}, width=width)
    named = "run", "run", "CaRot on fashion-mnist", {"id": "{CaRot}"}
    picture = shoot(*named, charts=1)
    assert picture.startswith(b"\x89PNG")
    size = [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)]
    assert size[0] == 1440
    assert size[1] > 900


@pytest.mark.parametrize(
    ("path", "query", "fault"),
    [
        ("nowhere", {}, "a dialog: .*Page not found"),
        ("run", {"id": "000000000000"}, "an error: .*Could not load the run"),
        ("compare", {"ids": "{CaRot}"}, "an empty state: One run is chosen"),
        ("runs", {}, "its heading is 'Runs' instead of 'Overview'"),
    ],
)
def test_pictures__of_a_bad_page_are_refused(
    pictures: ModuleType, shoot: Any, path: str, query: dict[str, str], fault: str
) -> None:
    with pytest.raises(pictures.PictureError, match=fault):
        shoot("bad", path, "Overview", query)


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("() => console.error('something is amiss')", "the console says: something is amiss"),
        ("() => { setTimeout(() => { throw new Error('lost') }) }", "a script failed: lost"),
        ("() => fetch('/media/none.bin')", "answered 404"),
        (
            "() => { const d = document.createElement('dialog'); d.setAttribute('role', 'dialog');"
            " d.setAttribute('open', ''); d.textContent = 'Connection error';"
            " document.body.append(d) }",
            "a dialog: Connection error",
        ),
        (
            "() => { document.querySelector('[data-testid=stMainBlockContainer]').style.minWidth"
            " = '2000px' }",
            "px too wide",
        ),
    ],
)
def test_pictures__of_a_page_that_went_wrong_are_refused(
    pictures: ModuleType, shoot: Any, script: str, fault: str
) -> None:
    with pytest.raises(pictures.PictureError, match=fault):
        shoot("overview", "overview", "Overview", {}, prepare=script)


def test_pictures__of_a_chart_that_is_missing_are_refused(pictures: ModuleType, shoot: Any) -> None:
    pictures.PATIENCE_MS = 5_000
    with pytest.raises(pictures.PictureError, match="it has 0 charts, and at least 1"):
        shoot("data", "data", "Data and models", {}, charts=1)


def test_pictures__of_a_page_without_the_apis_numbers_are_refused(
    pictures: ModuleType, shoot: Any, dashboard: Dashboard
) -> None:
    from calift_core.client import Client

    with Client(dashboard.service.url, dashboard.admin_token) as client:
        summary = client.run(dashboard.service.ids["CaRot"]).summary
    assert summary is not None
    assert summary.id_accuracy is not None
    right = f"{100 * summary.id_accuracy:.1f} %"
    named = "run", "run", "CaRot on fashion-mnist", {"id": "{CaRot}"}
    with pytest.raises(pictures.PictureError, match="does not say '100.1 %'") as refused:
        shoot(*named, says=[right, "100.1 %"])
    assert right not in str(refused.value)
