"""An index of waiting jobs by account, so that a worker finds the first of each, however many one account has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Jobs are accepted and run meanwhile. One that was interrupted leaves an invalid index behind.
    with op.get_context().autocommit_block():
        op.drop_index("ix_jobs_waiting", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "ix_jobs_waiting",
            "jobs",
            ["tier", "background", "account_id", "scheduled_at"],
            postgresql_where=sa.text("state = 'queued'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("ix_jobs_waiting")
