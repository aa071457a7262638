"""Outbox messages: each run that waits has one, and one relay sends it."""

from sqlalchemy import text

from backend.store.engine import writing
from tests.backend.store.helpers import everything
from tests.conftest import spec_of


def test_outbox__forgets_runs_that_wait_no_more(store):
    run_id = store.runs.submit(spec_of())
    store.runs.request_cancel(run_id)
    assert store.outbox.unsent() == []
    store.reaper.sweep()
    assert everything(store)["outbox"] == []


def test_outbox__urgent_first_and_devices_have_their_queues(store):
    low = store.runs.submit(spec_of(), priority=-1)
    gpu = store.runs.submit(spec_of(train={"device": "cuda"}), priority=5)
    cpu = store.runs.submit(spec_of(train={"device": "cpu"}))
    assert [(row.run_id, row.queue) for row in store.outbox.unsent()] == [
        (gpu, "gpu"),
        (cpu, "cpu"),
        (low, "cpu"),
    ]
    store.workers.seen("w", host="h", queues=["gpu", "cpu"], device="a GPU")
    assert [row.queue for row in store.outbox.unsent()] == ["gpu", "cpu", "gpu"]
    assert [row.run_id for row in store.outbox.unsent(limit=1)] == [gpu]


def test_outbox__one_relay_holds_what_it_sends_and_a_dead_one_loses_it(store):
    runs = [store.runs.submit(spec_of()) for _ in range(3)]
    held = store.outbox.take(2)
    assert [row.run_id for row in held] == runs[:2]
    (rest,) = store.outbox.take()
    assert rest.run_id == runs[2]
    assert store.outbox.take() == []
    store.outbox.mark_sent(held[0].id)
    store.outbox.give_back([held[0].id, rest.id])  # the broker went away
    assert [row.run_id for row in store.outbox.take()] == [runs[2]]
    with writing(store.engine) as connection:  # the relay died, and a minute went by
        connection.execute(text("UPDATE outbox SET held_until = held_until - 61"))
    assert [row.run_id for row in store.outbox.take()] == runs[1:]
