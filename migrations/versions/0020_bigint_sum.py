"""A sum of bigints that is a bigint: Postgres's own counts in numeric, at several times the cost."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision: str | None = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "CREATE AGGREGATE bigint_sum(bigint) "
        "(SFUNC = int8pl, STYPE = bigint, INITCOND = '0', COMBINEFUNC = int8pl, PARALLEL = SAFE)"
    )


def downgrade() -> None:
    op.execute("DROP AGGREGATE bigint_sum(bigint)")
