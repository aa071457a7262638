"""A run's stage is no longer needed to tell its final spectrum from those of its training.

Revision: 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the column."""
    op.drop_column("runs", "stage")


def downgrade() -> None:
    """Add it again, empty."""
    op.add_column("runs", sa.Column("stage", sa.String(32), nullable=False, server_default=""))
