"""What every job can: it is submitted, read, cancelled, retried and deleted.

A run and an evaluation job are rows of one table, told apart by `kind`. Phases:
``QUEUED → STARTING → RUNNING → SUCCEEDED | FAILED``; a cancel turns ``QUEUED`` into ``CANCELLED``
and a working job into ``CANCELLING``, which its worker ends.
"""

from abc import ABC, abstractmethod
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar, Unpack

from sqlalchemy import Connection, Engine, Row, bindparam, case, delete, select, update

from backend.store.cursors import Cursors
from backend.store.engine import NOW, reading, writing
from backend.store.errors import ConflictError
from backend.store.fairness import Quotas
from backend.store.models import ArtifactRow, Run
from backend.store.outbox import enqueue
from backend.store.states import WORKING_PHASES, add_state_event
from backend.store.submitting import JobRequest, at_most_once, require_room
from calift_core.errors import NotFoundError
from calift_core.schema.base import Frozen
from calift_core.schema.wire.runs import JobSummary


def completion(job: JobSummary) -> dict[str, float | None]:
    """How much of a job is done over all its phases, and how long the rest takes."""
    if job.phase in WORKING_PHASES and job.progress is not None:
        eta = job.progress.eta_at(datetime.now(UTC))
        return {"fraction_done": job.progress.run_fraction, "eta_seconds": eta}
    return {"fraction_done": {"QUEUED": 0.0, "SUCCEEDED": 1.0}.get(job.phase)}


_KINDS = {"training": "a run", "evaluation": "an evaluation job"}
RETRYABLE_PHASES = ("FAILED", "CANCELLED")
#: A job's row as its answers name things.
JOB_COLUMNS = (
    *(c for c in Run.__table__.columns if c.key not in ("owner", "body_hash", "idempotency_key")),
    Run.owner.label("worker"),
    Run.submitted_by.label("owner"),
    Run.event_seq.label("revision"),
)
_ONE = select(*JOB_COLUMNS).where(Run.id == bindparam("id"), Run.kind == bindparam("kind"))

_Spec = TypeVar("_Spec", bound=Frozen)
_Job_co = TypeVar("_Job_co", bound=JobSummary, covariant=True)


class Jobs(ABC, Generic[_Spec, _Job_co]):
    """Jobs of one kind.

    Args:
        quotas: what each owner may have; None: anything.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    #: What to do instead of retrying one that succeeded.
    instead_of_retry: ClassVar[str]

    def __init__(self, engine: Engine, cursors: Cursors, quotas: Quotas | None = None) -> None:
        self._engine, self._cursors = engine, cursors
        self._quotas = quotas or Quotas()

    @abstractmethod
    def _insert(self, connection: Connection, spec: _Spec, **values: Any) -> str:
        """Insert a job that waits, with its first event and its message; its id."""

    @abstractmethod
    def _read(self, connection: Connection, row: Row[*tuple[Any, ...]]) -> _Job_co:
        """The answer of a row of `JOB_COLUMNS`."""

    def submit(
        self, spec: _Spec, *, max_queued: int | None = None, **request: Unpack[JobRequest]
    ) -> str:
        """Queue a job and return its id, or the id that the same key and body gave before.

        Args:
            max_queued: how many jobs the token may have waiting.
            **request: who asks, and how it is to be queued.

        Raises:
            IdempotencyError: the key came with another body before.
            QueueFullError: as many jobs of the token or of its owner are waiting as may.
            ArtifactQuotaError: the owner's files take up too much.
            ConflictError: what the spec names is gone by now.
        """
        values: dict[str, Any] = {"priority": 0, "max_attempts": 3} | dict(request)
        values["token_id"] = token_id = values.get("token_id") or ""

        def make(connection: Connection) -> str:
            owner = values.get("submitted_by")
            require_room(connection, self._quotas, token_id, owner, max_queued)
            return self._insert(connection, spec, **values)

        return at_most_once(self._engine, make, request)

    def get(self, job_id: str) -> _Job_co:
        """One job.

        Raises:
            NotFoundError: no such job.
        """
        with reading(self._engine) as connection:
            return self._get(connection, job_id)

    def request_cancel(self, job_id: str) -> _Job_co:
        """Cancel a job: at once while it waits, else by its worker. Repeatable; ended ones stay.

        Raises:
            NotFoundError: no such job.
        """
        waiting = Run.phase == "QUEUED"
        with writing(self._engine) as connection:
            row = connection.execute(
                update(Run)
                .where(
                    Run.id == job_id,
                    Run.kind == self.kind,
                    Run.phase.in_(("QUEUED", *WORKING_PHASES)),
                    Run.cancel_requested.is_(False),
                )
                .values(
                    cancel_requested=True,
                    phase=case((waiting, "CANCELLED"), else_="CANCELLING"),
                    reason="USER_CANCELLED",
                    message=case((waiting, "cancelled before it started"), else_="asked to stop"),
                    finished_at=case((waiting, NOW), else_=None),
                    event_seq=Run.event_seq + 1,
                )
                .returning(Run.phase, Run.attempt, Run.message, Run.event_seq, NOW.label("now"))
            ).first()
            if row is not None:
                happened = partial(add_state_event, connection, job_id, row.event_seq, row.attempt)
                happened(row.phase, row.now, "USER_CANCELLED", row.message)
            return self._get(connection, job_id)

    def retry(self, job_id: str, *, max_queued: int | None = None) -> _Job_co:
        """Queue a job that failed or was cancelled again; it goes on where it was.

        One that already waits or works is returned as it is, so that the call is repeatable.

        Raises:
            NotFoundError: no such job.
            ConflictError: it succeeded.
            QueueFullError: `max_queued` jobs of its token are waiting.
        """
        with writing(self._engine) as connection:
            current = self._row(connection, job_id)
            if current.phase == "SUCCEEDED":
                raise ConflictError(
                    f"{self.noun} {job_id} succeeded; there is nothing to retry.",
                    hint=self.instead_of_retry,
                )
            if current.phase in RETRYABLE_PHASES:
                require_room(
                    connection, self._quotas, current.token_id, current.submitted_by, max_queued
                )
                row = connection.execute(
                    update(Run)
                    .where(Run.id == job_id, Run.phase.in_(RETRYABLE_PHASES))
                    .values(
                        phase="QUEUED",
                        reason=None,
                        message=None,
                        hint="",
                        cancel_requested=False,
                        lost_attempts=0,
                        storage_requeues=0,
                        queued_at=NOW,
                        line_at=NOW,
                        dispatched_at=None,
                        finished_at=None,
                        owner=None,
                        progress=None,
                        event_seq=Run.event_seq + 1,
                    )
                    .returning(Run.attempt, Run.priority, Run.event_seq, NOW.label("now"))
                ).first()
                if row is not None:
                    add_state_event(
                        connection, job_id, row.event_seq, row.attempt, "QUEUED", row.now, "RETRY"
                    )
                    enqueue(connection, job_id, row.priority, row.now)
            return self._get(connection, job_id)

    def delete(self, job_id: str) -> list[str]:
        """Delete a job with all its rows; the SHA-256s of its files, which may be unreferenced now.

        Raises:
            NotFoundError: no such job.
            ConflictError: it works; cancel it first.
        """
        with writing(self._engine) as connection:
            phase = connection.execute(
                select(Run.phase).where(Run.id == job_id, Run.kind == self.kind).with_for_update()
            ).scalar()
            if phase is None:
                raise self._unknown(connection, job_id)
            if phase in WORKING_PHASES:
                raise ConflictError(
                    f"{self.noun} {job_id} is {phase}; only one that does not work can be deleted.",
                    hint="Cancel it first.",
                )
            digests = connection.execute(
                select(ArtifactRow.sha256).where(ArtifactRow.run_id == job_id).distinct()
            ).scalars()
            found = list(digests)
            connection.execute(delete(Run).where(Run.id == job_id))
            return found

    def _get(self, connection: Connection, job_id: str) -> _Job_co:
        return self._read(connection, self._row(connection, job_id))

    def _row(self, connection: Connection, job_id: str) -> Row[*tuple[Any, ...]]:
        row = connection.execute(_ONE, {"id": job_id, "kind": self.kind}).first()
        if row is None:
            raise self._unknown(connection, job_id)
        return row

    def _unknown(self, connection: Connection, job_id: str) -> NotFoundError:
        kind = connection.execute(select(Run.kind).where(Run.id == job_id)).scalar()
        is_other = "" if kind is None else f": it is {_KINDS[kind]}"
        return NotFoundError(f"there is no {self.noun} {job_id!r}{is_other}.")
