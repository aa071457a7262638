"""A whole service of real processes: database, broker, API and workers, each to be killed alone."""

import contextlib
import heapq
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from backend.children.process import ManagedProcess
from backend.stack.broker import broker_argv, broker_pings
from backend.store import migrations
from backend.store.engine import open_engine
from tests.chaos.database import Database, Postgres, Sqlite, pids
from tests.conftest import free_port, until
from tests.support.parts import environment_of

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "chaos.0123456789abcdef0123456789abcdef"


class House:
    """The parts, their deaths and what is to be done to them later.

    Everything is started from one thread, for the kernel kills children with the thread that made
    them. The last worker has a home of its own, as if it were another machine: only the artifact
    store tells it where a run stood.

    Args:
        database: `sqlite` or `postgres`.
        workers: how many there are.
        ttl_s: of the lease.
    """

    def __init__(self, database: str, *, workers: int = 3, ttl_s: float = 3.0) -> None:
        # A socket's path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="calift-chaos-"))
        self.ttl_s = ttl_s
        self.database: Database = Sqlite(self.folder) if database == "sqlite" else Postgres()
        self.home, self.traps = self.folder / "home", self.folder / "traps"
        self.logs = self.folder / "logs"
        for folder in (self.home, self.traps, self.logs):
            folder.mkdir()
        self.artifacts = self.home / "artifacts"
        self.socket = self.folder / "broker.sock"
        self.broker_url = f"redis+socket://{self.socket}?virtual_host=0"
        self.address = f"http://127.0.0.1:{free_port()}"
        self.broker: ManagedProcess | None = None
        self.api: ManagedProcess | None = None
        self.workers: list[ManagedProcess | None] = [None] * workers
        self._clocks = [0.0] * workers
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._locks = contextlib.ExitStack()
        #: Whether nobody can write right now, because the database is down or somebody holds it.
        self.database_away = True

    # -- parts

    def start(self) -> None:
        """Bring up what is down."""
        self.start_database()
        if isinstance(self.database, Postgres):
            until(self.database.answers, what="Postgres to answer")
        engine = open_engine(self.database.url)
        migrations.upgrade(engine)
        engine.dispose()
        self.start_broker()
        self.start_api()
        for index in range(len(self.workers)):
            self.start_worker(index)

    def _environment(self, home: Path) -> dict[str, str]:
        return environment_of(
            home,
            artifacts=self.artifacts,
            database_url=self.database.url,
            broker_url=self.broker_url,
            token=TOKEN,
            port=self.address.rpartition(":")[2],
            lease_ttl_s=self.ttl_s,
            heartbeat_s=self.ttl_s / 10,
        )

    def start_broker(self) -> None:
        if self.broker is None:
            self.socket.unlink(missing_ok=True)
            self.broker = ManagedProcess(
                broker_argv(self.socket, self.folder / "broker"),
                output=self.logs / "broker.log",
                environment=os.environ | {"CHAOS_HOUSE": str(self.folder)},
            )

    def broker_answers(self) -> bool:
        return self.broker is not None and broker_pings(self.socket)

    def start_api(self) -> None:
        if self.api is None:
            self.api = ManagedProcess(
                [sys.executable, "-m", "backend"],
                output=self.logs / "api.log",
                environment=self._environment(self.home),
            )

    def api_answers(self) -> bool:
        with contextlib.suppress(OSError):
            url = f"{self.address}/api/v1/readyz"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def start_worker(self, index: int, *, clock_s: float | None = None) -> None:
        """Start a worker that is not there; its clock stays as it was unless another is given."""
        if clock_s is not None:
            self._clocks[index] = clock_s
        if self.workers[index] is not None:
            return
        last = index == len(self.workers) - 1
        home = self.folder / "other-host" if last and index else self.home
        times = {
            "ttl_s": self.ttl_s,
            "heartbeat_s": self.ttl_s / 10,
            "cancel_poll_s": 0.5,
            "group_s": 0.7,  # so seldom that a kill mostly falls between two groups
            "tick_s": 0.05,
        }
        self.workers[index] = ManagedProcess(
            [sys.executable, str(ROOT / "tests" / "chaos" / "victim.py"), json.dumps(times)],
            output=self.logs / f"worker-{index}.log",
            environment=self._environment(home)
            | {"CHAOS_CLOCK_S": str(self._clocks[index]), "CHAOS_TRAPS": str(self.traps)},
        )

    def worker_of(self, owner: str | None) -> int | None:
        """The number of the worker that holds a run, by what the run's row calls it."""
        pid = (owner or "").rsplit("-", 2)[1:2]
        for index, child in enumerate(self.workers):
            if child is not None and pid == [str(child.pid)]:
                return index
        return None

    def runner_of(self, run_id: str) -> int | None:
        """The process of a run's runner."""
        for pid in pids():
            argv = _words(pid, "cmdline")
            if any(f"/jobs/{run_id}/attempt-" in word for word in argv) and "-c" not in argv:
                return pid
        return None

    # -- deaths

    def kill_worker(self, index: int) -> None:
        """SIGKILL to a worker alone; what it leaves is the kernel's to clean up."""
        child, self.workers[index] = self.workers[index], None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            child.reap()

    def kill_broker(self) -> None:
        child, self.broker = self.broker, None
        if child is not None:
            child.reap()

    def kill_api(self) -> None:
        child, self.api = self.api, None
        if child is not None:
            child.reap()

    def kill_everything(self) -> None:
        """SIGKILL to every process, the database's and the runners' among them."""
        children = [*self.workers, self.api, self.broker]
        self._later.clear()
        self.release()
        for child in children:
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
        self.kill_database()
        for index in range(len(self.workers)):
            self.kill_worker(index)
        self.kill_api()
        self.kill_broker()

    def lock(self) -> None:
        """Let nobody write to the database until `release`."""
        self._locks.enter_context(self.database.lock())
        self.database_away = True

    def release(self) -> None:
        """End what `lock` began."""
        self._locks.close()
        self.database_away = False

    def kill_database(self) -> None:
        self.database.kill()
        self.database_away = True

    def start_database(self) -> None:
        self.database.start()
        self.database_away = False

    # -- later

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._count), action))

    def tend(self) -> None:
        """Do what is due, and start again what died by itself, as a service manager would."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        for index, child in enumerate(self.workers):
            if child is not None and child.ended():
                self.workers[index] = None
                child.reap()
                self.start_worker(index)
        if self.api is not None and self.api.ended():
            self.kill_api()
            self.start_api()

    # -- the end

    def stop(self) -> None:
        """End everything in good order."""
        while self._later:
            heapq.heappop(self._later)[2]()
        self.release()
        children = [c for c in (*self.workers, self.api) if c is not None]
        for child in children:
            child.terminate()
        for child in children:
            child.wait(60.0)
            child.reap()  # its group; a runner has a session of its own and would be seen
        self.workers, self.api = [None] * len(self.workers), None
        self.kill_broker()
        self.database.kill()

    def left(self, *, patience_s: float = 10.0) -> list[str]:
        """Processes of this house that stay: on a busy machine the killed take a moment to go."""
        deadline = time.monotonic() + patience_s
        while (found := self.orphans()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def orphans(self) -> list[str]:
        """Processes of this house that are still there."""
        ours = [str(self.folder)]
        if isinstance(self.database, Postgres):
            ours.append(str(self.database.folder))
        found = []
        for pid in set(pids()) - {os.getpid()}:
            words = _words(pid, "cmdline")
            if any(mark in word for mark in ours for word in (*words, *_words(pid, "environ"))):
                found.append(f"{pid} {' '.join(words)[:200]}")
        return found

    def remove(self, *, keep_files: bool = False) -> None:
        """Kill what is left, and take the files away unless they are to be looked at."""
        self.release()
        for child in (*self.workers, self.api, self.broker):
            if child is not None:
                child.reap()
        for line in self.orphans():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        self.database.remove()
        if not keep_files:
            shutil.rmtree(self.folder, ignore_errors=True)


def _words(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
