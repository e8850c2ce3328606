"""What requests that are sent again stand for, webhooks of jobs, and jobs whose content is not kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False, comment="SHA-256 of what was asked"),
        sa.Column("resource_id", sa.Text(), nullable=False, comment="The id of what it makes, or is about to"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(fingerprint) = 32", name=op.f("ck_idempotency_keys_fingerprint_is_sha256")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_idempotency_keys_account_id")),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.add_column("jobs", sa.Column("webhook", sa.Text(), nullable=True, comment="Who is told of its end"))
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


def downgrade() -> None:
    op.drop_index("ix_webhook_deliveries_job_id", table_name="webhook_deliveries")
    op.drop_column("webhook_deliveries", "job_id")
    op.drop_index("ix_jobs_unstored", table_name="jobs")
    op.drop_column("jobs", "stored")
    op.drop_column("jobs", "webhook")
    op.drop_table("idempotency_keys")
