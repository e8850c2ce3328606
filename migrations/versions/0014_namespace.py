"""A namespace in Redis for each deployment, so that several may share one Redis."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision: str | None = "0013"
branch_labels = None
depends_on = None

# Processes of the previous release may still run on a database that is in use, so its names keep no prefix.
_USED = "SELECT EXISTS (SELECT FROM api_keys) OR EXISTS (SELECT FROM process_fingerprints)"


def upgrade() -> None:
    table = op.create_table(
        "deployment",
        sa.Column("single", sa.Boolean, server_default="true", nullable=False),
        sa.Column(
            "redis_namespace",
            sa.Text,
            nullable=False,
            comment="What the deployment's names in Redis begin with, or empty",
        ),
        sa.CheckConstraint("single", name=op.f("ck_deployment_single_row")),
        sa.PrimaryKeyConstraint("single", name=op.f("pk_deployment")),
    )
    used = op.get_bind().scalar(sa.text(_USED))
    op.bulk_insert(table, [{"redis_namespace": "" if used else f"hr-{secrets.token_hex(4)}"}])


def downgrade() -> None:
    op.drop_table("deployment")
