"""Whole workers: Celery, broker, database and runner are real, and are killed."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.dispatch.queue import make_celery, publish, relay_once
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.stores import Stores
from tests.conftest import spec_of, until
from tests.support.disks import small_disk
from tests.worker.conftest import Worker
from tests.worker.test_supervisor import alive, processes

pytestmark = pytest.mark.service

Start = Callable[..., Worker]


def submit(store: Stores, **plan: Any) -> str:
    return store.runs.submit(spec_of(notes=json.dumps(plan)))


def ends(store: Stores, run_id: str, phase: str = "SUCCEEDED") -> None:
    until(lambda: store.claims.phase(run_id) == phase, what=f"{run_id} to be {phase}")


def steps(store: Stores, run_id: str) -> list[int]:
    return next((s.steps for s in store.history.metrics(run_id).series if s.name == "loss"), [])


def states(store: Stores, run_id: str) -> list[str]:
    events, *_ = store.history.events_after(run_id, 0)
    return [e.data["phase"] for e in events if e.kind == "state"]


def runner_of(home: Path, run_id: str) -> int:
    marks = [f"{home}/jobs/{run_id}/attempt-{n}" for n in range(1, 9)]
    found = [pid for pid, argv in processes() if set(marks) & set(argv)]
    assert len(found) == 1, found
    return found[0]


def test_worker__a_submitted_run_is_sent_claimed_and_finished_once_and_a_cancel_reaches_it(
    store, database_url, start_worker, broker, home, tmp_path
):
    worker = start_worker(database_url)
    first = submit(store)
    ends(store, first)
    app = make_celery(Settings(home=home, broker_url=broker.url))
    for _ in range(3):
        publish(app, first)  # duplicates, after the end
    second = submit(store)
    for _ in range(3):
        publish(app, second)  # and perhaps before the relay's own
    ends(store, second)
    third = submit(store)
    ends(store, third)
    for run_id in (first, second, third):
        assert states(store, run_id) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert [w.alive for w in store.workers.recent()] == [True]
    cancelled = submit(store, wait_at=7, wait_for=str(tmp_path / "never"))
    until(lambda: 7 in steps(store, cancelled), what="step 7")
    store.runs.request_cancel(cancelled)
    ends(store, cancelled, "CANCELLED")
    assert store.runs.get(cancelled).reason == "USER_CANCELLED"
    assert worker.drain() == 0
    assert store.workers.recent() == []


def freeze_between_writes(pid: int, store: Stores) -> None:
    """SIGSTOP, but not in the middle of a write: SQLite's lock would be held by nobody awake."""
    database = str(store.engine.url.database)
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            with contextlib.closing(sqlite3.connect(database, timeout=1.0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)


def test_worker__a_frozen_worker_that_wakes_up_is_fenced_off(
    sqlite_url, start_worker, home, tmp_path
):
    from backend.store.engine import open_engine

    store = Stores.on(open_engine(sqlite_url))
    gate = tmp_path / "gate"
    run_id = submit(store, wait_at=7, wait_for=str(gate))
    first = start_worker(sqlite_url)
    until(lambda: 7 in steps(store, run_id), what="step 7")
    runner = runner_of(home, run_id)
    freeze_between_writes(first.pid, store)
    try:
        start_worker(sqlite_url)
        until(lambda: store.runs.get(run_id).attempt == 2, timeout_s=120, what="a second attempt")
        until(lambda: store.claims.phase(run_id) == "RUNNING", what="the second attempt to run")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    until(lambda: not alive(runner), what="the first attempt's runner to be killed")
    gate.touch()
    ends(store, run_id)
    assert store.results.report(run_id)["data"] == {"attempt": 2}
    store.close()


def test_worker__sigterm_drains_and_the_next_worker_goes_on(
    store, database_url, start_worker, tmp_path
):
    gate = tmp_path / "gate"
    run_id = submit(store, wait_at=7, wait_for=str(gate))
    first = start_worker(database_url)
    until(lambda: 7 in steps(store, run_id), what="step 7")
    assert first.drain() == 0
    run = store.runs.get(run_id)
    assert (run.phase, run.reason) == ("QUEUED", "WORKER_DRAINED")
    gate.touch()
    start_worker(database_url)
    ends(store, run_id)
    resumed = [e.data for e in store.history.events_after(run_id, 0)[0] if e.kind == "resumed"]
    assert [d["step"] for d in resumed] == [7]
    assert steps(store, run_id) == list(range(1, 11))


def test_worker__what_an_attempt_finished_is_stored_though_its_worker_died(
    store, database_url, start_worker
):
    run_id = submit(store, ends=["with the worker", "badly"], steps=12)
    first = start_worker(database_url, group_s=30.0)  # hardly a record is stored before the end
    assert first.ends() != 0
    start_worker(database_url)
    ends(store, run_id)
    assert store.results.report(run_id)["data"] == {"attempt": 1}
    assert store.runs.get(run_id).attempt == 2
    log = store.history.logs(run_id).text
    assert "hello from attempt 2" not in log
    assert "attempt-1 had finished everything" in log
    assert steps(store, run_id) == list(range(1, 13))
    assert [s.final for s in store.history.spectra(run_id)] == [True]
    assert "done" in {e.kind for e in store.history.events_after(run_id, 0)[0]}


def test_worker__sigkill_takes_the_runner_along_and_another_host_goes_on_from_what_is_stored(
    store, database_url, start_worker, tmp_path, home
):
    gate = tmp_path / "gate"
    run_id = submit(store, wait_at=17, wait_for=str(gate), steps=20)
    hosts = [tmp_path / "host-1", tmp_path / "host-2"]
    first = start_worker(database_url, host=hosts[0], group_s=0.3)
    until(lambda: 17 in steps(store, run_id), what="step 17")
    kept = until(lambda: stored_steps(store, run_id, newest=15), what="the checkpoint to be stored")
    assert len(kept) <= 2  # the newest two that it had the time for
    runner = runner_of(hosts[0], run_id)
    first.kill_hard()
    until(lambda: not alive(runner), what="the runner to die with its worker")
    shutil.rmtree(hosts[0])  # that machine is gone
    gate.touch()
    start_worker(database_url, host=hosts[1])
    ends(store, run_id)
    resumed = [e.data for e in store.history.events_after(run_id, 0)[0] if e.kind == "resumed"]
    assert [d["step"] for d in resumed] == [15]
    assert states(store, run_id) == [
        "QUEUED", "STARTING", "RUNNING", "QUEUED", "STARTING", "RUNNING", "SUCCEEDED",
    ]  # fmt: skip
    assert store.runs.get(run_id).attempt == 2
    assert steps(store, run_id) == list(range(1, 21))
    # The first attempt has no say any more.
    assert store.records.append_log(run_id, 1, "too late") is False
    assert store.claims.finish(run_id, 1, phase="FAILED") is False
    assert store.claims.phase(run_id) == "SUCCEEDED"
    artifacts = ArtifactStore(home / "artifacts")
    curve = artifacts.verified(store.files.get(run_id, "metrics.jsonl").sha256).read_text()
    assert [json.loads(line)["step"] for line in curve.splitlines()] == list(range(1, 21))
    # Nobody goes on from a finished run.
    assert store.files.of_run(run_id, kind="state") == []
    artifacts.collect(store.files, grace_s=0.0)
    named = {a.sha256 for a in store.files.of_run(run_id)}
    assert {digest for digest, _ in artifacts.walk()} == named


def stored_steps(store: Stores, run_id: str, *, newest: int) -> list[int]:
    names = [a.name for a in store.files.of_run(run_id, kind="state")]
    found = sorted({int(name.split("/")[1]) for name in names if name.endswith("manifest.json")})
    return found if found[-1:] == [newest] else []


def test_worker__a_full_disk_takes_the_worker_out_fails_no_run_and_does_not_keep_it_up(
    store, database_url, start_worker, tmp_path
):
    with small_disk(tmp_path / "disk", mib=300) as disk:
        host = disk / "home"
        ballast = disk / "ballast"
        first = submit(store, ends=["by filling the disk", "well"], fill=str(ballast))
        small = start_worker(database_url, host=host)
        trouble = until(
            lambda: store.workers.recent() and store.workers.recent()[0].trouble, what="trouble"
        )
        assert "MiB are free" in trouble
        run = store.runs.get(first)
        assert (run.phase, run.reason) == ("QUEUED", "DISK_FULL")
        assert (run.storage_requeues, run.lost_attempts) == (1, 0)
        assert trouble in run.waiting
        others = [submit(store) for _ in range(4)]
        large = start_worker(database_url, host=tmp_path / "large")
        for run_id in (first, *others):
            ends(store, run_id)
        assert [store.runs.get(run_id).attempt for run_id in (first, *others)] == [2, 1, 1, 1, 1]
        workers = sorted(store.workers.recent(), key=lambda w: w.started_at)
        assert [bool(worker.trouble) for worker in workers] == [True, False]
        assert large.drain() == 0
        last = submit(store)
        assert "MiB are free" in store.runs.get(last).waiting
        ballast.unlink()
        ends(store, last)
        assert [w.trouble for w in store.workers.recent()] == [""]
        # Out once more, it claims nothing and can be stopped.
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while file.write(bytes(1 << 20)):
                file.flush()
        until(lambda: store.workers.recent()[0].trouble, what="trouble again")
        waiting = submit(store)
        assert small.drain() == 0
        assert store.runs.get(waiting).attempt == 0


def test_worker__a_broker_that_is_emptied_or_dies_and_returns_delays_and_loses_nothing(
    store, database_url, start_worker, broker, home, tmp_path
):
    waiting = [submit(store) for _ in range(3)]
    app = make_celery(Settings(home=home, broker_url=broker.url))
    assert relay_once(store.outbox, app) == 3
    with broker.connection() as connection:
        assert connection.llen("cpu") or connection.keys("cpu*")
        connection.flushall()
    assert store.outbox.unsent() == []  # as far as the database knows, all were sent
    start_worker(database_url)
    for run_id in waiting:
        ends(store, run_id)
    gate = tmp_path / "gate"
    working = submit(store, wait_at=7, wait_for=str(gate))
    until(lambda: 7 in steps(store, working), what="step 7")
    broker.kill()
    while_down = submit(store)
    gate.touch()
    ends(store, working)  # a run needs the database alone
    broker.start()
    ends(store, while_down)
    assert states(store, while_down)[-1] == "SUCCEEDED"
