"""Rows of conversations and of their items."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from headrace.stores.tables import instant, metadata

conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("metadata", JSONB, nullable=False, server_default="{}"),
    sa.Column(
        "last_position", sa.BigInteger, nullable=False, server_default="0", comment="Raised by each block of items"
    ),
    instant("created_at", default=True),
    sa.CheckConstraint("last_position >= 0", name="position_not_negative"),
    sa.Index("ix_conversations_account_id", "account_id"),
)

conversation_items = sa.Table(
    "conversation_items",
    metadata,
    sa.Column("conversation_id", sa.ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False, comment="From 1, in order of addition"),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False, comment="As JSON, with its id"),
    sa.PrimaryKeyConstraint("conversation_id", "position"),
    sa.UniqueConstraint("conversation_id", "id"),
    sa.CheckConstraint("position >= 1", name="position_from_one"),
)
