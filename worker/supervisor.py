"""One attempt at one run, from its claim to its recorded end. Knows no Celery and no torch.

::

    claim ──> JOB_DIR/spec.json, job.json ──> runner process (its own session)
                 │                               │ records.jsonl, runner.log, result.json
                 │  `tail`: follow, record       │
                 │  `lease`: beat, guard         │
                 └─> finish / requeue <──────────┘

The database row is the truth. Whoever learns that the attempt is no longer the current one
(`worker.lease`) kills the runner and throws its work away.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from backend.children.process import ManagedProcess
from backend.storage.artifacts import ArtifactKind, ArtifactStore, publish_artifact
from backend.storage.health import StorageHealth
from backend.store.claims import Claim, Claims
from backend.store.errors import words_of
from backend.store.evaluated import EvaluatedRuns
from backend.store.files import Files
from backend.store.pace import stored_pace
from backend.store.records import Records
from calift_core.data.listing import ScanBudget
from calift_core.data.workload import Forecast, count_images
from calift_core.errors import CaliftError, DiskFullError, ModelUnavailableError, StorageError
from calift_core.files import atomic_write_json, storage_error
from calift_core.jobs.curves import read_curves
from calift_core.schema.records import (
    EXIT_INTERRUPTED,
    DoneRecord,
    EvaluationRecord,
    JobFile,
    JobResult,
    LogRecord,
    Record,
    SpectrumRecord,
)
from calift_core.schema.report import Report
from calift_core.schema.spec import parse_spec
from worker.folders import (
    earlier_attempts,
    files_of,
    finished_earlier,
    has_checkpoint,
    is_worth_keeping,
    job_dir,
    last_lines,
    newest_checkpoint,
    read_result,
    remove,
)
from worker.inputs import Inputs
from worker.lease import FencedError, LeaseKeeper
from worker.limits import Limits
from worker.publishing import Publisher
from worker.runner import (
    LOST_STATUSES,
    OOM_SCORE_ADJ,
    RUNNER_ARGV,
    command_of,
    runner_environment,
    status_words,
)
from worker.states import StateKeeper, newest_stored, restore_files
from worker.tail import Follower, JsonlReader, parse_record

log = logging.getLogger(__name__)


Outcome = Literal["succeeded", "failed", "cancelled", "requeued", "fenced"]
StopReason = Literal["", "cancel", "drain", "hang"]

#: Folder in a job's folder that finished runs are laid out in, which it merges or evaluates.
_INPUTS = "inputs"

#: Folder in a job's folder that stored checkpoints are laid out in.
_FETCHED = "fetched"


#: What may be looked at of a disk to count what a run has to do.
_SCAN_ENTRIES, _SCAN_S = 100_000, 1.0


_NO_ROOM_HINT = "Free some space on the worker's machine, then retry the run."


def supervise(
    engine: Engine,
    artifacts: ArtifactStore,
    claim: Claim,
    *,
    jobs: Path,
    limits: Limits,
    claimed_at: float,
    storage: StorageHealth | None = None,
    draining: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
    runner_argv: Sequence[str] = RUNNER_ARGV,
) -> Outcome:
    """Run one claimed attempt to its end and record what came of it.

    Call it from a thread that lives on until it returns; the runner dies with that thread.

    Args:
        claim: what `Claims.claim` gave.
        claimed_at: `time.monotonic()` from *before* the claim was asked for.
        storage: says whether this machine can store anything; None: it looks at `jobs` alone.
        draining: turns true when the worker is to stop; the run is then queued again.
        environment: filtered by `runner_environment`; the process's own when None.
        runner_argv: the command of one process, which the job's folder is appended to.

    Returns:
        What became of the attempt: `succeeded`, `failed` and `cancelled` are recorded ends,
        `requeued` means that the run waits for another attempt, `fenced` that this attempt's work
        was thrown away because the run may be somebody else's by now.
    """
    attempt = _Attempt(
        engine,
        artifacts,
        claim,
        folder=job_dir(jobs, claim.run_id, claim.attempt),
        limits=limits,
        claimed_at=claimed_at,
        storage=storage or StorageHealth({jobs: 0}),
        draining=draining,
    )
    return attempt.run(
        runner_argv, runner_environment(os.environ if environment is None else environment)
    )


class _Attempt:
    """The state of one attempt; `_run` is the story, in order."""

    def __init__(
        self,
        engine: Engine,
        artifacts: ArtifactStore,
        claim: Claim,
        *,
        folder: Path,
        limits: Limits,
        claimed_at: float,
        storage: StorageHealth,
        draining: Callable[[], bool],
    ) -> None:
        self._storage, self._engine = storage, engine
        self._claims, self._records, self._files = Claims(engine), Records(engine), Files(engine)
        self._artifacts = artifacts
        self._claim = claim
        self._run_id = claim.run_id
        self._number = claim.attempt
        self._folder = folder
        self._limits = limits
        self._draining = draining
        self._runner: ManagedProcess | None = None
        self._lease = LeaseKeeper(
            self._claims, claim, limits, claimed_at=claimed_at, on_lost=self._kill
        )
        self._stop_reason: StopReason = ""
        self._superseded = False
        self._states: StateKeeper | None = None
        self._evaluates = claim.kind == "evaluation"
        self._publisher = Publisher(EvaluatedRuns(engine), artifacts, claim, folder)
        self._gone: set[str] = set()

    def run(self, argv: Sequence[str], environment: Mapping[str, str]) -> Outcome:
        """Supervise the attempt; see `supervise`."""
        with self._lease:
            try:
                try:
                    return self._run(argv, environment)
                except CaliftError as error:
                    return self._failed_or_set_back(error.code, error.message, error.hint)
                except FencedError:
                    raise
                except Exception as error:
                    # Whatever is wrong with this worker need not be wrong with the next one.
                    log.exception("run %s attempt %d: worker error", self._run_id, self._number)
                    return self._lost(
                        "WORKER_ERROR",
                        f"the worker failed: {words_of(error)}",
                        "The traceback is in the worker's log.",
                    )
            except FencedError:
                log.warning("run %s attempt %d is fenced off", self._run_id, self._number)
                return "fenced"
            finally:
                self._kill()

    def _run(self, argv: Sequence[str], environment: Mapping[str, str]) -> Outcome:
        if self._claim.cancel_requested:
            return self._cancelled()
        left = None if self._evaluates else finished_earlier(self._earlier(), self._run_id)
        if left is not None:
            return self._adopt(left)
        self._prepare()
        self._runner = ManagedProcess(
            [*self._command(argv), str(self._folder)],
            output=self._folder / "runner.log",
            environment=environment,
            oom_score_adj=OOM_SCORE_ADJ,
        )
        self._states = StateKeeper(
            self._files, self._artifacts, self._run_id, self._number, self._folder
        )
        wait_s = 0.0
        try:
            returncode = self._follow(self._runner)
            result = read_result(self._folder)
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

    def _command(self, argv: Sequence[str]) -> Sequence[str]:
        """What the job's folder is appended to; one process evaluates, several may train."""
        if self._evaluates:
            return argv
        return command_of(parse_spec(self._claim.spec), argv)

    def _adopt(self, folder: Path) -> Outcome:
        """Store the result of an earlier attempt that finished, and what it said."""
        self._folder = folder
        message = f"{folder.name} had finished everything; its result is stored now."
        records: list[Record] = [LogRecord(message=message)]
        for line in JsonlReader(folder / "records.jsonl").rest():
            record = parse_record(line, self._run_id, self._number)
            if isinstance(record, EvaluationRecord | DoneRecord) or (
                isinstance(record, SpectrumRecord) and record.final
            ):
                records.append(record)
        self._lease.hold(lambda: self._records.record(self._run_id, self._number, records))
        self._restore(sys.maxsize)
        return self._succeeded()

    def _restore(self, until: int) -> None:
        """Write the points of the curves again, up to a step: some may not have been stored."""
        points = read_curves(self._folder, until=until)
        self._lease.hold(lambda: self._records.restore(self._run_id, self._number, points))

    def _prepare(self) -> None:
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._folder.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise storage_error(error, self._folder, "make") from error
        source = self._resume_source()
        finished = Inputs(self._files, self._artifacts, self._lease, self._folder / _INPUTS)
        if self._evaluates:
            wanted = self._claim.spec["runs"]
            inputs = finished.available_of(wanted)
            self._gone = set(wanted) - set(inputs)
        else:
            inputs = finished.all_of(parse_spec(self._claim.spec).input_runs)
        job = JobFile(
            run_id=self._run_id,
            kind=self._claim.kind,
            attempt=self._number,
            resume_from=None if source is None else str(source),
            inputs={name: str(path) for name, path in inputs.items()},
            request_id=self._claim.request_id,
        )
        atomic_write_json(self._folder / "spec.json", self._claim.spec)
        atomic_write_json(self._folder / "job.json", job.model_dump(mode="json"))

    def _resume_source(self) -> Path | None:
        """What to go on from: the last checkpoint, here or in the artifact store."""
        here = self._newest_local()
        stored = self._lease.call_with_retries(
            partial(self._files.of_run, self._run_id, kind="state")
        )
        if stored and newest_stored(stored) > newest_checkpoint(here):
            fetched = self._folder / _FETCHED
            if restore_files(stored, self._artifacts, fetched):
                return fetched
        return here

    def _newest_local(self) -> Path | None:
        return next((path for path in self._earlier() if has_checkpoint(path)), None)

    def _earlier(self) -> list[Path]:
        return earlier_attempts(self._folder.parent, self._number)

    # -- while it runs

    def _follow(self, runner: ManagedProcess) -> int:
        """Store what the runner says until it has ended; return its exit status."""
        follower = Follower(
            self._records,
            self._claim,
            self._folder,
            lease=self._lease,
            limits=self._limits,
            on_checkpoint=self._checkpointed,
            publish=self._publisher.publish,
            forecast=self._forecast(),
        )
        kill_at: float | None = None
        while True:
            ended = runner.ended()
            now = time.monotonic()
            records = follower.read_new(now, ended=ended)
            if self._lease.lost:
                raise FencedError
            if ended:
                if records:
                    continue  # What was written just before the end may not be all yet.
                follower.store_rest()
                return runner.reap()
            reason = self._why_stop(now - follower.heard_at)
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

    def _forecast(self) -> Forecast | None:
        """What the job will take; None where that cannot be said."""
        if self._evaluates:
            return Forecast({"loading": 0.0, "evaluating": 1.0})
        try:
            spec = parse_spec(self._claim.spec)
            work = count_images(spec, ScanBudget(_SCAN_ENTRIES, _SCAN_S))
            return Forecast.of(work, stored_pace(self._engine, spec, work))
        except (CaliftError, SQLAlchemyError, OSError) as error:
            log.info("run %s: no forecast: %s", self._run_id, words_of(error))
            return None

    def _checkpointed(self, step: int) -> None:
        if self._states is not None:
            self._states.offer(step)
        if not self._superseded:
            # A newer one is complete on disk: nobody will go on from the older ones.
            remove(self._earlier())
            self._superseded = True

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

    # -- the end

    def _conclude(self, returncode: int, result: JobResult | None) -> Outcome:
        """Decide what an ended runner means."""
        if result is not None and result.outcome == "succeeded":
            return self._evaluated() if self._evaluates else self._succeeded()
        if self._stop_reason == "cancel" or self._lease.cancel:
            return self._cancelled()
        if result is not None and result.outcome == "failed":
            return self._failed_or_set_back(result.code, result.message, result.hint)
        if result is not None and result.outcome == "lost":
            return self._lost(result.code, result.message, result.hint)
        if self._stop_reason == "hang":
            return self._lost(
                "RUNNER_HUNG",
                f"the runner said nothing for {self._limits.hang_timeout_s:g} s and was stopped",
                "See the end of the run's log for what it was doing.",
            )
        if self._stop_reason == "drain":
            return self._requeue("WORKER_DRAINED")
        if returncode == EXIT_INTERRUPTED:
            # Somebody else asked it to stop, as a service manager does that signals all at once.
            return self._requeue("RUNNER_INTERRUPTED")
        if returncode in LOST_STATUSES:
            return self._lost(
                "RUNNER_LOST",
                f"the runner was ended from outside by {status_words(returncode)}",
                "Most often this is a machine that ran out of memory: lower train.batch_size or "
                "train.workers, or free some.",
            )
        if trouble := self._storage.problem():
            # On a full disk a runner cannot even say so.
            return self._set_back(
                DiskFullError.code, f"the runner left no result: {trouble}", _NO_ROOM_HINT
            )
        return self._failed(
            "RUNNER_CRASHED",
            f"the runner ended with {status_words(returncode)} and left no result. "
            f"Its last words:\n{last_lines(self._folder / 'runner.log')}",
            "The whole output is in the run's log.",
        )

    def _succeeded(self) -> Outcome:
        try:
            report = Report.model_validate_json((self._folder / "report.json").read_bytes())
        except OSError as error:
            raise storage_error(error, self._folder / "report.json", "read") from error
        except ValidationError as error:
            raise StorageError(f"the runner left a report.json that is not one: {error}") from error
        for name, kind in files_of(self._folder):
            self._publish(name, kind)
        self._finish("SUCCEEDED", report=report)
        remove([self._folder.parent])
        return "succeeded"

    def _evaluated(self) -> Outcome:
        """All results are under their runs already: publish the log, then remove the folder."""
        self._publish("runner.log", "log")
        gone = sorted(self._gone | self._publisher.gone)
        if set(gone) == set(self._claim.spec["runs"]):
            return self._failed(
                ModelUnavailableError.code,
                f"the {'run is' if len(gone) == 1 else 'runs are'} gone: {', '.join(gone)}",
                "They were deleted after this job was submitted.",
            )
        without = f"without what is gone meanwhile: {', '.join(gone)}" if gone else None
        self._finish("SUCCEEDED", message=without)
        remove([self._folder.parent])
        return "succeeded"

    def _publish(self, name: str, kind: ArtifactKind) -> None:
        path = self._folder / name
        publish = partial(
            publish_artifact, self._files, self._artifacts, self._run_id, self._number
        )
        self._lease.hold(lambda: publish(name=name, kind=kind, path=path))

    def _failed_or_set_back(self, code: str, message: str, hint: str) -> Outcome:
        if self._storage.is_to_blame(code):
            return self._set_back(code, message, hint or _NO_ROOM_HINT)
        return self._failed(code, message, hint)

    def _set_back(self, code: str, message: str, hint: str) -> Outcome:
        """This machine has no room for the run: queue it again, at no cost."""
        self._requeue(code, message=message, hint=hint, setback=True)
        # What nobody goes on from takes up room.
        source = next((p for p in [self._folder, *self._earlier()] if is_worth_keeping(p)), None)
        remove([p for p in [self._folder, *self._earlier()] if p != source and p.exists()])
        return "requeued"

    def _failed(self, code: str, message: str, hint: str) -> Outcome:
        self._finish("FAILED", reason=code, message=message, hint=hint)
        self._prune()
        return "failed"

    def _cancelled(self) -> Outcome:
        self._finish("CANCELLED", reason="USER_CANCELLED", message="cancelled by a user")
        self._prune()
        return "cancelled"

    def _requeue(self, reason: str, **more: Any) -> Outcome:
        requeue = partial(self._claims.requeue, self._run_id, self._number)
        self._lease.hold(lambda: requeue(reason=reason, **more))
        return "requeued"

    def _lost(self, reason: str, message: str, hint: str) -> Outcome:
        """The runner was killed from outside: queue the run again, as often as the limits allow."""
        return self._requeue(reason, message=message, hint=hint, lost=True)

    def _finish(
        self,
        phase: Literal["SUCCEEDED", "FAILED", "CANCELLED"],
        *,
        report: Report | None = None,
        message: str | None = None,
        **words: str,
    ) -> None:
        body = None if report is None else report.model_dump(mode="json")
        self._lease.hold(
            lambda: self._claims.finish(
                self._run_id, self._number, phase=phase, report=body, message=message, **words
            )
        )

    def _prune(self) -> None:
        """Remove the folders of a run that ended badly, but this one and the one to resume from."""
        if not self._folder.exists():
            return
        source = self._folder if has_checkpoint(self._folder) else self._newest_local()
        remove([path for path in self._earlier() if path != source])

    def _kill(self) -> None:
        if self._runner is not None:
            self._runner.kill()
            if self._runner.wait(5.0):
                self._runner.reap()
