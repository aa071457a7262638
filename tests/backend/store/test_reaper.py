"""What a vanished worker or a lost message left is put right."""

import time

import pytest

from backend.store.engine import seconds_now
from tests.backend.store.helpers import WORKER, age_queue, claimed, expire, send_all
from tests.conftest import spec_of


def test_sweep__leaves_a_live_lease(store):
    claim = claimed(store)
    assert store.reaper.sweep() == []
    assert store.runs.get(claim.run_id).phase == "STARTING"


def test_sweep__queues_again_until_the_attempts_are_spent(store):
    run_id = store.runs.submit(spec_of(), max_attempts=2)
    for attempt, action in ((1, "requeued"), (2, "failed")):
        for row in store.outbox.unsent():
            store.outbox.mark_sent(row.id)
        assert store.claims.claim(run_id, **WORKER) is not None
        expire(store, run_id)
        assert [(s.attempt, s.action) for s in store.reaper.sweep()] == [(attempt, action)]
        assert bool(store.outbox.unsent()) is (action == "requeued")
    run = store.runs.get(run_id)
    assert (run.phase, run.reason) == ("FAILED", "WORKER_LOST")
    assert run.message
    assert run.hint
    assert store.reaper.sweep() == []


def test_sweep__cancelled_run_of_a_lost_worker_ends_cancelled(store):
    claim = claimed(store)
    assert store.runs.request_cancel(claim.run_id).phase == "CANCELLING"
    expire(store, claim.run_id)
    assert [s.action for s in store.reaper.sweep()] == ["cancelled"]
    assert store.runs.get(claim.run_id).phase == "CANCELLED"


def test_sweep__heartbeat_in_time_saves_the_lease(store):
    claim = claimed(store)
    expire(store, claim.run_id)
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).held
    assert store.reaper.sweep() == []


def test_sweep__heartbeat_after_the_reaper_looked_saves_the_lease(store):
    claim = claimed(store)
    expire(store, claim.run_id)
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).held
    # What `sweep` does with a run that it had found expired a moment before.
    assert store.reaper._expire(claim.run_id, 1) is None
    assert store.runs.get(claim.run_id).phase == "STARTING"


@pytest.mark.parametrize("hours", [-2, 2])
def test_lease__is_by_the_databases_clock_whatever_that_of_the_worker_says(
    store, monkeypatch, hours
):
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 3600 * hours)
    claim = claimed(store)
    assert store.claims.heartbeat(claim.run_id, 1, ttl_s=60).held
    with store.engine.connect() as connection:
        ends = connection.exec_driver_sql("SELECT lease_expires FROM runs").scalar_one()
    assert 0 < ends - seconds_now(store.engine) <= 60
    assert store.reaper.sweep() == []
    expire(store, claim.run_id)
    assert [s.action for s in store.reaper.sweep()] == ["requeued"]


def test_sweep__sends_again_for_a_forgotten_run_while_a_worker_is_idle(store):
    run_id = store.runs.submit(spec_of())
    for row in store.outbox.unsent():
        store.outbox.mark_sent(row.id)
    store.workers.seen("w", host="h", queues=["cpu"], device="cpu")
    assert store.reaper.sweep() == []
    age_queue(store, 130)
    assert [s.action for s in store.reaper.sweep()] == ["redispatched"]
    assert [row.run_id for row in store.outbox.unsent()] == [run_id]
    assert store.reaper.sweep() == []


def test_sweep__sends_for_nobody_who_could_not_come(store):
    gpu = store.runs.submit(spec_of(train={"device": "cuda"}))
    apple = store.runs.submit(spec_of(train={"device": "mps"}))
    send_all(store)
    store.workers.seen("idle", host="h", queues=["cpu"], device="cpu")
    store.workers.seen("busy", host="h", queues=["gpu", "cpu"], device="cuda", run_id="other")
    store.workers.seen("out", host="h", queues=["gpu", "mps"], device="cuda", trouble="no room")
    age_queue(store, 100_000)
    assert store.reaper.sweep() == []
    store.workers.seen("free", host="h", queues=["gpu", "cpu"], device="cuda")
    assert [(s.run_id, s.action) for s in store.reaper.sweep()] == [(gpu, "redispatched")]
    store.workers.seen("mac", host="m", queues=["mps", "cpu"], device="mps")
    assert [(s.run_id, s.action) for s in store.reaper.sweep()] == [(apple, "redispatched")]


def test_sweep__one_message_for_each_idle_worker_is_enough(store):
    runs = [store.runs.submit(spec_of()) for _ in range(20)]
    send_all(store)
    for name in ("a", "b"):
        store.workers.seen(name, host="h", queues=["cpu"], device="cpu")
    age_queue(store, 130)
    # The messages were lost; however many look, two wake the two.
    assert [s.run_id for _ in range(5) for s in store.reaper.sweep()] == runs[:2]
    send_all(store)
    assert store.reaper.sweep() == []
