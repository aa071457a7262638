"""The tables. Every time is seconds since the epoch, UTC, taken from the database's own clock.

`runs` is the truth about a job; the Celery message is only a hint. A table's rows of a run die
with the run. `event_seq` and `log_bytes` are counters that a writer advances in the same UPDATE
that checks the fence: the row lock of that UPDATE orders the writers of one run, so event ids and
log offsets have neither gaps nor repeats, and a reader that saw id n will never meet a late n - 1.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: BIGINT on servers; SQLite numbers rows itself only for a column that is exactly INTEGER.
BigId = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """Declarative base. Constraint names are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _run_key() -> Mapped[str]:
    return mapped_column(
        String(32), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, nullable=False
    )


class Run(Base):
    """A submitted run.

    `attempt` is the fence: it rises at each claim and never falls. `lost_attempts` counts attempts
    that vanished (expired leases) and is what `max_attempts` bounds; `drain_requeues` counts
    orderly stops of a worker, `storage_requeues` the times that a machine could not store what the
    run made, and `failures` the run's own errors, which are never retried without being asked.
    `line_at` is its place in line, which it keeps when it is given back.
    `owner` is the worker that holds the lease; `submitted_by` the person whose run it is.
    `request_id` is of the request that submitted it, for logs.

    `kind` is `training` or `evaluation`: a job that judges finished runs lives by the same rules,
    and has an EvaluationJobSpec for a spec. Lists of runs leave it out.
    `color_index` is its place among the runs of its suite, which dashboards make its colour from.
    `sweep_key` names it within its sweep, so that no sweep queues a run twice.
    """

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("token_id", "idempotency_key"),
        CheckConstraint(
            "phase IN ('QUEUED','STARTING','RUNNING','CANCELLING',"
            "'SUCCEEDED','FAILED','CANCELLED')",
            name="phase",
        ),
        Index("ix_runs_kind_phase", "kind", "phase"),
        # With `archived` at its end the count of a list reads the index alone.
        Index("ix_runs_kind_created", "kind", "created_at", "id", "archived"),
        Index("ix_runs_owner", "submitted_by", "phase"),
        # Each owner's line in each queue, its head first within a priority: what a claim reads.
        Index(
            "ix_runs_line",
            *("submitted_by", "queue", "priority", "line_at", "id"),
            sqlite_where=text("phase = 'QUEUED'"),
            postgresql_where=text("phase = 'QUEUED'"),
        ),
        # Counted at every submit: how many wait of a token.
        Index(
            "ix_runs_waiting_token",
            "token_id",
            sqlite_where=text("phase = 'QUEUED'"),
            postgresql_where=text("phase = 'QUEUED'"),
        ),
        # Counted at every claim: how many are at work of each owner. Leases are looked for through
        # it, so that a heartbeat changes no index.
        Index(
            "ix_runs_working",
            *("submitted_by", "phase"),
            sqlite_where=text("phase IN ('STARTING', 'RUNNING', 'CANCELLING')"),
            postgresql_where=text("phase IN ('STARTING', 'RUNNING', 'CANCELLING')"),
        ),
        Index("ix_runs_sweep", "sweep_id", "sweep_key", unique=True),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), default="training")
    name: Mapped[str] = mapped_column(String(120))
    notes: Mapped[str] = mapped_column(Text, default="")
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    archived: Mapped[bool] = mapped_column(Boolean, default=False)
    cloned_from: Mapped[str | None] = mapped_column(String(32))
    token_id: Mapped[str] = mapped_column(String(64), default="")
    submitted_by: Mapped[str | None] = mapped_column(String(120))
    request_id: Mapped[str | None] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    body_hash: Mapped[str | None] = mapped_column(String(64))
    sweep_id: Mapped[str | None] = mapped_column(String(32))
    sweep_key: Mapped[str | None] = mapped_column(String(80))
    sweep_role: Mapped[str | None] = mapped_column(String(16))

    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    spec_sha256: Mapped[str] = mapped_column(String(64))
    method: Mapped[str] = mapped_column(String(64), index=True)
    model: Mapped[str] = mapped_column(Text)
    suite: Mapped[str] = mapped_column(Text)
    seed: Mapped[int] = mapped_column(BigInteger)
    color_index: Mapped[int] = mapped_column(Integer, default=0)

    phase: Mapped[str] = mapped_column(String(16), default="QUEUED")
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str | None] = mapped_column(Text)
    hint: Mapped[str] = mapped_column(Text, default="")
    priority: Mapped[int] = mapped_column(Integer, default=0)
    queue: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=3)
    lost_attempts: Mapped[int] = mapped_column(Integer, default=0)
    drain_requeues: Mapped[int] = mapped_column(Integer, default=0)
    storage_requeues: Mapped[int] = mapped_column(Integer, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires: Mapped[float | None] = mapped_column(Double)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)

    created_at: Mapped[float] = mapped_column(Double)
    queued_at: Mapped[float] = mapped_column(Double)
    line_at: Mapped[float] = mapped_column(Double)
    dispatched_at: Mapped[float | None] = mapped_column(Double)
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)
    heartbeat_at: Mapped[float | None] = mapped_column(Double)

    event_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    log_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    summary: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    id_accuracy: Mapped[float | None] = mapped_column(Double)
    ood_accuracy: Mapped[float | None] = mapped_column(Double)
    id_ece: Mapped[float | None] = mapped_column(Double)
    ood_ece: Mapped[float | None] = mapped_column(Double)
    sigma_min: Mapped[float | None] = mapped_column(Double)


class Sweep(Base):
    """A sweep. Which runs it needs follows from its spec and from what has finished.

    `held_until` is until when an API process has it to itself, and when it is looked at next;
    `estimate` holds the seconds of a run of each arm, null where they were not known.
    """

    __tablename__ = "sweeps"
    __table_args__ = (
        UniqueConstraint("token_id", "idempotency_key"),
        Index("ix_sweeps_phase", "phase", "held_until"),
        Index("ix_sweeps_created", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    token_id: Mapped[str] = mapped_column(String(64), default="")
    submitted_by: Mapped[str | None] = mapped_column(String(120))
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    body_hash: Mapped[str | None] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    methods: Mapped[list[str]] = mapped_column(JSON)
    estimate: Mapped[list[float | None]] = mapped_column(JSON)
    max_hours: Mapped[float | None] = mapped_column(Double)
    runs_at_most: Mapped[int] = mapped_column(Integer)
    phase: Mapped[str] = mapped_column(String(16), default="RUNNING")
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)
    held_until: Mapped[float | None] = mapped_column(Double)


class RunTag(Base):
    """A run's tags once more, for filtering; `runs.tags` keeps their order."""

    __tablename__ = "run_tags"

    run_id: Mapped[str] = _run_key()
    tag: Mapped[str] = mapped_column(String(40), primary_key=True, index=True)


class Outbox(Base):
    """Outbox messages to send. Written in the transaction that queues the run.

    A relay holds those that it sends for a while (`held_until`), so that no other sends them too.
    """

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_unsent", "sent_at", "priority", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(
        String(32), ForeignKey("runs.id", ondelete="CASCADE"), index=True
    )
    priority: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Double)
    sent_at: Mapped[float | None] = mapped_column(Double)
    held_until: Mapped[float | None] = mapped_column(Double)


class Event(Base):
    """What happened to a run, in order."""

    __tablename__ = "events"

    run_id: Mapped[str] = _run_key()
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(32))
    at: Mapped[float] = mapped_column(Double)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class Metric(Base):
    __tablename__ = "metrics"

    run_id: Mapped[str] = _run_key()
    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(Double)
    epoch: Mapped[float] = mapped_column(Double)
    attempt: Mapped[int] = mapped_column(Integer)


class EvaluatedRun(Base):
    __tablename__ = "evaluated_runs"

    job_id: Mapped[str] = mapped_column(
        String(32), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    run_id: Mapped[str] = mapped_column(
        String(32), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class EvaluationRow(Base):
    """One model on one data set: an EvaluationReport with the columns that are filtered by.

    `job_id` is the evaluation job that made it; null: the run judged itself.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        UniqueConstraint("run_id", "dataset"),
        Index("ix_evaluations_dataset", "dataset", "role"),
        Index("ix_evaluations_created", "created_at", "id"),
        Index("ix_evaluations_job", "job_id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("runs.id", ondelete="CASCADE"))
    dataset: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(Integer)
    position: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Double)
    predictions: Mapped[str] = mapped_column(Text)
    predictions_sha256: Mapped[str] = mapped_column(String(64))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    job_id: Mapped[str | None] = mapped_column(String(32))


class SpectrumRow(Base):
    """Singular values at a step, or of the finished model (`final`)."""

    __tablename__ = "spectra"

    run_id: Mapped[str] = _run_key()
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    final: Mapped[bool] = mapped_column(Boolean, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    spectrum: Mapped[dict[str, Any]] = mapped_column(JSON)


class ReportRow(Base):
    """The finished run's `report.json`."""

    __tablename__ = "reports"

    run_id: Mapped[str] = _run_key()
    attempt: Mapped[int] = mapped_column(Integer)
    body: Mapped[dict[str, Any]] = mapped_column(JSON)


class ArtifactRow(Base):
    """A named file of a run; its bytes lie in the content-addressed store under `sha256`."""

    __tablename__ = "artifacts"

    run_id: Mapped[str] = _run_key()
    name: Mapped[str] = mapped_column(String(300), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Double)


class LogChunk(Base):
    """A piece of a run's log at a byte offset."""

    __tablename__ = "log_chunks"

    run_id: Mapped[str] = _run_key()
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(Integer)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class Worker(Base):
    """A worker that has reported in.

    `trouble` says why it takes no run; empty: it is well. `drained_by` asked it to take none after
    the one that it works on.
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    queues: Mapped[list[str]] = mapped_column(JSON)
    device: Mapped[str] = mapped_column(String(255))
    run_id: Mapped[str | None] = mapped_column(String(32))
    trouble: Mapped[str] = mapped_column(Text, default="")
    drained_by: Mapped[str | None] = mapped_column(String(120))
    gpus: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    started_at: Mapped[float] = mapped_column(Double)
    seen_at: Mapped[float] = mapped_column(Double)


class Token(Base):
    """An API token: only the SHA-256 of its secret is kept."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(16))
    note: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[float | None] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)


class Session(Base):
    """A person's log-in to the dashboard, or a link that becomes one; only hashes are kept.

    Attributes:
        kind: `session` or `link`.
        token_id: the token it was made with; it can do what that one can, while that one can.
        token_sha256: of that token, so that it ends when the token is replaced under its id.
        subject: the name of the person whom an OpenID provider vouched for, without any token.
        ended_at: when it was logged out, or a link was used.
    """

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    token_id: Mapped[str] = mapped_column(String(64))
    token_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[float] = mapped_column(Double)
    subject: Mapped[str | None] = mapped_column(String(120))
    ended_at: Mapped[float | None] = mapped_column(Double)


class Turn(Base):
    """When a run of an owner was last taken: who waited longest is next."""

    __tablename__ = "turns"

    owner: Mapped[str] = mapped_column(String(120), primary_key=True)
    at: Mapped[float] = mapped_column(Double)


class AuditRow(Base):
    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_at", "at"), Index("ix_audit_target", "target"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Double)
    actor: Mapped[str] = mapped_column(String(120))
    token_id: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(300))
    request_id: Mapped[str] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


class Notification(Base):
    """An end that the webhook is still to be told of; written in the transaction that ends it."""

    __tablename__ = "notifications"
    __table_args__ = (Index("ix_notifications_next", "next_at", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(32))
    phase: Mapped[str] = mapped_column(String(16))
    at: Mapped[float] = mapped_column(Double)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_at: Mapped[float] = mapped_column(Double)


class ImageTagRow(Base):
    """A tag on an image of the data with a digest."""

    __tablename__ = "image_tags"
    __table_args__ = (Index("ix_image_tags_data", "data", "tag"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    data: Mapped[str] = mapped_column(String(64))
    sample: Mapped[str] = mapped_column(String(1024))
    tag: Mapped[str] = mapped_column(String(40))


class Chore(Base):
    """When a chore was last begun that one process does for all."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    at: Mapped[float] = mapped_column(Double)


class View(Base):
    """A page of the dashboard as somebody left it."""

    __tablename__ = "views"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    page: Mapped[str] = mapped_column(String(40))
    query: Mapped[str] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(String(120))
    created_at: Mapped[float] = mapped_column(Double)
