"""A run's place in line, doorbells that one relay holds, workers that are out, runs put back.

Revision: 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Waiting runs keep their order, and those for an Apple GPU get a queue."""
    op.add_column("runs", sa.Column("line_at", sa.Double(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("setbacks", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("outbox", sa.Column("held_until", sa.Double()))
    op.add_column("workers", sa.Column("trouble", sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE runs SET line_at = CASE WHEN drains > 0 THEN created_at ELSE queued_at END")
    runs = sa.table("runs", sa.column("id"), sa.column("queue"), sa.column("spec", sa.JSON))
    connection = op.get_bind()
    for row in connection.execute(
        sa.select(runs.c.id, runs.c.spec).where(runs.c.queue == "gpu")
    ).all():
        if row.spec.get("train", {}).get("device") == "mps":
            connection.execute(sa.update(runs).where(runs.c.id == row.id).values(queue="mps"))


def downgrade() -> None:
    """Drop them."""
    op.execute("UPDATE runs SET queue = 'gpu' WHERE queue = 'mps'")
    op.drop_column("workers", "trouble")
    op.drop_column("outbox", "held_until")
    op.drop_column("runs", "setbacks")
    op.drop_column("runs", "line_at")
