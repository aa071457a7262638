"""A seeded API that the dashboard's tests share; nothing here changes what is stored in it."""

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from filelock import FileLock
from streamlit.components.v2 import manifest_scanner

from calift_core.analysis import measures, slices
from calift_core.schema.wire.queries import SlicesQuery
from calift_core.schema.wire.results import (
    ComparedRun,
    Comparison,
    MeasureSet,
    PairedDifference,
    Source,
)
from calift_core.schema.wire.runs import RunSummary
from tests.conftest import serving
from tests.frontend import seed
from tests.frontend.examples import BINNING, DRAWS, RUNS, samples_of


@pytest.fixture(scope="session", autouse=True)
def scanned_once():
    """Each `AppTest` would read the metadata of all that is installed, half a second of it."""
    scan = functools.cache(manifest_scanner.scan_component_manifests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", scan)
        yield


@pytest.fixture(autouse=True)
def percent_signs_apart(monkeypatch):
    """No figure that a test makes, a page's included, prints a percent sign without a space.

    `$` in a format stands for the sign of `style.CONFIG`.
    """
    made, begin = [], go.Figure.__init__

    def remember(figure, *args, **more):
        begin(figure, *args, **more)
        made.append(figure)

    monkeypatch.setattr(go.Figure, "__init__", remember)
    yield
    close = re.compile(r'(?<!\$\.)\d%|%\{[^}$]*%\}|format": ?"[^"$]*%"')
    for figure in made:
        written = figure.to_json().replace("\\u00a0", " ")
        assert not (found := close.search(written)), written[max(0, found.start() - 80) :][:160]


@dataclass(frozen=True)
class Service:
    """A served API: its address, its home, and the ids of its runs by name."""

    url: str
    home: Path
    ids: dict[str, str]


def filled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with runs in every state, made once for all processes of the tests."""
    from backend.storage.artifacts import ArtifactStore
    from backend.store.engine import open_engine
    from backend.store.migrations import upgrade
    from backend.store.stores import Stores

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, making = root / "filled", root / "filling"
    with FileLock(root / "filled.lock"):
        if not folder.exists():
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            store = Stores.on(open_engine(f"sqlite:///{making / 'calift.db'}"))
            upgrade(store.engine)
            ids = seed.fill(store, ArtifactStore(making / "artifacts"))
            store.close()
            (making / "ids.json").write_text(json.dumps(ids))
            making.rename(folder)
    return folder


@contextmanager
def service(home: Path, *, filled: Path | None = None, **more: Any) -> Iterator[Service]:
    """Serve the API on a home of its own, which begins as a copy of `filled`."""
    from backend.main import create_app
    from backend.settings import Settings
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0, **more)
    ids = {}
    if filled is not None:
        shutil.copytree(filled, home)
        ids = json.loads((home / "ids.json").read_text())
        store = Stores.on(open_engine(settings.database_url))
        seed.report_in(store, ids["running"])
        store.close()
    settings.admin_token()
    with serving(create_app(settings, housekeeping=False)) as url:
        yield Service(url, home, ids)


@pytest.fixture(scope="session")
def seeded(tmp_path_factory):
    """An API with runs in every state."""
    home = tmp_path_factory.mktemp("seeded") / "home"
    with service(home, filled=filled_home(tmp_path_factory)) as made:
        yield made


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """An API in which nothing has run."""
    with service(tmp_path_factory.mktemp("bare")) as made:
        yield made


@contextmanager
def pointed_at(monkeypatch, url, home, *, visitor=""):
    """Let the dashboard in this process talk to an API, and forget what it knew of another.

    The visitor holds `visitor`, else the token of the home.
    """
    import streamlit as st

    for name in list(os.environ):
        if name.startswith("CALIFT_") and name != "CALIFT_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CALIFT_API_URL", url)
    monkeypatch.setenv("CALIFT_HOME", str(home))
    file = home / "token"
    # Pages that run in this process have no browser that could bring a cookie along.
    session = visitor or (file.read_text().strip() if file.exists() else "nobody.knows")
    monkeypatch.setattr("frontend.api.session_token", lambda: session)
    st.cache_data.clear()
    st.cache_resource.clear()
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def dashboard(seeded, monkeypatch):
    """The dashboard in this process, on the seeded API."""
    with pointed_at(monkeypatch, seeded.url, seeded.home):
        yield seeded


@pytest.fixture(scope="session")
def evaluations():
    found = []
    for dataset, role, harm, corruption, severity in seed.SETS:
        made = seed.predictions(seed.KINDS["FLYP"], dataset, role, n=120, harm=harm, seed=1)
        found.append(seed.evaluation_of(made, corruption, severity))
    return found


@pytest.fixture
def comparison():
    def column(run_id, differences):
        run = RunSummary.model_validate(
            {
                "id": run_id, "name": f"run {run_id}", "phase": "SUCCEEDED", "method": "flyp",
                "model": "m", "suite": "s", "seed": 0, "tags": [],
                "created_at": "2026-01-01T00:00:00Z",
            }
        )  # fmt: skip
        return ComparedRun(run=run, evaluations=[], differences=differences)

    def difference(dataset, role, value, clear):
        return PairedDifference.model_validate(
            {
                "dataset": dataset, "role": role, "metric": "accuracy", "baseline": 0.5,
                "value": 0.5 + value, "difference": value,
                "interval": (value - 0.01, value + 0.01), "distinguishable": clear, "n": 100,
            }
        )  # fmt: skip

    found = [difference("art", "shift", 0.005, False), difference("photo", "id", 0.05, True)]
    return Comparison(
        baseline="a", runs=[column("a", []), column("b", found)], parameters={"/train/seed": [0, 1]}
    )


@pytest.fixture(scope="session")
def pages():
    return [
        (
            run,
            slices.slice_page(
                samples_of(name), Source(dataset="sketch", role="shift"),
                SlicesQuery(sort="gap", min_n=55), BINNING, DRAWS,
            ),
        )
        for run, name in zip(RUNS, ("fine-tuning", "CaRot"), strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def sets():
    return [
        (
            run,
            MeasureSet(
                source=Source(dataset="sketch", role="shift"), n=600, n_classes=10,
                temperature=1.0, n_resamples=20, seed=0,
                measures=measures.audit_of(samples_of(name).scores, DRAWS),
            ),
        )
        for run, name in zip(RUNS, ("fine-tuning", "CaRot"), strict=True)
    ]  # fmt: skip
