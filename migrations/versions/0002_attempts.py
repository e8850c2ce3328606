"""What a job's attempts were, and tokens written to a provider's cache."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None

_TOKENS = "prompt_tokens >= 0 AND completion_tokens >= 0 AND reasoning_tokens BETWEEN 0 AND completion_tokens"


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "tried",
            postgresql.JSONB(),
            server_default="[]",
            nullable=False,
            comment="An object for each attempt that has ended: when, where and how",
        ),
    )
    op.create_check_constraint(op.f("ck_jobs_tried_is_list"), "jobs", "jsonb_typeof(tried) = 'array'")
    op.add_column(
        "usage",
        sa.Column(
            "cache_write_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Part of prompt_tokens"
        ),
    )
    op.drop_constraint(op.f("ck_usage_tokens_add_up"), "usage")
    op.create_check_constraint(
        op.f("ck_usage_tokens_add_up"),
        "usage",
        f"{_TOKENS} AND cached_tokens >= 0 AND cache_write_tokens >= 0"
        " AND cached_tokens + cache_write_tokens <= prompt_tokens",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_usage_tokens_add_up"), "usage")
    op.drop_column("usage", "cache_write_tokens")
    op.create_check_constraint(
        op.f("ck_usage_tokens_add_up"), "usage", f"{_TOKENS} AND cached_tokens BETWEEN 0 AND prompt_tokens"
    )
    op.drop_constraint(op.f("ck_jobs_tried_is_list"), "jobs")
    op.drop_column("jobs", "tried")
