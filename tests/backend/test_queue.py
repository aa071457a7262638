"""Messages, with a real broker: they may be lost, and no run is."""

import threading
from contextlib import suppress

import pytest
from kombu.exceptions import OperationalError

from backend.dispatch.housekeeper import Housekeeper
from backend.dispatch.queue import broker_answers, make_celery, publish, relay_once
from backend.storage.artifacts import ArtifactStore
from backend.store.engine import open_engine
from backend.store.reaper import LeaseReaper
from backend.store.stores import Stores
from tests.conftest import spec_of, until
from tests.support.parts import running_broker

pytestmark = pytest.mark.service


@pytest.fixture
def broker():
    with running_broker() as made:
        yield made


@pytest.fixture
def parts(broker, store, make_settings):
    settings = make_settings(broker_url=broker.url, relay_s=0.05, sweep_s=0.05)
    return settings, make_celery(settings), ArtifactStore(settings.artifacts_dir)


def test_relay__sends_one_message_for_each_run_in_order_of_priority(broker, store, parts):
    _, celery, _ = parts
    low = store.runs.submit(spec_of(), priority=-10)
    high = store.runs.submit(spec_of(train={"device": "cuda"}), priority=10)
    middle = store.runs.submit(spec_of())
    assert relay_once(store.outbox, celery) == 3
    assert relay_once(store.outbox, celery) == 0
    assert broker.messages() == [("gpu", high), ("cpu", middle), ("cpu", low)]


def test_relay__of_several_one_sends_for_each_run(broker, database_url, parts):
    settings, celery, artifacts = parts
    store = Stores.on(open_engine(database_url))
    for _ in range(200):
        store.runs.submit(spec_of())
    stores = [Stores.on(open_engine(database_url)) for _ in range(5)]
    keepers = [Housekeeper(s.engine, celery, artifacts, settings) for s in stores]
    try:
        for keeper in keepers:
            keeper.start()
        until(lambda: not store.outbox.unsent(), timeout_s=60, what="all to be sent for")
    finally:
        for keeper in keepers:
            keeper.stop()
        for one in [store, *stores]:
            one.close()
    sent = [run_id for _, run_id in broker.messages()]
    assert len(set(sent)) == 200
    assert len(sent) == 200, "messages for 200 runs"


def test_relay__broker_away_keeps_the_run_and_sends_later(broker, store, parts):
    settings, celery, artifacts = parts
    assert broker_answers(celery)
    broker.kill()
    assert not broker_answers(celery)
    run_id = store.runs.submit(spec_of())
    with pytest.raises(OperationalError):
        relay_once(store.outbox, celery)
    with pytest.raises(OperationalError):
        publish(celery, run_id)
    assert [row.run_id for row in store.outbox.unsent()] == [run_id]
    keeper = Housekeeper(store.engine, celery, artifacts, settings)
    keeper.start()
    try:
        broker.start()
        until(lambda: not store.outbox.unsent(), what="the relay to send")
        assert broker.messages() == [("cpu", run_id)]
    finally:
        keeper.stop()


def test_housekeeper__sends_again_after_the_broker_lost_everything(broker, store, parts):
    settings, celery, artifacts = parts
    settings = settings.model_copy(update={"redispatch_s": 0.2})
    store.workers.seen("w", host="h", queues=["cpu"], device="cpu")
    keeper = Housekeeper(store.engine, celery, artifacts, settings)
    keeper.start()
    try:
        run_id = store.runs.submit(spec_of())
        keeper.wake()
        until(broker.messages, what="the first message")
        with broker.connection() as connection:
            connection.flushall()
        until(broker.messages, what="the message to come again")
        assert {found for _, found in broker.messages()} == {run_id}
    finally:
        keeper.stop()


def test_housekeeper__outlives_a_database_that_fails(broker, store, parts, monkeypatch):
    settings, celery, artifacts = parts
    failed = threading.Event()
    sweep = LeaseReaper.sweep

    def broken(*_, **__):
        failed.set()
        raise OSError("the disk is gone")

    monkeypatch.setattr(LeaseReaper, "sweep", broken)
    keeper = Housekeeper(store.engine, celery, artifacts, settings)
    keeper.start()
    try:
        assert failed.wait(10)
        monkeypatch.setattr(LeaseReaper, "sweep", sweep)
        store.runs.submit(spec_of())
        until(broker.messages, what="the relay to work all the same")
    finally:
        keeper.stop()


def test_publish__takes_a_run_id_and_nothing_that_could_be_unpickled(broker, parts):
    _, celery, _ = parts
    publish(celery, "abc", queue="mps", priority=0)
    assert broker.messages() == [("mps", "abc")]
    assert celery.conf.accept_content == ["json"]
    assert celery.conf.task_acks_late is False
    assert celery.conf.worker_enable_remote_control is False
    with suppress(AttributeError):
        assert celery.conf.result_backend is None
