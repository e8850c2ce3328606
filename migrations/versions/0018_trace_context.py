"""The trace context that jobs and batches were submitted in. Those of the previous release have none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels = None
depends_on = None

_COMMENTS = {
    "jobs": "Its traceparent, and its tracestate on a second line",
    "batches": "As that of a job: its lines have it too",
}


def upgrade() -> None:
    for table, comment in _COMMENTS.items():
        op.add_column(table, sa.Column("trace_context", sa.Text, comment=comment))


def downgrade() -> None:
    for table in _COMMENTS:
        op.drop_column(table, "trace_context")
