"""Lists of jobs are narrowed to a format: the index that has what lists are narrowed to has the format too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels = None
depends_on = None

_NEW = "ix_jobs_listed_by_format"
_NARROWED_TO = ["state", "model", "agent_id", "batch_id", "created_at"]


def upgrade() -> None:
    _replace([*_NARROWED_TO[:2], "format", *_NARROWED_TO[2:]])


def downgrade() -> None:
    _replace(_NARROWED_TO)


def _replace(columns: list[str]) -> None:
    with op.get_context().autocommit_block():
        op.drop_index(_NEW, if_exists=True, postgresql_concurrently=True)  # left by a migration that was interrupted
        op.create_index(
            _NEW,
            "jobs",
            ["account_id", "id"],
            postgresql_include=columns,
            postgresql_where=sa.text("deleted_at IS NULL"),
            postgresql_concurrently=True,
        )
        op.drop_index("ix_jobs_listed", if_exists=True, postgresql_concurrently=True)
    op.execute(f"ALTER INDEX {_NEW} RENAME TO ix_jobs_listed")
