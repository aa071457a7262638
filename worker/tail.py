"""Follows what a runner writes, its records and its log, and brings it to the database."""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from backend.logs import RUNNER_LOG
from backend.store.claims import Claim
from backend.store.errors import database_away
from backend.store.records import Records
from calift_core.data.workload import Forecast
from calift_core.jobs.curves import read_curves
from calift_core.schema.records import (
    RECORD,
    CheckpointRecord,
    EvaluationRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
)
from calift_core.schema.wire.runs import Progress
from worker.lease import FencedError, LeaseKeeper
from worker.limits import Limits

log = logging.getLogger(__name__)
#: What runners say, line by line, where the worker's log is for machines (`backend.logs`).
runner_log = logging.getLogger(RUNNER_LOG)


class Follower:
    """Reads on in a runner's files, and stores what is new in groups.

    Args:
        lease: of the claim; told the progress.
        on_checkpoint: called with the step of each checkpoint that is complete.
        publish: takes the results of other runs before they are told; may be called again.
        forecast: tells how far the whole job is.

    Attributes:
        heard_at: when the runner last said something, by the monotonic clock.
    """

    def __init__(
        self,
        store: Records,
        claim: Claim,
        folder: Path,
        *,
        lease: LeaseKeeper,
        limits: Limits,
        on_checkpoint: Callable[[int], None],
        publish: Callable[[EvaluationRecord], None] | None = None,
        forecast: Forecast | None = None,
    ) -> None:
        self.heard_at = time.monotonic()
        self._store = store
        self._run_id, self._number = claim.run_id, claim.attempt
        self._folder = folder
        self._lease = lease
        self._limits = limits
        self._on_checkpoint = on_checkpoint
        self._publish = publish
        self._forecast = forecast
        self._unpublished: list[EvaluationRecord] = []
        self._lines = JsonlReader(folder / "records.jsonl")
        self._output = Tail(folder / "runner.log")
        self._records: list[Record] = []
        self._log = self._part = b""
        self._logged_bytes = 0
        self._write_at = 0.0
        self._resumed_at: int | None = None

    def read_new(self, now: float, *, ended: bool) -> bool:
        """Read what is new, and store it when it is time; whether anything was.

        Args:
            ended: whether the runner has; then it is always time.

        Raises:
            FencedError: the database says that the attempt is not ours.
            CaliftError: a result of another run cannot be stored.
        """
        read = (parse_record(line, self._run_id, self._number) for line in self._lines.read())
        new = [record for record in read if record is not None]
        if new:
            self.heard_at = now
            self._take(new)
        room = min(1 << 18, self._limits.log_limit_bytes - self._logged_bytes)
        chunk = self._output.read(room - len(self._log))
        self._log += chunk
        if ended or now >= self._write_at:
            self._write_pending()
            self._write_at = now + self._limits.group_s
        return bool(new or chunk)

    def store_rest(self) -> None:
        """Store all that was read, however long the database takes.

        Raises:
            FencedError: the attempt is not ours.
        """
        # What is not stored is left for later, which is no error that `insist` would see.
        while not self._lease.call_with_retries(self._write_pending):
            time.sleep(self._limits.tick_s)

    def _take(self, records: list[Record]) -> None:
        self._records += records
        for record in records:
            if isinstance(record, PhaseRecord | ProgressRecord):
                progress = Progress(
                    **record.model_dump(exclude={"kind"}), updated_at=datetime.now(UTC)
                )
                if self._forecast is not None:
                    progress = self._forecast.over(progress)
                self._lease.progress = progress
            elif isinstance(record, ResumedRecord):
                self._resumed_at = record.step
            elif isinstance(record, CheckpointRecord):
                self._on_checkpoint(record.step)
            elif isinstance(record, EvaluationRecord) and record.run is not None:
                self._unpublished.append(record)

    def _write_pending(self) -> bool:
        """Store the records and the log read so far, or leave them for later.

        Returns:
            Whether all was stored; False when the database is away.
        """
        if not self._published():
            return False
        records, text = self._records, self._log
        if records and not self._stored(
            lambda: self._store.record(self._run_id, self._number, records, self._lease.progress)
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
        self._forward_log(text)
        return True

    def _published(self) -> bool:
        """Put what is new under other runs; False when the database is away."""
        while self._publish is not None and self._unpublished:
            try:
                self._publish(self._unpublished[0])
            except SQLAlchemyError as error:
                if not database_away(error):
                    raise  # a result that is dropped would be missing for ever
                log.warning("run %s: the database is away: %s", self._run_id, error)
                return False
            self._unpublished.pop(0)
        return True

    def _forward_log(self, text: bytes) -> None:
        """Log whole lines again, with the ids of the run; the rest waits for its end."""
        *lines, self._part = (self._part + text).split(b"\n")
        for line in lines if runner_log.isEnabledFor(logging.INFO) else ():
            runner_log.info("%s", line.decode(errors="replace"))

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
            raise FencedError
        return True


class Tail:
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


class JsonlReader:
    """Complete lines only: a runner killed in mid-write leaves a torn last one."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
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


def parse_record(line: bytes, run_id: str, attempt: int) -> Record | None:
    """A line of `records.jsonl`; None, and a word in the log, for one that is no record."""
    try:
        return RECORD.validate_json(line)
    except ValidationError:
        log.warning("run %s attempt %d: bad record %r", run_id, attempt, line[:500])
        return None
