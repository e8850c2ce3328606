"""Rows of what is to be told to whom, and of the secrets that it is signed with, which are made in `signing`."""

from __future__ import annotations

import sqlalchemy as sa

from headrace.tables import instant, metadata

webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    instant("created_at", default=True),
    instant("expires_at"),
    sa.Index("ix_webhook_secrets_account_id", "account_id"),
    sa.Index("uq_webhook_secrets_current", "account_id", unique=True, postgresql_where=sa.text("expires_at IS NULL")),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Text, primary_key=True, comment="The webhook-id: the same however often it is sent"),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("batch_id", sa.ForeignKey("batches.id", ondelete="CASCADE")),
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE")),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("status", sa.Integer, comment="Of the last answer"),
    sa.Column("error", sa.Text, comment="Why there was none"),
    instant("created_at", default=True),
    instant("due_at", default=True),
    instant("ended_at"),
    sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_known"),
    sa.CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended_at_of_final"),
    sa.Index("ix_webhook_deliveries_batch_id", "batch_id"),
    sa.Index("ix_webhook_deliveries_job_id", "job_id"),
    sa.Index("ix_webhook_deliveries_due_at", "due_at", postgresql_where=sa.text("state = 'pending'")),
)
