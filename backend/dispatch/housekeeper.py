"""What has to happen again and again: messages, expired leases, sweeps, files nobody refers to."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from sqlalchemy import Engine

from backend.dispatch.queue import relay_once
from backend.settings import Settings
from backend.storage.artifacts import ArtifactStore
from backend.store.audit import Audit
from backend.store.files import Files
from backend.store.outbox import OutboxStore
from backend.store.reaper import LeaseReaper
from backend.store.retention import Retention
from calift_core.schema.wire.operations import Prunable

_log = logging.getLogger(__name__)

_GC_EVERY_S = 600.0
#: What was queued is passed on after so long at most.
_MOST_WAIT_S = 0.5
#: A run that failed or was cancelled can be retried from its checkpoint for so long.
_KEEP_STATES_S = 7 * 86_400.0


class Housekeeper:
    """The relay, the lease reaper and the file collector in one thread. Any number may run at once.

    Args:
        advance_sweeps: done before the relay, so that what it queues is sent at once.
    """

    def __init__(
        self,
        engine: Engine,
        app: Celery,
        artifacts: ArtifactStore,
        settings: Settings,
        *,
        advance_sweeps: Callable[[], None] | None = None,
    ) -> None:
        self._advance_sweeps = advance_sweeps
        self._app, self._artifacts = app, artifacts
        self._outbox, self._reaper = OutboxStore(engine), LeaseReaper(engine)
        self._files, self._audit, self._retention = Files(engine), Audit(engine), Retention(engine)
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._failing: set[str] = set()
        self._thread = threading.Thread(target=self._loop, name="calift-housekeeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was queued: look at the outbox now."""
        self._wake.set()

    def stop(self, timeout_s: float = 30.0) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        next_sweep = 0.0
        next_gc = time.monotonic() + _GC_EVERY_S
        while not self._stopping.is_set():
            self._wake.clear()
            began = time.monotonic()
            if time.monotonic() >= next_sweep:
                self._attempt("reaper", self._sweep)
                next_sweep = time.monotonic() + self._settings.sweep_s
            if self._advance_sweeps is not None:
                self._attempt("sweeps", self._advance_sweeps)
            self._attempt("relay", self._relay)
            if time.monotonic() >= next_gc:
                self._attempt("collector", self._collect)
                next_gc = time.monotonic() + _GC_EVERY_S
            took = time.monotonic() - began
            if self._wake.wait(self._settings.relay_s):
                # What comes meanwhile goes along: a new connection to the broker is dear.
                self._stopping.wait(min(_MOST_WAIT_S, 4 * took))

    def _attempt(self, name: str, action: Any) -> None:
        # The loop outlives every failure of the database, the broker and the disk; each outage is
        # logged once.
        try:
            action()
        except Exception as error:
            if name not in self._failing:
                self._failing.add(name)
                _log.warning("the %s fails and will go on trying: %s", name, error)
        else:
            if name in self._failing:
                self._failing.discard(name)
                _log.info("the %s works again", name)

    def _relay(self) -> None:
        while relay_once(self._outbox, self._app) and not self._stopping.is_set():
            pass

    def _sweep(self) -> None:
        if not self._reaper.due(self._settings.sweep_s):
            return
        for swept in self._reaper.sweep(redispatch_s=self._settings.redispatch_s):
            _log.warning("run %s attempt %d: %s", swept.run_id, swept.attempt, swept.action)

    def _collect(self) -> None:
        self._files.drop_old_states(age_s=_KEEP_STATES_S)
        self._audit.forget(age_s=self._settings.audit_days * 86_400.0)
        if self._settings.retain_days:
            kinds: tuple[Prunable, ...] = ("checkpoints", "archived_predictions")
            pruned, _ = self._retention.prune(kinds, age_s=self._settings.retain_days * 86_400.0)
            if pruned.files:
                _log.info("removed %d old files of %d runs", pruned.files, len(pruned.run_ids))
        gone = self._artifacts.collect(self._files, grace_s=self._settings.artifact_grace_s)
        if gone:
            _log.info("collected %d unreferenced files", len(gone))
