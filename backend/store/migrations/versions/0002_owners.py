"""Whose a run is, and an index for the list of all evaluations.

Revision: 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the owner; of old runs it is known where their token still is."""
    op.add_column("runs", sa.Column("submitted_by", sa.String(120)))
    op.execute(
        "UPDATE runs SET submitted_by ="
        " (SELECT NULLIF(name, '') FROM tokens WHERE tokens.id = runs.token_id)"
    )
    op.create_index("ix_evaluations_created", "evaluations", ["created_at", "id"])


def downgrade() -> None:
    """Forget owners."""
    op.drop_index("ix_evaluations_created", "evaluations")
    op.drop_column("runs", "submitted_by")
