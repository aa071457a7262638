"""The service under load, over real HTTP: submits, lists, watchers, curve points, memory.

    python benchmarks/load.py                                   # SQLite, the sizes of the promise
    python benchmarks/load.py --database postgresql://…         # an empty database of its own
    python benchmarks/load.py --runs 2000 --submits 50 --submit-s 5 --watchers 50 --soak-s 60

The API is a process of its own on a database of `--runs` finished runs with eight evaluations each.
Clients are threads of this process that keep their connections:

- **submit**: at a steady rate, each request sent at its moment whether the last one is back or not;
  milliseconds count from that moment, so that a late one is not hidden by the wait before it.
- **list, filter, search, sort, evaluations**: one after another.
- **watchers**: event streams, each of a run that works, while a worker writes points of its curves
  at `--points` a second; what the streams cost, how late an event comes and whether all come.
- **soak**: all of it at a tenth of the rate; the API's resident memory each second, fitted.

`cpu_ms` is the processor time of the API's process per request, and is what counts on a machine
that others use: a core gives 1,000 of it a second, whatever the clock on the wall says.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from api import processor_s, served
from filled import add_runs

from backend.settings import Settings
from backend.stack.broker import broker_argv
from backend.store.engine import open_engine
from backend.store.migrations import upgrade
from backend.store.stores import Stores
from calift_core.schema import records as r
from calift_core.schema.spec import parse_spec

_CLIENTS = 16
_SPEC = {"name": "submitted under load", "method": {"kind": "carot"}}


@dataclass
class Load:
    """What a kind of request took.

    Attributes:
        ms: of each answer.
        failed: statuses other than those of success.
        cpu_s: of the API meanwhile.
        wall_s: meanwhile.
    """

    ms: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def row(self) -> dict[str, float]:
        """Quantiles, rate, processor time."""
        q = np.quantile(self.ms, (0.5, 0.95, 0.99)) if self.ms else (0.0, 0.0, 0.0)
        return {
            "n": len(self.ms),
            "failed": len(self.failed),
            **{name: round(float(v), 1) for name, v in zip(("p50", "p95", "p99"), q, strict=True)},
            "per_s": round(len(self.ms) / max(self.wall_s, 1e-9), 1),
            "cpu_ms": round(1e3 * self.cpu_s / max(1, len(self.ms)), 2),
        }


class Service:
    """Where the API is, and how it is asked."""

    def __init__(self, port: int, token: str, pid: int) -> None:
        self.port, self.pid = port, pid
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connections: list[http.client.HTTPConnection] = []

    def connect(self) -> http.client.HTTPConnection:
        """A connection to keep."""
        self._connections.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120))
        return self._connections[-1]

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.close()

    def ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
    ) -> int:
        """One request; the status."""
        sent = None if body is None else json.dumps(body)
        connection.request(method, f"/api/v1{path}", body=sent, headers=self.headers)
        response = connection.getresponse()
        response.read()
        return response.status


def steady(service: Service, *, per_s: float, seconds: float, body: dict[str, Any]) -> Load:
    """Submits at a steady rate from several connections."""
    load, lock = Load(), threading.Lock()
    moments: queue.SimpleQueue[float] = queue.SimpleQueue()
    began, cpu = time.perf_counter() + 0.2, processor_s(service.pid)
    for k in range(int(per_s * seconds)):
        moments.put(began + k / per_s)

    def client() -> None:
        connection = service.connect()
        while True:
            try:
                due = moments.get_nowait()
            except queue.Empty:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            status = service.ask(connection, "POST", "/runs", body)
            with lock:
                load.ms.append(1e3 * (time.perf_counter() - due))
                if status != 202:
                    load.failed.append(status)

    threads = [threading.Thread(target=client) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.cpu_s, load.wall_s = processor_s(service.pid) - cpu, time.perf_counter() - began
    return load


def one_by_one(service: Service, path: Callable[[int], str], n: int) -> Load:
    """Requests one after another."""
    load, connection = Load(), service.connect()
    began, cpu = time.perf_counter(), processor_s(service.pid)
    for k in range(n):
        start = time.perf_counter()
        status = service.ask(connection, "GET", path(k))
        load.ms.append(1e3 * (time.perf_counter() - start))
        if status != 200:
            load.failed.append(status)
    load.cpu_s, load.wall_s = processor_s(service.pid) - cpu, time.perf_counter() - began
    return load


class Watchers:
    """Event streams over plain sockets, read by one thread."""

    def __init__(self, service: Service, run_ids: list[str]) -> None:
        self._sockets: list[socket.socket] = []
        self.events = [0] * len(run_ids)
        self.refused = 0
        for run_id in run_ids:
            one = socket.create_connection(("127.0.0.1", service.port), timeout=60)
            one.sendall(
                f"GET /api/v1/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: {service.headers['Authorization']}\r\n\r\n".encode()
            )
            self.refused += b" 200 " not in one.recv(4096)[:20]
            one.setblocking(False)
            self._sockets.append(one)

    def read(self) -> None:
        """Take what has come."""
        for index, one in enumerate(self._sockets):
            try:
                while data := one.recv(65_536):
                    self.events[index] += data.count(b"\nid: ") + data.startswith(b"id: ")
            except BlockingIOError:
                continue

    def close(self) -> None:
        """Hang up."""
        for one in self._sockets:
            one.close()


def working(stores: Stores, n: int) -> list[str]:
    """Runs that a worker holds."""
    spec = parse_spec(_SPEC)
    ids = [stores.runs.submit(spec, submitted_by="a watcher") for _ in range(n)]
    for run_id in ids:
        assert stores.claims.claim(run_id, worker_id="load", ttl_s=86_400.0)
    return ids


def watched(
    service: Service, stores: Stores, *, n: int, seconds: float, points: float
) -> dict[str, Any]:
    """Streams with nothing to say, then with points of curves of their runs."""
    ids = working(stores, n)
    watchers = Watchers(service, ids)
    deadline = time.monotonic() + 60
    while min(watchers.events) < 2 and time.monotonic() < deadline:  # queued, starting
        watchers.read()
        time.sleep(0.05)
    cpu, began = processor_s(service.pid), time.perf_counter()
    time.sleep(seconds)
    idle = (processor_s(service.pid) - cpu) / (time.perf_counter() - began)
    watchers.read()
    before = sum(watchers.events)
    took, sent = [], 0
    cpu, began = processor_s(service.pid), time.perf_counter()
    own = time.process_time()
    while (now := time.perf_counter()) < began + seconds:
        due = int((now - began) * points / 50) * 50
        if sent >= due:
            time.sleep(0.01)
            continue
        run_id, step = ids[(sent // 50) % n], sent
        start = time.perf_counter()
        assert stores.records.record(
            run_id,
            1,
            [r.MetricsRecord(step=step + k, epoch=0.0, values={"loss": 1.0}) for k in range(50)],
        )
        took.append(1e3 * (time.perf_counter() - start))
        sent += 50
    wall = time.perf_counter() - began
    busy, own = (processor_s(service.pid) - cpu) / wall, time.process_time() - own
    time.sleep(2.0)
    watchers.read()
    watchers.close()
    return {
        "watchers": n,
        "refused": watchers.refused,
        "idle_cores": round(idle, 3),
        "busy_cores": round(busy, 3),
        "points_per_s": round(sent / wall),
        "write_50_points_p99_ms": round(float(np.quantile(took, 0.99)), 1) if took else None,
        "writer_cpu_ms_per_1000_points": round(1e6 * own / max(1, sent), 1),
        "events_that_came": sum(watchers.events) - before,
        "groups_written": len(took),
    }


def resident_mib(pid: int) -> float:
    """Resident memory of a process now, in 2²⁰ bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(service: Service, *, seconds: float, per_s: float) -> dict[str, Any]:
    """Memory while everything is asked, after a first quarter that fills caches and pools."""
    found: list[tuple[float, float]] = []
    paths = _lists(1000)
    connection, began = service.connect(), time.perf_counter()
    count = 0
    while (now := time.perf_counter()) < began + seconds:
        if count >= (now - began) * per_s:
            time.sleep(0.02)
            continue
        count += 1
        if count % 3 == 0:
            status = service.ask(connection, "POST", "/runs", {"spec": _SPEC})
        else:
            status = service.ask(connection, "GET", list(paths.values())[count % len(paths)](count))
        assert status in (200, 202), status
        if not found or now - found[-1][0] >= 1.0:
            found.append((now, resident_mib(service.pid)))
    late = [(at, size) for at, size in found if at - began > seconds / 4]
    slope = float(np.polyfit(*zip(*late, strict=True), 1)[0]) if len(late) > 2 else 0.0
    return {
        "seconds": round(seconds),
        "requests": count,
        "resident_mib_first": round(late[0][1], 1),
        "resident_mib_last": round(late[-1][1], 1),
        "mib_per_hour": round(3600 * slope, 2),
    }


def _lists(n_runs: int) -> dict[str, Callable[[int], str]]:
    return {
        "list": lambda k: "/runs",
        "filter": lambda k: f"/runs?phase=SUCCEEDED&method={('carot', 'flyp')[k % 2]}",
        "search": lambda k: f"/runs?q=wide%20{(k * 37) % n_runs}",
        "sort by OOD": lambda k: "/runs?sort=-ood_accuracy",
        "evaluations": lambda k: "/evaluations?dataset=sketch",
    }


@contextmanager
def broker(home: Path) -> Iterator[None]:
    """A Valkey server, so that messages pile up there and not in the API."""
    with (home / "broker.log").open("wb") as log:
        process = subprocess.Popen(broker_argv(home / "b.sock", home / "b"), stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Fill, serve, load, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", help="of an empty database; default: a new SQLite file")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--submits", type=float, default=200.0, help="a second")
    parser.add_argument("--submit-s", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=200, help="of each list")
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--watch-s", type=float, default=10.0)
    parser.add_argument("--points", type=float, default=1000.0, help="of curves, a second")
    parser.add_argument("--soak-s", type=float, default=1800.0)
    parser.add_argument("--port", type=int, default=8766)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calift-load-") as name:
        home = Path(name)
        url = options.database or f"sqlite:///{home / 'calift.db'}"
        variables = {
            "CALIFT_DATABASE_URL": url,
            "CALIFT_BROKER_URL": f"redis+socket://{home / 'b.sock'}?virtual_host=0",
            "CALIFT_REQUESTS_PER_MINUTE": "1000000",
            "CALIFT_MAX_QUEUED": "1000000",
        }
        settings = Settings(home=home, broker_url="memory://")
        engine = open_engine(url)
        upgrade(engine)
        add_runs(engine, 0, options.runs)
        stores = Stores.on(engine)
        said: dict[str, Any] = {"database": engine.dialect.name, "runs": options.runs}
        with broker(home), served(settings, options.port, variables) as (_, pid):
            service = Service(options.port, settings.admin_token(), pid)
            for what, path in _lists(options.runs).items():
                one_by_one(service, path, 3)
                said[what] = one_by_one(service, path, options.requests).row()
                print(what, said[what], flush=True)
            said["submit"] = steady(
                service, per_s=options.submits, seconds=options.submit_s, body={"spec": _SPEC}
            ).row()
            print("submit", said["submit"], flush=True)
            said["watched"] = watched(
                service,
                stores,
                n=options.watchers,
                seconds=options.watch_s,
                points=options.points,
            )
            print("watched", said["watched"], flush=True)
            said["soak"] = soak(service, seconds=options.soak_s, per_s=options.submits / 10)
            service.close()
        stores.close()
    said |= {"load_1min": round(statistics.fmean(os.getloadavg()[:1]), 1), "cores": os.cpu_count()}
    print(json.dumps(said, indent=1))
    failed = [what for what, row in said.items() if isinstance(row, dict) and row.get("failed")]
    if failed or said["watched"]["refused"]:
        sys.exit(f"failed: {', '.join(failed) or 'watchers were refused'}")


if __name__ == "__main__":
    main()
