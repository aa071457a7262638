"""The services of the stack: their commands and environment, and how each shows that it works."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from backend.children.process import ManagedProcess, pulse_path
from backend.settings import Settings
from backend.stack.broker import broker_argv, broker_pings, socket_path
from backend.stack.ports import HOST
from calift_core.errors import SpecError
from calift_core.installed import install_extra
from calift_core.threads import COUNTS, usable_cores

_FIRST_DELAY_S = 0.5
_LOOK_S = 2.0
LONGEST_DELAY_S = 30.0
#: A service that did its work for so long has recovered.
_RECOVERED_S = 10.0
#: The runner gets 30 s to save its checkpoint.
_DRAIN_S = 45.0
_STOP_S = 8.0


@dataclass
class Service:
    """A supervised process.

    Attributes:
        ready: whether it does its work; asked until it does, after every start.
        needs: services that must be ready before it starts.
        stop_s: how long it may take to stop.
        lives: whether it gives a sign of life, though others may keep it from its work; None:
            `ready` is asked instead.
        sign: what changes as long as it lives; asked in place of `lives`.
        well_at: when this process first did.
        silent_s: for how long it has given no sign of life while we looked.
        without: variables of the environment that it does not get.
        beside: variables that it gets beside those of all.
    """

    name: str
    argv: list[str]
    ready: Callable[[Service], bool]
    needs: tuple[str, ...] = ()
    stop_s: float = _STOP_S
    lives: Callable[[Service], bool] | None = None
    sign: Callable[[Service], object] | None = None
    without: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    child: ManagedProcess | None = None
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
        delay = min(LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0**self.deaths)
        self.deaths += 1
        self.start_at = now + delay
        return delay


@dataclass(frozen=True)
class Plan:
    """What is to run, in which environment; `socket` is that of the embedded broker."""

    services: list[Service]
    environment: dict[str, str]
    socket: Path | None


class Probes:
    """Asks services whether they work or live.

    Args:
        socket: of the embedded broker, if there is one.

    Attributes:
        token: the API's; set before anything is asked.
    """

    def __init__(self, home: Path, urls: Mapping[str, str], socket: Path | None) -> None:
        self.token = ""
        self._home, self._urls, self._socket = home, urls, socket

    def broker_ready(self, _: Service) -> bool:
        return self._socket is not None and broker_pings(self._socket)

    def api_ready(self, _: Service) -> bool:
        """Whether the API can do its work; where the disk is full, all but taking more."""
        try:
            with self._open(f"{self._urls['api']}/api/v1/readyz"):
                return True
        except urllib.error.HTTPError as error:
            with error, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                # Somebody must be able to look at runs, and to delete some.
                return {e["check"] for e in json.load(error)["errors"]} == {"disk"}
        except (OSError, ValueError):
            pass
        return False

    def api_lives(self, _: Service) -> bool:
        # A restart would not bring back a database or a broker that is away.
        return self._get(f"{self._urls['api']}/api/v1/health") is not None

    def dashboard_ready(self, _: Service) -> bool:
        return self._get(f"{self._urls['dashboard']}/_stcore/health") is not None

    def worker_ready(self, service: Service) -> bool:
        body = self._get(f"{self._urls['api']}/api/v1/workers")
        if body is None or service.child is None:
            return False
        # Not just any worker: the one that was started, which puts its process id in its name.
        mark = f"-{service.child.pid}-"
        return any(w["alive"] and mark in w["id"] for w in json.loads(body))

    def worker_sign(self, service: Service) -> object:
        # Not what the API says of it: a worker whose database is away or full works on.
        assert service.child is not None
        with contextlib.suppress(OSError):
            return pulse_path(self._home, service.child.pid).stat().st_mtime_ns
        return object()  # it has not begun, or cannot write: nothing is known

    def _get(self, url: str) -> bytes | None:
        try:
            with self._open(url) as answer:
                body: bytes = answer.read()
                return body
        except (OSError, ValueError):
            return None

    def _open(self, url: str) -> Any:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=_LOOK_S)


def plan(home: Path, ports: Mapping[str, int], urls: Mapping[str, str], *, workers: int) -> Plan:
    """Which services run on a home, and how.

    Args:
        ports: `api`, and `dashboard` where there is to be one.
        workers: how many; each works on one run at a time and gets its share of the cores.

    Raises:
        SpecError: the broker or the dashboard is not installed, or a setting is wrong.
        StorageError: the broker's folder or the token file cannot be made.
    """
    environment = _environment(home, ports["api"], urls["api"])
    python = [sys.executable, "-P", "-m"]
    services: list[Service] = []
    socket = None if environment.get("CALIFT_BROKER_URL") else socket_path(home)
    probes = Probes(home, urls, socket)
    if socket is not None:
        environment["CALIFT_BROKER_URL"] = f"redis+socket://{quote(str(socket))}?virtual_host=0"
        argv = broker_argv(socket, home / "run" / "broker")
        services.append(Service("broker", argv, probes.broker_ready))
    brokers = tuple(s.name for s in services)
    services.append(
        Service(
            "api", [*python, "backend"], probes.api_ready, needs=brokers, lives=probes.api_lives
        )
    )
    for number in range(1, workers + 1):
        name = "worker" if number == 1 else f"worker-{number}"
        argv = [*python, "celery", "-A", "worker.app", "worker", "--loglevel=INFO"]
        # Two of one host must not be called alike.
        argv += ["--without-gossip", "--without-mingle", "--hostname", f"{name}@%h"]
        services.append(
            Service(
                name,
                argv,
                probes.worker_ready,
                needs=("api",),
                stop_s=_DRAIN_S,
                sign=probes.worker_sign,
                beside=_share_of_cores(environment, workers),
            )
        )
    if "dashboard" in ports:
        _find_dashboard()
        environment["CALIFT_DASHBOARD_HOST"] = HOST
        environment["CALIFT_DASHBOARD_PORT"] = str(ports["dashboard"])
        services.append(
            Service(
                "dashboard",
                [*python, "frontend"],
                probes.dashboard_ready,
                needs=("api",),
                # It acts with what its visitor brings along.
                without=("CALIFT_TOKEN", "CALIFT_DATABASE_URL", "CALIFT_BROKER_URL"),
            )
        )
    try:
        settings = Settings(home=home, host=HOST, port=ports["api"])
    except ValidationError as error:
        raise SpecError(f"a CALIFT_ setting is wrong: {error}") from error
    probes.token = settings.admin_token()
    return Plan(services, environment, socket)


def _share_of_cores(environment: Mapping[str, str], workers: int) -> dict[str, str]:
    """Threads of a worker's runners, where there are several workers and nobody has said."""
    if workers == 1 or any(environment.get(name) for name in COUNTS):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // workers))}


def _environment(home: Path, port: int, url: str) -> dict[str, str]:
    """What every service of the stack sees; `port` and `url` are the API's."""
    environment = dict(os.environ)
    # The stack answers on this machine alone, under that name.
    environment.pop("CALIFT_ALLOWED_HOSTS", None)
    # Found wherever we were found ourselves, installed or not. `-P` and a neutral working
    # folder keep a folder that happens to be called `backend` from being imported instead.
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return environment | {
        "CALIFT_HOME": str(home),
        "CALIFT_HOST": HOST,
        "CALIFT_PORT": str(port),
        "CALIFT_API_URL": url,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "PYTHONUNBUFFERED": "1",
    }


def _find_dashboard() -> None:
    # Found, not imported: the API's package must not depend on the dashboard's.
    if importlib.util.find_spec("frontend") is None:
        raise SpecError("the dashboard is not installed.", hint=install_extra("dashboard"))
