"""Idempotency keys, webhooks of jobs, and jobs that are not stored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision: str | None = "0006"
branch_labels = None
depends_on = None

_COST = "USD; null when nothing had a price"
_HOST = r"coalesce(lower(substring(url, '^[^/]*//(?:[^/?#]*@)?([^/?#]*)'::text)), ''::text)"


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False, comment="SHA-256 of what was asked"),
        sa.Column("resource_id", sa.Text(), nullable=False, comment="The id of what it makes, or is about to"),
        sa.Column(
            "applied",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="What it changes, if that is all it does, was changed",
        ),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(fingerprint) = 32", name=op.f("ck_idempotency_keys_fingerprint_is_sha256")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_idempotency_keys_account_id")),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    for table in ("batches", "batch_tallies"):
        op.alter_column(table, "cost", type_=sa.Numeric(), existing_comment=_COST)
    op.add_column(
        "jobs", sa.Column("webhook", sa.Text(), nullable=True, comment="The URL that gets the event of its end")
    )
    op.add_column(
        "jobs",
        sa.Column(
            "stored",
            sa.Boolean(),
            server_default=sa.true(),
            nullable=False,
            comment="Its content is kept after its end",
        ),
    )
    op.create_index(
        "ix_jobs_unstored",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("NOT stored AND finished_at IS NOT NULL AND deleted_at IS NULL"),
    )
    op.add_column("webhook_deliveries", sa.Column("job_id", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_webhook_deliveries_job_id"), "webhook_deliveries", "jobs", ["job_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index("ix_webhook_deliveries_job_id", "webhook_deliveries", ["job_id"])
    op.alter_column("webhook_deliveries", "attempts", comment="The fence: raised by each claim")
    op.add_column(
        "webhook_deliveries",
        sa.Column(
            "host",
            sa.Text(),
            sa.Computed(_HOST, persisted=True),
            nullable=False,
            comment="And the port: each account's have their share of what is sent at one time",
        ),
    )
    op.add_column(
        "webhook_deliveries",
        sa.Column(
            "resent_after",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="Attempts before it was last sent by hand: its patience began anew",
        ),
    )
    op.add_column(
        "webhook_deliveries",
        sa.Column(
            "history",
            postgresql.JSONB(),
            server_default="[]",
            nullable=False,
            comment="An object for each of the last attempts that have ended",
        ),
    )
    op.drop_index("ix_webhook_deliveries_due_at", table_name="webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_account_id_host_due_at",
        "webhook_deliveries",
        ["account_id", "host", "due_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "webhooks_gone",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False, comment="Which answered 410: nothing is sent there"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_webhooks_gone_account_id")),
        sa.PrimaryKeyConstraint("account_id", "url", name=op.f("pk_webhooks_gone")),
    )


def downgrade() -> None:
    for table in ("batches", "batch_tallies"):
        op.alter_column(table, "cost", type_=sa.Numeric(20, 10), existing_comment=_COST)
    op.drop_table("webhooks_gone")
    op.drop_index("ix_webhook_deliveries_account_id_host_due_at", table_name="webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due_at",
        "webhook_deliveries",
        ["due_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    for name in ("history", "resent_after", "host"):
        op.drop_column("webhook_deliveries", name)
    op.alter_column("webhook_deliveries", "attempts", comment=None)
    op.drop_index("ix_webhook_deliveries_job_id", table_name="webhook_deliveries")
    op.drop_column("webhook_deliveries", "job_id")
    op.drop_index("ix_jobs_unstored", table_name="jobs")
    op.drop_column("jobs", "stored")
    op.drop_column("jobs", "webhook")
    op.drop_table("idempotency_keys")
