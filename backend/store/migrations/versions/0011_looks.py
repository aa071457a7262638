"""Each run's place among the runs of its suite, which its colour is made from.

Revision: 0011.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; the runs that are there are counted in the order in which they came."""
    op.add_column("runs", sa.Column("look", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE runs SET look = placed.place FROM (SELECT id, row_number() OVER "
        "(PARTITION BY suite ORDER BY created_at, id) - 1 AS place FROM runs "
        "WHERE kind = 'training') AS placed WHERE runs.id = placed.id"
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_column("runs", "look")
