"""What processes have to have in common, by digests: the configuration and the secret key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision: str | None = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "process_fingerprints",
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False, comment="Its host and its pid"),
        sa.Column(
            "configuration", sa.Text, nullable=False, comment="A digest of the models and providers that it knows"
        ),
        sa.Column(
            "secret_key", sa.Text, comment="A digest made with HEADRACE_SECRET_KEY; null in a part that needs none"
        ),
        sa.Column("seen_at", sa.TIMESTAMP(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("part", "process", name="pk_process_fingerprints"),
    )


def downgrade() -> None:
    op.drop_table("process_fingerprints")
