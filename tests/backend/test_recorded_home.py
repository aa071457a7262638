"""A home that an earlier revision left is read as that one read it.

`tests/support/record_home.py` says what is in it and how it was made.
"""

import json
import tarfile
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.main import create_app
from backend.settings import Settings
from backend.store import migrations
from backend.store.engine import open_engine
from calift_core.schema.spec import load_spec, parse_spec
from tests.backend.test_migrations import require_models, tables
from tests.support.record_home import PACKED

#: What changes with time, or is a sentence for people.
PASSING = {"waiting", "cost", "sentence", "message", "hint"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    with tarfile.open(PACKED) as archive:
        archive.extractall(root, filter="data")
    (root / "home" / "token").chmod(0o600)
    return root


@pytest.fixture(scope="module")
def recorded(unpacked):
    return dict(json.loads((unpacked / "recorded.json").read_text()))


@pytest.fixture(scope="module")
def api(unpacked):
    home = unpacked / "home"
    app = create_app(Settings(home=home), housekeeping=False)
    token = (home / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    with TestClient(app, base_url="http://127.0.0.1", headers=headers) as client:
        yield client


def lost(then: Any, now: Any, place: str) -> list[str]:
    """Where today's answer lacks or changes what was answered then; more may be there."""
    if isinstance(then, dict) and isinstance(now, dict):
        kept = [name for name in then if name not in PASSING]
        return [one for k in kept for one in lost(then[k], now.get(k), f"{place}/{k}")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            one for i, pair in enumerate(zip(then, now, strict=True))
            for one in lost(*pair, f"{place}/{i}")
        ]  # fmt: skip
    if isinstance(then, float) and isinstance(now, float) and now == pytest.approx(then, rel=1e-9):
        return []
    return [] if then == now else [f"{place}: {then!r} then, {now!r} now"]


def test_recorded_home__runs_evaluations_and_sweeps_are_read_the_same(api, recorded):
    answers = recorded["answers"]
    assert {path.partition("/")[0] for path in answers} == {
        "runs", "evaluations", "evaluation-jobs", "sweeps",
    }  # fmt: skip
    found = []
    for path, then in answers.items():
        response = api.get(f"/api/v1/{path}")
        assert response.status_code == 200, (path, response.text)
        found += lost(then, response.json(), path)
    assert found == []


def test_recorded_home__its_tables_are_those_of_the_models(api, tmp_path):
    recorded = api.app.state.services.store.engine
    made = open_engine(f"sqlite:///{tmp_path / 'new.db'}")
    migrations.upgrade(made)
    assert tables(recorded) ^ tables(made) == set()
    require_models(recorded)
    made.dispose()


def test_recorded_home__a_spec_is_the_same_run(recorded):
    """So that checkpoints and folders are known as what they are."""
    for body, sha256 in recorded["specs"]:
        assert parse_spec(body).content_hash() == sha256, body["method"]


def test_recorded_home__a_stopped_run_has_a_checkpoint_to_go_on_from(unpacked):
    from calift_core.training.checkpoint import newest_state

    folder = unpacked / "local"
    sha256 = load_spec(folder / "spec.json").content_hash()
    state, problems = newest_state(folder / "checkpoint", spec_sha256=sha256)
    assert problems == []
    assert state.step == 4
