"""Doors that were open: what a stranger, a slip of the keyboard or a broken part may ask for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from backend.__main__ import main
from tests.backend.test_api import problem, submit


@pytest.fixture
def settings(make_settings: Any, database_url: str) -> Any:
    """Both kinds of database."""
    return make_settings(database_url=database_url)


@pytest.fixture
def services(app: Any) -> Any:
    return app.state.services


def test_transfer__of_a_run_without_evaluations_is_404(api: TestClient) -> None:
    run_id = submit(api)["id"]
    found = problem(api.get(f"/api/v1/runs/{run_id}/calibrators/transfer"), 404, "NOT_FOUND")
    assert "QUEUED" in found.detail


def test_budget__against_other_data_is_422(
    api: TestClient, services: Any, finished_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.conftest as fixtures

    run_id = finished_run(services.store, services.artifacts)
    ours = api.get(f"/api/v1/runs/{run_id}/evaluations").json()[0]["id"]
    made = fixtures.example_predictions

    def others(seed: int = 0, **metadata: Any) -> Any:
        found = made(seed, **metadata)
        found.ids[:] = [f"other {i}" for i in range(len(found.ids))]
        return found

    monkeypatch.setattr(fixtures, "example_predictions", others)
    elsewhere = finished_run(services.store, services.artifacts)
    theirs = api.get(f"/api/v1/runs/{elsewhere}/evaluations").json()[0]["id"]
    response = api.get(
        f"/api/v1/evaluations/{ours}/budget", params={"difference": 0.01, "against": theirs}
    )
    found = problem(response, 422, "NOT_PAIRED")
    assert "no common id" in found.detail
    assert "same data set" in found.hint


@pytest.mark.parametrize("days", ["nan", "inf", "-inf", "-1", "0", "1e300"])
def test_token__days_must_be_positive_and_finite(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, days: str
) -> None:
    argv = ["backend", "token", "add", "ann", f"--days={days}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert main() == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "days" in told.err
    monkeypatch.setattr(sys, "argv", ["backend", "token", "list"])
    assert main() == 0
    assert capsys.readouterr().out == ""
