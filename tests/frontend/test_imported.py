"""Every page with an imported run: what is missing is said, and nothing breaks."""

import re

import numpy as np
import pytest

from tests.conftest import example_predictions
from tests.frontend.conftest import Service, pointed_at, service
from tests.frontend.driving import TABS, charts_of, listed, page, words


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """An API with two imported models of the same samples, the first on a shift too."""
    from calift_core.client import Client

    folder = tmp_path_factory.mktemp("imported")
    ids = {}
    with service(folder / "home") as made:
        token = (made.home / "token").read_text().strip()
        with Client(made.url, token) as client:
            for seed, name in enumerate(("first", "second")):
                given = example_predictions(0, n=200)
                noise = np.random.default_rng(seed).normal(size=given.logits.shape) * seed
                file = folder / f"{name}.npz"
                np.savez(
                    file, labels=given.labels, logits=(given.logits + noise).astype(np.float32)
                )
                ids[name] = client.import_predictions(file, dataset="theirs").id
            given = example_predictions(5, n=200)
            np.savez(folder / "x.npz", labels=given.labels, probs=given.probs())
            client.import_predictions(
                folder / "x.npz", dataset="sketch", role="shift", run=ids["first"]
            )
        yield Service(made.url, made.home, ids)


@pytest.fixture
def dashboard(imported, monkeypatch):
    with pointed_at(monkeypatch, imported.url, imported.home):
        yield imported


@pytest.mark.parametrize(
    "tab",
    [
        pytest.param(tab, marks=pytest.mark.thorough) if tab in ("Artifacts", "Logs") else tab
        for tab in TABS
    ],
)
def test_run__each_tab_of_an_imported_run(dashboard, tab):
    app = page("run", id=dashboard.ids["first"], tab=tab)
    output = words(app)
    assert not app.error
    assert "imported on theirs" in output
    assert "seed" not in output or tab == "Config"
    assert "Clone" not in [button.label for button in app.button]
    expected = {"Shifts": 1, "Calibration": 2}
    drawn = len(charts_of(app))
    assert drawn == expected.get(tab, 0)
    missing = {"Curves": "made elsewhere", "Spectrum": "needs the model's features"}
    assert missing.get(tab, "") in output.replace("&#x27;", "'")


def test_lists__show_imported_runs_and_nothing_of_their_files_is_left(dashboard):
    app = page("overview")
    assert not app.error
    assert "imported" in words(app)
    assert list((dashboard.home / "uploads").iterdir()) == []
    assert len(listed(page("runs", method="imported"))) == 2
    assert "No run matches" in words(page("runs", method="carot"))


@pytest.mark.parametrize("name", ["calibration", "shifts", "frontier", "spectra"])
def test_pages__draw_an_imported_run(dashboard, name):
    app = page(name, run=dashboard.ids["first"])
    assert not app.error
    assert len(words(app)) > 100


def test_compare__pairs_imported_runs_by_their_samples(dashboard):
    ids = dashboard.ids
    app = page("compare", ids=f"{ids['first']},{ids['second']}", baseline=ids["first"])
    assert not app.error
    assert any("difference to first" in alt for alt in charts_of(app))
    assert "how they were made is not known" in words(app)
    assert "same settings" not in words(app)


@pytest.mark.parametrize(
    ("name", "query", "missing"),
    [
        ("calibration", {"view": "calibrators"}, "--role calibration"),
        ("decide", {}, "--role calibration"),
        ("spectra", {}, "predictions were imported"),
        ("calibration", {"view": "prompts"}, "imported ones have none"),
    ],
)
def test_pages__what_was_not_imported_is_reported_and_is_no_fault(dashboard, name, query, missing):
    app = page(name, run=dashboard.ids["first"], **query)
    assert not app.error
    assert missing in words(app)


@pytest.mark.parametrize("name", ["clone", "input"])
def test_new__an_imported_run_cannot_be_run_again(dashboard, name):
    app = page("new", **{name: dashboard.ids["first"]})
    assert not app.error
    assert "Nothing to run again" in words(app)
    assert app.selectbox(key="url-preset")


def test_sample__without_an_image_says_so_and_asks_for_none(dashboard):
    from calift_core.client import Client

    with Client() as client:
        (own,) = (e for e in client.run_evaluations(dashboard.ids["second"]))
        sample = client.samples(own.id, limit=1).items[0]
    output = words(page("sample", evaluation=own.id, sample=sample.id))
    assert "No image" in output
    assert re.search(r"No image<.strong>\w.{20,}", output), output[:400]
    assert '<img class="calift-picture"' not in output
