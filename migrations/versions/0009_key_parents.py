"""Which key made a key, so that it can be revoked together with it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision: str | None = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "api_keys",
        sa.Column("parent_id", sa.Text(), nullable=True, comment="The key that made it over HTTP"),
    )
    op.create_foreign_key(op.f("fk_api_keys_parent_id"), "api_keys", "api_keys", ["parent_id"], ["id"])
    # Keys are few: an index on their table takes no time that a request would notice.
    op.create_index(
        "ix_api_keys_parent_id", "api_keys", ["parent_id"], postgresql_where=sa.text("parent_id IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("ix_api_keys_parent_id", "api_keys")
    op.drop_constraint(op.f("fk_api_keys_parent_id"), "api_keys")
    op.drop_column("api_keys", "parent_id")
