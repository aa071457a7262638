"""The only SQL: the job engine and everything that is read back.

A run's row is the truth; the message in the broker is a doorbell that may be lost or rung twice.

* **Submit** writes the row and an outbox entry in one transaction; a relay rings.
* **Claim** is one conditional UPDATE that raises `attempt` and sets a lease by the
  database's clock. A bell wakes a worker, and the worker takes the first run in line: by priority,
  then by `line_at`, so that a run that was given back goes before those submitted after it.
* **Fence**: every later write of a worker carries the attempt. When the run went to another attempt
  or ended, nothing is written and the caller learns that it must stop.
* **Sweep** queues runs with an expired lease again, or fails them at `max_attempts`.

Phases: ``QUEUED → STARTING → RUNNING → SUCCEEDED | FAILED``; a cancel turns ``QUEUED`` into
``CANCELLED`` and a working run into ``CANCELLING``, which its worker ends.

SQLite and Postgres behave alike. On SQLite a writer begins with ``BEGIN IMMEDIATE``: a deferred
transaction that turns into a writer fails with "locked" whatever the timeout.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from sqlalchemy import (
    Connection,
    CursorResult,
    Double,
    Engine,
    Row,
    Select,
    and_,
    case,
    create_engine,
    delete,
    event,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    make_url,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from backend.cursors import Cursors
from backend.line import Live, queue_for, why_waits
from backend.models import (
    ArtifactRow,
    Base,
    EvaluationRow,
    Event,
    LogChunk,
    Metric,
    Outbox,
    ReportRow,
    Run,
    RunTag,
    Session,
    SpectrumRow,
    Token,
    Worker,
)
from calift_core.data.workload import Pace, recorded_pace
from calift_core.errors import CaliftError, SpecError
from calift_core.files import storage_error
from calift_core.schema.imported import ImportedSpec
from calift_core.schema.records import (
    DoneRecord,
    EvaluationRecord,
    LogRecord,
    MetricsRecord,
    PhaseRecord,
    ProgressRecord,
    Record,
    ResumedRecord,
    SpectrumRecord,
)
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.spec import RunSpec
from calift_core.schema.wire import (
    TERMINAL_PHASES,
    Artifact,
    Evaluation,
    Frontier,
    LogPage,
    Metrics,
    MetricSeries,
    Progress,
    RunDetail,
    RunEvent,
    RunPhase,
    RunSummary,
    SortKey,
    Spectrum,
    SuiteRuns,
    WorkerInfo,
)

WORKING_PHASES = ("STARTING", "RUNNING", "CANCELLING")
RETRYABLE_PHASES = ("FAILED", "CANCELLED", "LOST")

#: A run's log stops growing here; the runner's own file goes on.
LOG_CAP_BYTES = 16 << 20
_LOG_CHUNK_BYTES = 64 << 10

#: The owner of runs that the service's own token submits.
ADMIN_NAME = "admin"

_LONGEST_TOKEN_S = 36_500 * 86_400.0

#: Reports of a model that are looked at for the pace of a run.
_PACE_REPORTS = 50
#: A worker that was silent for this many seconds is shown as gone.
WORKER_ALIVE_S = 60.0

#: So long a relay keeps doorbells to itself; one that died meanwhile has them rung by another.
_HOLD_S = 60.0

#: Points of curves that are put back in one transaction: other writers wait meanwhile.
_RESTORED_AT_ONCE = 1000

#: A run fails after it could not be stored where it ran so many times: there is no room for it.
MAX_SETBACKS = 5

_SUMMARY_COLUMNS = ("id_accuracy", "ood_accuracy", "id_ece", "ood_ece", "sigma_min")


class NotFoundError(CaliftError):
    """No such run, evaluation or file."""

    code = "NOT_FOUND"


class ConflictError(CaliftError):
    """The request does not fit the state that the thing is in."""

    code = "CONFLICT"


class IdempotencyError(ConflictError):
    """An idempotency key came back with another body."""

    code = "IDEMPOTENCY_KEY_REUSED"


class QueueFullError(CaliftError):
    """The token has as many queued runs as it may have."""

    code = "QUEUE_FULL"


@dataclass(frozen=True)
class Claim:
    """What a worker holds after it won a run. `previous_attempts` may have left checkpoints."""

    run_id: str
    attempt: int
    spec: dict[str, Any]
    previous_attempts: list[int]
    cancel_requested: bool


@dataclass(frozen=True)
class Lease:
    """The answer to a heartbeat: is the run still ours, and should it stop?"""

    held: bool
    cancel_requested: bool


@dataclass(frozen=True)
class OutboxRow:
    """A doorbell to ring. `queue` is one of `backend.queue.QUEUES`; higher `priority` first."""

    id: int
    run_id: str
    queue: str
    priority: int


@dataclass(frozen=True)
class Swept:
    """What the sweeper did to a run."""

    run_id: str
    attempt: int
    action: Literal["requeued", "failed", "cancelled", "redispatched"]


@dataclass(frozen=True)
class RunFilters:
    """Which runs a list holds. Empty fields do not filter; `tags` must all be there."""

    phases: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    text: str = ""
    archived: bool | None = False


@dataclass(frozen=True)
class StoredToken:
    """A token as the database knows it."""

    id: str
    name: str
    scope: str
    secret_sha256: str
    expired: bool
    revoked: bool


@dataclass(frozen=True)
class StoredSession:
    """A log-in, or a link that becomes one, as the database knows it.

    Attributes:
        kind: `session` or `link`.
        token_id: the token it was made with.
        token_sha256: of that token.
        subject: the name of a person who logged in without any token.
        valid: neither ended, used nor too old; what the token may still do is not looked at.
    """

    id: str
    kind: str
    secret_sha256: str
    token_id: str
    token_sha256: str
    expires_at: datetime
    subject: str | None
    valid: bool


@dataclass(frozen=True)
class StoredPredictions:
    """Where an evaluation's predictions lie in the content-addressed store."""

    sha256: str
    name: str


@dataclass(frozen=True)
class ImportedPredictions:
    """A stored predictions file that becomes part of a run; calibration parts are not judged."""

    dataset: str
    name: str
    sha256: str
    size_bytes: int
    evaluation: EvaluationReport | None


#: Run id, spec and evaluations → the run's report.
MakeReport = Callable[[str, ImportedSpec, Sequence[EvaluationReport]], Report]


# ---------------------------------------------------------------------------------------------
# Engine


def open_engine(url: str) -> Engine:
    """Open a database: SQLite or Postgres (through psycopg 3).

    Raises:
        SpecError: the URL is of another kind.
    """
    parsed = make_url(url)
    backend_name = parsed.get_backend_name()
    if backend_name == "postgres":
        parsed, backend_name = parsed.set(drivername="postgresql+psycopg"), "postgresql"
    if backend_name == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(
            parsed,
            # A connection that a restarted server forgot is replaced before it is used.
            pool_pre_ping=True,
            hide_parameters=True,  # errors are logged, and people's notes need not be
            connect_args={
                "connect_timeout": 5,
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                # Of a database in SQL_ASCII, psycopg would hand out bytes for text.
                "client_encoding": "utf8",
            },
        )
    if backend_name != "sqlite":
        raise SpecError(f"database_url must be sqlite or postgresql, got {backend_name!r}")
    engine = create_engine(parsed, connect_args={"timeout": 10}, hide_parameters=True)
    name = parsed.database or ":memory:"
    if not name.startswith((":memory:", "file:")):
        event.listen(engine, "do_connect", lambda *_: _keep_private(Path(name)))
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _keep_private(path: Path) -> None:
    """Make the file 0600, whatever the umask; SQLite gives its companions the same rights.

    A file that its group may write is shared on purpose and stays so.

    Raises:
        StorageError: it cannot be opened or made.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            with suppress(FileNotFoundError, PermissionError):
                mode = stat.S_IMODE(file.stat().st_mode)
                if mode & 0o077 and not mode & 0o020:
                    file.chmod(0o600)
    except OSError as error:
        raise storage_error(error, path, "open") from error


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # sqlite3's own transaction control would begin late and deferred.
    connection.isolation_level = None
    for pragma in (
        "busy_timeout=10000",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("calift_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection to read over; fetch every answer whole before the next statement."""
    with engine.connect() as connection, _thrown_away_if_broken(connection):
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may write from its first statement on."""
    with (
        engine.connect().execution_options(calift_writes=True) as connection,
        _thrown_away_if_broken(connection),
        connection.begin(),
    ):
        yield connection


@contextmanager
def _thrown_away_if_broken(connection: Connection) -> Iterator[None]:
    """Keep a connection out of the pool once anything unexpected has happened over it.

    On SQLite a half-read answer holds its snapshot through the rollback for as long as something,
    such as a logged traceback, refers to it: whoever got the connection next would read old rows
    and could not write.
    """
    try:
        yield
    except (CaliftError, IntegrityError):
        raise
    except BaseException as error:
        connection.invalidate(error)
        raise


def _when(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _plain(text: str | None) -> str | None:
    """A text as both databases take it: Postgres knows no NUL, and UTF-8 no half surrogates.

    What a runner said last may hold either.
    """
    if text is None:
        return None
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()


def new_id() -> str:
    """A fresh run id: 12 hex digits, short enough to read out."""
    return secrets.token_hex(6)


def evaluation_id(run_id: str, dataset: str) -> str:
    """The id of a run's evaluation on a data set; the same after another attempt."""
    return f"{run_id}-{hashlib.sha256(dataset.encode()).hexdigest()[:8]}"


def queue_of(spec: RunSpec) -> str:
    """`cpu`, `gpu` or `mps` where the spec names a device, else `auto`."""
    device = spec.train.device
    return device if device in ("auto", "cpu", "mps") else "gpu"


# ---------------------------------------------------------------------------------------------
# Cursors


def _scope_of(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------
# Store


class Store:
    """All reads and writes. Safe to share between threads; not across a fork.

    Args:
        engine: of `open_engine`.
        cursor_key: signs cursors; None: a key of this store alone.
    """

    def __init__(self, engine: Engine, *, cursor_key: bytes | None = None) -> None:
        self.engine = engine
        self._cursors = Cursors(cursor_key or secrets.token_bytes(32))
        self._postgres = engine.dialect.name == "postgresql"
        # Both are wall-clock seconds at this statement, whoever's machine the caller runs on.
        self._now: ColumnElement[float] = (
            literal_column("EXTRACT(EPOCH FROM clock_timestamp())::float8", Double)
            if self._postgres
            else literal_column("unixepoch('subsec')", Double)
        )

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def _upsert(self, model: type[Base], key: Sequence[str], update_columns: Sequence[str]) -> Any:
        dialect = postgresql if self._postgres else sqlite
        statement = dialect.insert(model)
        return statement.on_conflict_do_update(
            index_elements=list(key),
            set_={name: statement.excluded[name] for name in update_columns},
        )

    def now(self) -> float:
        """The database's clock, seconds since the epoch."""
        with reading(self.engine) as connection:
            return float(connection.execute(select(self._now)).scalar_one())

    def schema_revision(self) -> str | None:
        """The revision that the tables say they have."""
        with reading(self.engine) as connection:
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return cast("str | None", found)

    # -- submitting ---------------------------------------------------------------------------

    def submit(
        self,
        spec: RunSpec,
        *,
        priority: int = 0,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        cloned_from: str | None = None,
        token_id: str | None = None,
        submitted_by: str | None = None,
        max_queued: int | None = None,
    ) -> str:
        """Queue a run and return its id, or the id that the same key and body gave before.

        Args:
            spec: what to run.
            priority: a higher one starts earlier.
            max_attempts: attempts that may be lost (worker gone) before the run fails.
            idempotency_key: names this request among those of the token.
            body_hash: of the whole request; the key must come back with the same.
            cloned_from: the run that the spec was copied from.
            token_id: who asks.
            submitted_by: whose run it is: the name of the token.
            max_queued: how many runs the token may have waiting.

        Raises:
            IdempotencyError: the key came with another body before.
            QueueFullError: `max_queued` runs are waiting.
        """
        token_id = token_id or ""
        for _ in range(2):
            try:
                with writing(self.engine) as connection:
                    if idempotency_key is not None:
                        earlier = self._earlier(connection, token_id, idempotency_key, body_hash)
                        if earlier is not None:
                            return earlier
                    if max_queued is not None:
                        self._check_queue(connection, token_id, max_queued)
                    return self._insert_run(
                        connection,
                        spec,
                        priority=priority,
                        max_attempts=max_attempts,
                        idempotency_key=idempotency_key,
                        body_hash=body_hash,
                        cloned_from=cloned_from,
                        token_id=token_id,
                        submitted_by=submitted_by,
                    )
            except IntegrityError:
                # Two requests with one key at the same moment: the loser reads the winner's row.
                if idempotency_key is None:
                    raise
        raise ConflictError(f"the idempotency key {idempotency_key!r} is being used right now.")

    def _earlier(
        self, connection: Connection, token_id: str, key: str, body_hash: str | None
    ) -> str | None:
        row = connection.execute(
            select(Run.id, Run.body_hash).where(
                Run.token_id == token_id, Run.idempotency_key == key
            )
        ).first()
        if row is None:
            return None
        if row.body_hash != body_hash:
            raise IdempotencyError(
                f"the idempotency key {key!r} was used with another request before.",
                hint="Use a new key for a new request.",
            )
        return str(row.id)

    def _check_queue(self, connection: Connection, token_id: str, limit: int) -> None:
        waiting = connection.execute(
            select(func.count()).where(Run.token_id == token_id, Run.phase == "QUEUED")
        ).scalar_one()
        if waiting >= limit:
            raise QueueFullError(
                f"{waiting} of your runs are waiting, and {limit} may.",
                hint="Wait for some to start, or cancel some.",
            )

    def _insert_run(self, connection: Connection, spec: RunSpec, **values: Any) -> str:
        now = connection.execute(select(self._now)).scalar_one()
        run_id = self._insert_row(
            connection,
            spec,
            now,
            model=model_label(spec),
            seed=spec.train.seed,
            queue=queue_of(spec),
            **values,
        )
        self._add_state_event(connection, run_id, 1, 0, "QUEUED", now)
        self._ring(connection, run_id, values["priority"], now)
        return run_id

    def _insert_row(
        self, connection: Connection, spec: RunSpec | ImportedSpec, now: float, **values: Any
    ) -> str:
        run_id = new_id()
        connection.execute(
            insert(Run).values(
                id=run_id,
                name=spec.name,
                notes=spec.notes,
                tags=list(spec.tags),
                spec=spec.model_dump(mode="json"),
                spec_sha256=spec.content_hash(),
                method=spec.method.kind,
                suite=spec.suite.id,
                # One moment: created_at and queued_at of a new run are the same.
                created_at=now,
                queued_at=now,
                line_at=now,
                event_seq=1,
                **values,
            )
        )
        self._set_tags(connection, run_id, spec.tags)
        return run_id

    # -- imported predictions -----------------------------------------------------------------

    def earlier_request(self, token_id: str, key: str, body_hash: str) -> str | None:
        """The run that a request with this key made before, if any.

        Raises:
            IdempotencyError: the key came with another body then.
        """
        with reading(self.engine) as connection:
            return self._earlier(connection, token_id, key, body_hash)

    def check_imported(self, run_id: str) -> None:
        """Raise unless a run takes further imported predictions.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run was not imported.
        """
        with reading(self.engine) as connection:
            self._must_be_imported(connection, run_id)

    def _must_be_imported(self, connection: Connection, run_id: str) -> None:
        method = connection.execute(
            select(Run.method).where(Run.id == run_id).with_for_update()
        ).scalar()
        if method is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        if method != "imported":
            raise ConflictError(
                f"run {run_id} must be an imported one, its method is {method}.",
                hint="Import without naming a run; the new one is compared with any other.",
            )

    def import_run(
        self,
        spec: ImportedSpec,
        predictions: ImportedPredictions,
        *,
        report: MakeReport,
        token_id: str | None = None,
        submitted_by: str | None = None,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
    ) -> str:
        """Make a finished run of predictions that were made elsewhere, and return its id.

        Args:
            spec: what stands for a RunSpec.
            predictions: the stored file and what was measured of it.
            report: makes the `report.json` of a run from its id, spec and evaluations.
            token_id: who asks.
            submitted_by: whose run it is: the name of the token.
            idempotency_key: names this request among those of the token.
            body_hash: of the whole request; the key must come back with the same.

        Raises:
            IdempotencyError: the key came with another body before.
        """
        token_id = token_id or ""
        for _ in range(2):
            try:
                with writing(self.engine) as connection:
                    if idempotency_key is not None:
                        earlier = self._earlier(connection, token_id, idempotency_key, body_hash)
                        if earlier is not None:
                            return earlier
                    now = connection.execute(select(self._now)).scalar_one()
                    run_id = self._insert_row(
                        connection,
                        spec,
                        now,
                        model=spec.model.name,
                        seed=0,
                        queue="cpu",
                        phase="SUCCEEDED",
                        attempt=1,
                        started_at=now,
                        finished_at=now,
                        token_id=token_id,
                        submitted_by=submitted_by,
                        idempotency_key=idempotency_key,
                        body_hash=body_hash,
                    )
                    self._add_state_event(connection, run_id, 1, 1, "SUCCEEDED", now)
                    self._add_import(connection, run_id, predictions, report)
                    return run_id
            except IntegrityError:
                if idempotency_key is None:
                    raise
        raise ConflictError(f"the idempotency key {idempotency_key!r} is being used right now.")

    def extend_import(
        self, run_id: str, predictions: ImportedPredictions, *, report: MakeReport
    ) -> None:
        """Add a data set to an imported run. The same file once more changes nothing.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run was not imported, or has other predictions of this data set.
        """
        with writing(self.engine) as connection:
            self._must_be_imported(connection, run_id)
            there = connection.execute(
                select(ArtifactRow.sha256).where(
                    ArtifactRow.run_id == run_id, ArtifactRow.name == predictions.name
                )
            ).scalar()
            if there == predictions.sha256:
                return
            if there is not None:
                raise ConflictError(
                    f"run {run_id} has other predictions of {predictions.dataset!r} already.",
                    hint="Name the data set otherwise, or import them as a run of their own.",
                )
            self._add_import(connection, run_id, predictions, report)

    def _add_import(
        self,
        connection: Connection,
        run_id: str,
        predictions: ImportedPredictions,
        report: MakeReport,
    ) -> None:
        row = connection.execute(
            select(Run.spec, Run.event_seq, Run.log_bytes, self._now.label("now")).where(
                Run.id == run_id
            )
        ).one()
        connection.execute(
            insert(ArtifactRow).values(
                run_id=run_id,
                name=predictions.name,
                kind="predictions",
                sha256=predictions.sha256,
                size_bytes=predictions.size_bytes,
                attempt=1,
                created_at=row.now,
            )
        )
        batch = _Batch(run_id, 1, row.now)
        batch.take(
            LogRecord(level="info", message=f"imported predictions of {predictions.dataset}")
        )
        if predictions.evaluation is not None:
            batch.take(
                EvaluationRecord(evaluation=predictions.evaluation, predictions=predictions.name)
            )
        self._flush(connection, batch, row.event_seq, row.log_bytes)
        bodies = connection.execute(
            select(EvaluationRow.report)
            .where(EvaluationRow.run_id == run_id)
            .order_by(EvaluationRow.position)
        ).scalars()
        made = report(
            run_id,
            ImportedSpec.model_validate(row.spec),
            [EvaluationReport.model_validate(body) for body in bodies],
        ).model_dump(mode="json")
        connection.execute(
            update(Run).where(Run.id == run_id).values(**_summary_values(made["summary"]))
        )
        self._store_report(connection, run_id, 1, made)

    def _set_tags(self, connection: Connection, run_id: str, tags: Sequence[str]) -> None:
        connection.execute(delete(RunTag).where(RunTag.run_id == run_id))
        if tags:
            connection.execute(
                insert(RunTag), [{"run_id": run_id, "tag": t} for t in dict.fromkeys(tags)]
            )

    def _ring(self, connection: Connection, run_id: str, priority: int, now: float) -> None:
        connection.execute(insert(Outbox).values(run_id=run_id, priority=priority, created_at=now))

    def _add_state_event(
        self,
        connection: Connection,
        run_id: str,
        event_id: int,
        attempt: int,
        phase: str,
        now: float,
        reason: str | None = None,
        message: str | None = None,
    ) -> None:
        data = {"phase": phase, "reason": _plain(reason), "message": _plain(message)}
        connection.execute(
            insert(Event).values(
                run_id=run_id, id=event_id, attempt=attempt, kind="state", at=now, data=data
            )
        )

    # -- the outbox ---------------------------------------------------------------------------

    def unsent_outbox(self, limit: int = 100) -> list[OutboxRow]:
        """Doorbells that are not rung yet, the most urgent first, held or not.

        Those of runs that wait no more are left out.
        """
        with reading(self.engine) as connection:
            return self._outbox_rows(connection, [], limit)

    def take_outbox(self, limit: int = 100) -> list[OutboxRow]:
        """Doorbells for the caller alone to ring, the most urgent first.

        Nobody else is given them for a minute; mark each when it is rung, or give them back.
        """
        free = [or_(Outbox.held_until.is_(None), Outbox.held_until < self._now)]
        with reading(self.engine) as connection:
            if not self._outbox_rows(connection, free, 1):
                return []  # the usual case, which need not keep writers waiting
        with writing(self.engine) as connection:
            wanted = self._outbox_query(free).limit(limit)
            if self._postgres:
                wanted = wanted.with_for_update(skip_locked=True, of=Outbox)
            rows = connection.execute(wanted).all()
            if rows:
                connection.execute(
                    update(Outbox)
                    .where(Outbox.id.in_([r.id for r in rows]))
                    .values(held_until=self._now + _HOLD_S)
                )
            live = self._live(connection)
        return [OutboxRow(r.id, r.run_id, queue_for(r.queue, live), r.priority) for r in rows]

    def give_back_outbox(self, outbox_ids: Sequence[int]) -> None:
        """The broker did not take these: anybody may ring them now."""
        with writing(self.engine) as connection:
            connection.execute(
                update(Outbox)
                .where(Outbox.id.in_(list(outbox_ids)), Outbox.sent_at.is_(None))
                .values(held_until=None)
            )

    def _outbox_query(self, conditions: Sequence[ColumnElement[bool]]) -> Select[*tuple[Any, ...]]:
        return (
            select(Outbox.id, Outbox.run_id, Run.queue, Outbox.priority)
            .join(Run, Run.id == Outbox.run_id)
            .where(Outbox.sent_at.is_(None), Run.phase == "QUEUED", *conditions)
            .order_by(Outbox.priority.desc(), Run.line_at, Outbox.id)
        )

    def _outbox_rows(
        self, connection: Connection, conditions: Sequence[ColumnElement[bool]], limit: int
    ) -> list[OutboxRow]:
        rows = connection.execute(self._outbox_query(conditions).limit(limit)).all()
        live = self._live(connection) if rows else []
        return [OutboxRow(r.id, r.run_id, queue_for(r.queue, live), r.priority) for r in rows]

    def _live(self, connection: Connection) -> list[Live]:
        """The workers that are there, in trouble or not."""
        rows = connection.execute(
            select(Worker.host, Worker.queues, Worker.run_id, Worker.trouble).where(
                Worker.seen_at > self._now - WORKER_ALIVE_S
            )
        ).all()
        return [Live(r.host, tuple(r.queues), r.run_id is not None, r.trouble) for r in rows]

    def mark_sent(self, outbox_id: int) -> None:
        """The broker took the message."""
        with writing(self.engine) as connection:
            run_id = connection.execute(
                update(Outbox)
                .where(Outbox.id == outbox_id)
                .values(sent_at=self._now)
                .returning(Outbox.run_id)
            ).scalar()
            if run_id is not None:
                connection.execute(
                    update(Run)
                    .where(Run.id == run_id, Run.phase == "QUEUED")
                    .values(dispatched_at=self._now)
                )

    # -- the worker's side --------------------------------------------------------------------

    def claim(self, run_id: str, *, worker_id: str, ttl_s: float) -> Claim | None:
        """Take this queued run. None: somebody else has it, or it waits no more; do nothing."""
        with writing(self.engine) as connection:
            return self._claim(connection, run_id, worker_id, ttl_s)

    def claim_next(
        self, queues: Sequence[str], *, bell: str | None, worker_id: str, ttl_s: float
    ) -> Claim | None:
        """Take the first run in line that a worker may take. None: none waits for it.

        Args:
            queues: what the worker serves.
            bell: the run whose bell woke the worker; it may take that one too. None: it comes by
                itself.
            worker_id: who asks.
            ttl_s: how long the claim lives without a heartbeat.
        """
        with writing(self.engine) as connection:
            live = self._live(connection)
            served = [*queues, *(["auto"] if queue_for("auto", live) in queues else [])]
            first = (
                select(Run.id, Run.queue)
                .where(Run.phase == "QUEUED", or_(Run.queue.in_(served), Run.id == bell))
                .order_by(Run.priority.desc(), Run.line_at, Run.id)
                .limit(1)
            )
            if self._postgres:
                first = first.with_for_update(skip_locked=True)
            row = connection.execute(first).first()
            if row is None:
                return None
            claim = self._claim(connection, row.id, worker_id, ttl_s)
            if claim is not None and bell is not None and bell != row.id:
                self._pass_on_bell(connection, bell, row, live)
            return claim

    def _pass_on_bell(
        self,
        connection: Connection,
        bell: str,
        taken: Row[*tuple[Any, ...]],
        live: Sequence[Live],
    ) -> None:
        """Keep a bell for every waiting run, after one run's bell took another run out of line."""
        run = connection.execute(
            select(Run.queue, Run.priority, self._now.label("now")).where(
                Run.id == bell, Run.phase == "QUEUED"
            )
        ).first()
        if run is None:
            return
        unrung = and_(Outbox.sent_at.is_(None), Outbox.held_until.is_(None))
        # Not yet rung for the run that was taken: rung for the other one instead.
        moved = connection.execute(
            update(Outbox)
            .where(Outbox.run_id == taken.id, unrung)
            .values(run_id=bell, priority=run.priority)
            .returning(Outbox.id)
        ).all()
        if moved or queue_for(run.queue, live) == queue_for(taken.queue, live):
            return  # else the bell of the run that was taken wakes who could take this one
        if not connection.execute(
            select(exists().where(Outbox.run_id == bell, Outbox.sent_at.is_(None)))
        ).scalar_one():
            self._ring(connection, bell, run.priority, run.now)

    def _claim(
        self, connection: Connection, run_id: str, worker_id: str, ttl_s: float
    ) -> Claim | None:
        row = connection.execute(
            update(Run)
            .where(Run.id == run_id, Run.phase == "QUEUED")
            .values(
                phase="STARTING",
                attempt=Run.attempt + 1,
                owner=worker_id,
                lease_expires=self._now + ttl_s,
                heartbeat_at=self._now,
                started_at=func.coalesce(Run.started_at, self._now),
                reason=None,
                message=None,
                hint="",
                progress=None,
                event_seq=Run.event_seq + 1,
            )
            .returning(Run.attempt, Run.spec, Run.cancel_requested, Run.event_seq, Run.heartbeat_at)
        ).first()
        if row is None:
            return None
        self._add_state_event(
            connection, run_id, row.event_seq, row.attempt, "STARTING", row.heartbeat_at
        )
        return Claim(
            run_id=run_id,
            attempt=row.attempt,
            spec=row.spec,
            previous_attempts=list(range(1, row.attempt)),
            cancel_requested=bool(row.cancel_requested),
        )

    def _fenced(
        self, connection: Connection, run_id: str, attempt: int, /, **values: Any
    ) -> Row[*tuple[Any, ...]] | None:
        """Update the run's row if this attempt still holds it. A worker's writes begin here.

        The UPDATE locks the row, so what follows in the transaction is ordered against every other
        writer of the run.
        """
        return connection.execute(
            update(Run)
            .where(Run.id == run_id, Run.attempt == attempt, Run.phase.in_(WORKING_PHASES))
            .values(**values)
            .returning(
                Run.event_seq,
                Run.log_bytes,
                Run.phase,
                Run.priority,
                Run.cancel_requested,
                self._now.label("now"),
            )
        ).first()

    def heartbeat(
        self, run_id: str, attempt: int, *, ttl_s: float, progress: Progress | None = None
    ) -> Lease:
        """Renew the lease by `ttl_s` from now. Not held: kill the runner, throw its work away."""
        values: dict[str, Any] = {
            "lease_expires": self._now + ttl_s,
            "heartbeat_at": self._now,
        }
        if progress is not None:
            values["progress"] = progress.model_dump(mode="json")
        with writing(self.engine) as connection:
            row = self._fenced(connection, run_id, attempt, **values)
        if row is None:
            return Lease(held=False, cancel_requested=False)
        return Lease(held=True, cancel_requested=bool(row.cancel_requested))

    def record(self, run_id: str, attempt: int, records: Sequence[Record]) -> bool:
        """Store what the runner said, all or nothing, in its order. False: fenced off.

        A `resumed` record deletes the metrics and spectra after its step in the same transaction.
        """
        with writing(self.engine) as connection:
            started = connection.execute(
                update(Run)
                .where(Run.id == run_id, Run.attempt == attempt, Run.phase == "STARTING")
                .values(phase="RUNNING", event_seq=Run.event_seq + 1)
                .returning(Run.event_seq, self._now.label("now"))
            ).first()
            if started is not None:
                self._add_state_event(
                    connection, run_id, started.event_seq, attempt, "RUNNING", started.now
                )
            # The row is locked from here on. The counters are advanced once, when the number of
            # events is known.
            row = self._fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return False
            batch = _Batch(run_id, attempt, row.now)
            for item in records:
                batch.take(item)
            self._flush(connection, batch, row.event_seq, row.log_bytes)
            return True

    def restore(self, run_id: str, attempt: int, points: Sequence[Record]) -> bool:
        """Put points of curves back that earlier attempts measured. False: fenced off.

        Idempotent by (name, step), and by step for spectra. Nothing is deleted, and nobody is told:
        it happened before.
        """
        for at in range(0, max(1, len(points)), _RESTORED_AT_ONCE):
            with writing(self.engine) as connection:
                row = self._fenced(connection, run_id, attempt, attempt=attempt)
                if row is None:
                    return False
                batch = _Batch(run_id, attempt, row.now)
                for item in points[at : at + _RESTORED_AT_ONCE]:
                    batch.take(item)
                self._put_points(connection, batch)
        return True

    def _put_points(self, connection: Connection, batch: _Batch) -> None:
        if batch.metrics:
            connection.execute(
                self._upsert(Metric, ("run_id", "name", "step"), ("value", "epoch", "attempt")),
                list(batch.metrics.values()),
            )
        if batch.spectra:
            connection.execute(
                self._upsert(SpectrumRow, ("run_id", "step", "final"), ("attempt", "spectrum")),
                list(batch.spectra.values()),
            )

    def _flush(self, connection: Connection, batch: _Batch, seq: int, log_bytes: int) -> None:
        run_id = batch.run_id
        if batch.resumed_step is not None:
            for table in (Metric, SpectrumRow):
                connection.execute(
                    delete(table).where(table.run_id == run_id, table.step > batch.resumed_step)
                )
        if batch.metrics:
            # An attempt that starts over leaves nothing of an older one beside its own points.
            first = min(step for _, step in batch.metrics)
            connection.execute(
                delete(Metric).where(
                    Metric.run_id == run_id, Metric.attempt < batch.attempt, Metric.step >= first
                )
            )
        self._put_points(connection, batch)
        if batch.evaluations:
            connection.execute(
                self._upsert(
                    EvaluationRow,
                    ("id",),
                    (
                        "role",
                        "attempt",
                        "position",
                        "created_at",
                        "predictions",
                        "predictions_sha256",
                        "report",
                    ),
                ),
                [
                    {**row, "position": seq + index}
                    for index, row in enumerate(batch.evaluations.values())
                ],
            )
        if batch.events:
            connection.execute(
                insert(Event),
                [{**row, "id": seq + index} for index, row in enumerate(batch.events, start=1)],
            )
        text = "".join(batch.log).encode("utf-8", "replace")
        values: dict[str, Any] = {"event_seq": seq + len(batch.events)}
        values["log_bytes"] = self._write_log(connection, run_id, batch.attempt, log_bytes, text)
        if batch.progress is not None:
            values["progress"] = batch.progress.model_dump(mode="json")
        if batch.summary is not None:
            values |= _summary_values(batch.summary)
        connection.execute(update(Run).where(Run.id == run_id).values(**values))

    def append_log(self, run_id: str, attempt: int, text: str | bytes) -> bool:
        """Add to the run's log. False: fenced off. Beyond the cap the rest is dropped."""
        raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
        with writing(self.engine) as connection:
            row = self._fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return False
            end = self._write_log(connection, run_id, attempt, row.log_bytes, raw)
            connection.execute(update(Run).where(Run.id == run_id).values(log_bytes=end))
            return True

    def _write_log(
        self, connection: Connection, run_id: str, attempt: int, start: int, raw: bytes
    ) -> int:
        if not raw or start >= LOG_CAP_BYTES:
            return start
        if start + len(raw) > LOG_CAP_BYTES:
            raw = raw[: LOG_CAP_BYTES - start] + b"\n[the log is cut here]\n"
        connection.execute(
            insert(LogChunk),
            [
                {
                    "run_id": run_id,
                    "start": start + at,
                    "attempt": attempt,
                    "body": raw[at : at + _LOG_CHUNK_BYTES],
                }
                for at in range(0, len(raw), _LOG_CHUNK_BYTES)
            ],
        )
        return start + len(raw)

    def add_artifact(
        self, run_id: str, attempt: int, *, name: str, kind: str, sha256: str, size_bytes: int
    ) -> bool:
        """Name a stored file as the run's; the same name is replaced. False: fenced off."""
        with writing(self.engine) as connection:
            row = self._fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return False
            connection.execute(
                self._upsert(
                    ArtifactRow,
                    ("run_id", "name"),
                    ("kind", "sha256", "size_bytes", "attempt", "created_at"),
                ),
                {
                    "run_id": run_id,
                    "name": name,
                    "kind": kind,
                    "sha256": sha256,
                    "size_bytes": size_bytes,
                    "attempt": attempt,
                    "created_at": row.now,
                },
            )
            return True

    def remove_artifact(self, run_id: str, attempt: int, *, name: str) -> bool:
        """Forget a file, such as a superseded checkpoint. False: fenced off."""
        with writing(self.engine) as connection:
            if self._fenced(connection, run_id, attempt, attempt=attempt) is None:
                return False
            connection.execute(
                delete(ArtifactRow).where(ArtifactRow.run_id == run_id, ArtifactRow.name == name)
            )
            return True

    def put_state(
        self,
        run_id: str,
        attempt: int,
        step: int,
        files: Mapping[str, tuple[str, int]],
        *,
        keep: int = 2,
    ) -> list[str] | None:
        """Name a checkpoint as what a later attempt goes on from, whole; older ones are forgotten.

        Args:
            run_id: the run.
            attempt: the attempt that made it.
            step: of the checkpoint.
            files: name → SHA-256 and size of the stored content.
            keep: how many are kept, this one included.

        Returns:
            The SHA-256s of what is forgotten; None: fenced off.
        """
        with writing(self.engine) as connection:
            row = self._fenced(connection, run_id, attempt, attempt=attempt)
            if row is None:
                return None
            mine = f"states/{step:08d}/"
            stored = connection.execute(
                select(ArtifactRow.name, ArtifactRow.sha256, ArtifactRow.created_at)
                .where(ArtifactRow.run_id == run_id, ArtifactRow.kind == "state")
                .order_by(ArtifactRow.created_at.desc(), ArtifactRow.name.desc())
            ).all()
            steps = dict.fromkeys([mine, *(r.name[: r.name.rindex("/") + 1] for r in stored)])
            kept = tuple(steps)[:keep]
            old = [r for r in stored if not r.name.startswith(kept) or r.name.startswith(mine)]
            connection.execute(
                delete(ArtifactRow).where(
                    ArtifactRow.run_id == run_id, ArtifactRow.name.in_([r.name for r in old])
                )
            )
            connection.execute(
                insert(ArtifactRow),
                [
                    {
                        "run_id": run_id,
                        "name": mine + name,
                        "kind": "state",
                        "sha256": sha256,
                        "size_bytes": size_bytes,
                        "attempt": attempt,
                        "created_at": row.now,
                    }
                    for name, (sha256, size_bytes) in files.items()
                ],
            )
            return [r.sha256 for r in old]

    def drop_old_states(self, *, age_s: float) -> int:
        """Forget the checkpoints of runs that ended so long ago; how many files that were."""
        ended = select(Run.id).where(
            Run.phase.in_(tuple(TERMINAL_PHASES)), Run.finished_at < self._now - age_s
        )
        with writing(self.engine) as connection:
            result = connection.execute(
                delete(ArtifactRow).where(
                    ArtifactRow.kind == "state", ArtifactRow.run_id.in_(ended)
                )
            )
            return int(cast("CursorResult[Any]", result).rowcount)

    def finish(
        self,
        run_id: str,
        attempt: int,
        *,
        phase: Literal["SUCCEEDED", "FAILED", "CANCELLED"],
        reason: str | None = None,
        message: str | None = None,
        hint: str = "",
        report: Mapping[str, Any] | None = None,
    ) -> bool:
        """End the run. False: fenced off, and nothing has changed.

        Args:
            run_id: the run.
            attempt: the attempt that ends.
            phase: how it ended.
            reason: a code for machines, such as `OOM`.
            message: a sentence for people.
            hint: what to do about it.
            report: the content of `report.json`.
        """
        if phase not in TERMINAL_PHASES:
            raise ValueError(f"phase must be one of {sorted(TERMINAL_PHASES)}, got {phase!r}")
        values: dict[str, Any] = {
            "phase": phase,
            "reason": _plain(reason),
            "message": _plain(message),
            "hint": _plain(hint),
            "lease_expires": None,
            "heartbeat_at": self._now,
            "finished_at": self._now,
            "event_seq": Run.event_seq + 1,
        }
        if phase == "FAILED":
            values["failures"] = Run.failures + 1
        if report is not None and report.get("summary"):
            values |= _summary_values(report["summary"])
        with writing(self.engine) as connection:
            row = self._fenced(connection, run_id, attempt, **values)
            if row is None:
                return False
            self._add_state_event(
                connection, run_id, row.event_seq, attempt, phase, row.now, reason, message
            )
            if report is not None:
                self._store_report(connection, run_id, attempt, report)
            if phase == "SUCCEEDED":  # nobody goes on from them any more
                connection.execute(
                    delete(ArtifactRow).where(
                        ArtifactRow.run_id == run_id, ArtifactRow.kind == "state"
                    )
                )
            return True

    def _store_report(
        self, connection: Connection, run_id: str, attempt: int, report: Mapping[str, Any]
    ) -> None:
        connection.execute(
            self._upsert(ReportRow, ("run_id",), ("attempt", "body")),
            {"run_id": run_id, "attempt": attempt, "body": dict(report)},
        )
        # An evaluation of a lost attempt that the report does not know is not the model's.
        known = [e["dataset"] for e in report.get("evaluations", [])]
        connection.execute(
            delete(EvaluationRow).where(
                EvaluationRow.run_id == run_id, EvaluationRow.dataset.not_in(known)
            )
        )

    def requeue(
        self,
        run_id: str,
        attempt: int,
        *,
        reason: str = "DRAINED",
        message: str | None = None,
        hint: str = "",
        lost: bool = False,
        setback: bool = False,
    ) -> bool:
        """Give a run back: queued again, or cancelled if that was asked. False: fenced off.

        It keeps its place in line, before the runs that were submitted after it.

        Args:
            run_id: the run.
            attempt: the attempt that ends.
            reason: a code for machines.
            message: a sentence for people.
            hint: what to do about it, kept where the run fails.
            lost: the attempt's process vanished. Only this counts against `max_attempts`, and the
                run fails when it has lost as many; an orderly stop may happen any number of times.
            setback: the machine could not store what the run made. The run fails after
                `MAX_SETBACKS` of these, which costs it no attempt.
        """
        message, hint = _plain(message), _plain(hint) or ""
        spent: ColumnElement[bool] = false()
        count: dict[str, Any] = {"drains": Run.drains + 1}
        if lost:
            spent, count = Run.losses + 1 >= Run.max_attempts, {"losses": Run.losses + 1}
        elif setback:
            spent, count = Run.setbacks + 1 >= MAX_SETBACKS, {"setbacks": Run.setbacks + 1}
        ends = or_(Run.cancel_requested, spent)
        with writing(self.engine) as connection:
            row = self._fenced(
                connection,
                run_id,
                attempt,
                phase=case((Run.cancel_requested, "CANCELLED"), (spent, "FAILED"), else_="QUEUED"),
                reason=case((Run.cancel_requested, "USER_CANCELLED"), else_=reason),
                message=case((Run.cancel_requested, "cancelled on request"), else_=message),
                hint=case((and_(spent, ~Run.cancel_requested), hint), else_=""),
                finished_at=case((ends, self._now), else_=None),
                queued_at=self._now,
                owner=None,
                lease_expires=None,
                dispatched_at=None,
                event_seq=Run.event_seq + 1,
                **count,
            )
            if row is None:
                return False
            cancelled = row.phase == "CANCELLED"
            self._add_state_event(
                connection,
                run_id,
                row.event_seq,
                attempt,
                row.phase,
                row.now,
                "USER_CANCELLED" if cancelled else reason,
                "cancelled on request" if cancelled else message,
            )
            if row.phase == "QUEUED":
                self._ring(connection, run_id, row.priority, row.now)
            return True

    # -- the sweeper --------------------------------------------------------------------------

    def sweep(self, *, redispatch_s: float = 120.0) -> list[Swept]:
        """Put right what a vanished worker or a lost message left; run it in a loop, anywhere.

        Args:
            redispatch_s: when nothing was rung in a queue for so long, though runs wait there and a
                worker that could take them is idle, as many bells are rung as workers are idle. A
                worker that is awake goes on by itself.
        """
        done: list[Swept] = []
        with reading(self.engine) as connection:
            expired = connection.execute(
                select(Run.id, Run.attempt).where(
                    Run.phase.in_(WORKING_PHASES), Run.lease_expires < self._now
                )
            ).all()
        for run_id, attempt in expired:
            action = self._expire(run_id, attempt)
            if action is not None:
                done.append(Swept(run_id, attempt, action))
        done += self._redispatch(redispatch_s)
        return done

    def _expire(
        self, run_id: str, attempt: int
    ) -> Literal["requeued", "failed", "cancelled"] | None:
        spent = Run.losses + 1 >= Run.max_attempts
        lost = "the worker stopped answering"
        with writing(self.engine) as connection:
            # The lease is looked at again: a heartbeat may have come since it was read.
            row = connection.execute(
                update(Run)
                .where(
                    Run.id == run_id,
                    Run.attempt == attempt,
                    Run.phase.in_(WORKING_PHASES),
                    Run.lease_expires < self._now,
                )
                .values(
                    phase=case(
                        (Run.cancel_requested, "CANCELLED"), (spent, "FAILED"), else_="QUEUED"
                    ),
                    reason=case((Run.cancel_requested, "USER_CANCELLED"), else_="WORKER_LOST"),
                    message=case(
                        (Run.cancel_requested, f"cancelled on request; {lost}"),
                        (spent, f"{lost}, in as many attempts as the run may lose"),
                        else_=f"{lost}; queued again",
                    ),
                    hint=case(
                        (
                            and_(spent, ~Run.cancel_requested),
                            "Look at the worker's log (memory?), then retry the run.",
                        ),
                        else_="",
                    ),
                    finished_at=case((or_(Run.cancel_requested, spent), self._now), else_=None),
                    losses=Run.losses + 1,
                    queued_at=self._now,
                    dispatched_at=None,
                    owner=None,
                    lease_expires=None,
                    event_seq=Run.event_seq + 1,
                )
                .returning(
                    Run.phase,
                    Run.reason,
                    Run.message,
                    Run.priority,
                    Run.event_seq,
                    self._now.label("now"),
                )
            ).first()
            if row is None:
                return None
            self._add_state_event(
                connection,
                run_id,
                row.event_seq,
                attempt,
                row.phase,
                row.now,
                row.reason,
                row.message,
            )
            if row.phase == "QUEUED":
                self._ring(connection, run_id, row.priority, row.now)
                return "requeued"
            return "failed" if row.phase == "FAILED" else "cancelled"

    def _redispatch(self, redispatch_s: float) -> list[Swept]:
        rung_at = func.coalesce(Run.dispatched_at, Run.queued_at)
        with reading(self.engine) as connection:
            live = self._live(connection)
            waiting = connection.execute(
                select(Run.queue, (self._now - func.max(rung_at)).label("quiet_s"))
                .where(Run.phase == "QUEUED")
                .group_by(Run.queue)
            ).all()
            leftovers = connection.execute(
                select(exists().where(self._finished_outbox()))
            ).scalar_one()
        done: list[Swept] = []
        for queue in {queue_for(row.queue, live) for row in waiting}:
            idle = sum(queue in w.queues and not w.busy and not w.trouble for w in live)
            here = [row for row in waiting if queue_for(row.queue, live) == queue]
            if idle and min(row.quiet_s for row in here) >= redispatch_s:
                done += self._ring_again([row.queue for row in here], redispatch_s, idle)
        if leftovers:
            with writing(self.engine) as connection:
                connection.execute(delete(Outbox).where(self._finished_outbox()))
        return done

    def _ring_again(self, queues: Sequence[str], age_s: float, limit: int) -> list[Swept]:
        stale = and_(
            Run.phase == "QUEUED",
            Run.queue.in_(list(queues)),
            func.coalesce(Run.dispatched_at, Run.queued_at) < self._now - age_s,
            ~exists().where(Outbox.run_id == Run.id, Outbox.sent_at.is_(None)),
        )
        done = []
        with writing(self.engine) as connection:
            candidates = connection.execute(
                select(Run.id)
                .where(stale)
                .order_by(Run.priority.desc(), Run.line_at, Run.id)
                .limit(limit)
            ).scalars()
            for run_id in candidates.all():
                row = connection.execute(
                    update(Run)
                    .where(Run.id == run_id, stale)
                    .values(dispatched_at=self._now)
                    .returning(Run.attempt, Run.priority, self._now.label("now"))
                ).first()
                if row is not None:
                    self._ring(connection, run_id, row.priority, row.now)
                    done.append(Swept(run_id, row.attempt, "redispatched"))
        return done

    def _finished_outbox(self) -> ColumnElement[bool]:
        waits = exists().where(Run.id == Outbox.run_id, Run.phase == "QUEUED")
        return or_(Outbox.sent_at < self._now - 3600.0, and_(Outbox.sent_at.is_(None), ~waits))

    # -- workers ------------------------------------------------------------------------------

    def worker_seen(
        self,
        worker_id: str,
        *,
        host: str,
        queues: Sequence[str],
        device: str,
        run_id: str | None = None,
        trouble: str = "",
    ) -> None:
        """A worker reports in; call it at start, when it takes or leaves a run, and in between.

        `trouble` says why it takes no run for the time being.
        """
        with writing(self.engine) as connection:
            now = connection.execute(select(self._now)).scalar_one()
            connection.execute(
                self._upsert(
                    Worker, ("id",), ("host", "queues", "device", "run_id", "trouble", "seen_at")
                ),
                {
                    "id": worker_id,
                    "host": host,
                    "queues": list(queues),
                    "device": device,
                    "run_id": run_id,
                    "trouble": _plain(trouble),
                    "started_at": now,
                    "seen_at": now,
                },
            )
            # Workers that left without a word are forgotten after a day.
            connection.execute(delete(Worker).where(Worker.seen_at < self._now - 86_400.0))

    def worker_gone(self, worker_id: str) -> None:
        """A worker leaves in good order."""
        with writing(self.engine) as connection:
            connection.execute(delete(Worker).where(Worker.id == worker_id))

    def why_waits(self, spec: RunSpec) -> str:
        """What a run of this spec would wait for; empty when a worker would take it at once."""
        with reading(self.engine) as connection:
            return why_waits(queue_of(spec), self._live(connection))

    def workers(self) -> list[WorkerInfo]:
        """The workers that have reported in during the last day, the newest first."""
        alive = (Worker.seen_at > self._now - WORKER_ALIVE_S).label("alive")
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(*Worker.__table__.columns, alive).order_by(Worker.seen_at.desc(), Worker.id)
            ).all()
        return [
            WorkerInfo(
                id=r.id,
                host=r.host,
                queues=r.queues,
                device=r.device,
                run_id=r.run_id,
                trouble=r.trouble,
                started_at=_moment(r.started_at),
                seen_at=_moment(r.seen_at),
                alive=bool(r.alive),
            )
            for r in rows
        ]

    # -- people's side ------------------------------------------------------------------------

    def request_cancel(self, run_id: str) -> RunDetail:
        """Cancel a run: at once while it waits, else by its worker. Repeatable; ended runs stay.

        Raises:
            NotFoundError: no such run.
        """
        waiting = Run.phase == "QUEUED"
        with writing(self.engine) as connection:
            row = connection.execute(
                update(Run)
                .where(
                    Run.id == run_id,
                    Run.phase.in_(("QUEUED", *WORKING_PHASES)),
                    Run.cancel_requested.is_(False),
                )
                .values(
                    cancel_requested=True,
                    phase=case((waiting, "CANCELLED"), else_="CANCELLING"),
                    reason="USER_CANCELLED",
                    message=case((waiting, "cancelled before it started"), else_="asked to stop"),
                    finished_at=case((waiting, self._now), else_=None),
                    event_seq=Run.event_seq + 1,
                )
                .returning(
                    Run.phase, Run.attempt, Run.message, Run.event_seq, self._now.label("now")
                )
            ).first()
            if row is not None:
                self._add_state_event(
                    connection,
                    run_id,
                    row.event_seq,
                    row.attempt,
                    row.phase,
                    row.now,
                    "USER_CANCELLED",
                    row.message,
                )
            return self._detail(connection, run_id)

    def retry(self, run_id: str, *, max_queued: int | None = None) -> RunDetail:
        """Queue a run that failed or was cancelled again; it goes on from its last checkpoint.

        A run that already waits or works is returned as it is, so that the call is repeatable.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run succeeded.
            QueueFullError: `max_queued` runs of its token are waiting.
        """
        with writing(self.engine) as connection:
            current = self._detail_row(connection, run_id)
            if current.phase == "SUCCEEDED":
                raise ConflictError(
                    f"run {run_id} succeeded; there is nothing to retry.",
                    hint="Clone it to run it again.",
                )
            if current.phase in RETRYABLE_PHASES:
                if max_queued is not None:
                    self._check_queue(connection, current.token_id, max_queued)
                row = connection.execute(
                    update(Run)
                    .where(Run.id == run_id, Run.phase.in_(RETRYABLE_PHASES))
                    .values(
                        phase="QUEUED",
                        reason=None,
                        message=None,
                        hint="",
                        cancel_requested=False,
                        losses=0,
                        setbacks=0,
                        queued_at=self._now,
                        line_at=self._now,
                        dispatched_at=None,
                        finished_at=None,
                        owner=None,
                        progress=None,
                        event_seq=Run.event_seq + 1,
                    )
                    .returning(Run.attempt, Run.priority, Run.event_seq, self._now.label("now"))
                ).first()
                if row is not None:
                    self._add_state_event(
                        connection, run_id, row.event_seq, row.attempt, "QUEUED", row.now, "RETRY"
                    )
                    self._ring(connection, run_id, row.priority, row.now)
            return self._detail(connection, run_id)

    def patch_run(
        self,
        run_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        archived: bool | None = None,
    ) -> RunDetail:
        """Change what people may change; None leaves a field as it is.

        Raises:
            NotFoundError: no such run.
        """
        given = {"name": name, "notes": notes, "tags": tags, "archived": archived}
        values = {key: value for key, value in given.items() if value is not None}
        if tags is not None:
            values["tags"] = list(dict.fromkeys(tags))
        with writing(self.engine) as connection:
            if values:
                connection.execute(update(Run).where(Run.id == run_id).values(**values))
            detail = self._detail(connection, run_id)
            if tags is not None:
                self._set_tags(connection, run_id, tags)
            return detail

    def delete_run(self, run_id: str) -> list[str]:
        """Delete a run with all its rows; the SHA-256s of its files, which may now be unreferenced.

        Raises:
            NotFoundError: no such run.
            ConflictError: the run works; cancel it first.
        """
        with writing(self.engine) as connection:
            phase = connection.execute(
                select(Run.phase).where(Run.id == run_id).with_for_update()
            ).scalar()
            if phase is None:
                raise NotFoundError(f"there is no run {run_id!r}.")
            if phase in WORKING_PHASES:
                raise ConflictError(
                    f"run {run_id} is {phase}; only a run that does not work can be deleted.",
                    hint="Cancel it first.",
                )
            digests = connection.execute(
                select(ArtifactRow.sha256).where(ArtifactRow.run_id == run_id).distinct()
            ).scalars()
            found = list(digests)
            connection.execute(delete(Run).where(Run.id == run_id))
            return found

    # -- reading runs -------------------------------------------------------------------------

    _LIST_COLUMNS = tuple(
        column
        for column in Run.__table__.columns
        if column.key not in ("spec", "notes", "body_hash", "idempotency_key")
    )

    def _detail_row(self, connection: Connection, run_id: str) -> Row[*tuple[Any, ...]]:
        row = connection.execute(select(*Run.__table__.columns).where(Run.id == run_id)).first()
        if row is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return row

    def _detail(self, connection: Connection, run_id: str) -> RunDetail:
        row = self._detail_row(connection, run_id)
        report = connection.execute(
            select(ReportRow.body).where(ReportRow.run_id == run_id)
        ).scalar()
        report = report or {}
        return RunDetail(
            **_summary_fields(row),
            spec=row.spec,
            spec_sha256=row.spec_sha256,
            notes=row.notes,
            hint=row.hint,
            worker=row.owner,
            waiting=why_waits(row.queue, self._live(connection)) if row.phase == "QUEUED" else "",
            cloned_from=row.cloned_from,
            environment=report.get("environment") or {},
            resolved=report.get("resolved") or {},
        )

    def get_run(self, run_id: str) -> RunDetail:
        """One run.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self.engine) as connection:
            return self._detail(connection, run_id)

    def submitter(self, run_id: str) -> str | None:
        """Whose run it is; None: it is from before that was kept.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self.engine) as connection:
            row = connection.execute(select(Run.submitted_by).where(Run.id == run_id)).first()
        if row is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return cast("str | None", row.submitted_by)

    def phase(self, run_id: str) -> RunPhase:
        """The run's phase.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self.engine) as connection:
            phase = connection.execute(select(Run.phase).where(Run.id == run_id)).scalar()
        if phase is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return cast("RunPhase", phase)

    def summaries(self, run_ids: Sequence[str]) -> list[RunSummary]:
        """Rows of the run list, in the order asked for.

        Raises:
            NotFoundError: one of them does not exist.
        """
        with reading(self.engine) as connection:
            rows = {
                row.id: row
                for row in connection.execute(
                    select(*self._LIST_COLUMNS).where(Run.id.in_(list(run_ids)))
                )
            }
        for run_id in run_ids:
            if run_id not in rows:
                raise NotFoundError(f"there is no run {run_id!r}.")
        return [RunSummary(**_summary_fields(rows[run_id])) for run_id in run_ids]

    def list_runs(
        self,
        filters: RunFilters | None = None,
        *,
        sort: SortKey = "-created",
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[RunSummary], str | None, int]:
        """A page of runs, the cursor of the next one, and how many match. Nulls come last.

        Raises:
            CursorError: the cursor is of another list.
        """
        filters = filters or RunFilters()
        where = self._run_conditions(filters)
        scope = _scope_of(filters, sort)
        key, down = self._sort_key(sort)
        position: ColumnElement[bool] = literal(True)
        if cursor is not None:
            value, last_id = self._cursors.read(cursor, scope)
            here = tuple_(key, Run.id)
            there = tuple_(literal(value), literal(last_id))
            position = here < there if down else here > there
        order = (key.desc(), Run.id.desc()) if down else (key.asc(), Run.id.asc())
        with reading(self.engine) as connection:
            total = connection.execute(
                select(func.count()).select_from(Run).where(*where)
            ).scalar_one()
            rows = connection.execute(
                select(*self._LIST_COLUMNS, key.label("sort_key"))
                .where(*where, position)
                .order_by(*order)
                .limit(limit + 1)
            ).all()
        next_cursor = None
        if len(rows) > limit:
            rows = rows[:limit]
            next_cursor = self._cursors.write(scope, [rows[-1].sort_key, rows[-1].id])
        return [RunSummary(**_summary_fields(row)) for row in rows], next_cursor, int(total)

    def suites(self, phases: Sequence[RunPhase] = (), *, limit: int = 200) -> list[SuiteRuns]:
        """The suites of runs that are not archived, that of the newest run first."""
        where = self._run_conditions(RunFilters(phases=tuple(phases), archived=False))
        newest = func.max(Run.created_at)
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(Run.suite, func.count(), newest)
                .where(*where)
                .group_by(Run.suite)
                .order_by(newest.desc(), Run.suite)
                .limit(limit)
            ).all()
        return [SuiteRuns(suite=s, runs=n, newest_at=_moment(at)) for s, n, at in rows]

    def _sort_key(self, sort: SortKey) -> tuple[ColumnElement[Any], bool]:
        down = sort.startswith("-")
        name = sort.lstrip("-")
        if name == "created":
            return Run.__table__.c.created_at, down
        if name == "name":
            return Run.__table__.c.name, down
        # A number that is missing sorts after all others, whichever way: no run is hidden by it.
        return func.coalesce(Run.__table__.c[name], -1e300 if down else 1e300), down

    def _run_conditions(self, filters: RunFilters) -> list[ColumnElement[bool]]:
        where: list[ColumnElement[bool]] = []
        for column, values in (
            (Run.phase, filters.phases),
            (Run.method, filters.methods),
            (Run.model, filters.models),
            (Run.suite, filters.suites),
        ):
            if values:
                where.append(column.in_(values))
        where += [
            exists().where(RunTag.run_id == Run.id, RunTag.tag == tag) for tag in filters.tags
        ]
        if filters.archived is not None:
            where.append(Run.archived.is_(filters.archived))
        for word in filters.text.split():
            where.append(
                or_(
                    Run.name.icontains(word, autoescape=True),
                    Run.notes.icontains(word, autoescape=True),
                    Run.id.startswith(word, autoescape=True),
                )
            )
        return where

    # -- metrics, events, logs ----------------------------------------------------------------

    def metrics(
        self,
        run_id: str,
        *,
        names: Sequence[str] = (),
        since_step: int = -1,
        max_points: int | None = None,
    ) -> Metrics:
        """The curves after `since_step`, each thinned to `max_points` with its extremes kept.

        `last_step` is the run's newest step, or `since_step` when nothing is newer.

        Raises:
            NotFoundError: no such run.
        """
        query = (
            select(Metric.name, Metric.step, Metric.value)
            .where(Metric.run_id == run_id, Metric.step > since_step)
            .order_by(Metric.name, Metric.step)
        )
        if names:
            query = query.where(Metric.name.in_(list(names)))
        with reading(self.engine) as connection:
            self._must_exist(connection, run_id)
            newest = connection.execute(
                select(func.max(Metric.step)).where(Metric.run_id == run_id)
            ).scalar()
            curves: dict[str, tuple[list[int], list[float]]] = {}
            for name, step, value in connection.execute(query):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
        series = []
        for name, (steps, values) in curves.items():
            keep = thin(values, max_points)
            series.append(
                MetricSeries(
                    name=name, steps=[steps[i] for i in keep], values=[values[i] for i in keep]
                )
            )
        last = max(since_step, newest if newest is not None else since_step)
        return Metrics(series=series, last_step=max(last, 0))

    def _must_exist(self, connection: Connection, run_id: str) -> Row[*tuple[Any, ...]]:
        row = connection.execute(
            select(Run.id, Run.name, Run.method, Run.phase, Run.log_bytes).where(Run.id == run_id)
        ).first()
        if row is None:
            raise NotFoundError(f"there is no run {run_id!r}.")
        return row

    def events_after(
        self, run_id: str, after: int = 0, limit: int = 500
    ) -> tuple[list[RunEvent], RunPhase]:
        """Events with a greater id, and the phase as it was before they were read.

        A terminal phase with no events left means: that was all.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self.engine) as connection:
            phase = cast("RunPhase", self._must_exist(connection, run_id).phase)
            rows = connection.execute(
                select(*Event.__table__.columns)
                .where(Event.run_id == run_id, Event.id > after)
                .order_by(Event.id)
                .limit(limit)
            ).all()
        events = [
            RunEvent(id=r.id, kind=r.kind, at=_moment(r.at), attempt=r.attempt, data=r.data)
            for r in rows
        ]
        return events, phase

    def logs(
        self, run_id: str, *, offset: int = 0, limit: int = 65_536, tail: int | None = None
    ) -> LogPage:
        """A piece of the log from a byte offset (negative: from the end), cut between characters.

        Args:
            run_id: the run.
            offset: byte; without meaning beside `tail`.
            limit: bytes at most.
            tail: the last lines, as far as they are within `limit`.

        Raises:
            NotFoundError: no such run.
        """
        if tail is not None:
            offset = -limit
        with reading(self.engine) as connection:
            run = self._must_exist(connection, run_id)
            start = max(0, run.log_bytes + offset) if offset < 0 else min(offset, run.log_bytes)
            first = (
                select(func.coalesce(func.max(LogChunk.start), 0))
                .where(LogChunk.run_id == run_id, LogChunk.start <= start)
                .scalar_subquery()
            )
            rows = connection.execute(
                select(LogChunk.start, LogChunk.body)
                .where(
                    LogChunk.run_id == run_id,
                    LogChunk.start >= first,
                    LogChunk.start < start + limit,
                )
                .order_by(LogChunk.start)
            ).all()
        raw = b"".join(bytes(r.body) for r in rows)
        base = rows[0].start if rows else start
        raw = raw[start - base : start - base + limit]
        lead = 0
        if offset < 0:
            while lead < min(3, len(raw)) and raw[lead] & 0xC0 == 0x80:
                lead += 1
        end = start + len(raw)
        finished = run.phase in TERMINAL_PHASES and end >= run.log_bytes
        if not finished:
            raw = raw[: _whole_characters(raw)]
        if tail is not None:
            lines = raw[lead:].splitlines(keepends=True)
            lead = len(raw) - sum(map(len, lines[-tail:] if tail else []))
        return LogPage(
            text=raw[lead:].decode("utf-8", "replace"),
            offset=start + lead,
            next_offset=start + len(raw),
            size_bytes=run.log_bytes,
            complete=finished,
        )

    # -- results ------------------------------------------------------------------------------

    _EVALUATION_COLUMNS = (
        EvaluationRow.id,
        EvaluationRow.run_id,
        EvaluationRow.created_at,
        EvaluationRow.report,
        EvaluationRow.position,
        Run.name.label("run_name"),
        Run.method,
    )

    def _evaluation_query(self) -> Select[Any]:
        return select(*self._EVALUATION_COLUMNS).join(Run, Run.id == EvaluationRow.run_id)

    def run_evaluations(self, run_id: str) -> list[Evaluation]:
        """A run's evaluations in the order they were made.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self.engine) as connection:
            self._must_exist(connection, run_id)
            rows = connection.execute(
                self._evaluation_query()
                .where(EvaluationRow.run_id == run_id)
                .order_by(EvaluationRow.position, EvaluationRow.id)
            ).all()
        return [_evaluation(row) for row in rows]

    def get_evaluation(self, evaluation_id: str) -> Evaluation:
        """One evaluation.

        Raises:
            NotFoundError: no such evaluation.
        """
        with reading(self.engine) as connection:
            row = connection.execute(
                self._evaluation_query().where(EvaluationRow.id == evaluation_id)
            ).first()
        if row is None:
            raise NotFoundError(f"there is no evaluation {evaluation_id!r}.")
        return _evaluation(row)

    def list_evaluations(
        self,
        *,
        run_ids: Sequence[str] = (),
        datasets: Sequence[str] = (),
        roles: Sequence[str] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[Evaluation], str | None, int]:
        """A page of evaluations, newest first, the next cursor, and how many match.

        Raises:
            CursorError: the cursor is of another list.
        """
        where: list[ColumnElement[bool]] = []
        for column, values in (
            (EvaluationRow.run_id, run_ids),
            (EvaluationRow.dataset, datasets),
            (EvaluationRow.role, roles),
        ):
            if values:
                where.append(column.in_(list(values)))
        scope = _scope_of(sorted(run_ids), sorted(datasets), sorted(roles))
        position: ColumnElement[bool] = literal(True)
        if cursor is not None:
            created, last_id = self._cursors.read(cursor, scope)
            position = tuple_(EvaluationRow.created_at, EvaluationRow.id) < tuple_(
                literal(created, Double), literal(last_id)
            )
        with reading(self.engine) as connection:
            total = connection.execute(
                select(func.count()).select_from(EvaluationRow).where(*where)
            ).scalar_one()
            rows = connection.execute(
                self._evaluation_query()
                .where(*where, position)
                .order_by(EvaluationRow.created_at.desc(), EvaluationRow.id.desc())
                .limit(limit + 1)
            ).all()
        next_cursor = None
        if len(rows) > limit:
            rows = rows[:limit]
            next_cursor = self._cursors.write(scope, [rows[-1].created_at, rows[-1].id])
        return [_evaluation(row) for row in rows], next_cursor, int(total)

    def predictions_of(self, evaluation_id: str) -> StoredPredictions:
        """Where an evaluation's predictions are.

        Raises:
            NotFoundError: no such evaluation, or its predictions were not stored.
        """
        with reading(self.engine) as connection:
            row = connection.execute(
                select(
                    EvaluationRow.predictions,
                    EvaluationRow.predictions_sha256,
                    ArtifactRow.sha256,
                )
                .outerjoin(
                    ArtifactRow,
                    and_(
                        ArtifactRow.run_id == EvaluationRow.run_id,
                        ArtifactRow.name == EvaluationRow.predictions,
                    ),
                )
                .where(EvaluationRow.id == evaluation_id)
            ).first()
        if row is None:
            raise NotFoundError(f"there is no evaluation {evaluation_id!r}.")
        digest = row.sha256 or row.predictions_sha256
        if not digest:
            raise NotFoundError(
                f"the predictions of evaluation {evaluation_id} are not stored yet.",
                hint="They arrive with the end of the evaluation.",
            )
        return StoredPredictions(sha256=digest, name=row.predictions)

    def spectra(self, run_id: str) -> list[Spectrum]:
        """A run's spectra by step, the finished model's last.

        Raises:
            NotFoundError: no such run.
        """
        with reading(self.engine) as connection:
            self._must_exist(connection, run_id)
            rows = connection.execute(
                select(*SpectrumRow.__table__.columns)
                .where(SpectrumRow.run_id == run_id)
                .order_by(SpectrumRow.final, SpectrumRow.step)
            ).all()
        return [
            Spectrum(**row.spectrum, run_id=row.run_id, step=row.step, final=row.final)
            for row in rows
        ]

    def report(self, run_id: str) -> dict[str, Any]:
        """The run's `report.json`.

        Raises:
            NotFoundError: no such run, or it has no report yet.
        """
        with reading(self.engine) as connection:
            phase = self._must_exist(connection, run_id).phase
            body = connection.execute(
                select(ReportRow.body).where(ReportRow.run_id == run_id)
            ).scalar()
        if body is None:
            raise NotFoundError(
                f"run {run_id} has no report; it is {phase}.",
                hint="A report comes with success.",
            )
        return cast("dict[str, Any]", body)

    def frontier(self, run_id: str) -> Frontier:
        """The path between zero-shot and fine-tuned that a run measured.

        Raises:
            NotFoundError: no such run, it has no report yet, or it measured no path.
        """
        body = self.report(run_id)
        method = body["spec"]["method"]
        points = body.get("frontier")
        if points is None:
            raise NotFoundError(
                f"run {run_id} has no frontier; its method is {method['kind']}.",
                hint="A run of the method wise_ft measures one.",
            )
        return Frontier(
            run_id=run_id,
            run_name=body["name"],
            input_run=method["run"],
            alpha=method["alpha"],
            points=points,
        )

    def artifacts(self, run_id: str, *, kind: str | None = None) -> list[Artifact]:
        """A run's files by name, of one kind or of all but `state`: those are no result.

        Raises:
            NotFoundError: no such run.
        """
        query = select(*ArtifactRow.__table__.columns).where(ArtifactRow.run_id == run_id)
        query = query.where(
            ArtifactRow.kind != "state" if kind is None else ArtifactRow.kind == kind
        )
        with reading(self.engine) as connection:
            self._must_exist(connection, run_id)
            rows = connection.execute(query.order_by(ArtifactRow.name)).all()
        return [_artifact(row) for row in rows]

    def get_artifact(self, run_id: str, name: str) -> Artifact:
        """One file of a run.

        Raises:
            NotFoundError: no such run or file.
        """
        with reading(self.engine) as connection:
            self._must_exist(connection, run_id)
            row = connection.execute(
                select(*ArtifactRow.__table__.columns).where(
                    ArtifactRow.run_id == run_id, ArtifactRow.name == name
                )
            ).first()
        if row is None:
            raise NotFoundError(f"run {run_id} has no file {name!r}.")
        return _artifact(row)

    def referenced(self, digests: Sequence[str]) -> set[str]:
        """Which of these SHA-256s a run still names."""
        found: set[str] = set()
        with reading(self.engine) as connection:
            for at in range(0, len(digests), 500):
                piece = list(digests[at : at + 500])
                found.update(
                    connection.execute(
                        select(ArtifactRow.sha256).where(ArtifactRow.sha256.in_(piece))
                    ).scalars()
                )
        return found

    def runs_by_phase(self) -> dict[str, int]:
        """How many runs are in each phase that has any."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(Run.phase, func.count()).group_by(Run.phase)).all()
        return {phase: int(count) for phase, count in rows}

    def oldest_queued_s(self) -> float | None:
        """How long the run that waits longest has waited, in seconds."""
        with reading(self.engine) as connection:
            age = connection.execute(
                select(self._now - func.min(Run.queued_at)).where(Run.phase == "QUEUED")
            ).scalar()
        return None if age is None else max(0.0, float(age))

    def pace(self, spec: RunSpec) -> Pace | None:
        """How fast finished runs say that a run like this one is, if any do."""
        body = ReportRow.body
        parts = ("spec", "environment", "speeds")
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(*(body[part].label(part) for part in parts))
                .join(Run, Run.id == ReportRow.run_id)
                .where(Run.model == model_label(spec), Run.phase == "SUCCEEDED")
                .order_by(Run.finished_at.desc())
                .limit(_PACE_REPORTS)
            ).all()
        return recorded_pace([row._asdict() for row in rows], spec)

    # -- tokens -------------------------------------------------------------------------------

    def add_token(
        self,
        token_id: str,
        *,
        name: str,
        scope: Literal["read", "submit", "admin"],
        secret_sha256: str,
        ttl_s: float | None = None,
    ) -> None:
        """Store a token's hash.

        Args:
            token_id: the token's public half.
            name: whose it is. Runs belong to the name, so that a new token of the same person may
                go on with them.
            scope: what it may do.
            secret_sha256: hash of the whole token.
            ttl_s: seconds until it expires; None: never.

        Raises:
            SpecError: there is no name, it is the administrator's, or the time is not positive or
                longer than a hundred years.
        """
        if not name.strip() or len(name) > 120 or not name.isprintable():
            raise SpecError(f"a token's name must have 1 to 120 printable characters, got {name!r}")
        if name == ADMIN_NAME and scope != "admin":
            raise SpecError(
                f"the name {ADMIN_NAME!r} must have the scope admin, got {scope}.",
                hint="Runs belong to names, and this one is the service's own token's.",
            )
        if ttl_s is not None and not 0 < ttl_s <= _LONGEST_TOKEN_S:
            raise SpecError(
                f"a token must expire after more than 0 and at most {_LONGEST_TOKEN_S / 86_400:g} "
                f"days, got {ttl_s / 86_400:g}"
            )
        with writing(self.engine) as connection:
            connection.execute(
                insert(Token).values(
                    id=token_id,
                    name=name,
                    scope=scope,
                    secret_sha256=secret_sha256,
                    created_at=self._now,
                    expires_at=None if ttl_s is None else self._now + ttl_s,
                )
            )

    def revoke_token(self, token_id: str) -> bool:
        """Make a token worthless. False: there is no such token that was not revoked already."""
        with writing(self.engine) as connection:
            result = cast(
                "CursorResult[Any]",
                connection.execute(
                    update(Token)
                    .where(Token.id == token_id, Token.revoked_at.is_(None))
                    .values(revoked_at=self._now)
                ),
            )
            return result.rowcount == 1

    def get_token(self, token_id: str) -> StoredToken | None:
        """A token by its public half."""
        expired = func.coalesce(Token.expires_at <= self._now, False).label("expired")
        with reading(self.engine) as connection:
            row = connection.execute(
                select(*Token.__table__.columns, expired).where(Token.id == token_id)
            ).first()
        return None if row is None else _token(row)

    def tokens(self) -> list[StoredToken]:
        """Every token, the oldest first."""
        expired = func.coalesce(Token.expires_at <= self._now, False).label("expired")
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(*Token.__table__.columns, expired).order_by(Token.created_at, Token.id)
            ).all()
        return [_token(row) for row in rows]

    # -- sessions -----------------------------------------------------------------------------

    def add_session(
        self,
        session_id: str,
        *,
        kind: Literal["session", "link"],
        secret_sha256: str,
        token_id: str,
        token_sha256: str,
        ttl_s: float,
        link_id: str | None = None,
        subject: str | None = None,
    ) -> StoredSession | None:
        """Store a log-in's hash, and forget those that are too old.

        Args:
            session_id: its public half.
            kind: a `session`, or a `link` that can become one once.
            secret_sha256: of the whole of it.
            token_id: the token that it acts for.
            token_sha256: of that token.
            ttl_s: how long it lives.
            link_id: the link that it is made of, used up in the same step.
            subject: the name of a person who logs in without any token.

        Returns:
            None when that link was used before, or is too old; then nothing is stored.
        """
        with writing(self.engine) as connection:
            if link_id is not None:
                used = connection.execute(
                    update(Session)
                    .where(
                        Session.id == link_id,
                        Session.kind == "link",
                        Session.ended_at.is_(None),
                        Session.expires_at > self._now,
                    )
                    .values(ended_at=self._now)
                )
                if cast("CursorResult[Any]", used).rowcount != 1:
                    return None
            # A used link is kept for a day, so that it is told from one that never was.
            connection.execute(delete(Session).where(Session.expires_at < self._now - 86_400.0))
            connection.execute(
                insert(Session).values(
                    id=session_id,
                    kind=kind,
                    secret_sha256=secret_sha256,
                    token_id=token_id,
                    token_sha256=token_sha256,
                    created_at=self._now,
                    expires_at=self._now + ttl_s,
                    subject=subject,
                )
            )
        return self.get_session(session_id)

    def get_session(self, session_id: str) -> StoredSession | None:
        """A log-in or link by its public half."""
        valid = and_(Session.ended_at.is_(None), Session.expires_at > self._now).label("valid")
        with reading(self.engine) as connection:
            row = connection.execute(
                select(*Session.__table__.columns, valid).where(Session.id == session_id)
            ).first()
        if row is None:
            return None
        return StoredSession(
            id=row.id,
            kind=row.kind,
            secret_sha256=row.secret_sha256,
            token_id=row.token_id,
            token_sha256=row.token_sha256,
            expires_at=_moment(row.expires_at),
            subject=row.subject,
            valid=bool(row.valid),
        )

    def end_session(self, session_id: str) -> None:
        """Log out; repeatable."""
        with writing(self.engine) as connection:
            connection.execute(
                update(Session)
                .where(Session.id == session_id, Session.ended_at.is_(None))
                .values(ended_at=self._now)
            )


# ---------------------------------------------------------------------------------------------
# Pieces


class _Batch:
    """Records turned into rows, in order. A later record of the same key wins."""

    def __init__(self, run_id: str, attempt: int, now: float) -> None:
        self.run_id, self.attempt, self.now = run_id, attempt, now
        self.metrics: dict[tuple[str, int], dict[str, Any]] = {}
        self.spectra: dict[tuple[int, bool], dict[str, Any]] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.progress: Progress | None = None
        self.summary: dict[str, Any] | None = None
        self.resumed_step: int | None = None

    def _event(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append(
            {
                "run_id": self.run_id,
                "attempt": self.attempt,
                "kind": kind,
                "at": self.now,
                "data": data,
            }
        )

    def take(self, record: Record) -> None:
        data = record.model_dump(mode="json", exclude={"kind"})
        match record:
            case MetricsRecord():
                self._take_metrics(record)
                # One event a batch and not one a step: the last is enough to know there is more.
                if self.events and self.events[-1]["kind"] == "metrics":
                    self.events.pop()
                self._event("metrics", data)
            case ProgressRecord():
                self.progress = Progress(
                    phase=record.phase,
                    detail=record.detail,
                    step=record.step,
                    total_steps=record.total_steps,
                    samples_per_s=record.samples_per_s,
                    eta_s=record.eta_s,
                    updated_at=_moment(self.now),
                )
            case PhaseRecord():
                self.progress = Progress(
                    phase=record.phase, detail=record.detail, updated_at=_moment(self.now)
                )
                self._event("phase", data)
            case ResumedRecord():
                self._take_resumed(record.step)
                self._event("resumed", data)
            case SpectrumRecord():
                self.spectra[record.step, record.final] = {
                    "run_id": self.run_id,
                    "step": record.step,
                    "final": record.final,
                    "attempt": self.attempt,
                    "spectrum": data["spectrum"],
                }
                self._event(
                    "spectrum",
                    {
                        "step": record.step,
                        "final": record.final,
                        "sigma_min": record.spectrum.sigma_min,
                        "effective_rank": record.spectrum.effective_rank,
                    },
                )
            case EvaluationRecord():
                self._take_evaluation(record, data["evaluation"])
            case LogRecord():
                self.log.append(f"[{record.level}] {record.message}\n")
                self._event("log", data)
            case DoneRecord():
                self.summary = data["summary"]
                self._event("done", data)
            case _:
                self._event(record.kind, data)

    def _take_metrics(self, record: MetricsRecord) -> None:
        for given, value in record.values.items():
            name = _plain(given) or ""
            self.metrics[name, record.step] = {
                "run_id": self.run_id,
                "name": name,
                "step": record.step,
                "value": value,
                "epoch": record.epoch,
                "attempt": self.attempt,
            }

    def _take_resumed(self, step: int) -> None:
        self.resumed_step = step if self.resumed_step is None else min(step, self.resumed_step)
        self.metrics = {key: row for key, row in self.metrics.items() if key[1] <= step}
        self.spectra = {key: row for key, row in self.spectra.items() if key[0] <= step}

    def _take_evaluation(self, record: EvaluationRecord, report: dict[str, Any]) -> None:
        e = record.evaluation
        identity = evaluation_id(self.run_id, e.dataset)
        self.evaluations[e.dataset] = {
            "id": identity,
            "run_id": self.run_id,
            "dataset": e.dataset,
            "role": e.role,
            "attempt": self.attempt,
            "created_at": self.now,
            "predictions": record.predictions,
            "predictions_sha256": e.predictions_sha256,
            "report": report,
        }
        self._event(
            "evaluation",
            {
                "id": identity,
                "dataset": e.dataset,
                "role": e.role,
                "n": e.n,
                "accuracy": e.accuracy,
                "ece": e.ece.value,
            },
        )


def model_label(spec: RunSpec) -> str:
    """`ViT-B-16/openai`: the model as one word."""
    return (
        f"{spec.model.name}/{spec.model.pretrained}" if spec.model.pretrained else spec.model.name
    )


def thin(values: Sequence[float], max_points: int | None) -> list[int]:
    """Indices of at most `max_points` values: first, last, and each stretch's lowest and highest.

    The extremes of the whole curve always stay, so a spike cannot vanish by zooming out.
    """
    n = len(values)
    if max_points is None or n <= max_points:
        return list(range(n))
    if max_points < 4:
        # Too few for stretches: the last value, then the extremes, then the first.
        array = np.asarray(values)
        order = [n - 1, int(array.argmin()), int(array.argmax()), 0]
        return sorted(set(list(dict.fromkeys(order))[:max_points]))
    array = np.asarray(values)
    edges = np.linspace(1, n - 1, (max_points - 2) // 2 + 1).astype(int)
    keep = {0, n - 1}
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        if high > low:
            piece = array[low:high]
            keep.update((low + int(piece.argmin()), low + int(piece.argmax())))
    return sorted(keep)


def _whole_characters(raw: bytes) -> int:
    """How many bytes of UTF-8 end with a whole character; a character has at most four bytes."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) if back >= length else len(raw) - back
    return len(raw)


def _summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {"summary": dict(summary)} | {name: summary.get(name) for name in _SUMMARY_COLUMNS}


def _summary_fields(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "phase": row.phase,
        "reason": row.reason,
        "message": row.message,
        "method": row.method,
        "model": row.model,
        "suite": row.suite,
        "seed": row.seed,
        "tags": row.tags,
        "archived": row.archived,
        "priority": row.priority,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "losses": row.losses,
        "drains": row.drains,
        "setbacks": row.setbacks,
        "owner": row.submitted_by,
        "created_at": _moment(row.created_at),
        "started_at": _when(row.started_at),
        "finished_at": _when(row.finished_at),
        "heartbeat_at": _when(row.heartbeat_at),
        "progress": row.progress,
        "summary": row.summary,
    }


def _evaluation(row: Row[*tuple[Any, ...]]) -> Evaluation:
    return Evaluation(
        **row.report,
        id=row.id,
        run_id=row.run_id,
        run_name=row.run_name,
        method=row.method,
        created_at=_moment(row.created_at),
    )


def _artifact(row: Row[*tuple[Any, ...]]) -> Artifact:
    return Artifact(
        name=row.name,
        kind=row.kind,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        attempt=row.attempt,
        created_at=_moment(row.created_at),
    )


def _token(row: Row[*tuple[Any, ...]]) -> StoredToken:
    return StoredToken(
        id=row.id,
        name=row.name,
        scope=row.scope,
        secret_sha256=row.secret_sha256,
        expired=bool(row.expired),
        revoked=row.revoked_at is not None,
    )
