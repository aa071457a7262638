"""Indexes that a claim and a submit need whatever waits, and when a chore was last begun.

Revision: 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_WAITING = sa.text("phase = 'QUEUED'")
_WORKING = sa.text("phase IN ('STARTING', 'RUNNING', 'CANCELLING')")


def upgrade() -> None:
    """Add them."""
    line = ["submitted_by", "queue", "priority", "line_at", "id"]
    for name, columns, where in (
        ("ix_runs_line", line, _WAITING),
        ("ix_runs_waiting_token", ["token_id"], _WAITING),
        ("ix_runs_working", ["submitted_by", "phase"], _WORKING),
    ):
        op.create_index(name, "runs", columns, sqlite_where=where, postgresql_where=where)
    # It led to every run that waits wherever one was looked for, and each heartbeat changed it.
    op.drop_index("ix_runs_phase_lease", "runs")
    op.create_table(
        "chores",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_chores")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("chores")
    op.create_index("ix_runs_phase_lease", "runs", ["phase", "lease_expires"])
    for name in ("ix_runs_working", "ix_runs_waiting_token", "ix_runs_line"):
        op.drop_index(name, "runs")
