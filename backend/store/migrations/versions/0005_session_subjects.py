"""Sessions of people whom an OpenID provider vouches for.

Revision: 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the person's name."""
    op.add_column("sessions", sa.Column("subject", sa.String(120)))


def downgrade() -> None:
    """End the sessions of people who have no token, and forget the names."""
    op.execute("DELETE FROM sessions WHERE subject IS NOT NULL")
    op.drop_column("sessions", "subject")
