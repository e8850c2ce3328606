"""Rows of the ledger: one for a job's end, and one, marked discarded, for each attempt that was thrown away."""

from __future__ import annotations

import sqlalchemy as sa

from headrace.tables import instant, metadata

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("discarded", sa.Boolean, nullable=False, comment="Spent by an attempt whose answer nobody got"),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("key_id", sa.Text),
    sa.Column("model", sa.Text, nullable=False, comment="The model that the client asked for"),
    sa.Column("agent_id", sa.Text),
    sa.Column("batch_id", sa.Text),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False, comment="Part of prompt_tokens"),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False, server_default="0", comment="Part of prompt_tokens"),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False, comment="Part of completion_tokens"),
    sa.Column("estimated", sa.Boolean, nullable=False, comment="The provider reported none: counted by us, roughly"),
    sa.Column("cost", sa.Numeric(20, 10), comment="USD; null when the model has no price"),
    instant("created_at", default=True),
    sa.PrimaryKeyConstraint("job_id", "attempt"),
    sa.CheckConstraint(
        "prompt_tokens >= 0 AND completion_tokens >= 0 AND reasoning_tokens BETWEEN 0 AND completion_tokens"
        " AND cached_tokens >= 0 AND cache_write_tokens >= 0 AND cached_tokens + cache_write_tokens <= prompt_tokens",
        name="tokens_add_up",
    ),
    sa.CheckConstraint("cost >= 0", name="cost_not_negative"),
    sa.Index("uq_usage_job_id_counted", "job_id", unique=True, postgresql_where=sa.text("NOT discarded")),
    sa.Index("ix_usage_account_id_created_at", "account_id", "created_at"),
)
