"""What a worker process is beside Celery: its presence, its device, its drain."""

import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from backend.children.process import Pulse, pulse_path
from backend.logs import named
from backend.settings import Settings
from backend.storage.bucket import open_artifacts
from backend.storage.health import StorageHealth
from backend.store import migrations
from backend.store.claims import Claim, Claims
from backend.store.engine import open_engine
from backend.store.errors import database_away
from backend.store.workers import Workers, drained_words
from calift_core.errors import NotFoundError
from calift_core.files import FREE_SPACE_FLOOR
from calift_core.schema.wire.runs import TERMINAL_PHASES
from worker.devices import Device, gpu_usage, take_device
from worker.limits import Limits
from worker.runner import RUNNER_ARGV
from worker.supervisor import Outcome, supervise

log = logging.getLogger(__name__)

_PRESENCE_S = 10.0
_TIDY_S = 3600.0
#: A folder is looked at for removal only after it was left alone for so long.
_ORPHAN_S = 3600.0
_KEEP_ENDED_S = 7 * 86_400.0
_CLAIM_PATIENCE_S = 60.0


def environment_for(settings: Settings, device: Device) -> dict[str, str]:
    """The environment that a worker's runners are started in: its own, with what it adds.

    Trackers whose settings name no place write below the home: a run's folder is removed.
    """
    place = (settings.home / "trackers").absolute()
    trackers = {
        "MLFLOW_TRACKING_URI": (place / "mlruns").as_uri(),
        "TENSORBOARD_LOGDIR": str(place / "tensorboard"),
        "TRACKIO_DIR": str(place / "trackio"),
        "WANDB_DIR": str(place),
    }
    mine = trackers | {**os.environ, **device.environment, "CALIFT_HOME": str(settings.home)}
    # The API has refused what it could tell; nothing else is downloaded either.
    return mine if settings.allow_remote_models else mine | {"HF_HUB_OFFLINE": "1"}


class WorkerService:
    """Claims and supervises runs, one at a time, and tells the database that it is there.

    Args:
        limits: times of an attempt; None takes them from the settings.
        device: None takes the first free GPUs, as many as the settings say or as there are.
        give_back: sends for a run again, for other workers.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        limits: Limits | None = None,
        runner_argv: Sequence[str] = RUNNER_ARGV,
        device: Device | None = None,
        give_back: Callable[[str], None] = lambda message_run: None,
    ) -> None:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settings = settings
        self.engine = open_engine(settings.database_url)
        self._claims, self._presences = Claims(self.engine), Workers(self.engine)
        self.artifacts = open_artifacts(settings)
        self.device = device or take_device(
            settings.home / "run", os.environ, count=settings.worker_gpus
        )
        self.host = socket.gethostname()
        self.id = f"{self.host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.queues: tuple[str, ...] = self.device.queues
        #: A plain flag and no lock: a signal handler sets it.
        self.draining = False
        self._limits = limits or Limits(
            ttl_s=settings.lease_ttl_s, heartbeat_s=settings.heartbeat_s
        )
        self._runner_argv = runner_argv
        self._give_back = give_back
        floor = settings.free_space_floor_bytes
        self.storage = StorageHealth(
            {settings.jobs_dir: max(floor, FREE_SPACE_FLOOR), settings.artifacts_dir: floor},
            probe=self.artifacts.probe,
        )
        self._trouble = ""
        self._run_id: str | None = None
        self._stopping = threading.Event()
        self._changed = threading.Event()
        self._presence = threading.Thread(target=self._presence_loop, name="presence", daemon=True)
        self._pulse = Pulse(pulse_path(settings.home, os.getpid()))

    def wait_for_database(self) -> None:
        """Bring the tables up to date, waiting 5 minutes at most for a database that starts.

        Raises:
            SQLAlchemyError: the database did not answer in time.
        """
        deadline = time.monotonic() + 300.0
        while True:
            try:
                migrations.upgrade(self.engine)
            except Exception as error:
                if not database_away(error) or time.monotonic() > deadline:
                    raise
                log.warning("waiting for the database: %s", error)
                time.sleep(1.0)
            else:
                return

    def start(self) -> None:
        self._pulse.start()
        self._presence.start()

    def stop(self) -> None:
        self._stopping.set()
        self._changed.set()
        self._pulse.stop()
        if self._presence.is_alive():
            self._presence.join(timeout=15.0)
        try:
            self._presences.mark_gone(self.id)
        except Exception as error:  # the database may be what is gone
            log.warning("cannot say goodbye: %s", error)
        self.engine.dispose()

    def answer(self, message_run: str) -> None:
        """Take the runs that wait, one after the other, until none is left that we may take.

        So a message that was lost delays no run for longer than somebody is at work.

        Args:
            message_run: the run whose message woke us; it waits still, or another took it.
        """
        sent: str | None = message_run
        while not self.draining:
            if self._check_storage():
                if self._claim_and_run(sent) is None:
                    return
            elif sent is not None:
                self._log_errors(partial(self._give_back, sent))
            else:
                # Out: while this waits, no message is taken from the broker.
                time.sleep(1.0)
            sent = None

    def _check_storage(self) -> bool:
        """Whether anything can be stored here; a change is told at once."""
        trouble = self.storage.problem() or self._drain_reason()
        if bool(trouble) != bool(self._trouble):
            if trouble:
                log.warning("this worker takes no run: %s", trouble)
            else:
                log.info("this worker takes runs again")
            self._changed.set()
        self._trouble = trouble
        return not trouble

    def _drain_reason(self) -> str:
        """Why this worker is to take no run, where somebody asked that; it is asked each time."""
        try:
            return drained_words(self._presences.drained_by(self.id))
        except SQLAlchemyError as error:
            if not database_away(error):
                raise
            return ""  # nothing can be taken then anyway

    def _claim_and_run(self, message_run: str | None) -> Outcome | None:
        claimed_at = time.monotonic()
        deadline = claimed_at + _CLAIM_PATIENCE_S
        while True:
            try:
                claimed_at = time.monotonic()
                claim = self._claims.claim_next(
                    self.queues,
                    message_run=message_run,
                    worker_id=self.id,
                    ttl_s=self._limits.ttl_s,
                    quota_running=self.settings.quota_running,
                )
                break
            except Exception as error:
                # The message is gone by now, but the lease reaper will send again.
                if not database_away(error) or time.monotonic() > deadline or self.draining:
                    raise
                log.warning("no run can be taken, the database is away: %s", error)
                time.sleep(1.0)
        if claim is None:
            log.info("nothing waits that this worker may take")
            return None
        run_id = claim.run_id
        with named(run_id=run_id, attempt=claim.attempt, request_id=claim.request_id):
            return self._run_claim(claim, claimed_at)

    def _run_claim(self, claim: Claim, claimed_at: float) -> Outcome:
        run_id = claim.run_id
        log.info("run %s attempt %d starts", run_id, claim.attempt)
        self._set_run(run_id)
        try:
            outcome = supervise(
                self.engine,
                self.artifacts,
                claim,
                jobs=self.settings.jobs_dir,
                limits=self._limits,
                claimed_at=claimed_at,
                storage=self.storage,
                draining=lambda: self.draining,
                environment=environment_for(self.settings, self.device),
                runner_argv=self._runner_argv,
            )
        finally:
            self._set_run(None)
        log.info("run %s attempt %d: %s", run_id, claim.attempt, outcome)
        return outcome

    def _set_run(self, run_id: str | None) -> None:
        self._run_id = run_id
        self._changed.set()

    def _presence_loop(self) -> None:
        tidy_at = 0.0
        while not self._stopping.is_set():
            self._changed.clear()
            self._log_errors(self._check_storage)
            self._log_errors(self._report_presence)
            if time.monotonic() >= tidy_at:
                self._log_errors(self._remove_old_folders)
                tidy_at = time.monotonic() + _TIDY_S
            self._changed.wait(_PRESENCE_S)

    def _report_presence(self) -> None:
        self._presences.seen(
            self.id,
            host=self.host,
            queues=self.queues,
            device=self.device.label,
            run_id=self._run_id,
            trouble=self._trouble,
            gpus=gpu_usage(self.device.environment),
        )

    def _log_errors(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # presence outlives every outage
            log.warning("%s", error)

    def _remove_old_folders(self) -> None:
        jobs = self.settings.jobs_dir
        for folder in sorted(jobs.iterdir()) if jobs.is_dir() else []:
            idle_s = time.time() - _touched_at(folder)
            if folder.is_symlink() or not folder.is_dir() or idle_s < _ORPHAN_S:
                continue
            try:
                phase = self._claims.phase(folder.name)
                # All of a run that succeeded is stored; a worker died before it could clean up.
                over = phase == "SUCCEEDED" or (phase in TERMINAL_PHASES and idle_s > _KEEP_ENDED_S)
            except NotFoundError:
                over = True
            if over:
                shutil.rmtree(folder, ignore_errors=True)


def _touched_at(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    times += [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else []
    return max(times)
