"""Rows of accounts and API keys. A key is stored as its SHA-256 alone: 256 random bits need no slower hash."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from headrace.stores.tables import instant, metadata

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("limits", JSONB, nullable=False, server_default="{}", comment="As `headrace.quotas.rules` has them"),
    instant("created_at", default=True),
    sa.CheckConstraint("name <> ''", name="name_not_empty"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("previous_hash", sa.LargeBinary, unique=True, comment="Of the key before its rotation"),
    instant("previous_expires_at"),
    sa.Column("hint", sa.Text, nullable=False, comment="The key's first characters, to tell keys apart in a list"),
    sa.Column("scopes", ARRAY(sa.Text), nullable=False, server_default="{}"),
    sa.Column("limits", JSONB, nullable=False, server_default="{}", comment="As `headrace.quotas.rules` has them"),
    sa.Column("bootstrap", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("read_only", sa.Boolean, nullable=False, server_default=sa.false(), comment="It changes nothing"),
    instant("created_at", default=True),
    instant("expires_at"),
    instant("revoked_at"),
    instant("last_used_at"),
    sa.Column("parent_id", sa.ForeignKey("api_keys.id"), comment="The key that made it over HTTP"),
    sa.UniqueConstraint("id", "account_id"),  # what a job refers to
    sa.CheckConstraint("octet_length(hash) = 32", name="hash_is_sha256"),
    sa.CheckConstraint("octet_length(previous_hash) = 32", name="previous_hash_is_sha256"),
    sa.CheckConstraint("(previous_hash IS NULL) = (previous_expires_at IS NULL)", name="previous_hash_ends"),
    sa.Index("ix_api_keys_account_id_id", "account_id", "id"),
    sa.Index("ix_api_keys_parent_id", "parent_id", postgresql_where=sa.text("parent_id IS NOT NULL")),
)
