"""The wire format of a job's client. Jobs of the previous release are chat completions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision: str | None = "0014"
branch_labels = None
depends_on = None

_COMMENTS = (
    ("jobs", "response", "The answer in the job's format, as JSON"),
    ("job_deltas", "chunks", "One line for each event, without the fields that the API adds"),
)


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "format",
            sa.Text,
            server_default="chat",
            nullable=False,
            comment="Of its request, its deltas and its response",
        ),
    )
    op.create_check_constraint(
        op.f("ck_jobs_format_known"), "jobs", "format IN ('chat', 'responses', 'messages')", postgresql_not_valid=True
    )
    for table, column, comment in _COMMENTS:
        op.alter_column(table, column, comment=comment)
    with op.get_context().autocommit_block():  # reads the whole table, and locks out no reader or writer
        op.execute("ALTER TABLE jobs VALIDATE CONSTRAINT ck_jobs_format_known")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_jobs_format_known"), "jobs")
    op.drop_column("jobs", "format")
