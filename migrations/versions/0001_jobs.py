"""Accounts, keys, jobs, deltas, usage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("name <> ''", name=op.f("ck_accounts_name_not_empty")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "hint", sa.Text(), nullable=False, comment="The key's first characters, to tell keys apart in a list"
        ),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("bootstrap", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(hash) = 32", name=op.f("ck_api_keys_hash_is_sha256")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_api_keys_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
    )
    op.create_index("ix_api_keys_account_id_id", "api_keys", ["account_id", "id"], unique=False)
    op.create_table(
        "usage",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "discarded", sa.Boolean(), nullable=False, comment="Spent by an attempt whose answer was thrown away"
        ),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False, comment="The model that the client asked for"),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False, comment="Part of prompt_tokens"),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False, comment="Part of completion_tokens"),
        sa.Column(
            "estimated", sa.Boolean(), nullable=False, comment="The provider reported none: counted by us, roughly"
        ),
        sa.Column(
            "cost", sa.Numeric(precision=20, scale=10), nullable=True, comment="USD; null when the model has no price"
        ),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("cost >= 0", name=op.f("ck_usage_cost_not_negative")),
        sa.CheckConstraint(
            "prompt_tokens >= 0 AND completion_tokens >= 0 AND cached_tokens BETWEEN 0 AND prompt_tokens"
            " AND reasoning_tokens BETWEEN 0 AND completion_tokens",
            name=op.f("ck_usage_tokens_add_up"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_account_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_usage")),
    )
    op.create_index("ix_usage_account_id_created_at", "usage", ["account_id", "created_at"], unique=False)
    op.create_index(
        "uq_usage_job_id_counted", "usage", ["job_id"], unique=True, postgresql_where=sa.text("NOT discarded")
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=True, comment="The client's JSON as it came; null once erased"),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("tier", sa.Text(), nullable=False, comment="Which queue wakes a worker for it"),
        sa.Column(
            "background", sa.Boolean(), nullable=False, comment="It runs on when the client that sent it is gone"
        ),
        sa.Column("streamed", sa.Boolean(), nullable=False, comment="The client that sent it reads deltas"),
        sa.Column("origin", sa.Text(), nullable=True, comment="The API process whose client waits for it"),
        sa.Column(
            "attempt", sa.Integer(), server_default="0", nullable=False, comment="The fence: raised by each claim"
        ),
        sa.Column(
            "route", sa.Integer(), server_default="0", nullable=False, comment="Which of the model's routes is tried"
        ),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False, comment="Failed attempts on that route"),
        sa.Column("lost", sa.Integer(), server_default="0", nullable=False, comment="Attempts whose worker went away"),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("provider", sa.Text(), nullable=True),
        sa.Column(
            "delta_count", sa.Integer(), server_default="0", nullable=False, comment="Of the last attempt, at its end"
        ),
        sa.Column("response", sa.Text(), nullable=True, comment="A chat.completion, as JSON"),
        sa.Column("error", sa.Text(), nullable=True, comment="OpenAI's error object and its HTTP `status`, as JSON"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("scheduled_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("sent_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deadline_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("lease_until", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("started_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("first_token_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("finished_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL) AND (state <> 'running' OR worker IS NOT NULL)",
            name=op.f("ck_jobs_lease_of_running"),
        ),
        sa.CheckConstraint(
            "(state IN ('failed', 'cancelled', 'expired')) = (error IS NOT NULL)", name=op.f("ck_jobs_error_of_failed")
        ),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)", name=op.f("ck_jobs_finished_at_of_final")
        ),
        sa.CheckConstraint(
            "CASE state WHEN 'completed' THEN response IS NOT NULL OR deleted_at IS NOT NULL ELSE response IS NULL END",
            name=op.f("ck_jobs_response_of_completed"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'expired')",
            name=op.f("ck_jobs_state_known"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('running', 'completed') OR (attempt > 0 AND started_at IS NOT NULL)",
            name=op.f("ck_jobs_started_at_of_run"),
        ),
        sa.CheckConstraint("tier IN ('priority', 'default', 'flex')", name=op.f("ck_jobs_tier_known")),
        sa.CheckConstraint("request IS NOT NULL OR deleted_at IS NOT NULL", name=op.f("ck_jobs_request_until_deleted")),
        sa.CheckConstraint(
            "route >= 0 AND retries >= 0 AND lost >= 0 AND delta_count >= 0 AND attempt >= retries + lost",
            name=op.f("ck_jobs_counts_add_up"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_jobs_account_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_jobs_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_account_id_id",
        "jobs",
        ["account_id", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_jobs_queued", "jobs", ["tier", "id"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index("ix_jobs_running", "jobs", ["id"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "job_deltas",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_seq", sa.Integer(), nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("chunks", sa.Text(), nullable=False, comment="One chunk a line, without id, object and created"),
        sa.CheckConstraint("1 <= first_seq AND first_seq <= last_seq", name=op.f("ck_job_deltas_seq_in_order")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_deltas_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "first_seq", name=op.f("pk_job_deltas")),
    )


def downgrade() -> None:
    op.drop_table("job_deltas")
    op.drop_index("ix_jobs_running", table_name="jobs", postgresql_where=sa.text("state = 'running'"))
    op.drop_index("ix_jobs_queued", table_name="jobs", postgresql_where=sa.text("state = 'queued'"))
    op.drop_index("ix_jobs_account_id_id", table_name="jobs", postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_table("jobs")
    op.drop_index("uq_usage_job_id_counted", table_name="usage", postgresql_where=sa.text("NOT discarded"))
    op.drop_index("ix_usage_account_id_created_at", table_name="usage")
    op.drop_table("usage")
    op.drop_index("ix_api_keys_account_id_id", table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("accounts")
