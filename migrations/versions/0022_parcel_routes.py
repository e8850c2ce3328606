"""A parcel outlives its batch's route, and knows whether its provider was asked to cancel it.

Those of the previous release go by their batch's route.
"""

from __future__ import annotations

from alembic import op

from headrace.stores.brief_locks import alter_briefly

revision = "0022"
down_revision: str | None = "0021"
branch_labels = None
depends_on = None


_COMMENTS = {
    "route": "Whose batch API has it, once its batch has no route any more",
    "cancelled": "Its provider was asked to cancel it",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # A migration that was interrupted may have done a part of this.
        alter_briefly(
            "ALTER TABLE native_parcels ADD COLUMN IF NOT EXISTS route text, "
            "ADD COLUMN IF NOT EXISTS cancelled boolean NOT NULL DEFAULT false"
        )
        for column, comment in _COMMENTS.items():
            alter_briefly(f"COMMENT ON COLUMN native_parcels.{column} IS '{comment}'")


def downgrade() -> None:
    op.drop_column("native_parcels", "cancelled")
    op.drop_column("native_parcels", "route")
