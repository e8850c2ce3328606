"""Tables of webhook deliveries, of URLs that answered 410, and of the ids of signing secrets.

`signing` derives the secrets from these ids.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from headrace.stores.tables import instant, metadata

# What stands before a path, a query or a fragment, without the user that may be named in it. As Postgres writes it.
_HOST = r"coalesce(lower(substring(url, '^[^/]*//(?:[^/?#]*@)?([^/?#]*)'::text)), ''::text)"

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
    sa.Column(
        "host",
        sa.Text,
        sa.Computed(_HOST, persisted=True),
        nullable=False,
        comment="And the port: each account's have their share of what is sent at one time",
    ),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0", comment="The fence: raised by each claim"),
    sa.Column(
        "resent_after",
        sa.Integer,
        nullable=False,
        server_default="0",
        comment="Attempts before it was last sent by hand: its patience began anew",
    ),
    sa.Column(
        "history",
        JSONB,
        nullable=False,
        server_default="[]",
        comment="An object for each of the last attempts that have ended",
    ),
    sa.Column("status", sa.Integer, comment="Of the last answer"),
    sa.Column("error", sa.Text, comment="Why there was none"),
    instant("created_at", default=True),
    instant("due_at", default=True),
    instant("ended_at"),
    sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_known"),
    sa.CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended_at_of_final"),
    sa.Index("ix_webhook_deliveries_batch_id", "batch_id"),
    sa.Index("ix_webhook_deliveries_job_id", "job_id"),
    # Its order is that of `created_at` and `id` for each state: a list merges those that it shows.
    sa.Index("ix_webhook_deliveries_listed", "account_id", "state", "created_at", "id"),
    # The small set that is looked through all the time, receiver by receiver.
    sa.Index(
        "ix_webhook_deliveries_account_id_host_due_at",
        "account_id",
        "host",
        "due_at",
        postgresql_where=sa.text("state = 'pending'"),
    ),
)

webhooks_gone = sa.Table(
    "webhooks_gone",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("url", sa.Text, primary_key=True, comment="Which answered 410: nothing is sent there"),
    instant("created_at", default=True),
)
