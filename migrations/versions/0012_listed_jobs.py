"""Indexes for lists of jobs: one that has what they are narrowed to, and one of metadata."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision: str | None = "0011"
branch_labels = None
depends_on = None

_STORED = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name in ("ix_jobs_listed", "ix_jobs_metadata"):  # left invalid by a migration that was interrupted
            op.drop_index(name, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "ix_jobs_listed",
            "jobs",
            ["account_id", "id"],
            postgresql_include=["state", "model", "agent_id", "batch_id", "created_at"],
            postgresql_where=_STORED,
            postgresql_concurrently=True,
        )
        op.create_index(
            "ix_jobs_metadata",
            "jobs",
            ["metadata"],
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where=sa.text("metadata IS NOT NULL AND deleted_at IS NULL"),
            postgresql_concurrently=True,
        )
        op.drop_index("ix_jobs_account_id_id", if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    op.create_index("ix_jobs_account_id_id", "jobs", ["account_id", "id"], postgresql_where=_STORED)
    op.drop_index("ix_jobs_metadata")
    op.drop_index("ix_jobs_listed")
