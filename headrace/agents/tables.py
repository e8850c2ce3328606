"""Rows of agents and of all their versions. A version never changes: a job tells which one it ran with."""

from __future__ import annotations

import sqlalchemy as sa

from headrace.stores.tables import instant, metadata

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False, server_default="1", comment="The current one"),
    instant("created_at", default=True),
    instant("updated_at", default=True),
    instant("deleted_at"),
    sa.CheckConstraint("version >= 1", name="version_from_one"),
    sa.Index("ix_agents_account_id_id", "account_id", "id", postgresql_where=sa.text("deleted_at IS NULL")),
)

agent_versions = sa.Table(
    "agent_versions",
    metadata,
    sa.Column("agent_id", sa.ForeignKey("agents.id"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("definition", sa.Text, nullable=False, comment="What its client sent, checked, as JSON"),
    instant("created_at", default=True),
    sa.Column("model", sa.Text, comment="That of the definition; null if it has to be read there"),
    sa.PrimaryKeyConstraint("agent_id", "version"),
    sa.CheckConstraint("version >= 1", name="version_from_one"),
)
