"""The tables of the first release. New databases get those of `backend/store/models.py` at once.

Revision: 0001.
"""

from __future__ import annotations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: a database of this revision has the tables."""


def downgrade() -> None:
    """Nothing came before."""
