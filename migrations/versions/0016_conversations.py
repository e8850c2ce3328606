"""Conversations and their items, and which conversation a job adds its items to.

`jobs.conversation_id` refers to no row: a job outlives its conversation, and a foreign key would need an index on
`jobs` for each deletion of a conversation, which every insertion of a job would pay for.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision: str | None = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("metadata", JSONB, server_default="{}", nullable=False),
        sa.Column(
            "last_position",
            sa.BigInteger,
            server_default="0",
            nullable=False,
            comment="Raised by each block of items",
        ),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("last_position >= 0", name=op.f("ck_conversations_position_not_negative")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_conversations_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    op.create_index("ix_conversations_account_id", "conversations", ["account_id"])
    op.create_table(
        "conversation_items",
        sa.Column("conversation_id", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False, comment="From 1, in order of addition"),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("item", sa.Text, nullable=False, comment="As JSON, with its id"),
        sa.CheckConstraint("position >= 1", name=op.f("ck_conversation_items_position_from_one")),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("fk_conversation_items_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("conversation_id", "position", name=op.f("pk_conversation_items")),
        sa.UniqueConstraint("conversation_id", "id", name=op.f("uq_conversation_items_conversation_id_id")),
    )
    op.add_column("jobs", sa.Column("conversation_id", sa.Text, comment="That it adds its items to if it is answered"))


def downgrade() -> None:
    op.drop_column("jobs", "conversation_id")
    op.drop_table("conversation_items")
    op.drop_table("conversations")
