"""Parts of a service as real processes: a broker to be killed, and what each part is told."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from backend.children.process import ManagedProcess
from backend.dispatch.queue import QUEUES, TASK_NAME
from backend.stack.broker import broker_argv, broker_pings
from tests.conftest import until

ROOT = Path(__file__).resolve().parents[2]


def environment_of(home: Path, **settings: Any) -> dict[str, str]:
    """The environment of an API or a worker that looks for work often; settings by their names."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("CALIFT_")}
    quick = {"sweep_s": 0.2, "relay_s": 0.1, "redispatch_s": 1, "free_space_floor_bytes": 0}
    answer = {"home": home} | quick | settings
    own = {f"CALIFT_{name.upper()}": str(value) for name, value in answer.items()}
    return outside | own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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

    def connection(self) -> Any:
        """A connection to it."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def messages(self) -> list[tuple[str, str]]:
        """(queue, run id) of every message, as a worker would take them."""
        found = []
        with self.connection() as connection:
            for step in range(10):
                for queue in QUEUES:
                    key = f"{queue}:{step}" if step else queue
                    for raw in reversed(connection.lrange(key, 0, -1)):
                        message = json.loads(raw)
                        assert message["headers"]["task"] == TASK_NAME
                        found.append((queue, message["headers"]["argsrepr"].strip("['],()")))
        return found


@contextmanager
def running_broker() -> Iterator[Broker]:
    """A broker that is gone at the end; not under pytest's folder, for a socket's path is short."""
    with tempfile.TemporaryDirectory(prefix="calift-b-") as folder:
        made = Broker(Path(folder))
        made.start()
        yield made
        made.kill()
