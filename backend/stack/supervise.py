"""Keeps the services running: what dies is started again, what hangs is killed."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.children.process import ManagedProcess, pulse_path
from backend.stack.broker import broker_pings, socket_path
from backend.stack.services import LONGEST_DELAY_S, Plan, Service
from calift_core.errors import StorageError
from calift_core.files import atomic_write_json

log = logging.getLogger(__name__)


_LOG_BYTES = 10 << 20
TICK_S = 0.1


class Supervisor:
    """Keeps services running from a thread of its own, until it is asked to stop.

    Args:
        hang_s: a part that gives no sign of life for so long is killed and started again.
    """

    def __init__(self, plan: Plan, *, home: Path, urls: Mapping[str, str], hang_s: float) -> None:
        self.services = plan.services
        self._environment, self._socket = plan.environment, plan.socket
        self._home, self._run, self._logs = home, home / "run", home / "logs"
        self._urls, self._hang_s = dict(urls), hang_s
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._written: dict[str, Any] = {}
        # One thread starts all children and outlives them: the kernel ties them to that thread.
        self._thread = threading.Thread(target=self._watch, name="calift-stack", daemon=True)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of what runs now."""
        return {s.name: s.child.pid for s in self.services if s.child is not None}

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, and by it the services."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the services and wait for it. A KeyboardInterrupt meanwhile hurries."""
        self._stopping.set()
        while self._thread.is_alive():
            try:
                self._thread.join(timeout=0.5)
            except KeyboardInterrupt:
                self._hurry.set()

    def log_path(self, service: Service) -> Path:
        return self._logs / f"{service.name}.log"

    def last_words(self, service: Service, *, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            text = self.log_path(service).read_text(encoding="utf-8", errors="replace")
            return "\n".join(text[-8192:].splitlines()[-lines:])
        return "(its log is empty)"

    def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                for service in self.services:
                    self._look_after(service)
                self._write_state()
                self._stopping.wait(TICK_S)
        except Exception:
            log.exception("the embedded stack fails")
        finally:
            self._take_down()

    def _look_after(self, service: Service) -> None:
        now = time.monotonic()
        if service.attached:
            service.attached = service.ready(service)
            if service.attached:
                return
        if service.child is not None and service.child.ended():
            pulse_path(self._home, service.child.pid).unlink(missing_ok=True)
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

    def _look_for_life(self, service: Service, now: float) -> None:
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

    def _needs_met(self, service: Service) -> bool:
        return all(s.is_ready for s in self.services if s.name in service.needs)

    def _start(self, service: Service) -> None:
        if service.name == "broker" and self._attach(service):
            return
        service.started_at = time.monotonic()
        service.well_at, service.silent_s, service.last_sign = None, 0.0, None
        path = self.log_path(service)
        try:
            self._make_folders(service)
            if path.exists() and path.stat().st_size > _LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
            environment = {k: v for k, v in self._environment.items() if k not in service.without}
            environment |= service.beside
            service.child = ManagedProcess(
                service.argv, output=path, environment=environment, cwd=self._run
            )
        except (OSError, StorageError) as error:
            service.deaths += 1
            service.start_at = service.started_at + LONGEST_DELAY_S
            log.warning("the %s cannot be started: %s", service.name, error)

    def _make_folders(self, service: Service) -> None:
        """What somebody may have deleted since the last start: whoever tidies up, or a system."""
        for folder in (self._run, self._logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if service.name == "broker":
            (self._run / "broker").mkdir(exist_ok=True, mode=0o700)
            socket_path(self._home)

    def _attach(self, service: Service) -> bool:
        """Use a broker that already answers at our socket, else clear the way for a new one."""
        assert self._socket is not None
        if broker_pings(self._socket):
            log.info("a broker answers at %s; it is used", self._socket)
            service.attached = service.is_ready = True
            return True
        self._socket.unlink(missing_ok=True)
        if service.deaths >= 2:
            # A file that cannot be read back must not keep the stack down: the messages are
            # messages, and the lease reaper sends again for every run that waits.
            data = self._run / "broker"
            aside = self._run / f"broker.unreadable-{int(time.time())}"
            with contextlib.suppress(OSError):
                data.rename(aside)
                log.warning("the broker's files were moved to %s", aside)
        return False

    def _take_down(self) -> None:
        """Ask all but the broker to stop, then the broker; what does not, is killed."""
        others = [s for s in self.services if s.name != "broker"]
        brokers = [s for s in self.services if s.name == "broker"]
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
        if self._socket is not None and not any(s.attached for s in self.services):
            self._socket.unlink(missing_ok=True)

    def _write_state(self) -> None:
        state = {"pid": os.getpid(), "urls": self._urls, "pids": self.pids, "logs": str(self._logs)}
        if state != self._written:
            try:
                atomic_write_json(self._run / "stack.json", state)
                self._written = state
            except StorageError as error:
                log.warning("%s", error)
