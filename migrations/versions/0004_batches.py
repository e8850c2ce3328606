"""Files, batches, and the jobs and usage that are a batch's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision: str | None = "0003"
branch_labels = None
depends_on = None

_TIERS = "tier IN ('priority', 'default', 'flex'{more})"
_ACTIVE = sa.text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')")


def _instant(name: str, *, default: bool = False, nullable: bool = True) -> sa.Column[object]:
    if default:
        return sa.Column(name, sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False)
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=nullable)


def _amounts() -> list[sa.Column[object]]:
    counters = {
        "completed": None,
        "failed": "Expired lines too",
        "cancelled": None,
        "prompt_tokens": None,
        "cached_tokens": None,
        "completion_tokens": None,
        "reasoning_tokens": None,
    }
    columns: list[sa.Column[object]] = []
    for name, comment in counters.items():
        columns.append(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False, comment=comment))
    return [
        *columns,
        sa.Column("cost", sa.Numeric(20, 10), nullable=True, comment="USD; null when nothing had a price"),
    ]


def upgrade() -> None:
    _create_files()
    _create_batches()
    op.add_column("jobs", sa.Column("batch_id", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("line", sa.Integer(), nullable=True, comment="Of the batch's input, from 1"))
    op.add_column(
        "jobs", sa.Column("custom_id", sa.Text(), nullable=True, comment="The name that the batch's client gave it")
    )
    op.add_column(
        "jobs",
        sa.Column(
            "finished_in",
            sa.BigInteger(),
            nullable=True,
            comment="The transaction: no snapshot sees a later one but not this",
        ),
    )
    op.create_foreign_key(op.f("fk_jobs_batch_id"), "jobs", "batches", ["batch_id"], ["id"])
    op.create_check_constraint(
        op.f("ck_jobs_line_of_batch"),
        "jobs",
        "(batch_id IS NULL) = (line IS NULL) AND (batch_id IS NULL) = (custom_id IS NULL)"
        " AND (batch_id IS NULL OR background)",
    )
    op.create_check_constraint(
        op.f("ck_jobs_finished_in_of_line"),
        "jobs",
        "batch_id IS NULL OR (finished_at IS NULL) = (finished_in IS NULL)",
    )
    op.drop_constraint(op.f("ck_jobs_tier_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_tier_known"), "jobs", _TIERS.format(more=", 'batch'"))
    op.create_index(
        "uq_jobs_batch_id_line",
        "jobs",
        ["batch_id", "line"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_batch_id_finished_in_line",
        "jobs",
        ["batch_id", "finished_in", "line"],
        postgresql_where=sa.text("batch_id IS NOT NULL AND finished_in IS NOT NULL"),
    )
    op.add_column("usage", sa.Column("batch_id", sa.Text(), nullable=True))


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column(
            "bytes", sa.BigInteger(), nullable=True, comment="Null until the file is complete, and hidden until then"
        ),
        _instant("created_at", default=True),
        _instant("expires_at"),
        sa.CheckConstraint("purpose IN ('batch', 'batch_output')", name=op.f("ck_files_purpose_known")),
        sa.CheckConstraint("bytes >= 0", name=op.f("ck_files_bytes_not_negative")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_files_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_account_id_id", "files", ["account_id", "id"])
    op.create_index("ix_files_unfinished", "files", ["created_at"], postgresql_where=sa.text("bytes IS NULL"))
    op.create_index("ix_files_expires_at", "files", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL"))
    op.create_table(
        "file_chunks",
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("data", postgresql.BYTEA(), nullable=False, comment="Stored EXTERNAL"),
        sa.CheckConstraint("octet_length(data) BETWEEN 1 AND 262144", name=op.f("ck_file_chunks_data_in_bounds")),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_file_chunks_file_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("file_id", "number", name=op.f("pk_file_chunks")),
    )
    op.execute("ALTER TABLE file_chunks ALTER COLUMN data SET STORAGE EXTERNAL")


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="validating", nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("output_seconds", sa.Integer(), nullable=True, comment="How long its output files are kept"),
        sa.Column("metadata", postgresql.JSONB(), nullable=True),
        sa.Column("webhook", sa.Text(), nullable=True),
        sa.Column(
            "errors",
            postgresql.JSONB(),
            nullable=True,
            comment="What is wrong with the input: OpenAI's error objects with their lines",
        ),
        sa.Column(
            "model", sa.Text(), nullable=True, comment="The one that every line asks for; null where they differ"
        ),
        sa.Column("native_route", sa.Text(), nullable=True, comment="Its lines go to this route's own batch API"),
        sa.Column(
            "agents", postgresql.JSONB(), nullable=True, comment="Which version of each agent its lines run with"
        ),
        sa.Column("total", sa.Integer(), server_default="0", nullable=False, comment="Lines"),
        sa.Column("fed", sa.Integer(), server_default="0", nullable=False, comment="Lines that have become jobs"),
        sa.Column("next_offset", sa.BigInteger(), server_default="0", nullable=False, comment="Of the input, in bytes"),
        sa.Column(
            "next_line", sa.Integer(), server_default="1", nullable=False, comment="The number of the line there"
        ),
        *_amounts(),
        _instant("created_at", default=True),
        _instant("expires_at", nullable=False),
        _instant("in_progress_at"),
        _instant("finalizing_at"),
        _instant("completed_at"),
        _instant("failed_at"),
        _instant("expired_at"),
        _instant("cancelling_at"),
        _instant("cancelled_at"),
        sa.CheckConstraint(
            "state IN ('validating', 'in_progress', 'finalizing', 'cancelling', 'completed', 'failed', 'expired',"
            " 'cancelled')",
            name=op.f("ck_batches_state_known"),
        ),
        sa.CheckConstraint(
            "(state = 'completed') = (completed_at IS NOT NULL) AND (state = 'failed') = (failed_at IS NOT NULL)"
            " AND (state = 'expired') = (expired_at IS NOT NULL)"
            " AND (state = 'cancelled') = (cancelled_at IS NOT NULL)",
            name=op.f("ck_batches_end_has_time"),
        ),
        sa.CheckConstraint("(state = 'failed') = (errors IS NOT NULL)", name=op.f("ck_batches_errors_of_failed")),
        sa.CheckConstraint(
            "fed BETWEEN 0 AND total AND completed + failed + cancelled <= fed",
            name=op.f("ck_batches_counts_add_up"),
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_batches_account_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_batches_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_account_id_id", "batches", ["account_id", "id"])
    op.create_index("ix_batches_input_file_id", "batches", ["input_file_id"])
    op.create_index("ix_batches_active", "batches", ["id"], postgresql_where=_ACTIVE)
    op.create_table(
        "batch_tallies",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        *_amounts(),
        _instant("created_at", default=True),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_batch_tallies_batch_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_tallies")),
    )
    op.create_index("ix_batch_tallies_batch_id", "batch_tallies", ["batch_id"])
    op.create_table(
        "native_parcels",
        sa.Column("id", sa.Text(), nullable=False, comment="The `worker` of the jobs in it"),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="filling", nullable=False),
        sa.Column("remote_id", sa.Text(), nullable=True, comment="The provider's id of its batch"),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False, comment="In a row"),
        sa.Column("error", sa.Text(), nullable=True, comment="The last one"),
        _instant("created_at", default=True),
        _instant("due_at", default=True),
        sa.CheckConstraint(
            "state IN ('filling', 'submitting', 'submitted', 'done')", name=op.f("ck_native_parcels_state_known")
        ),
        sa.CheckConstraint(
            "state <> 'submitted' OR remote_id IS NOT NULL", name=op.f("ck_native_parcels_remote_id_of_submitted")
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_native_parcels_batch_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_native_parcels")),
    )
    op.create_index("ix_native_parcels_batch_id", "native_parcels", ["batch_id"])


def downgrade() -> None:
    op.drop_column("usage", "batch_id")
    op.drop_index("ix_jobs_batch_id_finished_in_line", "jobs")
    op.drop_index("uq_jobs_batch_id_line", "jobs")
    op.execute("UPDATE jobs SET tier = 'flex' WHERE tier = 'batch'")
    op.drop_constraint(op.f("ck_jobs_tier_known"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_tier_known"), "jobs", _TIERS.format(more=""))
    op.drop_constraint(op.f("ck_jobs_finished_in_of_line"), "jobs")
    op.drop_constraint(op.f("ck_jobs_line_of_batch"), "jobs")
    op.drop_constraint(op.f("fk_jobs_batch_id"), "jobs")
    for column in ("finished_in", "custom_id", "line", "batch_id"):
        op.drop_column("jobs", column)
    op.drop_table("native_parcels")
    op.drop_table("batch_tallies")
    op.drop_table("batches")
    op.drop_table("file_chunks")
    op.drop_table("files")
