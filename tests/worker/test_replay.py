"""What a runner measured and no database heard of, because the worker died first."""

import json

import pytest
from sqlalchemy import text

from backend.store.engine import writing
from tests.conftest import spec_of, until
from tests.worker.test_worker import steps

pytestmark = pytest.mark.service


def test_worker__points_that_the_database_never_heard_of_are_replayed_at_resume(
    store, database_url, start_worker, tmp_path, home
):
    gate = tmp_path / "gate"
    notes = json.dumps({"wait_at": 7, "wait_for": str(gate)})
    run_id = store.runs.submit(spec_of(notes=notes))
    first = start_worker(database_url, group_s=600.0)  # hardly a record is stored
    saved = home / "jobs" / run_id / "attempt-1" / "checkpoint" / "steps" / "00000005"
    until((saved / "manifest.json").exists, timeout_s=180, what="a checkpoint")
    first.kill_hard()
    with writing(store.engine) as connection:  # what the worker's first look may have stored
        connection.execute(text("DELETE FROM metrics WHERE run_id = :run"), {"run": run_id})
    assert steps(store, run_id) == []
    gate.touch()
    start_worker(database_url)
    until(
        lambda: store.claims.phase(run_id) == "SUCCEEDED", timeout_s=180, what="the run to succeed"
    )
    resumed = [e.data for e in store.history.events_after(run_id, 0)[0] if e.kind == "resumed"]
    assert [d["step"] for d in resumed] == [5]
    assert steps(store, run_id) == list(range(1, 11))
