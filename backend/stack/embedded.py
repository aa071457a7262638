"""The stack as its callers hold it: one a home, started and stopped as a whole."""

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

from filelock import BaseFileLock

from backend.stack.ports import HOST, bind_once
from backend.stack.services import plan
from backend.stack.supervise import TICK_S, Supervisor
from calift_core.errors import ServiceError, SpecError, StorageError
from calift_core.files import storage_error, try_lock

#: A service that gave no sign of life for so long hangs. Long, because a busy machine is slow.
_HANG_S = 60.0
#: Deaths before it was ever ready, after which `wait_ready` gives up.
_HOPELESS = 3


class EmbeddedStack:
    """The embedded stack of one home. A context manager: entering starts it, leaving stops it.

    Args:
        api_port: of the API; 0 takes a free one.
        dashboard_port: of the dashboard; 0 takes a free one.
        workers: how many runs are worked on at once; each gets its share of the cores.
        hang_s: a part that gives no sign of life for so long is killed and started again.
    """

    def __init__(
        self,
        home: Path,
        *,
        api_port: int = 8000,
        dashboard_port: int = 8501,
        dashboard: bool = True,
        workers: int = 1,
        hang_s: float = _HANG_S,
    ) -> None:
        self._hang_s = hang_s
        self.home = home.expanduser().absolute()
        self._ports = {"api": api_port} | ({"dashboard": dashboard_port} if dashboard else {})
        self._workers = workers
        self._run = self.home / "run"
        self._logs = self.home / "logs"
        self._lock: BaseFileLock | None = None
        self._supervisor: Supervisor | None = None
        self._signalled = False

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
        return {} if self._supervisor is None else self._supervisor.pids

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
            services = plan(self.home, self._ports, self.urls, workers=self._workers)
        except BaseException:
            self._release_lock()
            raise
        self._supervisor = Supervisor(services, home=self.home, urls=self.urls, hang_s=self._hang_s)
        self._supervisor.start()

    def wait_ready(self, timeout_s: float = 180.0) -> None:
        """Wait until every part works.

        Raises:
            ServiceError: a part keeps dying or is not ready in time; with its last words.
        """
        deadline = time.monotonic() + timeout_s
        supervisor = self._supervisor
        while supervisor is None or not all(s.is_ready for s in supervisor.services):
            if supervisor is None or not supervisor.alive:
                raise ServiceError("the embedded stack is not running.")
            for service in supervisor.services:
                if not service.is_ready and service.deaths >= _HOPELESS:
                    raise ServiceError(
                        f"the {service.name} does not start (exit status {service.last_status}):\n"
                        f"{supervisor.last_words(service)}",
                        hint=f"Its log is {supervisor.log_path(service)}.",
                    )
            if time.monotonic() > deadline:
                late = [s for s in supervisor.services if not s.is_ready]
                raise ServiceError(
                    f"not ready after {timeout_s:g} s: {', '.join(s.name for s in late)}:\n"
                    f"{supervisor.last_words(late[0])}",
                    hint=f"The logs are in {self._logs}.",
                )
            time.sleep(TICK_S)

    def run_forever(self) -> None:
        """Return when SIGINT or SIGTERM asks to stop. Call it from the main thread."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._signalled = True

        before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self._signalled:
                if self._supervisor is None or not self._supervisor.alive:
                    raise ServiceError("the embedded stack has stopped.")
                time.sleep(TICK_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Stop everything; a running run saves a checkpoint first. A second Ctrl-C hurries."""
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
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
                time.sleep(TICK_S)
            self._ports[name] = taken


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"pid", "urls"} <= found.keys() else None
