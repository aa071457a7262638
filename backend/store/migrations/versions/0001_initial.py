"""The first tables.

Revision: 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _run_fk(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["run_id"], ["runs.id"], name=f"fk_{table}_run_id_runs", ondelete="CASCADE"
    )


def _run_id() -> sa.Column[str]:
    return sa.Column("run_id", sa.String(32), nullable=False)


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("cloned_from", sa.String(32)),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("body_hash", sa.String(64)),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_sha256", sa.String(64), nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text()),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("drains", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(200)),
        sa.Column("lease_expires", sa.Double()),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("queued_at", sa.Double(), nullable=False),
        sa.Column("dispatched_at", sa.Double()),
        sa.Column("started_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
        sa.Column("heartbeat_at", sa.Double()),
        sa.Column("event_seq", sa.BigInteger(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("progress", sa.JSON()),
        sa.Column("summary", sa.JSON()),
        sa.Column("id_accuracy", sa.Double()),
        sa.Column("ood_accuracy", sa.Double()),
        sa.Column("id_ece", sa.Double()),
        sa.Column("ood_ece", sa.Double()),
        sa.Column("sigma_min", sa.Double()),
        sa.CheckConstraint(
            "phase IN ('QUEUED','STARTING','RUNNING','CANCELLING',"
            "'SUCCEEDED','FAILED','CANCELLED','LOST')",
            name=op.f("ck_runs_phase"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("token_id", "idempotency_key", name="uq_runs_token_id"),
    )
    op.create_index("ix_runs_phase_lease", "runs", ["phase", "lease_expires"])
    op.create_index("ix_runs_created", "runs", ["created_at", "id"])
    op.create_index("ix_runs_method", "runs", ["method"])

    op.create_table(
        "run_tags",
        _run_id(),
        sa.Column("tag", sa.String(40), nullable=False),
        _run_fk("run_tags"),
        sa.PrimaryKeyConstraint("run_id", "tag", name="pk_run_tags"),
    )
    op.create_index("ix_run_tags_tag", "run_tags", ["tag"])

    op.create_table(
        "outbox",
        sa.Column("id", _BIG_ID, autoincrement=True, nullable=False),
        _run_id(),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double()),
        _run_fk("outbox"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_run_id", "outbox", ["run_id"])
    op.create_index("ix_outbox_unsent", "outbox", ["sent_at", "priority", "id"])

    op.create_table(
        "events",
        _run_id(),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        _run_fk("events"),
        sa.PrimaryKeyConstraint("run_id", "id", name="pk_events"),
    )
    op.create_table(
        "metrics",
        _run_id(),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("epoch", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        _run_fk("metrics"),
        sa.PrimaryKeyConstraint("run_id", "name", "step", name="pk_metrics"),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(64), nullable=False),
        _run_id(),
        sa.Column("dataset", sa.String(200), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("predictions", sa.Text(), nullable=False),
        sa.Column("predictions_sha256", sa.String(64), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        _run_fk("evaluations"),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.UniqueConstraint("run_id", "dataset", name="uq_evaluations_run_id"),
    )
    op.create_index("ix_evaluations_dataset", "evaluations", ["dataset", "role"])

    op.create_table(
        "spectra",
        _run_id(),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("spectrum", sa.JSON(), nullable=False),
        _run_fk("spectra"),
        sa.PrimaryKeyConstraint("run_id", "step", "final", name="pk_spectra"),
    )
    op.create_table(
        "reports",
        _run_id(),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        _run_fk("reports"),
        sa.PrimaryKeyConstraint("run_id", name="pk_reports"),
    )
    op.create_table(
        "artifacts",
        _run_id(),
        sa.Column("name", sa.String(300), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        _run_fk("artifacts"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"])

    op.create_table(
        "log_chunks",
        _run_id(),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        _run_fk("log_chunks"),
        sa.PrimaryKeyConstraint("run_id", "start", name="pk_log_chunks"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("device", sa.String(255), nullable=False),
        sa.Column("run_id", sa.String(32)),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
    )


def downgrade() -> None:
    """Drop every table, children first."""
    for table in (
        "tokens",
        "workers",
        "log_chunks",
        "artifacts",
        "reports",
        "spectra",
        "evaluations",
        "metrics",
        "events",
        "outbox",
        "run_tags",
        "runs",
    ):
        op.drop_table(table)
