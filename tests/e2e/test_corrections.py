"""Likely label errors are corrected in a browser, and what comes out is a suite."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from calift_core.data.suites.load import load_suite
from calift_core.schema.suite import SuiteSpec
from tests.conftest import example_predictions, until
from tests.e2e.conftest import Dashboard, serving_dashboard, settle
from tests.frontend.conftest import service

pytestmark = pytest.mark.browser
CLASSES = ("a_cat", "a_dog", "a_hen")


@dataclass(frozen=True)
class Doubted:
    """Images that two runs surely contradict."""

    dashboard: Dashboard
    tree: Path
    evaluation: str
    run: str
    samples: tuple[str, ...]


@pytest.fixture
def doubted(tmp_path, finished_run):
    with doubtful(tmp_path, finished_run) as made:
        yield made


@contextmanager
def doubtful(folder, finished_run, *, tree="pets", classes=CLASSES, **spec):
    """Two runs on class folders; both say the next class of the first image of each class.

    Args:
        folder: holds the data, in a folder of its own, and the home.
        finished_run: makes a run.
        tree: name of the data's folder.
        classes: three names.
        **spec: of the runs.
    """
    tmp_path, root = folder, folder / "data"
    place = root / tree
    for part in ("train", "validation", "calibration", "test"):
        for name in classes:
            (place / part / name).mkdir(parents=True)
            for at in range(20):
                Image.new("RGB", (8, 8)).save(place / part / name / f"{at}.png")
    test = load_suite(SuiteSpec(id=f"folder:{place}")).part("test")
    wrong = [int(np.flatnonzero(test.labels == k)[0]) for k in range(3)]

    def predict(*_):
        example = example_predictions(0, n=len(test), n_classes=3)
        logits = 3.0 * np.eye(3, dtype=np.float32)[test.labels]
        # The surest first, so that the list's order is known.
        logits[wrong] = np.array([[0, 9, 0], [0, 0, 8], [7, 0, 0]], np.float32)
        about = replace(example.metadata, class_names=tuple(c.replace("_", " ") for c in classes))
        return type(example)(
            ids=np.array(test.ids), labels=test.labels, logits=logits, metadata=about
        )

    with service(tmp_path / "home", data_roots=(root,)) as api:
        from backend.settings import Settings
        from backend.storage.artifacts import ArtifactStore
        from backend.store.engine import open_engine
        from backend.store.stores import Stores

        settings = Settings(home=api.home, broker_url="memory://")
        store = Stores.on(open_engine(settings.database_url))
        runs = [
            finished_run(
                store, ArtifactStore(settings.artifacts_dir), datasets=(("id", "id"),),
                predict=predict, suite={"id": f"folder:{place}"}, seed=seed, **spec,
            )
            for seed in (0, 1)
        ]  # fmt: skip
        (evaluation,) = store.results.run_evaluations(runs[0])
        store.close()
        with serving_dashboard(api, tmp_path) as dashboard:
            samples = tuple(str(test.ids[at]) for at in wrong)
            yield Doubted(dashboard, place, evaluation.id, runs[0], samples)


def ticked(tab: Any, table: Any, row: int) -> bool:
    """Tick a row, the first is 1; a table that moves meanwhile may not get the click."""
    from playwright.sync_api import TimeoutError as Late

    box = table.locator("canvas").first.bounding_box()
    tab.mouse.click(box["x"] + 30, box["y"] + box["height"] / 4 * (row + 0.5))
    tab.keyboard.press("Space")
    button = tab.get_by_role("button", name=f"Make the corrected manifest ({row})")
    try:
        button.wait_for(timeout=10_000)
    except Late:
        return False
    return True


def test_corrections__are_ticked_and_come_out_as_a_manifest_that_is_a_suite(doubted, stranger):
    tab = stranger
    shown = urlencode({"evaluation": doubted.evaluation})
    place = "/calibration?" + urlencode({"run": doubted.run, "images": shown})
    tab.goto(doubted.dashboard.link(place))
    tab.get_by_role("button", name="3 likely label errors in all").click()
    tab.get_by_role("heading", name="Correct labels").wait_for()
    tab.get_by_text("Nothing is ticked yet.").wait_for()
    settle(tab)
    table = tab.locator(f".st-key-corrections-{doubted.evaluation}")
    table.locator("[role=row]", has_text=doubted.samples[0]).wait_for(state="attached")
    for sample in doubted.samples:
        assert sample in str(table.text_content())
    # The cells are painted: one is chosen by a click beside its box, and ticked by a key.
    table.scroll_into_view_if_needed()
    for row in (1, 2):
        until(lambda row=row: ticked(tab, table, row), timeout_s=120, what="a row to be ticked")
        settle(tab)
    with tab.expect_download() as waiting:
        tab.get_by_role("button", name="List of corrections, CSV").click()
    listed = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()
    assert listed == [
        "sample,label,suggested",
        f"{doubted.samples[0]},a cat,a dog",
        f"{doubted.samples[1]},a dog,a hen",
    ]
    tab.get_by_role("button", name="Make the corrected manifest (2)").click()
    kept = tab.get_by_role("button", name="Corrected manifest, CSV")
    kept.wait_for()
    settle(tab)
    assert tab.get_by_text("Labels changed: 2; images left out: 0.").is_visible()
    with tab.expect_download() as waiting:
        kept.click()
    waiting.value.save_as(doubted.tree / "corrected.csv")

    mended = load_suite(SuiteSpec(id=f"manifest:{doubted.tree / 'corrected.csv'}"))
    before = load_suite(SuiteSpec(id=f"folder:{doubted.tree}"))
    names = dict(zip(mended.part("test").ids, mended.part("test").labels, strict=True))
    for name, label in zip(before.part("test").ids, before.part("test").labels, strict=True):
        moved = name in doubted.samples[:2]
        assert mended.classes[names[name]] == before.classes[(label + moved) % 3]
