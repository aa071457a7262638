"""Turns of owners, drained workers and their GPUs, who did what, saved views, ids of requests.

Revision: 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them; what exists has none."""
    op.add_column("runs", sa.Column("request_id", sa.String(64)))
    op.create_index("ix_runs_owner", "runs", ["submitted_by", "phase"])
    op.add_column("workers", sa.Column("drained_by", sa.String(120)))
    op.add_column("workers", sa.Column("gpus", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("tokens", sa.Column("note", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "turns",
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_turns")),
    )
    op.create_table(
        "audit",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(120), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(300), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_target", "audit", ["target"])
    op.create_table(
        "views",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("page", sa.String(40), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_views")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("views")
    op.drop_table("audit")
    op.drop_table("turns")
    op.drop_column("tokens", "note")
    op.drop_column("workers", "gpus")
    op.drop_column("workers", "drained_by")
    op.drop_index("ix_runs_owner", "runs")
    op.drop_column("runs", "request_id")
