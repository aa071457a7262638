"""The script that takes the documentation's pictures refuses a page that is not fit to be shown."""

import importlib.util
import sys
from typing import Any

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pictures():
    path = ROOT / "docs" / "pictures.py"
    spec = importlib.util.spec_from_file_location("docs_pictures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cookies(pictures, chromium, dashboard):
    return pictures.log_in(chromium, dashboard.link())


@pytest.fixture
def shoot(pictures, chromium, dashboard, cookies, monkeypatch):
    monkeypatch.setattr(pictures, "PATIENCE_MS", 30_000)
    monkeypatch.setattr(pictures, "_PAUSE_MS", 100)

    def shoot_it(*args, width=1440, prepare="", says=(), **more):
        shot = pictures.Shot(*args, **more)
        if prepare:
            monkeypatch.setattr(pictures, "_settle", _and_then(pictures._settle, prepare))
        at = (dashboard.url, shot, dashboard.service.ids, width)
        return bytes(pictures.take(chromium, *at, cookies=cookies, says=says))

    return shoot_it


def _and_then(settle: Any, script: str) -> Any:
    def both(tab: Any, shot: Any) -> None:
        settle(tab, shot)
        tab.evaluate(script)

    return both


def test_pictures__of_good_pages_are_taken(shoot):
    shoot("overview", "overview", "Overview", {}, width=390)
    named = "run", "run", "CaRot on fashion-mnist", {"id": "{CaRot}"}
    picture = shoot(*named, charts=1)
    assert picture.startswith(b"\x89PNG")
    size = [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)]
    assert size[0] == 1440
    assert size[1] > 900


@pytest.mark.parametrize(
    ("path", "query", "fault"),
    [
        ("run", {"id": "000000000000"}, "an error: .*Could not load the run"),
        ("compare", {"ids": "{CaRot}"}, "an empty state: One run is chosen"),
    ],
)
def test_pictures__of_a_bad_page_are_refused(pictures, shoot, path, query, fault):
    with pytest.raises(pictures.PictureError, match=fault):
        shoot("bad", path, "Overview", query)


def test_pictures__of_a_page_that_went_wrong_are_refused_with_all_that_is_wrong(pictures, shoot):
    script = """async () => {
      console.error('something is amiss');
      setTimeout(() => { throw new Error('lost') });
      const dialog = document.createElement('dialog');
      dialog.setAttribute('role', 'dialog');
      dialog.setAttribute('open', '');
      dialog.textContent = 'Connection error';
      document.body.append(dialog);
      document.querySelector('[data-testid=stMainBlockContainer]').style.minWidth = '2000px';
      await fetch('/media/none.bin');
    }"""
    with pytest.raises(pictures.PictureError) as refused:
        shoot("overview", "overview", "Overview", {}, prepare=script)
    _, *faults = str(refused.value).split("\n  - ")
    for fault in (
        "the console says: something is amiss",
        "a script failed: lost",
        "answered 404",
        "a dialog: Connection error",
        "px too wide",
    ):
        assert [one for one in faults if fault in one], fault


def test_pictures__of_another_page_and_of_a_chart_that_is_missing_are_refused(pictures, shoot):
    pictures.PATIENCE_MS = 3_000
    with pytest.raises(pictures.PictureError) as refused:
        shoot("bad", "runs", "Overview", {}, charts=1)
    for fault in ("its heading is 'Runs' instead of 'Overview'", "it has 0 charts, and at least 1"):
        assert fault in str(refused.value)


def test_pictures__of_a_page_without_the_apis_numbers_are_refused(pictures, shoot, dashboard):
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
