"""Sweeps, and which of them a run belongs to.

Revision: 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the columns."""
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
    op.create_index("ix_sweeps_phase", "sweeps", ["phase", "held_until"])
    op.create_index("ix_sweeps_created", "sweeps", ["created_at", "id"])
    op.add_column("runs", sa.Column("sweep_id", sa.String(32)))
    op.add_column("runs", sa.Column("sweep_key", sa.String(80)))
    op.add_column("runs", sa.Column("sweep_role", sa.String(16)))
    op.create_index("ix_runs_sweep", "runs", ["sweep_id", "sweep_key"], unique=True)


def downgrade() -> None:
    """Drop them; runs of sweeps stay."""
    op.drop_index("ix_runs_sweep", "runs")
    for column in ("sweep_role", "sweep_key", "sweep_id"):
        op.drop_column("runs", column)
    op.drop_table("sweeps")
