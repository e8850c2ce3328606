"""Rows of batches, of the tallies of their jobs, and of the parcels for providers' own batch APIs.

A statement that ends jobs of a batch inserts a tally and leaves the batch's row alone, so no two such statements wait
for each other. The scheduler later folds tallies into the batch's row. A batch's counts are always the sum of its row
and its tallies, because folding changes both in one statement.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from headrace.stores.tables import instant, metadata


def _counter(name: str, comment: str | None = None) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0", comment=comment)


def _amounts() -> list[sa.Column[object]]:
    return [
        _counter("completed"),
        _counter("failed", "Expired lines too"),
        _counter("cancelled"),
        _counter("prompt_tokens"),
        _counter("cached_tokens"),
        _counter("completion_tokens"),
        _counter("reasoning_tokens"),
        sa.Column("cost", sa.Numeric, comment="USD; null when nothing had a price"),
    ]


batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("key_id", sa.ForeignKey("api_keys.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="validating"),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("completion_window", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("output_file_id", sa.Text),
    sa.Column("error_file_id", sa.Text),
    sa.Column("output_seconds", sa.Integer, comment="How long its output files are kept"),
    sa.Column("metadata", JSONB),
    sa.Column("webhook", sa.Text),
    sa.Column("trace_context", sa.Text, comment="As that of a job: its lines have it too"),
    sa.Column("errors", JSONB, comment="What is wrong with the input: OpenAI's error objects with their lines"),
    sa.Column("model", sa.Text, comment="The one that every line asks for; null where they differ"),
    sa.Column("native_route", sa.Text, comment="Its lines go to this route's own batch API"),
    sa.Column("agents", JSONB, comment="Which version of each agent its lines run with"),
    sa.Column("total", sa.Integer, nullable=False, server_default="0", comment="Lines"),
    sa.Column("fed", sa.Integer, nullable=False, server_default="0", comment="Lines that have become jobs"),
    sa.Column("next_offset", sa.BigInteger, nullable=False, server_default="0", comment="Of the input, in bytes"),
    sa.Column("next_line", sa.Integer, nullable=False, server_default="1", comment="The number of the line there"),
    *_amounts(),
    instant("created_at", default=True),
    instant("expires_at", nullable=False),
    instant("in_progress_at"),
    instant("finalizing_at"),
    instant("completed_at"),
    instant("failed_at"),
    instant("expired_at"),
    instant("cancelling_at"),
    instant("cancelled_at"),
    sa.CheckConstraint(
        "state IN ('validating', 'in_progress', 'finalizing', 'cancelling', 'completed', 'failed', 'expired',"
        " 'cancelled')",
        name="state_known",
    ),
    sa.CheckConstraint(
        "(state = 'completed') = (completed_at IS NOT NULL) AND (state = 'failed') = (failed_at IS NOT NULL)"
        " AND (state = 'expired') = (expired_at IS NOT NULL) AND (state = 'cancelled') = (cancelled_at IS NOT NULL)",
        name="end_has_time",
    ),
    sa.CheckConstraint("(state = 'failed') = (errors IS NOT NULL)", name="errors_of_failed"),
    sa.CheckConstraint("fed BETWEEN 0 AND total AND completed + failed + cancelled <= fed", name="counts_add_up"),
    sa.Index("ix_batches_account_id_id", "account_id", "id"),
    sa.Index("ix_batches_input_file_id", "input_file_id"),
    # A small set that the scheduler scans all the time.
    sa.Index(
        "ix_batches_active",
        "id",
        postgresql_where=sa.text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    ),
)

batch_tallies = sa.Table(
    "batch_tallies",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("batch_id", sa.ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    *_amounts(),
    instant("created_at", default=True),
    sa.Index("ix_batch_tallies_batch_id", "batch_id"),
)

native_parcels = sa.Table(
    "native_parcels",
    metadata,
    sa.Column("id", sa.Text, primary_key=True, comment="The `worker` of the jobs in it"),
    sa.Column("batch_id", sa.ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="filling"),
    sa.Column("remote_id", sa.Text, comment="The provider's id of its batch"),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0", comment="In a row"),
    sa.Column("error", sa.Text, comment="The last one"),
    instant("created_at", default=True),
    instant("due_at", default=True),
    sa.Column("route", sa.Text, comment="Whose batch API has it, once its batch has no route any more"),
    sa.Column(
        "cancelled",
        sa.Boolean,
        nullable=False,
        server_default=sa.false(),
        comment="Its provider was asked to cancel it",
    ),
    sa.CheckConstraint("state IN ('filling', 'submitting', 'submitted', 'done')", name="state_known"),
    sa.CheckConstraint("state <> 'submitted' OR remote_id IS NOT NULL", name="remote_id_of_submitted"),
    sa.Index("ix_native_parcels_batch_id", "batch_id"),
)
