"""Agents and their versions, and which of them a job ran with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels = None
depends_on = None


def _instant(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.text("now()")
    return sa.Column(name, sa.TIMESTAMP(timezone=True), server_default=default, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False, comment="The current one"),
        _instant("created_at"),
        _instant("updated_at"),
        _instant("deleted_at", nullable=True),
        sa.CheckConstraint("version >= 1", name=op.f("ck_agents_version_from_one")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_agents_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
    )
    op.create_index(
        "ix_agents_account_id_id",
        "agents",
        ["account_id", "id"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "agent_versions",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False, comment="What its client sent, checked, as JSON"),
        _instant("created_at"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_agent_versions_version_from_one")),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_agent_versions_agent_id")),
        sa.PrimaryKeyConstraint("agent_id", "version", name=op.f("pk_agent_versions")),
    )
    op.add_column("jobs", sa.Column("agent_id", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("agent_version", sa.Integer(), nullable=True))
    op.create_foreign_key(
        op.f("fk_jobs_agent_id_agent_version"),
        "jobs",
        "agent_versions",
        ["agent_id", "agent_version"],
        ["agent_id", "version"],
    )
    op.create_check_constraint(
        op.f("ck_jobs_agent_with_version"), "jobs", "(agent_id IS NULL) = (agent_version IS NULL)"
    )
    op.add_column("usage", sa.Column("agent_id", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("usage", "agent_id")
    op.drop_constraint(op.f("ck_jobs_agent_with_version"), "jobs")
    op.drop_constraint(op.f("fk_jobs_agent_id_agent_version"), "jobs")
    op.drop_column("jobs", "agent_version")
    op.drop_column("jobs", "agent_id")
    op.drop_table("agent_versions")
    op.drop_index("ix_agents_account_id_id", "agents")
    op.drop_table("agents")
