"""What `calift doctor` looks at of the service: folder, ports, database, parts, workers, clock."""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from calift_core.checks import Check
from calift_core.errors import CaliftError, ServiceError, ServiceUnavailableError
from calift_core.home import calift_home

if TYPE_CHECKING:
    from backend.settings import Settings
    from calift_core.client import Client
    from calift_core.schema.wire.service import Stats, WorkerInfo

#: Clocks that are further apart make times of curves and logs misleading; leases do not mind.
_SKEW_S = 30.0
_PORTS = (("API", "CALIFT_PORT", 8000), ("dashboard", "CALIFT_DASHBOARD_PORT", 8501))


def permissions() -> list[Check]:
    """Whether what lies in CALIFT_HOME is this user's, and nobody else's to read."""
    home = calift_home()
    checks = []
    for path in (home, *(home / n for n in ("token", "calift.db", "artifacts", "run", "jobs"))):
        with suppress(OSError):
            about = path.stat()
            if os.name == "posix" and about.st_uid != os.geteuid():
                detail = f"{path} belongs to user {about.st_uid}, and you are {os.geteuid()}"
                hint = f"chown -R {os.geteuid()} {home}, or set CALIFT_HOME to a folder of yours."
                checks.append(Check("folder rights", "fail", detail, hint))
            elif not os.access(path, os.W_OK):
                hint = f"chmod u+w {path}"
                checks.append(Check("folder rights", "fail", f"{path} cannot be written", hint))
            elif path.name == "token" and stat.S_IMODE(about.st_mode) & 0o077:
                hint = f"chmod 600 {path}"
                checks.append(Check("folder rights", "fail", f"others can read {path}", hint))
    return checks


def service() -> list[Check]:
    """What answers, or what is in the way of starting it."""
    if importlib.util.find_spec("httpx2") is None:
        return []
    from calift_core.client import Client

    try:
        with Client(timeout_s=5) as client:
            stats = client.stats()
            checks = [_summary(client.base_url, stats)]
            checks += _stale(stats.workers)
            with suppress(ServiceUnavailableError):
                checks += _parts(client)
            checks += _clock(client)
            return checks
    except ServiceUnavailableError:
        return [Check("service", "warn", "none answers", "`calift up` starts one."), *_ports()]
    except ServiceError as error:
        return [Check("service", "fail", error.message, error.hint)]


def _summary(where: str, stats: Stats) -> Check:
    alive = sum(worker.alive for worker in stats.workers)
    detail = f"{where}, {alive} worker(s), {stats.queue_depth} queued"
    if not alive:
        return Check("service", "fail", detail, "No worker is alive; runs stay queued.")
    out = [w for w in stats.workers if w.alive and (w.trouble or w.drained_by)]
    if len(out) == alive:
        why = out[0].trouble or f"{out[0].drained_by} drained it; `calift workers resume` ends that"
        hint = "`calift workers list` says more; runs stay queued meanwhile."
        return Check("service", "fail", f"{detail}; every worker is out: {why}", hint)
    return Check("service", "ok", detail)


def _stale(workers: Sequence[WorkerInfo]) -> Iterator[Check]:
    for worker in workers:
        if not worker.alive and worker.run_id:
            silent = (datetime.now(UTC) - worker.seen_at).total_seconds()
            detail = f"{worker.id} fell silent {silent / 60:.0f} min ago while it had a run"
            hint = "Its run is queued again by itself; look at that machine and its worker's log."
            yield Check("worker", "warn", detail, hint)


def _parts(client: Client) -> list[Check]:
    try:
        client.ready()
    except ServiceError as error:
        found = error.problem.get("errors")
        faults = found if isinstance(found, list) else []
        return [
            Check(f"service {f.get('check')}", "fail", str(f.get("message")), _HINTS[f["check"]])
            for f in faults
            if isinstance(f, dict) and f.get("check") in _HINTS
        ]
    return [Check("service parts", "ok", "database, schema, broker and artifact store answer")]


_HINTS = {
    "database": "Is the server up, and CALIFT_DATABASE_URL its address? The API's log says more.",
    "schema": "Run one version of calift everywhere, and restart the API.",
    "broker": "Is Redis up, and CALIFT_BROKER_URL its address? Runs wait until it answers.",
    "artifacts": "Is the disk full or the object store away? The API's log says more.",
}


def _clock(client: Client) -> list[Check]:
    before = time.time()
    service_date = client.server_date()
    if service_date is None:
        return []
    apart = parsedate_to_datetime(service_date).timestamp() - (before + time.time()) / 2
    if abs(apart) <= _SKEW_S:
        return [Check("clock", "ok", "this machine's and the service's agree")]
    detail = f"the service's is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}"
    hint = "Let chrony or systemd-timesyncd set both; ages and times of logs are wrong till then."
    return [Check("clock", "warn", detail, hint)]


def _ports() -> list[Check]:
    """Ports that a stack would want and somebody else has."""
    if os.environ.get("CALIFT_API_URL"):
        return []  # the service is elsewhere
    checks = []
    for name, variable, default in _PORTS:
        try:
            port = int(os.environ.get(variable) or default)
        except ValueError:
            detail = f"{variable} must be a number, got {os.environ[variable]!r}"
            checks.append(Check(f"port of the {name}", "fail", detail, f"Set {variable} right."))
            continue
        with socket.socket() as probe:
            probe.settimeout(1.0)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            detail = f"{port} is taken by something that is no calift {name}"
            hint = f"End that, or set {variable} to another port."
            checks.append(Check(f"port of the {name}", "fail", detail, hint))
    return checks


def database() -> list[Check]:
    """The database that is set: whether it opens, and which version made its tables."""
    settings = _settings()
    if isinstance(settings, Check):
        return [settings]
    if settings is None:
        return []
    from sqlalchemy.exc import SQLAlchemyError

    from backend.store import migrations
    from backend.store.engine import open_engine, schema_revision
    from backend.store.errors import UNAVAILABLE, fault_of

    path = settings.database_url.removeprefix("sqlite:///")
    if path != settings.database_url and not Path(path).is_file():
        return [Check("database", "ok", f"{path} will be made by the first start")]
    engine = open_engine(settings.database_url)
    try:
        revision = schema_revision(engine)
        migrations.check_known(revision, "the database")
    except SQLAlchemyError as error:
        fault = fault_of(error) or UNAVAILABLE
        return [Check("database", "fail", fault.message, fault.hint)]
    except CaliftError as error:
        return [Check("database", "fail", error.message, error.hint)]
    finally:
        engine.dispose()
    if revision != migrations.newest_revision():
        detail = f"its tables are of revision {revision}"
        hint = "The next start brings them up to date; `calift backup` first, if you like."
        return [Check("database", "warn", detail, hint)]
    return [Check("database", "ok", f"{engine.dialect.name}, revision {revision}")]


def artifacts() -> list[Check]:
    """The artifact store that is set, where it is a bucket."""
    settings = _settings()
    if settings is None or isinstance(settings, Check) or not settings.artifacts_url:
        return []
    from backend.storage.bucket import open_artifacts

    try:
        open_artifacts(settings).probe()
    except CaliftError as error:
        return [Check("artifact store", "fail", error.message, error.hint)]
    return [Check("artifact store", "ok", f"{settings.artifacts_url} takes files")]


def _settings() -> Settings | Check | None:
    """The service's settings, what is wrong with them, or None where it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("sqlalchemy", "pydantic_settings")):
        return None
    from pydantic import ValidationError

    from backend.settings import load_settings

    try:
        return load_settings()
    except (ValidationError, CaliftError) as error:
        hint = "Correct that variable; docs/deploy.md names them."
        return Check("settings", "fail", str(error), hint)
