"""Every table of the first release.

Revision: 0001.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _of_run(table: str, column: str = "run_id") -> sa.ForeignKeyConstraint:
    """A row that dies with its run."""
    name = f"fk_{table}_{column}_runs"
    return sa.ForeignKeyConstraint([column], ["runs.id"], name=name, ondelete="CASCADE")


def _where(condition: str) -> dict[str, Any]:
    return {f"{name}_where": sa.text(condition) for name in ("sqlite", "postgresql")}


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "audit",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(120), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(300), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_target", "audit", ["target"])
    op.create_table(
        "chores",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_chores"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("cloned_from", sa.String(32)),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("submitted_by", sa.String(120)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("body_hash", sa.String(64)),
        sa.Column("sweep_id", sa.String(32)),
        sa.Column("sweep_key", sa.String(80)),
        sa.Column("sweep_role", sa.String(16)),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_sha256", sa.String(64), nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("color_index", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text()),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("lost_attempts", sa.Integer(), nullable=False),
        sa.Column("drain_requeues", sa.Integer(), nullable=False),
        sa.Column("storage_requeues", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(200)),
        sa.Column("lease_expires", sa.Double()),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("queued_at", sa.Double(), nullable=False),
        sa.Column("line_at", sa.Double(), nullable=False),
        sa.Column("dispatched_at", sa.Double()),
        sa.Column("started_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
        sa.Column("heartbeat_at", sa.Double()),
        sa.Column("event_seq", sa.BigInteger(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.JSON(none_as_null=True)),
        sa.Column("summary", sa.JSON(none_as_null=True)),
        sa.Column("id_accuracy", sa.Double()),
        sa.Column("ood_accuracy", sa.Double()),
        sa.Column("id_ece", sa.Double()),
        sa.Column("ood_ece", sa.Double()),
        sa.Column("sigma_min", sa.Double()),
        sa.CheckConstraint(
            "phase IN ('QUEUED','STARTING','RUNNING','CANCELLING',"
            "'SUCCEEDED','FAILED','CANCELLED')",
            name=op.f("ck_runs_phase"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("token_id", "idempotency_key", name="uq_runs_token_id"),
    )
    op.create_index("ix_runs_kind_created", "runs", ["kind", "created_at", "id", "archived"])
    op.create_index("ix_runs_kind_phase", "runs", ["kind", "phase"])
    op.create_index(
        "ix_runs_line",
        "runs",
        ["submitted_by", "queue", "priority", "line_at", "id"],
        **_where("phase = 'QUEUED'"),
    )
    op.create_index("ix_runs_method", "runs", ["method"])
    op.create_index("ix_runs_owner", "runs", ["submitted_by", "phase"])
    op.create_index("ix_runs_sweep", "runs", ["sweep_id", "sweep_key"], unique=True)
    op.create_index("ix_runs_waiting_token", "runs", ["token_id"], **_where("phase = 'QUEUED'"))
    op.create_index(
        "ix_runs_working",
        "runs",
        ["submitted_by", "phase"],
        **_where("phase IN ('STARTING', 'RUNNING', 'CANCELLING')"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("subject", sa.String(120)),
        sa.Column("ended_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("submitted_by", sa.String(120)),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("body_hash", sa.String(64)),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("methods", sa.JSON(), nullable=False),
        sa.Column("estimate", sa.JSON(), nullable=False),
        sa.Column("max_hours", sa.Double()),
        sa.Column("runs_at_most", sa.Integer(), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double()),
        sa.Column("held_until", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("token_id", "idempotency_key", name="uq_sweeps_token_id"),
    )
    op.create_index("ix_sweeps_created", "sweeps", ["created_at", "id"])
    op.create_index("ix_sweeps_phase", "sweeps", ["phase", "held_until"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
    )
    op.create_table(
        "turns",
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_turns"),
    )
    op.create_table(
        "views",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("page", sa.String(40), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_views"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("device", sa.String(255), nullable=False),
        sa.Column("run_id", sa.String(32)),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.Column("drained_by", sa.String(120)),
        sa.Column("gpus", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "artifacts",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        _of_run("artifacts"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"])
    op.create_table(
        "evaluated_runs",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        _of_run("evaluated_runs", "job_id"),
        _of_run("evaluated_runs"),
        sa.PrimaryKeyConstraint("job_id", "run_id", name="pk_evaluated_runs"),
    )
    op.create_index("ix_evaluated_runs_run_id", "evaluated_runs", ["run_id"])
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("dataset", sa.String(200), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("predictions", sa.Text(), nullable=False),
        sa.Column("predictions_sha256", sa.String(64), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(32)),
        _of_run("evaluations"),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.UniqueConstraint("run_id", "dataset", name="uq_evaluations_run_id"),
    )
    op.create_index("ix_evaluations_created", "evaluations", ["created_at", "id"])
    op.create_index("ix_evaluations_dataset", "evaluations", ["dataset", "role"])
    op.create_index("ix_evaluations_job", "evaluations", ["job_id"])
    op.create_table(
        "events",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        _of_run("events"),
        sa.PrimaryKeyConstraint("run_id", "id", name="pk_events"),
    )
    op.create_table(
        "log_chunks",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        _of_run("log_chunks"),
        sa.PrimaryKeyConstraint("run_id", "start", name="pk_log_chunks"),
    )
    op.create_table(
        "metrics",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("epoch", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        _of_run("metrics"),
        sa.PrimaryKeyConstraint("run_id", "name", "step", name="pk_metrics"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double()),
        sa.Column("held_until", sa.Double()),
        _of_run("outbox"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_run_id", "outbox", ["run_id"])
    op.create_index("ix_outbox_unsent", "outbox", ["sent_at", "priority", "id"])
    op.create_table(
        "reports",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        _of_run("reports"),
        sa.PrimaryKeyConstraint("run_id", name="pk_reports"),
    )
    op.create_table(
        "run_tags",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("tag", sa.String(40), nullable=False),
        _of_run("run_tags"),
        sa.PrimaryKeyConstraint("run_id", "tag", name="pk_run_tags"),
    )
    op.create_index("ix_run_tags_tag", "run_tags", ["tag"])
    op.create_table(
        "spectra",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("spectrum", sa.JSON(), nullable=False),
        _of_run("spectra"),
        sa.PrimaryKeyConstraint("run_id", "step", "final", name="pk_spectra"),
    )


def downgrade() -> None:
    """Drop every table."""
    every = (
        "spectra run_tags reports outbox metrics log_chunks events evaluations evaluated_runs "
        "artifacts workers views turns tokens sweeps sessions runs chores audit"
    )
    for table in every.split():
        op.drop_table(table)
