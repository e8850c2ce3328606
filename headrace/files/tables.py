"""Rows of files and of their contents."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA

from headrace.stores.tables import instant, metadata

CHUNK_BYTES = 256 * 1024
"""The size of every chunk of a file but its last: the chunk that holds a byte follows from the byte's place."""

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, comment="Null until the file is complete, and hidden until then"),
    instant("created_at", default=True),
    instant("expires_at"),
    sa.CheckConstraint("purpose IN ('batch', 'batch_output')", name="purpose_known"),
    sa.CheckConstraint("bytes >= 0", name="bytes_not_negative"),
    sa.Index("ix_files_account_id_id", "account_id", "id"),
    sa.Index("ix_files_unfinished", "created_at", postgresql_where=sa.text("bytes IS NULL")),
    sa.Index("ix_files_expires_at", "expires_at", postgresql_where=sa.text("expires_at IS NOT NULL")),
)

file_chunks = sa.Table(
    "file_chunks",
    metadata,
    sa.Column("file_id", sa.ForeignKey("files.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    # Postgres would compress each chunk, slowly, and then cut it up all the same.
    sa.Column("data", BYTEA, nullable=False, comment="Stored EXTERNAL"),
    sa.PrimaryKeyConstraint("file_id", "number"),
    sa.CheckConstraint(f"octet_length(data) BETWEEN 1 AND {CHUNK_BYTES}", name="data_in_bounds"),
)
