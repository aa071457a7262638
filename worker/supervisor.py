"""One attempt at one run, from its claim to its recorded end. Knows no Celery and no torch.

::

    claim ──> JOB_DIR/spec.json, job.json ──> runner process (its own session)
                 │                               │ records.jsonl, runner.log, result.json
                 │  main thread: follow, record  │
                 │  lease threads: beat, guard   │
                 └─> finish / requeue <──────────┘

The database row is the truth. Every write after the claim carries the attempt number, and whoever
learns that the attempt is no longer the current one kills the runner and throws its work away. Two
things say so: the database, or its silence: once it has been out of reach for 80 % of the lease,
another worker may hold the run (*self-fencing*, by the monotonic clock, so that no wall clock
matters).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from backend.artifacts import ArtifactKind, ArtifactStore, publish_artifact
from backend.process import Child
from backend.store import Claim, NotFoundError, Store
from calift_core.curves import read_curves
from calift_core.errors import (
    CaliftError,
    DiskFullError,
    ModelUnavailableError,
    StorageError,
    reason_of,
)
from calift_core.files import atomic_write_json, storage_error
from calift_core.schema.records import (
    EXIT_INTERRUPTED,
    RECORD,
    CheckpointRecord,
    DoneRecord,
    EvaluationRecord,
    JobFile,
    JobResult,
    LogRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
    SpectrumRecord,
)
from calift_core.schema.report import Report
from calift_core.schema.spec import parse_spec
from calift_core.schema.wire import Progress
from calift_core.threads import openmp_environment
from worker.states import StateKeeper, lay_out, newest_stored
from worker.storage import Storage

log = logging.getLogger(__name__)

#: How the runner is started: fixed words and the job's folder, never a shell.
RUNNER_ARGV: tuple[str, ...] = (sys.executable, "-m", "calift_core.run")

Outcome = Literal["succeeded", "failed", "cancelled", "requeued", "fenced"]
StopReason = Literal["", "cancel", "drain", "hang"]

#: Folder in a job's folder that finished runs are laid out in.
_INPUTS = "inputs"

#: Folder in a job's folder that stored checkpoints are laid out in.
_FETCHED = "fetched"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ATTEMPT = re.compile(r"attempt-([1-9]\d{0,8})")

#: Part of the lease after which an attempt that cannot reach the database gives itself up.
_SELF_FENCE = 0.8

_NO_ROOM_HINT = "Free some space on the worker's machine, then retry the run."

#: When memory runs out the kernel should take the runner and leave the one that reports it.
_OOM_SCORE_ADJ = 500

#: What a runner may see of the worker's environment. Database and broker URLs and API tokens are
#: not its business: it runs the libraries that open people's files.
_PASSED_ON = re.compile(
    r"""PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|PYTHONPATH|LD_LIBRARY_PATH
    |CALIFT_HOME|CALIFT_FASHION_MNIST
    |SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|(?i:https?_proxy|no_proxy)
    |(?:LC|XDG|OMP|GOMP|KMP|MKL|OPENBLAS|CUDA|NVIDIA|NCCL|TORCH|TORCHINDUCTOR|PYTORCH|HF)_\w+""",
    re.VERBOSE,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Times of one attempt, all in seconds.

    Attributes:
        ttl_s: how long a claim lives without a heartbeat.
        heartbeat_s: time between two heartbeats.
        cancel_poll_s: how often a cancel is looked for; this only reads.
        group_s: records are stored in groups, at most this long after they were read.
        grace_s: what a runner gets between SIGTERM and SIGKILL.
        hang_timeout_s: a runner that says nothing for so long is killed.
        tick_s: how often the runner and its files are looked at.
        log_limit_bytes: this much of an attempt's log goes to the database; the file keeps all.
        state_s: how long the end of an attempt that another goes on from waits for its last
            checkpoint to be stored.
    """

    ttl_s: float = 60.0
    heartbeat_s: float = 15.0
    cancel_poll_s: float = 1.0
    group_s: float = 1.0
    grace_s: float = 30.0
    hang_timeout_s: float = 1800.0
    tick_s: float = 0.1
    log_limit_bytes: int = 8 << 20
    state_s: float = 10.0


def runner_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of the worker's environment that a runner gets, unbuffered and with fault traces.

    How its threads wait and how many they are is set too, unless the worker's environment says.
    """
    passed = {name: value for name, value in environment.items() if _PASSED_ON.fullmatch(name)}
    passed |= openmp_environment(passed)
    return passed | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def job_dir(jobs: Path, run_id: str, attempt: int) -> Path:
    """`jobs/RUN/attempt-N`.

    Raises:
        ValueError: the run's id could lead out of `jobs`.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"a run id has letters, digits, '_' or '-', got {run_id!r}")
    return jobs / run_id / f"attempt-{attempt}"


def supervise(
    store: Store,
    artifacts: ArtifactStore,
    claim: Claim,
    *,
    jobs: Path,
    limits: Limits,
    claimed_at: float,
    storage: Storage | None = None,
    draining: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
    runner_argv: Sequence[str] = RUNNER_ARGV,
) -> Outcome:
    """Run one claimed attempt to its end and record what came of it.

    Call it from a thread that lives on until it returns; the runner dies with that thread.

    Args:
        store: where the run lives.
        artifacts: where its files go.
        claim: what `Store.claim` gave.
        jobs: the folder of job folders.
        limits: times.
        claimed_at: `time.monotonic()` from *before* the claim was asked for.
        storage: says whether this machine can store anything; None: it looks at `jobs` alone.
        draining: turns true when the worker is to stop; the run is then queued again.
        environment: filtered by `runner_environment`; the process's own when None.
        runner_argv: the command that the job's folder is appended to.

    Returns:
        What became of the attempt: `succeeded`, `failed` and `cancelled` are recorded ends,
        `requeued` means that the run waits for another attempt, `fenced` that this attempt's work
        was thrown away because the run may be somebody else's by now.
    """
    attempt = _Attempt(
        store,
        artifacts,
        claim,
        folder=job_dir(jobs, claim.run_id, claim.attempt),
        limits=limits,
        claimed_at=claimed_at,
        storage=storage or Storage({jobs: 0}),
        draining=draining,
    )
    return attempt.run(
        runner_argv, runner_environment(os.environ if environment is None else environment)
    )


class _Fenced(Exception):
    """The attempt is no longer ours."""


def database_away(error: Exception) -> bool:
    """Whether a database error says that it is worth asking again."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


class _Attempt:
    """The state of one attempt; `_run` is the story, in order."""

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        claim: Claim,
        *,
        folder: Path,
        limits: Limits,
        claimed_at: float,
        storage: Storage,
        draining: Callable[[], bool],
    ) -> None:
        self._storage = storage
        self._store = store
        self._artifacts = artifacts
        self._claim = claim
        self._run_id = claim.run_id
        self._number = claim.attempt
        self._folder = folder
        self._limits = limits
        self._draining = draining
        self._runner: Child | None = None
        self._lease = _Lease(store, claim, limits, claimed_at=claimed_at, on_lost=self._kill)
        self._stop_reason: StopReason = ""
        self._records: list[Record] = []
        self._log = b""
        self._logged_bytes = 0
        self._write_at = 0.0
        self._superseded = False
        self._resumed_at: int | None = None
        self._states: StateKeeper | None = None

    def run(self, argv: Sequence[str], environment: Mapping[str, str]) -> Outcome:
        """Supervise the attempt; see `supervise`."""
        with self._lease:
            try:
                try:
                    return self._run(argv, environment)
                except CaliftError as error:
                    return self._failed_or_set_back(error.code, error.message, error.hint)
                except _Fenced:
                    raise
                except Exception as error:
                    # Whatever is wrong with this worker need not be wrong with the next one.
                    log.exception("run %s attempt %d: worker error", self._run_id, self._number)
                    return self._lost(
                        "WORKER_ERROR",
                        f"the worker failed: {_words_of(error)}",
                        "The traceback is in the worker's log.",
                    )
            except _Fenced:
                log.warning("run %s attempt %d is fenced off", self._run_id, self._number)
                return "fenced"
            finally:
                self._kill()

    def _run(self, argv: Sequence[str], environment: Mapping[str, str]) -> Outcome:
        if self._claim.cancel_requested:
            return self._cancelled()
        left = self._finished_earlier()
        if left is not None:
            return self._adopt(left)
        self._prepare()
        self._runner = Child(
            [*argv, str(self._folder)],
            output=self._folder / "runner.log",
            environment=environment,
            oom_score_adj=_OOM_SCORE_ADJ,
        )
        self._states = StateKeeper(
            self._store, self._artifacts, self._run_id, self._number, self._folder
        )
        wait_s = 0.0
        try:
            returncode = self._follow(self._runner)
            result = _read_result(self._folder)
            if result is None or result.outcome != "succeeded":
                wait_s = self._limits.state_s
        finally:
            self._kill()
            self._states.close(wait_s)
            # Linked contents would outlive the runs that they belong to.
            for name in (_INPUTS, _FETCHED):
                shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._conclude(returncode, result)

    # -- before

    def _finished_earlier(self) -> Path | None:
        """An earlier attempt here that was finished, but whose worker died before it said so."""
        for folder in self._earlier():
            result = _read_result(folder)
            if result is not None and result.outcome == "succeeded":
                try:
                    report = Report.model_validate_json((folder / "report.json").read_bytes())
                except (OSError, ValidationError) as error:
                    log.warning("%s is not readable: %s", folder / "report.json", error)
                    continue
                if report.run_id == self._run_id:
                    return folder
        return None

    def _adopt(self, folder: Path) -> Outcome:
        """Store what an earlier attempt made, and all that it said and nobody may have heard."""
        self._folder = folder
        message = f"{folder.name} had finished everything; its result is stored now."
        said: list[Record] = [LogRecord(message=message)]
        for line in _Lines(folder / "records.jsonl").rest():
            record = self._parse(line)
            if isinstance(record, EvaluationRecord | DoneRecord) or (
                isinstance(record, SpectrumRecord) and record.final
            ):
                said.append(record)
        self._held(lambda: self._store.record(self._run_id, self._number, said))
        self._restore(sys.maxsize)
        return self._succeeded()

    def _restore(self, until: int) -> None:
        """Write the points of the curves again, up to a step: some may not have been stored."""
        points = read_curves(self._folder, until=until)
        self._held(lambda: self._store.restore(self._run_id, self._number, points))

    def _prepare(self) -> None:
        """Make the job's folder.

        Raises:
            DiskFullError, StorageError: it cannot be written.
            ModelUnavailableError: a finished run that the method names is gone.
        """
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._folder.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise storage_error(error, self._folder, "make") from error
        source = self._resume_source()
        job = JobFile(
            run_id=self._run_id,
            attempt=self._number,
            resume_from=None if source is None else str(source),
            inputs={name: str(path) for name, path in self._inputs().items()},
        )
        atomic_write_json(self._folder / "spec.json", self._claim.spec)
        atomic_write_json(self._folder / "job.json", job.model_dump(mode="json"))

    def _inputs(self) -> dict[str, Path]:
        """Lay out the finished runs that the method names, each as its runner left it.

        The spec keeps the ids; the runner is told the folders.
        """
        found: dict[str, Path] = {}
        for index, run_id in enumerate(parse_spec(self._claim.spec).method.input_runs):
            folder = self._folder / _INPUTS / str(index)
            try:
                stored = self._insist(partial(self._store.artifacts, run_id))
                needed = {
                    item.name: item.sha256
                    for item in stored
                    if item.kind == "checkpoint" or item.name == "report.json"
                }
                missing = {"report.json", "checkpoint/model.json"} - set(needed)
                if missing:
                    raise NotFoundError(f"run {run_id} has no file {min(missing)!r}.")
                for name, sha256 in needed.items():
                    self._artifacts.place(sha256, folder / name)
            except NotFoundError as error:
                raise ModelUnavailableError(
                    f"the finished run {run_id} that this one is made from is gone: "
                    f"{error.message}",
                    hint="It was deleted after this run was submitted, or it stored no model.",
                ) from error
            found[run_id] = folder
        return found

    def _earlier(self) -> list[Path]:
        """Folders of earlier attempts on this machine, newest first."""
        found = []
        jobs = self._folder.parent
        for path in jobs.iterdir() if jobs.is_dir() else ():
            match = _ATTEMPT.fullmatch(path.name)
            if match and int(match[1]) < self._number and not path.is_symlink():
                found.append((int(match[1]), path))
        return [path for _, path in sorted(found, reverse=True)]

    def _resume_source(self) -> Path | None:
        """What to go on from: the last checkpoint, here or in the artifact store."""
        here = self._newest_here()
        stored = self._insist(partial(self._store.artifacts, self._run_id, kind="state"))
        if stored and newest_stored(stored) > _newest_in(here):
            fetched = self._folder / _FETCHED
            if lay_out(stored, self._artifacts, fetched):
                return fetched
        return here

    def _newest_here(self) -> Path | None:
        """The newest earlier attempt that left a checkpoint on this machine."""
        return next((path for path in self._earlier() if _has_checkpoint(path)), None)

    # -- while it runs

    def _follow(self, runner: Child) -> int:
        """Store what the runner says until it has ended; return its exit status."""
        records = _Lines(self._folder / "records.jsonl")
        output = _Tail(self._folder / "runner.log")
        heard_at = time.monotonic()
        kill_at: float | None = None
        while True:
            ended = runner.ended()
            now = time.monotonic()
            new = [record for line in records.read() if (record := self._parse(line))]
            if new:
                heard_at = now
                self._take(new)
            room = min(1 << 18, self._limits.log_limit_bytes - self._logged_bytes)
            chunk = output.read(room - len(self._log))
            self._log += chunk
            if ended or now >= self._write_at:
                self._write_pending()
                self._write_at = now + self._limits.group_s
            if self._lease.lost:
                raise _Fenced
            if ended:
                if new or chunk:
                    continue  # What was written just before the end may not be all yet.
                self._insist(self._write_pending)
                return runner.reap()
            reason = self._why_stop(now - heard_at)
            if reason != self._stop_reason:
                log.info("run %s attempt %d: stop, %s", self._run_id, self._number, reason)
                if kill_at is None:
                    kill_at = now + self._limits.grace_s
                    runner.terminate()
                if reason == "hang":
                    kill_at = now
                self._stop_reason = reason
            if kill_at is not None and now >= kill_at:
                runner.kill()
            time.sleep(self._limits.tick_s)

    def _why_stop(self, silent_s: float) -> StopReason:
        if self._lease.cancel:
            return "cancel"
        if self._stop_reason:
            return self._stop_reason
        if self._draining():
            return "drain"
        if silent_s > self._limits.hang_timeout_s:
            return "hang"
        return ""

    def _parse(self, line: bytes) -> Record | None:
        try:
            return RECORD.validate_json(line)
        except ValidationError:
            log.warning("run %s attempt %d: bad record %r", self._run_id, self._number, line[:500])
            return None

    def _take(self, records: list[Record]) -> None:
        self._records += records
        for record in records:
            if isinstance(record, PhaseRecord):
                self._lease.progress = Progress(
                    phase=record.phase, detail=record.detail, updated_at=datetime.now(UTC)
                )
            elif isinstance(record, ProgressRecord):
                self._lease.progress = Progress(
                    **record.model_dump(exclude={"kind"}), updated_at=datetime.now(UTC)
                )
            elif isinstance(record, ResumedRecord):
                self._resumed_at = record.step
            elif isinstance(record, CheckpointRecord):
                if self._states is not None:
                    self._states.offer(record.step)
                if not self._superseded:
                    # A newer one is complete on disk: nobody will go on from the older ones.
                    self._remove(self._earlier())
                    self._superseded = True

    def _write_pending(self) -> bool:
        """Store the records and the log read so far, or leave them for later.

        Returns:
            Whether all was stored; False when the database is away.

        Raises:
            _Fenced: the database says that the attempt is not ours.
        """
        records, text = self._records, self._log
        if records and not self._stored(
            lambda: self._store.record(self._run_id, self._number, records)
        ):
            return False
        self._records = []
        if self._resumed_at is not None:
            # Later than the record that deletes what came after: nothing of this is deleted.
            points = read_curves(self._folder, until=self._resumed_at)
            if not self._stored(lambda: self._store.restore(self._run_id, self._number, points)):
                return False
            self._resumed_at = None
        if text and not self._stored(
            lambda: self._store.append_log(self._run_id, self._number, text)
        ):
            return False
        self._log = b""
        self._logged_bytes += len(text)
        return True

    def _stored(self, write: Callable[[], bool]) -> bool:
        try:
            held = write()
        except SQLAlchemyError as error:
            if database_away(error):
                log.warning("run %s: the database is away: %s", self._run_id, error)
                return False
            # One group that the database will never take must not hold up the run.
            log.exception("run %s attempt %d: records dropped", self._run_id, self._number)
            return True
        if not held:
            raise _Fenced
        return True

    # -- the end

    def _conclude(self, returncode: int, result: JobResult | None) -> Outcome:
        """Decide what an ended runner means."""
        if result is not None and result.outcome == "succeeded":
            return self._succeeded()
        if self._stop_reason == "cancel" or self._lease.cancel:
            return self._cancelled()
        if result is not None and result.outcome == "failed":
            return self._failed_or_set_back(result.code, result.message, result.hint)
        if self._stop_reason == "hang":
            return self._lost(
                "RUNNER_HUNG",
                f"the runner said nothing for {self._limits.hang_timeout_s:g} s and was stopped",
                "See the end of the run's log for what it was doing.",
            )
        if self._stop_reason == "drain":
            return self._requeued("WORKER_DRAINED")
        if returncode == EXIT_INTERRUPTED:
            # Somebody else asked it to stop, as a service manager does that signals all at once.
            return self._requeued("RUNNER_INTERRUPTED")
        if returncode in _LOST_STATUSES:
            return self._lost(
                "RUNNER_LOST",
                f"the runner was ended from outside by {_status_words(returncode)}",
                "Most often this is a machine that ran out of memory: lower train.batch_size or "
                "train.workers, or free some.",
            )
        if trouble := self._storage.trouble():
            # On a full disk a runner cannot even say so.
            return self._set_back(
                DiskFullError.code, f"the runner left no result: {trouble}", _NO_ROOM_HINT
            )
        return self._failed(
            "RUNNER_CRASHED",
            f"the runner ended with {_status_words(returncode)} and left no result. "
            f"Its last words:\n{_last_lines(self._folder / 'runner.log')}",
            "The whole output is in the run's log.",
        )

    def _succeeded(self) -> Outcome:
        """Publish the files, then the report, then remove the folder.

        Raises:
            DiskFullError: no room for the files; the run's row has not changed.
            StorageError: the runner's report is not one, or a file cannot be stored.
        """
        try:
            report = Report.model_validate_json((self._folder / "report.json").read_bytes())
        except OSError as error:
            raise storage_error(error, self._folder / "report.json", "read") from error
        except ValidationError as error:
            raise StorageError(f"the runner left a report.json that is not one: {error}") from error
        for name, kind in _files_of(self._folder):
            self._publish(name, kind)
        self._finish("SUCCEEDED", report=report)
        self._remove([self._folder.parent])
        return "succeeded"

    def _publish(self, name: str, kind: ArtifactKind) -> None:
        self._held(
            lambda: publish_artifact(
                self._store,
                self._artifacts,
                self._run_id,
                self._number,
                name=name,
                kind=kind,
                path=self._folder / name,
            )
        )

    def _failed_or_set_back(self, code: str, message: str, hint: str) -> Outcome:
        if self._storage.is_to_blame(code):
            return self._set_back(code, message, hint or _NO_ROOM_HINT)
        return self._failed(code, message, hint)

    def _set_back(self, code: str, message: str, hint: str) -> Outcome:
        """This machine has no room for the run: queue it again, at no cost."""
        self._held(
            lambda: self._store.requeue(
                self._run_id,
                self._number,
                reason=code,
                message=message,
                hint=hint,
                setback=True,
            )
        )
        # What nobody goes on from takes up room.
        source = next((p for p in [self._folder, *self._earlier()] if _is_worth_keeping(p)), None)
        self._remove([p for p in [self._folder, *self._earlier()] if p != source and p.exists()])
        return "requeued"

    def _failed(self, code: str, message: str, hint: str) -> Outcome:
        self._finish("FAILED", reason=code, message=message, hint=hint)
        self._prune()
        return "failed"

    def _cancelled(self) -> Outcome:
        self._finish("CANCELLED", reason="USER_CANCELLED", message="cancelled by a user")
        self._prune()
        return "cancelled"

    def _requeued(self, reason: str) -> Outcome:
        self._held(lambda: self._store.requeue(self._run_id, self._number, reason=reason))
        return "requeued"

    def _lost(self, reason: str, message: str, hint: str) -> Outcome:
        """The attempt came to nothing by nobody's fault: queue it again, within limits."""
        self._held(
            lambda: self._store.requeue(
                self._run_id, self._number, reason=reason, message=message, hint=hint, lost=True
            )
        )
        return "requeued"

    def _finish(
        self,
        phase: Literal["SUCCEEDED", "FAILED", "CANCELLED"],
        *,
        reason: str | None = None,
        message: str | None = None,
        hint: str = "",
        report: Report | None = None,
    ) -> None:
        body = None if report is None else report.model_dump(mode="json")
        self._held(
            lambda: self._store.finish(
                self._run_id,
                self._number,
                phase=phase,
                reason=reason,
                message=message,
                hint=hint,
                report=body,
            )
        )

    def _held(self, write: Callable[[], bool]) -> None:
        if not self._insist(write):
            raise _Fenced

    def _insist(self, call: Callable[[], T]) -> T:
        """Call until the database answers or the lease is over."""
        while not self._lease.lost:
            try:
                return call()
            except SQLAlchemyError as error:
                if not database_away(error):
                    raise
                log.warning("run %s: the database is away: %s", self._run_id, error)
            time.sleep(0.5)
        raise _Fenced

    def _prune(self) -> None:
        """Of a run that ended badly, keep this attempt and what it would be resumed from."""
        if not self._folder.exists():
            return
        source = self._folder if _has_checkpoint(self._folder) else self._newest_here()
        self._remove([path for path in self._earlier() if path != source])

    def _remove(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                log.warning("cannot remove %s: %s", folder, error)

    def _kill(self) -> None:
        if self._runner is not None:
            self._runner.kill()
            if self._runner.wait(5.0):
                self._runner.reap()


class _Lease:
    """Keeps a claim alive, and says when it is over.

    Two threads, because a heartbeat can block in a network or a lock for longer than the lease
    lives: `beat` renews, `guard` watches the deadline and needs nothing but a clock.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        limits: Limits,
        *,
        claimed_at: float,
        on_lost: Callable[[], None],
    ) -> None:
        self.progress: Progress | None = None
        self.cancel = claim.cancel_requested
        self._store = store
        self._claim = claim
        self._limits = limits
        self._on_lost = on_lost
        self._deadline = claimed_at + _SELF_FENCE * limits.ttl_s
        self._over = threading.Event()
        self._lost = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"lease-{target.__name__}", daemon=True)
            for target in (self._beat, self._guard)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=1.0)

    @property
    def lost(self) -> bool:
        """Whether somebody else may hold the run."""
        return self._lost.is_set()

    def _beat(self) -> None:
        beat_at = time.monotonic() + self._limits.heartbeat_s
        while not self._over.wait(min(self._limits.cancel_poll_s, self._limits.heartbeat_s)):
            asked_at = time.monotonic()
            try:
                if asked_at < beat_at:
                    if not self.cancel:
                        self.cancel = self._store.phase(self._claim.run_id) == "CANCELLING"
                    continue
                lease = self._store.heartbeat(
                    self._claim.run_id,
                    self._claim.attempt,
                    ttl_s=self._limits.ttl_s,
                    progress=self.progress,
                )
            except Exception as error:  # the guard decides how long this may go on
                log.warning("run %s: no heartbeat: %s", self._claim.run_id, error)
                continue
            if not lease.held:
                self._lose()
                return
            # From before the question: the lease cannot have begun earlier than that.
            self._deadline = asked_at + _SELF_FENCE * self._limits.ttl_s
            self.cancel = self.cancel or lease.cancel_requested
            beat_at = asked_at + self._limits.heartbeat_s

    def _guard(self) -> None:
        while not self._over.wait(max(0.01, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self._lose()
                return

    def _lose(self) -> None:
        if not self._over.is_set():
            self._lost.set()
            self._on_lost()


class _Tail:
    """Reads what is appended to a file that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0

    def read(self, limit: int) -> bytes:
        """At most `limit` new bytes."""
        if limit <= 0:
            return b""
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(limit)
        except FileNotFoundError:
            return b""
        self.offset += len(data)
        return data


class _Lines:
    """Complete lines only: a runner killed in mid-write leaves a torn last one."""

    def __init__(self, path: Path) -> None:
        self._tail = _Tail(path)
        self._rest = b""

    def read(self) -> Iterator[bytes]:
        """New lines without their ends."""
        data = self._rest + self._tail.read(1 << 20)
        *lines, self._rest = data.split(b"\n")
        return (line for line in lines if line.strip())

    def rest(self) -> Iterator[bytes]:
        """All lines up to the end of a file that nobody writes any more."""
        while True:
            before = self._tail.offset
            yield from self.read()
            if self._tail.offset == before:
                return


#: Ends by SIGHUP, SIGINT, SIGKILL and SIGTERM come from outside: a user's mistake does not kill.
_LOST_STATUSES = frozenset({-1, -2, -9, -15})


def _words_of(error: Exception) -> str:
    # A database error's text holds the statement and its values, which are nobody's business.
    if isinstance(error, SQLAlchemyError):
        return f"the database refused what it was given ({type(error).__name__})"
    return f"{type(error).__name__}: {reason_of(error)}"


def _status_words(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"


def _newest_in(folder: Path | None) -> tuple[int, int]:
    """Attempt and step of the newest checkpoint in an attempt's folder; (0, -1) without one."""
    match = None if folder is None else _ATTEMPT.fullmatch(folder.name)
    if folder is None or match is None:
        return (0, -1)
    found = (folder / "checkpoint" / "steps").glob("[0-9]*/manifest.json")
    return int(match[1]), max((int(path.parent.name) for path in found), default=-1)


def _has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from.

    That is a checkpoint, whose manifest is written last, or parts of an evaluation: a run that
    trained leaves those beside its checkpoint only.
    """
    return any((folder / "checkpoint" / "steps").glob("[0-9]*/manifest.json")) or any(
        (folder / "evaluating").glob("*/[!.]*")
    )


def _is_worth_keeping(folder: Path) -> bool:
    result = _read_result(folder)
    return _has_checkpoint(folder) or (result is not None and result.outcome == "succeeded")


def _read_result(folder: Path) -> JobResult | None:
    try:
        return JobResult.model_validate_json((folder / "result.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s is not readable: %s", folder / "result.json", error)
        return None


def _last_lines(path: Path, *, count: int = 20, limit_bytes: int = 4096) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - limit_bytes))
        lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-count:])
    return ""


_SINGLE_FILES: dict[str, ArtifactKind] = {
    "report.json": "report",
    "metrics.jsonl": "metrics",
    "runner.log": "log",
}
_FOLDERS: tuple[ArtifactKind, ...] = ("predictions", "checkpoint")


def _files_of(folder: Path) -> Iterator[tuple[str, ArtifactKind]]:
    """Name and kind of the files that a finished run leaves."""
    for name, kind in _SINGLE_FILES.items():
        if (folder / name).is_file():
            yield name, kind
    for kind in _FOLDERS:
        for path in sorted((folder / kind).rglob("*")):
            name = path.relative_to(folder).as_posix()
            # The states to go on from are not the run's result.
            resumable = name.startswith("checkpoint/steps/") or "/." in name
            if path.is_file() and not path.is_symlink() and not resumable:
                yield name, kind
