"""A seeded API that the dashboard's tests share; nothing here changes what is stored in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import serving
from tests.frontend import seed


@dataclass(frozen=True)
class Service:
    """A served API: its address, its home, and the ids of its runs by name."""

    url: str
    home: Path
    ids: dict[str, str]


@contextmanager
def service(home: Path, *, filled: bool, **more: Any) -> Iterator[Service]:
    """Serve the API on a home of its own."""
    from backend.artifacts import ArtifactStore
    from backend.main import create_app
    from backend.migrations import upgrade
    from backend.settings import Settings
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    settings = Settings(home=home, broker_url="memory://", free_space_floor_bytes=0, **more)
    settings.admin_token()
    ids = {}
    if filled:
        store = Stores.on(open_engine(settings.database_url))
        upgrade(store.engine)
        ids = seed.fill(store, ArtifactStore(settings.artifacts_dir))
        store.close()
    with serving(create_app(settings, housekeeping=False)) as url:
        yield Service(url, home, ids)


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API with runs in every state."""
    with service(tmp_path_factory.mktemp("seeded"), filled=True) as made:
        yield made


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API in which nothing has run."""
    with service(tmp_path_factory.mktemp("bare"), filled=False) as made:
        yield made


@contextmanager
def pointed_at(
    monkeypatch: pytest.MonkeyPatch, url: str, home: Path, *, visitor: str = ""
) -> Iterator[None]:
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
def dashboard(seeded: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The dashboard in this process, on the seeded API."""
    with pointed_at(monkeypatch, seeded.url, seeded.home):
        yield seeded
