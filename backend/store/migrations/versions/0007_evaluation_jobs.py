"""Jobs that judge finished runs.

Revision: 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say what each job does; until now all of them trained."""
    op.add_column(
        "runs", sa.Column("kind", sa.String(16), nullable=False, server_default="training")
    )
    op.create_index("ix_runs_kind_phase", "runs", ["kind", "phase"])
    op.create_index("ix_runs_kind_created", "runs", ["kind", "created_at", "id", "archived"])
    op.drop_index("ix_runs_created", "runs")
    op.add_column("evaluations", sa.Column("job_id", sa.String(32)))
    op.create_index("ix_evaluations_job", "evaluations", ["job_id"])
    op.create_table(
        "judged_runs",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["runs.id"], name="fk_judged_runs_job_id_runs", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_judged_runs_run_id_runs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "run_id", name="pk_judged_runs"),
    )
    op.create_index("ix_judged_runs_run_id", "judged_runs", ["run_id"])


def downgrade() -> None:
    """Delete the evaluation jobs; what they found stays with the runs."""
    op.execute("DELETE FROM runs WHERE kind = 'evaluation'")
    op.drop_table("judged_runs")
    op.drop_index("ix_evaluations_job", "evaluations")
    op.drop_column("evaluations", "job_id")
    op.create_index("ix_runs_created", "runs", ["created_at", "id"])
    op.drop_index("ix_runs_kind_created", "runs")
    op.drop_index("ix_runs_kind_phase", "runs")
    op.drop_column("runs", "kind")
