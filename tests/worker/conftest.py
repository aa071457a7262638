"""A real broker and real workers."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from backend.children.process import ManagedProcess
from backend.stack.broker import broker_argv, broker_pings
from tests.conftest import until
from tests.support.forked import Forked

#: What a worker imports until it takes its first run.
LOADED = ["worker.tasks", "celery.bin.worker", "celery.apps.worker", "celery.concurrency.thread",
          "celery.worker.consumer", "kombu.transport.redis"]  # fmt: skip


class Broker:
    """A Valkey server on a socket of its own, with an append-only file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "broker.sock"
        self.url = f"redis+socket://{self.socket}?virtual_host=0"
        self._child: ManagedProcess | None = None

    def start(self) -> None:
        self._child = ManagedProcess(
            broker_argv(self.socket, self.folder / "data"),
            output=self.folder / "broker.log",
            environment=os.environ,
        )
        until(lambda: broker_pings(self.socket), what="the broker to answer")

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.reap()
            self._child = None


@pytest.fixture
def broker():
    # Not under pytest's folder: a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="calift-b-"))
    made = Broker(folder)
    made.start()
    yield made
    made.kill()
    shutil.rmtree(folder)


class Worker:
    """A worker process: the real one, with the stand-in for a runner."""

    def __init__(self, child: Forked, output: Path) -> None:
        self._child = child
        self.output = output
        self.pid = child.pid

    def kill_hard(self) -> None:
        """SIGKILL to the worker alone, as the kernel would do."""
        os.kill(self.pid, signal.SIGKILL)
        until(self._child.ended, what="the worker to be gone")

    def drain(self) -> int:
        """SIGTERM, and the exit status."""
        self._child.terminate()
        assert self._child.wait(20), self.output.read_text()
        return self._child.reap()

    def ends(self) -> int:
        """Wait until it has ended by itself; its exit status."""
        assert self._child.wait(20), self.output.read_text()
        return self._child.reap()

    def end(self) -> None:
        self._child.reap()


@pytest.fixture
def start_worker(home, broker, tmp_path):
    """Start workers on a database; `limits` replaces times of the lease.

    `host` is the home of a worker on another machine, which shares nothing but the database, the
    broker and the artifacts. `real` gives it the real runner.
    """
    started = []

    def start(database_url, *, host=None, real=False, **limits):
        output = tmp_path / f"worker-{len(started)}.log"
        times = {"ttl_s": 3.0, "heartbeat_s": 0.3, "cancel_poll_s": 0.1, "group_s": 0.05}
        child = Forked(
            [
                str(Path(__file__).with_name("standin_worker.py")),
                json.dumps(times | limits),
                *(["real"] if real else []),
            ],
            output=output,
            environment=os.environ
            | {
                "CALIFT_HOME": str(host or home),
                "CALIFT_ARTIFACTS": str(home / "artifacts"),
                "CALIFT_DATABASE_URL": database_url,
                "CALIFT_BROKER_URL": broker.url,
                "CALIFT_SWEEP_S": "0.2",
                "CALIFT_RELAY_S": "0.1",
                "CALIFT_REDISPATCH_S": "1",
                "CALIFT_FREE_SPACE_FLOOR_BYTES": "0",
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            },
            loaded=LOADED,
        )
        started.append(Worker(child, output))
        return started[-1]

    yield start
    for worker in started:
        worker.end()
