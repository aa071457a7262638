"""Tags on images.

Revision: 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "image_tags",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True,
            nullable=False,
        ),
        sa.Column("data", sa.String(64), nullable=False),
        sa.Column("sample", sa.String(1024), nullable=False),
        sa.Column("tag", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_image_tags"),
    )  # fmt: skip
    op.create_index("ix_image_tags_data", "image_tags", ["data", "tag"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("image_tags")
