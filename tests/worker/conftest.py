"""A real broker and real workers."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import until
from tests.support.forked import Forked
from tests.support.parts import environment_of, running_broker

#: What a worker imports until it takes its first run.
LOADED = ["worker.tasks", "celery.bin.worker", "celery.apps.worker", "celery.concurrency.thread",
          "celery.worker.consumer", "kombu.transport.redis"]  # fmt: skip


@pytest.fixture
def broker():
    with running_broker() as made:
        yield made


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
            environment=environment_of(
                host or home,
                artifacts=home / "artifacts",
                database_url=database_url,
                broker_url=broker.url,
            ),
            loaded=LOADED,
        )
        started.append(Worker(child, output))
        return started[-1]

    yield start
    for worker in started:
        worker.end()
