"""Rows of what requests with an `Idempotency-Key` make."""

from __future__ import annotations

import sqlalchemy as sa

from headrace.stores.tables import instant, metadata

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False, comment="SHA-256 of what was asked"),
    sa.Column("resource_id", sa.Text, nullable=False, comment="The id of what it makes, or is about to"),
    sa.Column(
        "applied",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="What it changes, if that is all it does, was changed",
    ),
    instant("created_at", default=True),
    sa.CheckConstraint("octet_length(fingerprint) = 32", name="fingerprint_is_sha256"),
    sa.Index("ix_idempotency_keys_created_at", "created_at"),
)
