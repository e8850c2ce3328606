"""A parcel outlives its batch's route, and knows whether its provider was asked to cancel it.

Those of the previous release go by their batch's route.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision: str | None = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "native_parcels",
        sa.Column("route", sa.Text, comment="Whose batch API has it, once its batch has no route any more"),
    )
    op.add_column(
        "native_parcels",
        sa.Column(
            "cancelled",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="Its provider was asked to cancel it",
        ),
    )


def downgrade() -> None:
    op.drop_column("native_parcels", "cancelled")
    op.drop_column("native_parcels", "route")
