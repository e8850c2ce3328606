"""Keys may be read-only, and an account's webhook deliveries are listed by time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision: str | None = "0018"
branch_labels = None
depends_on = None

_LISTED = "ix_webhook_deliveries_listed"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index(_LISTED, if_exists=True, postgresql_concurrently=True)  # left by a migration that was interrupted
        op.create_index(
            _LISTED,
            "webhook_deliveries",
            ["account_id", "state", "created_at", "id"],
            postgresql_concurrently=True,
        )
    op.add_column(
        "api_keys",
        sa.Column("read_only", sa.Boolean(), nullable=False, server_default=sa.false(), comment="It changes nothing"),
    )


def downgrade() -> None:
    op.drop_column("api_keys", "read_only")
    op.drop_index(_LISTED, "webhook_deliveries")
